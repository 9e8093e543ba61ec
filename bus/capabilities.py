"""What a transport can do, declared as a value that production code reads."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bus.errors import Unsupported

__all__ = ["Acks", "Capabilities", "Durability", "SeekBy", "require"]


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
    lease_s: float | None  # an unacknowledged delivery of a dead reader returns within about this time
    counts_redeliveries: bool
    releases_on_close: bool  # `aclose` hands unacknowledged work back at once
    native_delay: bool  # a QUEUE honours `not_before` by itself
    seek_by: frozenset[SeekBy]
    exact_lag: bool
    shared_between_processes: bool
    shared_between_hosts: bool


def require(capabilities: Capabilities, **wanted: object) -> None:
    """Raise `Unsupported` unless each named field has the value wanted."""
    for name, value in wanted.items():
        if (has := getattr(capabilities, name)) != value:
            raise Unsupported(f"this transport has {name}={has}, and {value} is needed")
