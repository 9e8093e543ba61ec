"""A message as RabbitMQ carries it: id, key and headers in front of the body, so that every type survives.

AMQP's own header tables know no bytes that come back as bytes in every client, and cost more to read and write.
"""

from __future__ import annotations

import struct

from bus.errors import CodecError
from bus.head import pack_head, unpack_head
from bus.message import Message

__all__ = ["seal", "unseal"]

MARK = 0xC1  # never the first byte of msgpack
_HEAD = struct.Struct(">BI")  # the mark, the length of what stands before the body


def seal(message: Message, at: float | None = None) -> bytes:
    """The bytes of a message. `at` is the time of publishing (s since the epoch), for a LOG."""
    front = pack_head(message, message.key, at)
    return b"".join((_HEAD.pack(MARK, len(front)), front, message.body))


def unseal(data: bytes, id_if_foreign: str = "") -> tuple[Message, float | None]:
    """The message, and when it was published. What others have put there is a body without headers."""
    try:
        mark, length = _HEAD.unpack_from(data)
        end = _HEAD.size + length
        if mark != MARK or end > len(data):
            raise CodecError("not ours")
        id_, headers, key, at = unpack_head(data[_HEAD.size : end])
        return Message(id_, data[end:], headers, key), at
    except (struct.error, CodecError, ValueError):
        return Message(id_if_foreign, data), None
