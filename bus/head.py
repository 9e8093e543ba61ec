"""What travels beside the body of a message, packed: for buses whose own headers know fewer types, or cost more."""

from __future__ import annotations

from typing import Any

import msgpack

from bus.errors import CodecError
from bus.message import HeaderValue, Message

__all__ = ["pack_head", "unpack_head"]


def pack_head(message: Message, *more: HeaderValue) -> bytes:
    """Id and headers, and what an adapter adds. Raises `CodecError` for what may not travel."""
    try:
        packed: bytes = msgpack.packb((message.id, message.headers, *more), unicode_errors="surrogatepass")
    except (TypeError, OverflowError, ValueError) as error:
        raise CodecError(f"a header that cannot travel: {error}", "headers") from None
    return packed


def unpack_head(packed: bytes) -> list[Any]:
    """Id, headers, and what was added. Raises `CodecError` for anything that `pack_head` has not written."""
    try:
        found: list[Any] = msgpack.unpackb(packed, unicode_errors="surrogatepass")
    except (ValueError, TypeError, msgpack.exceptions.UnpackException):
        raise CodecError("not the head of a message") from None
    if isinstance(found, list) and len(found) > 1 and isinstance(found[0], str) and isinstance(found[1], dict):
        return found
    raise CodecError("not the head of a message")
