"""Where to begin in the item log, whether it is the log that the sink knows, and its messages as batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from bus.errors import BusError, CodecError
from bus.items import read_items
from bus.message import Delivery, Position
from bus.transport import Lag
from consumers.batcher import Batcher
from consumers.identity import Known, last_read
from consumers.sink import Batch, Gap, Progress

__all__ = ["LogGap", "LogReader", "LogReplaced", "is_outside"]

FETCH_BYTES = 4 * 1024 * 1024
MAX_FETCH = 256


class LogGap(BusError):
    """The log does not hold what a consumer has to read next; `gap` has the numbers."""

    def __init__(self, consumer: str, gap: Gap) -> None:
        lost = gap.first.offset - gap.asked.offset
        what = (
            f"the item log has dropped {lost:,} messages that consumer {consumer!r} has not stored"
            if lost > 0
            else f"the item log is not the one that consumer {consumer!r} has read"
        )
        name, _, job = consumer.partition(":")
        words = (f" --name {name}" if name != "default" else "") + (f" --job {job}" if job else "")
        super().__init__(
            f"{what}: the sink is at {gap.asked}, the log holds {gap.first} to {gap.end};"
            f" `crawlbus consume{words} --accept-gap` with the same --bus and --sink goes on at {gap.first}"
        )
        self.gap = gap


class LogReplaced(Exception):
    """The message before the sink's position is another one: the log was deleted and made anew."""

    def __init__(self, partition: int) -> None:
        super().__init__(partition)
        self.partition = partition


def is_outside(progress: Progress, lag: Lag) -> bool:
    """The log does not hold what comes next, as far as its bounds are known."""
    partition, offset, _ = progress.next
    if lag.first is None or lag.end is None:
        return False
    return not lag.first.get(partition, 0) <= offset <= lag.end.get(partition, 0)


class LogReader:
    """Turns deliveries into batches, from the sink's positions on.

    It reads the message before each position once more, and compares its id with the one that the sink has kept.
    `on_gap` is asked where a position is outside of the log; it raises, or returns whether to record the gap.
    """

    def __init__(
        self, batcher: Batcher, job: str | None, on_gap: Callable[[Gap], bool], replaced: frozenset[int]
    ) -> None:
        self._batcher, self._job, self._on_gap, self._replaced = batcher, job, on_gap, replaced
        self._held: frozenset[int] = frozenset()
        self._next: dict[int, Position] = {}  # the first item to store
        self._read: dict[int, int] = {}  # the offset to read next
        self._known: dict[int, Known] = {}  # the message to compare
        self._furthest: dict[int, Delivery] = {}
        self._mean_bytes = FETCH_BYTES / 16

    def begin(self, held: Mapping[int, Progress | None], lag: Lag, now: float) -> list[Position]:
        """Where to subscribe to the partitions held; empty: at the earliest of all."""
        self._held = frozenset(held)
        for progress in held.values():
            if progress is not None:
                self._begin_partition(progress, lag, now)
        for partition, first in (lag.first or {}).items():
            if partition in held:
                self._read.setdefault(partition, first)
        fresh = not any(held.values()) and (lag.first is None or held.keys() == lag.first.keys())
        return [] if fresh else [Position(partition, offset) for partition, offset in sorted(self._read.items())]

    def _begin_partition(self, progress: Progress, lag: Lag, now: float) -> None:
        start, partition = progress.next, progress.next.partition
        if lag.first is not None and lag.end is not None:
            first, end = lag.first.get(partition, 0), lag.end.get(partition, 0)
            if partition in self._replaced or is_outside(progress, lag):
                gap = Gap(start, Position(partition, first), Position(partition, end))
                self._batcher.jump(gap, now, record=self._on_gap(gap))
                start, progress = gap.first, Progress(gap.first, "")
        before = last_read(progress)
        self._next[partition], self._read[partition] = start, start.offset
        if progress.message and before >= (lag.first or {}).get(partition, 0):
            self._known[partition], self._read[partition] = Known(before, progress.message), before

    @property
    def known(self) -> Mapping[int, Known]:
        """The messages to be compared: read before, and not seen again yet."""
        return self._known

    @property
    def fetch(self) -> int:
        """How many messages to ask for: about 4 MiB."""
        return max(1, min(MAX_FETCH, int(FETCH_BYTES / self._mean_bytes)))

    @property
    def exhausted(self) -> bool:
        return self._batcher.exhausted

    @property
    def furthest(self) -> list[Delivery]:
        """The message read last of each partition."""
        return list(self._furthest.values())

    def due_in(self, now: float) -> float | None:
        return self._batcher.due_in(now)

    def last(self) -> Batch:
        """The batch that was begun."""
        return self._batcher.take()

    def has_read(self, partition: int, offset: int) -> bool | None:
        """All of a partition below `offset`? None: we do not hold it."""
        return self._read.get(partition, 0) >= offset if partition in self._held else None

    def take(self, delivery: Delivery, now: float) -> Iterator[Batch]:
        """One message; yields the batches that it fills. Raises `LogReplaced`."""
        partition, offset, message = delivery.partition, delivery.offset, delivery.message
        if offset < self._read.get(partition, 0):
            return
        known = self._known.pop(partition, None)
        if known is not None and known.offset == offset and known.message != message.id:
            raise LogReplaced(partition)
        self._read[partition], self._furthest[partition] = offset + 1, delivery
        self._mean_bytes = 0.9 * self._mean_bytes + 0.1 * len(message.body)
        start = self._next.get(partition)
        if start is not None and offset < start.offset:
            return
        if self._job is not None and message.headers.get("job") != self._job:
            yield from self._batcher.add(delivery, (), now)
            return
        try:
            records = read_items(message)
        except CodecError as error:
            yield from self._batcher.reject(delivery, str(error), now)
            return
        skip = start.index if start is not None and offset == start.offset else 0
        yield from self._batcher.add(delivery, records, now, skip=skip)
