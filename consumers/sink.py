"""The contract of a sink: storage that keeps the consumer's position in the same transaction as the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast

from bus.errors import BusError, Misconfigured, TransportError
from bus.items import ItemRecord
from bus.message import Delivery, HeaderValue, Position
from bus.registry import load
from bus.url import hide_secrets, scheme

__all__ = [
    "Batch",
    "Entry",
    "Fenced",
    "Gap",
    "Progress",
    "Reject",
    "Sink",
    "SinkUnavailable",
    "Written",
    "refuse_unknown",
    "sink_of",
]


class Fenced(BusError):
    """Another consumer of the same name has opened this sink since: this one may not write any more."""


class SinkUnavailable(TransportError):
    """The sink cannot write now, and may later (locked, not reachable). Nothing of the batch is stored."""


class Entry(NamedTuple):
    """One item, and where it stands in the log."""

    position: Position
    record: ItemRecord


class Reject(NamedTuple):
    """What cannot become a row: a message that cannot be read, or an item that the sink does not take.

    `content` is the message's body, or the packed item: all of it, so that it can be stored later.
    """

    position: Position
    reason: str
    id: str
    headers: Mapping[str, HeaderValue]
    content: bytes


class Progress(NamedTuple):
    """How far one partition is stored: `next` is the first item that is not.

    `message` is the id of the message read last, wholly or in part: by it a log that was deleted and made
    anew is told from the old one. Empty where it is not known.
    """

    next: Position
    message: str


class Gap(NamedTuple):
    """What the log no longer held when the consumer came to read it: it went from `asked` on to `first`."""

    asked: Position
    first: Position
    end: Position


@dataclass(slots=True)
class Batch:
    """What is stored in one transaction. `acks` are the last wholly read messages, for the bus only."""

    entries: list[Entry] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    progress: dict[int, Progress] = field(default_factory=dict)
    acks: dict[int, Delivery] = field(default_factory=dict)


class Written(NamedTuple):
    """How many items of a batch were stored, and how many things went to quarantine."""

    stored: int
    quarantined: int


class Sink(Protocol):
    """Storage for items. One task at a time uses it. It is made from a URL without touching the storage.

    In a table an id is stored once, however often it is written; in a file it may repeat.
    """

    async def open(self, consumer: str, topic: str) -> None:
        """Create what is missing and take over as `consumer`: whoever opened before us is fenced from now on.

        Raises `Misconfigured` where the storage is not ours to write, `StorageFailed`, `SinkUnavailable`.
        """
        ...

    async def positions(self) -> Sequence[Progress]:
        """How far this consumer has stored `topic`, by partition; none at first. Raises like `write`."""
        ...

    async def write(self, batch: Batch) -> Written:
        """Store rows, quarantine, gaps and progress: all or nothing, durable on return, harmless if repeated.

        Raises `Fenced`, `SinkUnavailable` (the caller waits and repeats) or `StorageFailed` (waiting will not
        help). What it raises, nothing has changed.
        """
        ...

    async def aclose(self) -> None:
        """Always closes, also if called twice or never opened."""
        ...


def refuse_unknown(url: str, options: Iterable[str], known: Set[str]) -> None:
    """Raise `Misconfigured` for an option of a sink's URL that the sink does not have."""
    for option in options:
        if option not in known:
            have = ", ".join(sorted(known)) or "none"
            raise Misconfigured(f"the sink {hide_secrets(url)} has no option {option!r}; it has: {have}")


def sink_of(url: str) -> Sink:
    """The sink of a URL, not open yet. Raises `Misconfigured` for a scheme that is not known, or a bad URL."""
    return cast(Sink, load("crawlbus.sinks", scheme(url)).from_url(url))
