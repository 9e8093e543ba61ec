"""`Identity`: whether the log is still the one that was read, while it is read on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from bus.errors import PositionExpired
from bus.message import Position
from bus.transport import Subscription, Transport
from consumers.sink import Batch, Progress

__all__ = ["Identity", "Known", "last_read"]

CHECK_S = 10.0
ANSWER_S = 5.0


class Known(NamedTuple):
    """A message that the log held, in one of its partitions."""

    offset: int
    message: str


class Identity:
    """A log that is deleted and made anew has other messages at the same places, and a subscription may go on in it as
    if nothing had happened. So what was stored is read once more before more is stored, if `CHECK_S` have gone by."""

    def __init__(self, transport: Transport, topic: str, known: Mapping[int, Known]) -> None:
        self._transport, self._topic = transport, topic
        self._known = dict(known)  # the log held it at the last check
        self._stored: dict[int, Progress] = {}  # since then
        self._time = asyncio.get_running_loop().time
        self._due_s = self._time() + CHECK_S
        self._checking = asyncio.Lock()

    @property
    def in_doubt(self) -> bool:
        """Something was stored since the last check."""
        return bool(self._stored)

    def stored(self, batch: Batch) -> None:
        """This batch is in the sink."""
        self._stored |= batch.progress
        self._known = _known(batch.progress) | self._known

    async def check(self) -> Batch | None:
        """None while all is well. Otherwise what to store, so that whoever comes next sees it, too: the progress of the
        partitions that were made anew, with the message that the log does not hold any more."""
        async with self._checking:
            return None if self._time() < self._due_s else await self._check()

    async def _check(self) -> Batch | None:
        changed = [partition for partition, known in self._known.items() if not await self._holds(partition, known)]
        if changed:
            return Batch(progress={partition: self._as_known(partition) for partition in changed})
        self._known |= _known(self._stored)
        self._stored.clear()
        self._due_s = self._time() + CHECK_S
        return None

    def _as_known(self, partition: int) -> Progress:
        offset, message = self._known[partition]
        progress = self._stored.get(partition)
        return Progress(Position(partition, offset + 1) if progress is None else progress.next, message)

    async def _holds(self, partition: int, known: Known) -> bool:
        """Also where that cannot be told any more, as it was trimmed."""
        at = Position(partition, known.offset)
        try:
            subscription = await self._transport.subscribe(self._topic, prefetch=1, start=[at])
        except PositionExpired as error:
            return known.offset < error.first.offset
        try:
            return await _first_of(subscription) in (known, None)
        finally:
            await subscription.aclose()


async def _first_of(subscription: Subscription) -> Known | None:
    try:
        deliveries = await subscription.receive(max_messages=1, timeout_s=ANSWER_S)
    except PositionExpired:
        return None
    return Known(deliveries[0].offset, deliveries[0].message.id) if deliveries else None


def _known(stored: Mapping[int, Progress]) -> dict[int, Known]:
    return {
        partition: Known(last_read(progress), progress.message)
        for partition, progress in stored.items()
        if progress.message
    }


def last_read(progress: Progress) -> int:
    """The offset of the message that was read last, wholly or in part."""
    return progress.next.offset if progress.next.index else progress.next.offset - 1
