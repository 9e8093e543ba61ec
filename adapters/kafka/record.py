"""A message as a Kafka record: the body is its value, the key its key; id and headers are in one header."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import msgpack

from bus.errors import CodecError
from bus.message import Message

__all__ = ["HEADER", "head", "message_of"]

HEADER = "crawlbus"
_unpack = partial(msgpack.unpackb, unicode_errors="surrogatepass")


def head(message: Message) -> bytes:
    """Id and headers, packed. Raises `CodecError` for what may not travel."""
    try:
        packed: bytes = msgpack.packb((message.id, message.headers), unicode_errors="surrogatepass")
    except (TypeError, OverflowError, ValueError) as error:
        raise CodecError(f"a header that cannot travel: {error}", "headers") from None
    return packed


def message_of(record: Any) -> Message:
    """Of a record that is none of ours, a message without headers, so that its reader says so and goes on."""
    try:
        name, packed = record.headers[0]  # others may have added theirs on the way
        id, headers = _unpack(packed)
        if name == HEADER and type(id) is str and type(headers) is dict:
            return Message(id, record.value or b"", headers, record.key or b"")
    except (IndexError, ValueError, TypeError, msgpack.exceptions.UnpackException):
        pass
    place = f"{record.topic}/{record.partition}/{record.offset}"
    id = hashlib.blake2b(place.encode(), digest_size=16).hexdigest()
    return Message(id, record.value or b"", {}, record.key or b"")
