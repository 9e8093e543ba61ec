"""`LaneReader`: the lanes of a job's requests, read as one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Self, cast

from bus.errors import StaleDelivery
from bus.message import Delivery
from bus.topic import LANE_WEIGHTS
from bus.transport import Subscription, Transport

__all__ = ["LaneReader"]


class _Lane:
    __slots__ = ("busy", "spent", "subscription", "topic", "weight")

    def __init__(self, topic: str, weight: int, subscription: Subscription) -> None:
        self.topic, self.weight, self.subscription = topic, weight, subscription
        self.spent = 0.0  # messages taken, divided by the weight
        self.busy = True  # it gave something the last time it was asked


class LaneReader:
    """One subscription for each lane; of full lanes each gets its share by weight, so that none starves.

    Stride scheduling (Waldspurger and Weihl, 1995): the next message comes from the lane that has spent least.
    A lane that was empty saves nothing up. One task at a time may `receive`.
    """

    def __init__(self, lanes: Sequence[_Lane]) -> None:
        self._lanes = lanes
        self._by_topic = {lane.topic: lane.subscription for lane in lanes}
        self._arrived: list[Delivery] = []  # more than was asked for, or for a `receive` that was cancelled

    @classmethod
    async def open(
        cls, transport: Transport, topics: Mapping[str, str], *, prefetch: int = 256, member: str = ""
    ) -> Self:
        """`topics` maps each lane to its queue. `prefetch` holds for each lane, `member` is as for `subscribe`."""
        opening = [transport.subscribe(topic, prefetch=prefetch, member=member) for topic in topics.values()]
        opened = await asyncio.gather(*opening, return_exceptions=True)
        failed = [error for error in opened if isinstance(error, BaseException)]
        if failed:
            for subscription in opened:
                if not isinstance(subscription, BaseException):
                    await subscription.aclose()
            raise failed[0]
        pairs = zip(topics.items(), opened, strict=True)
        return cls([_Lane(topic, LANE_WEIGHTS[lane], cast(Subscription, reader)) for (lane, topic), reader in pairs])

    async def receive(self, *, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        """As `Subscription.receive`: at most so many of all lanes, as soon as one has something."""
        if not self._arrived:
            await self._sweep(max_messages)
        if not self._arrived and timeout_s > 0:
            await self._wait(max_messages, timeout_s)
        given, self._arrived = self._arrived[:max_messages], self._arrived[max_messages:]
        return given

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """As `Subscription.ack`, of any lanes at once."""
        by_topic: dict[str, list[Delivery]] = {}
        for delivery in deliveries:
            by_topic.setdefault(delivery.topic, []).append(delivery)
        if len(by_topic) == 1:
            ((topic, mine),) = by_topic.items()
            await self._by_topic[topic].ack(mine)
            return
        acks = [self._by_topic[topic].ack(mine) for topic, mine in by_topic.items()]
        stale: list[Delivery] = []
        for error in await asyncio.gather(*acks, return_exceptions=True):
            if isinstance(error, StaleDelivery):
                stale.extend(error.deliveries)
            elif error is not None:
                raise error
        if stale:
            raise StaleDelivery(stale)

    async def aclose(self) -> None:
        """Closes all lanes, whatever becomes of one."""
        closing = [lane.subscription.aclose() for lane in self._lanes]
        for error in await asyncio.gather(*closing, return_exceptions=True):
            if error is not None:
                raise error

    async def _sweep(self, room: int) -> None:
        """What is there now. A lane that had nothing left is asked first, so that the others share the rest."""
        idle = [lane for lane in self._lanes if not lane.busy]
        busy = [lane for lane in self._lanes if lane.busy]
        floor = min((lane.spent for lane in busy), default=max(lane.spent for lane in self._lanes))
        for lane in idle:
            lane.spent = max(lane.spent, floor)
        for lane, share in _shares(self._lanes, room) if idle else ():
            if lane in idle and share:
                await self._take(lane, share)
        for lane, share in _shares(busy, room - len(self._arrived)):
            if share:
                await self._take(lane, share)

    async def _take(self, lane: _Lane, share: int, timeout_s: float = 0.0) -> None:
        deliveries = await lane.subscription.receive(max_messages=share, timeout_s=timeout_s)
        lane.busy = bool(deliveries)
        lane.spent += len(deliveries) / lane.weight
        self._arrived.extend(deliveries)

    async def _wait(self, room: int, timeout_s: float) -> None:
        """All lanes at once, until the first has something; the others are cancelled, which loses nothing."""
        # each keeps what it gets by itself: this may be cancelled at any await, also while it waits for the cancelled
        takes = [asyncio.ensure_future(self._take(lane, room, timeout_s)) for lane in self._lanes]
        try:
            await asyncio.wait(takes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for take in takes:
                take.cancel()
            results = await asyncio.gather(*takes, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result


def _shares(lanes: Sequence[_Lane], room: int) -> list[tuple[_Lane, int]]:
    """How many of the next `room` messages each lane should give."""
    if len(lanes) == 1:
        return [(lanes[0], room)]
    spent = [lane.spent for lane in lanes]
    shares = [0] * len(lanes)
    for _ in range(room if lanes else 0):
        least = spent.index(min(spent))
        shares[least] += 1
        spent[least] += 1 / lanes[least].weight
    return list(zip(lanes, shares, strict=True))
