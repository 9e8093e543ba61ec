"""`Sieve`: what is wanted of a part of the log, and what becomes of it, as batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bus.items import ItemRecord, read_items
from bus.message import Delivery, Position
from consumers.batcher import Batcher
from consumers.replay.bounds import Part
from consumers.replay.selection import Selection
from consumers.rows import reject_item
from consumers.sink import Batch, Entry, Limits, Progress
from consumers.through import Through

__all__ = ["Sieve"]

DERIVED = 1 << 16  # what is made of one item stands in places of its own, by which a sink tells one from another


class Sieve(Batcher):
    """A batcher of what a part of the log holds and a selection takes, as `through` makes it.

    `told_to_end` is asked before each call of `through`. `messages` held something that was taken, `size_bytes` in all.
    """

    def __init__(
        self,
        limits: Limits,
        part: Part,
        selection: Selection,
        through: Through | None = None,
        told_to_end: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(limits)
        self._part, self._selection, self.through, self._told_to_end = part, selection, through, told_to_end
        self._closed = False
        self.messages, self.size_bytes = 0, 0.0

    def add(self, delivery: Delivery, records: Sequence[ItemRecord], now: float, *, skip: int = 0) -> Iterator[Batch]:
        """Take what is wanted of one message. Nothing more is taken once it was told to end."""
        partition, offset, id = delivery.partition, delivery.offset, delivery.message.id
        share, taken = len(delivery.message.body) / max(len(records), 1), 0
        for index in range(skip, len(records)):
            position = Position(partition, offset, index)
            if position >= self._part.end[partition] or not self._selection.takes(records[index]):
                continue
            if self._closed or (self.through is not None and self._told_to_end()):
                self._close(position, id)
                return
            self._touch(now)
            self._put(delivery, position, records[index])
            self._bytes += share
            taken += 1
            if index + 1 < len(records) and self._full:
                self._batch.progress[partition] = Progress(Position(partition, offset, index + 1), id)
                yield self.take()
        self.messages, self.size_bytes = self.messages + bool(taken), self.size_bytes + taken * share
        if not self._closed:
            yield from self._end_of(delivery, now)

    def reject(self, delivery: Delivery, reason: str, now: float) -> Iterator[Batch]:
        if not self._closed:
            yield from super().reject(delivery, reason, now)

    def _close(self, position: Position, id: str) -> None:
        if not self._closed and position.index:
            self._batch.progress[position.partition] = Progress(position, id)
        self._closed = True

    def _put(self, delivery: Delivery, position: Position, record: ItemRecord) -> None:
        if self.through is None:
            self._batch.entries.append(Entry(position, record))
            return
        made = self.through(record)
        if isinstance(made, str):  # read anew: the function may have changed what it was given
            original = read_items(delivery.message)[position.index]
            self._batch.rejects.append(reject_item(Entry(position, original), made))
            return
        for number, item in enumerate(made):
            place = position._replace(index=position.index + number * DERIVED)
            self._batch.entries.append(Entry(place, item))

    def finish(self, partition: int) -> None:
        """All of a partition is read, and the last offsets of it hold nothing."""
        if not self._closed:
            self._batch.progress[partition] = Progress(self._part.end[partition], "")
