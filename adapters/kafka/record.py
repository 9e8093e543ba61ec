"""A message as a Kafka record: the body is its value, the key its key; id and headers are in one header."""

from __future__ import annotations

import hashlib
from typing import Any

from bus.errors import CodecError
from bus.head import unpack_head
from bus.message import Message

__all__ = ["HEADER", "message_of"]

HEADER = "crawlbus"


def message_of(record: Any) -> Message:
    """Of a record that is none of ours, a message without headers, so that its reader says so and goes on."""
    body, key = record.value or b"", record.key or b""
    try:
        name, packed = record.headers[0]  # others may have added theirs on the way
        if name == HEADER:
            id, headers = unpack_head(packed)
            return Message(id, body, headers, key)
    except (IndexError, ValueError, CodecError):
        pass
    place = f"{record.topic}/{record.partition}/{record.offset}"
    return Message(hashlib.blake2b(place.encode(), digest_size=16).hexdigest(), body, {}, key)
