"""Messages, and where they stand: `Message`, `Delivery`, `Position`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Delivery", "HeaderValue", "Headers", "Message", "Position", "new_id", "parse_positions"]

HeaderValue: TypeAlias = str | bytes | int | float | bool | None
Headers: TypeAlias = Mapping[str, HeaderValue]

MAX_ATTEMPT = 1_000_000
_POSITION = re.compile(r"(\d+)/(\d+)(?:\.(\d+))?")


def new_id() -> str:
    """A message id: 32 random hexadecimal digits."""
    return os.urandom(16).hex()


class Message(NamedTuple):
    """What is published. `headers` are documented in `docs/messages.md`; `body` is opaque to a transport.

    `key` chooses the partition where a transport has any. `not_before` is a time (s since the epoch) before
    which a QUEUE does not deliver it.
    """

    id: str
    body: bytes
    headers: Headers = {}
    key: bytes = b""
    not_before: float | None = None

    def again(self, *, attempt: int | None = None, not_before: float | None = None) -> Message:
        """The same message once more, same id, as a retry (a new `attempt`) or a delay (the attempt unchanged)."""
        headers = self.headers if attempt is None else {**self.headers, "attempt": attempt}
        return self._replace(headers=headers, not_before=not_before)

    @property
    def attempt(self) -> int:
        """How many times this message has been retried: 0 at first, and for a number that none of ours can be."""
        value = self.headers.get("attempt", 0)
        return value if isinstance(value, int) and 0 <= value <= MAX_ATTEMPT else 0


class Position(NamedTuple):
    """A place in a LOG: partition, offset of the message, index of the item in it. Written `0/17` or `0/17.3`."""

    partition: int
    offset: int
    index: int = 0  # type: ignore[assignment]  # tuple.index is of no use here

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}" + (f".{self.index}" if self.index else "")


def parse_positions(text: str) -> list[Position]:
    """Read `0/17.3,1/4`. Raises `ValueError` on anything else."""
    found = []
    for part in text.split(","):
        match = _POSITION.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part.strip()!r} is not a position like 0/17 or 0/17.3")
        partition, offset, index = match.groups()
        found.append(Position(int(partition), int(offset), int(index or 0)))
    return found


class Delivery(NamedTuple):
    """One message handed to one reader. `token` is the adapter's own; `offset` counts from 0 in a LOG's partition.

    `redeliveries` is how often it was delivered before, or None where the transport cannot count.
    """

    message: Message
    topic: str
    partition: int
    offset: int
    redeliveries: int | None
    token: Any = None

    @property
    def position(self) -> Position:
        return Position(self.partition, self.offset)
