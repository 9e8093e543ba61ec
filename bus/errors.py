"""What can go wrong on a bus, as one tree; a driver's own exceptions never escape an adapter.

BusError
├── TransportError
│   ├── ConnectionLost       the other side is gone; the caller waits and goes on
│   ├── PublishUnconfirmed   each message may or may not be stored: publish again, same ids
│   └── StorageFailed        the store refuses to write (full disk, read-only): waiting will not help
├── StaleDelivery            an ack came too late: its lease, channel or partition is another's
├── PositionExpired          the log no longer holds, or does not yet hold, the position asked for
├── Unsupported              the transport declares that it cannot do this
├── CodecError               bytes or values that may not travel
│   └── OverLimit            ... because they are too large, too deep or too many
├── Misconfigured            a setting is wrong; the message names the setting and the mend
└── Closed                   used after `aclose`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from bus.message import Delivery, Position

__all__ = [
    "BusError",
    "Closed",
    "CodecError",
    "ConnectionLost",
    "Misconfigured",
    "OverLimit",
    "PositionExpired",
    "PublishUnconfirmed",
    "StaleDelivery",
    "StorageFailed",
    "TransportError",
    "Unsupported",
]


class BusError(Exception):
    """Base of all. `exit_code` is what a command ends with if nobody handles it."""

    exit_code = 1


class TransportError(BusError):
    """A transport or a state could not do its work."""

    exit_code = 3


class ConnectionLost(TransportError):
    """The other side is gone. Nothing is known of calls under way; the caller may wait and repeat them."""


class PublishUnconfirmed(TransportError):
    """Each message of the call may or may not be stored. The caller publishes all again, with the same ids."""


class StorageFailed(TransportError):
    """The store refuses to write: a full disk, a read-only directory, a file that is no database."""


class StaleDelivery(BusError):
    """An ack for a lost lease, channel or partition: it changed nothing. `deliveries` are the stale ones only."""

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        super().__init__(f"{len(deliveries)} deliveries are no longer ours")
        self.deliveries = tuple(deliveries)


class PositionExpired(BusError):
    """The position asked for is outside of the log. `first` and `end` (exclusive) are what it holds now."""

    def __init__(self, asked: Position, first: Position, end: Position) -> None:
        super().__init__(f"position {asked} is outside of the log, which holds {first} to {end}")
        self.asked, self.first, self.end = asked, first, end


class Unsupported(BusError):
    """The transport's `Capabilities` do not hold what was asked for."""

    exit_code = 2


class CodecError(BusError):
    """Bytes that cannot be read, or values that may not travel. `path` tells where, e.g. `meta.session`."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.reason, self.path = reason, path


class OverLimit(CodecError):
    """Larger than 8 MiB, deeper than 64, or more than 100,000 values."""


class Misconfigured(BusError):
    """A user's setting is wrong. The message is one sentence that names the setting and the mend."""

    exit_code = 2

    @classmethod
    def of(cls, setting: str, what: str) -> Self:
        """What is wrong with a setting, named as a flag and as a variable."""
        return cls(f"--{setting} (CRAWLBUS_{setting.upper()}): {what}")


class Closed(BusError):
    """The object was used after `aclose`."""
