"""A message as the two fields of a stream's entry: `m`, its id, headers and key packed, and `b`, its body."""

from __future__ import annotations

from collections.abc import Sequence

from bus.errors import CodecError
from bus.head import pack_head, unpack_head
from bus.message import Message

__all__ = ["pack", "unpack"]


def pack(message: Message) -> bytes:
    """All but the body. Raises `CodecError` for what may not travel."""
    return pack_head(message, message.key)


def unpack(fields: Sequence[bytes]) -> Message:
    """The message of an entry. What is damaged comes without id and headers: whoever reads it says so, and goes on."""
    try:
        _, packed, _, body = fields[:4]
        id_, headers, key = unpack_head(packed)
    except (ValueError, CodecError):
        return Message("", b"")
    return Message(id_, body, headers, key)
