"""What a transport can do, declared as a value that production code reads."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bus.errors import Unsupported

__all__ = ["Acks", "Capabilities", "Delay", "Durability", "SeekBy", "require"]


class Durability(Enum):
    """What survives once `publish` has returned."""

    PROCESS = "process"  # nothing beyond this process
    PAGE_CACHE = "page cache"  # a killed server, not a power cut
    FSYNC = "fsync"  # a power cut
    REPLICATED = "replicated"  # the loss of a machine


class Acks(Enum):
    """INDIVIDUAL: each ack stands alone. PREFIX: a QUEUE's reader commits what is done without gaps."""

    INDIVIDUAL = "individual"
    PREFIX = "prefix"


class Delay(Enum):
    """How a QUEUE comes to honour `not_before`. `bus.bands.Banded` makes BANDS of the first two."""

    NONE = "none"  # it cannot: `publish` refuses such a message
    HOLDS = "holds"  # it cannot, but a queue with `Topic.hold_s` passes its messages on by itself
    BANDS = "bands"  # by delay bands: never early, at most about a second late
    NATIVE = "native"  # by itself, at its time


class SeekBy(Enum):
    """What `seek` and `start` of a LOG accept besides `earliest` and `latest`."""

    POSITION = "position"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Asking for what is absent raises `Unsupported` at `declare` or `subscribe`, never later, never silently."""

    queue_durability: Durability
    log_durability: Durability
    acks: Acks
    lease_s: float | None  # an unacknowledged delivery of a reader that is frozen or cut off returns within about this
    counts_redeliveries: bool
    releases_on_close: bool  # `aclose` hands unacknowledged work back at once
    delay: Delay
    seek_by: frozenset[SeekBy]
    exact_lag: bool
    shared_between_processes: bool
    shared_between_hosts: bool
    hides_s: float = 0.0  # a delayed message that cannot be moved on may be in no count of `lag` for so long

    @property
    def delays(self) -> bool:
        """A QUEUE honours `not_before`."""
        return self.delay in (Delay.BANDS, Delay.NATIVE)


def require(capabilities: Capabilities, **wanted: object) -> None:
    """Raise `Unsupported` unless each named field has the value wanted."""
    for name, value in wanted.items():
        if (has := getattr(capabilities, name)) != value:
            raise Unsupported(f"this transport has {name}={has}, and {value} is needed")
