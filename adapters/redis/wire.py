"""A message as the two fields of a stream's entry: `m`, its id, headers and key packed, and `b`, its body."""

from __future__ import annotations

from collections.abc import Sequence

import msgpack

from bus.errors import CodecError
from bus.message import Message

__all__ = ["pack", "unpack"]


def pack(message: Message) -> bytes:
    """All but the body."""
    try:
        packed: bytes = msgpack.packb((message.id, message.headers, message.key), unicode_errors="surrogatepass")
    except (TypeError, OverflowError, ValueError) as error:
        raise CodecError(f"a header that cannot travel: {error}", "headers") from None
    return packed


def unpack(fields: Sequence[bytes]) -> Message:
    """The message of an entry. What is damaged comes without id and headers: whoever reads it says so, and goes on."""
    try:
        _, packed, _, body = fields[:4]
        id_, headers, key = msgpack.unpackb(packed, unicode_errors="surrogatepass")
    except (ValueError, TypeError, msgpack.exceptions.UnpackException):
        return Message("", b"")
    return Message(id_, body, headers, key)
