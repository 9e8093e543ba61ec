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
    "Changes",
    "Entry",
    "Fenced",
    "Gap",
    "Limits",
    "Progress",
    "Quarantined",
    "Reject",
    "Sink",
    "SinkUnavailable",
    "Written",
    "refuse_unknown",
    "sink_of",
]


class Fenced(BusError):
    """Another consumer of the same name holds a partition of the batch now. Nothing of it is stored."""


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


class Quarantined(NamedTuple):
    """What stands in a sink's quarantine. `id` names it in there; `at` is a time (ISO 8601, UTC)."""

    id: str
    consumer: str
    topic: str
    at: str
    reject: Reject


@dataclass(slots=True)
class Batch:
    """What is stored in one transaction. `acks` are the last wholly read messages, for the bus only.

    `resolved` are ids of the quarantine that this batch stores: they leave it. A batch without progress, as of
    `quarantine retry`, needs no partition to be held.
    """

    entries: list[Entry] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    progress: dict[int, Progress] = field(default_factory=dict)
    acks: dict[int, Delivery] = field(default_factory=dict)
    resolved: list[str] = field(default_factory=list)


class Limits(NamedTuple):
    """The batches that a sink stores best; `--batch-size` and `--batch-seconds` go before it."""

    items: int = 1000
    size_bytes: int = 4 * 1024 * 1024
    seconds: float = 1.0


class Written(NamedTuple):
    """How many items of a batch were stored, and how many things went to quarantine.

    `sanitized` counts the values that the storage cannot hold as they were, and that it holds in another form.
    """

    stored: int
    quarantined: int
    sanitized: int = 0


class Changes(NamedTuple):
    """What storing items would do: ids that are new, that would get other values, that would stay as they are."""

    new: int
    changed: int
    same: int


class Sink(Protocol):
    """Storage for items. It is made from a URL without touching the storage. Calls may overlap: they run one after
    another. Any of them but `aclose` may raise `SinkUnavailable` (the caller waits and repeats) or `StorageFailed`
    (waiting will not help); what raises has changed nothing.

    In a table an id is stored once, however often it is written; in a file it may repeat.
    """

    limits: Limits

    async def open(self, consumer: str, topic: str) -> None:
        """Create what is missing, as a member of `consumer`, who has progress of its own. Nothing is taken over yet.

        Raises `Misconfigured` where the storage is not ours to write.
        """
        ...

    async def hold(self, partitions: Set[int]) -> Mapping[int, Progress | None]:
        """Take what is free of these partitions of the topic, up to this member's share; returns all that it holds
        now, with how far each is stored (None: not at all yet).

        Members of one consumer share partitions evenly: one that has none takes from the richest, and whom it was
        taken from is fenced. A member is live for `consumers.members.LEASE_S` after its last call; call it again in
        a third of that. One whose process has died on this machine is not waited for. Raises `Fenced`, once, where a
        partition that it held was another's meanwhile and is free again: what was read of it is of no use.
        """
        ...

    async def positions(self) -> Sequence[Progress]:
        """How far this consumer, all its members together, has stored `topic`, by partition."""
        ...

    async def write(self, batch: Batch) -> Written:
        """Store rows, quarantine, gaps and progress: all or nothing, durable on return, harmless if repeated.

        Raises `Fenced` where a partition in `batch.progress` is not held (any more).
        """
        ...

    async def compare(self, entries: Sequence[Entry]) -> Changes:
        """What `write` would do to the rows. Needs no `open`, and creates nothing. Raises `Unsupported` where rows
        cannot be looked up by id."""
        ...

    async def quarantined(self) -> Sequence[Quarantined]:
        """All that stands in quarantine, of every consumer, oldest first. Needs no `open`, and creates nothing."""
        ...

    async def drop(self, ids: Sequence[str]) -> int:
        """Take these out of quarantine for good; returns how many were there. Needs no `open`."""
        ...

    async def aclose(self) -> None:
        """Always closes, also if called twice or never opened; what was held is free at once."""
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
