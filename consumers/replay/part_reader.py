"""`PartReader`: reads a part of the log, and leaves no trace on the bus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

from bus.codec import pack
from bus.items import MAX_PACK_ITEMS, item_messages, pack_item
from bus.message import Delivery, Position
from bus.transport import Lag, Seek, Subscription, Transport
from consumers.options import Ended
from consumers.pump import Pump
from consumers.reader import FETCH_BYTES, LogReader
from consumers.replay.bounds import Part, past
from consumers.replay.selection import Selection
from consumers.sieve import Sieve
from consumers.sink import Batch, Gap, Progress

__all__ = ["PartReader", "pump_part"]

PREFETCH = 512
RESPOND_S = 0.25  # a slow function gets no more messages at once than take about so long
_EMPTY = item_messages("", "", 0, [pack_item("", None, 0.0, {})])[0]._replace(body=pack([]))


class PartReader(LogReader):
    """Reads a part of the log. What cannot hold what is wanted is not unpacked."""

    def __init__(self, sieve: Sieve, part: Part, selection: Selection, on_gap: Callable[[Gap], bool]) -> None:
        super().__init__(sieve, None, on_gap, frozenset())
        self._sieve, self._part, self._selection = sieve, part, selection
        self._finished = set[int]()

    def _begin_partition(self, progress: Progress, lag: Lag, now: float) -> None:
        """What was dropped after all of the part was stored is no gap."""
        at, first = progress.next, lag.first or {}
        if self._part.end[at.partition] <= at < Position(at.partition, first.get(at.partition, 0)):
            self._finished.add(at.partition)
        else:
            super()._begin_partition(progress, lag, now)

    @property
    def fetch(self) -> int:
        through = self._sieve.through
        slow = FETCH_BYTES if through is None else int(RESPOND_S / max(through.mean_s * MAX_PACK_ITEMS, 1e-6))
        return max(1, min(super().fetch, slow))

    def has_finished(self, partition: int) -> bool:
        """All that the part has of this partition was read. An offset that holds nothing is never seen."""
        return partition in self._finished or bool(self.has_read(partition, past(self._part.end[partition])))

    def take(self, delivery: Delivery, now: float) -> Iterator[Batch]:
        partition, offset, message = delivery.partition, delivery.offset, delivery.message
        if offset >= past(self._part.end[partition]):
            if not self.has_finished(partition):
                self._sieve.finish(partition)
                self._finished.add(partition)
            return
        mean_bytes = 0.9 * self._mean_bytes + 0.1 * len(message.body)
        if not self._selection.may_hold(message):
            delivery = delivery._replace(message=_EMPTY._replace(id=message.id))
        yield from super().take(delivery, now)
        self._mean_bytes = mean_bytes


async def pump_part(
    transport: Transport, topic: str, reader: PartReader, positions: Sequence[Position],
    store: Callable[[Batch], Awaitable[None]], ended: Callable[[], Awaitable[Ended | None]],
    on_read: Callable[[Sequence[Delivery]], None] = lambda _: None,
) -> Ended:  # fmt: skip
    """Read on from these positions and store it, until `ended` says why."""
    left = [position for position in positions if not reader.has_finished(position.partition)]
    subscription = _Reading(await transport.subscribe(topic, prefetch=PREFETCH, start=left) if left else None)
    try:
        return await Pump(reader, subscription, store, ended, on_read=on_read).run()
    finally:
        await subscription.aclose()


class _Reading:
    """A subscription without a group, whose acks only make room for more: what is received is done with."""

    def __init__(self, inner: Subscription | None) -> None:
        self._inner = inner

    async def receive(self, *, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        if self._inner is None:
            await asyncio.sleep(timeout_s)
            return ()
        deliveries = await self._inner.receive(max_messages=max_messages, timeout_s=timeout_s)
        await self._inner.ack(deliveries)
        return deliveries

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        pass

    async def seek(self, to: Seek) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        if self._inner is not None:
            await self._inner.aclose()
