"""Batches by count, bytes and age, whichever comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil
from typing import Any

from bus.items import ItemRecord
from bus.message import Delivery, Position
from consumers.sink import Batch, Entry, Gap, Limits, Progress, Reject

__all__ = ["MESSAGES", "Batcher"]

MESSAGES = 16_000  # of a batch, at most: RabbitMQ hands out 65,535 before the first of them is acknowledged

# thrice as fast as Entry(…) and Position(…)
_entry: Callable[[tuple[Any, ...]], Entry] = partial(tuple.__new__, Entry)
_position: Callable[[tuple[int, int, int]], Position] = partial(tuple.__new__, Position)


class Batcher:
    """Collects what is read into the next batch, which may begin and end inside a message.

    Age counts from the first thing that entered, in seconds of the caller's monotonic clock. A batch holds at most
    `limits.items`, as many messages, and more than `limits.size_bytes` only by its last one. After `limit` items it
    takes no more.
    """

    def __init__(self, limits: Limits, limit: int | None = None) -> None:
        self._limits = limits
        self._left = limit
        self._begin()

    def _begin(self) -> None:
        self._batch, self._bytes, self._since = Batch(), 0.0, None  # type: Batch, float, float | None
        self._messages = 0

    @property
    def exhausted(self) -> bool:
        """The limit is reached."""
        return self._left == 0

    def due_in(self, now: float) -> float | None:
        """Seconds until the batch is old enough to be written; None while it is empty."""
        return None if self._since is None else self._since + self._limits.seconds - now

    def add(self, delivery: Delivery, records: Sequence[ItemRecord], now: float, *, skip: int = 0) -> Iterator[Batch]:
        """Take one message, without its first `skip` items; yields each batch that it fills."""
        partition, offset, count = delivery.partition, delivery.offset, len(records)
        share, index = len(delivery.message.body) / max(count, 1), skip
        end = count if self._left is None else min(count, skip + self._left)
        while index < end:
            self._touch(now)
            upto = min(end, index + self._room(share))
            self._batch.entries += [
                _entry((_position((partition, offset, number)), records[number])) for number in range(index, upto)
            ]
            self._bytes += share * (upto - index)
            self._left = None if self._left is None else self._left - (upto - index)
            index = upto
            if index < count:
                self._batch.progress[partition] = Progress(Position(partition, offset, index), delivery.message.id)
                if self._full:
                    yield self.take()
        if index >= count:
            yield from self._end_of(delivery, now)

    def reject(self, delivery: Delivery, reason: str, now: float) -> Iterator[Batch]:
        """Take a message that cannot be read."""
        message = delivery.message
        self._touch(now)
        self._batch.rejects.append(Reject(delivery.position, reason, message.id, message.headers, message.body))
        self._bytes += len(message.body)
        yield from self._end_of(delivery, now)

    def jump(self, gap: Gap, now: float, *, record: bool) -> None:
        """Go on at `gap.first`; `record`: the gap is a loss, and the sink keeps it."""
        self._touch(now)
        if record:
            self._batch.gaps.append(gap)
        self._batch.progress[gap.first.partition] = Progress(gap.first, "")

    def take(self) -> Batch:
        """What is there, full or not."""
        batch = self._batch
        self._begin()
        return batch

    def _end_of(self, delivery: Delivery, now: float) -> Iterator[Batch]:
        self._touch(now)
        after = Position(delivery.partition, delivery.offset + 1)
        self._batch.progress[delivery.partition] = Progress(after, delivery.message.id)
        self._batch.acks[delivery.partition] = delivery
        self._messages += 1
        if self._full:
            yield self.take()

    @property
    def _full(self) -> bool:
        count = len(self._batch.entries) + len(self._batch.rejects)
        return (
            count >= self._limits.items
            or self._bytes >= self._limits.size_bytes
            or self._messages >= min(self._limits.items, MESSAGES)  # those of other jobs, too
        )

    def _room(self, share: float) -> int:
        """How many items of so many bytes it takes until it is full: one at least."""
        items = self._limits.items - len(self._batch.entries) - len(self._batch.rejects)
        size_bytes = self._limits.size_bytes - self._bytes
        return max(1, items if share * items <= size_bytes else min(items, ceil(size_bytes / share)))

    def _touch(self, now: float) -> None:
        if self._since is None:
            self._since = now
