"""`FaultyTransport`: any transport, with the troubles that the contract allows, struck by a seed."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bus.capabilities import Capabilities
from bus.clock import Clock, SystemClock
from bus.errors import Closed, ConnectionLost, PublishUnconfirmed, StaleDelivery
from bus.message import Delivery, Message
from bus.topic import Kind, Topic
from bus.transport import Lag, Seek, Start, Subscription, Transport

__all__ = ["Faults", "FaultySubscription", "FaultyTransport"]


@dataclass(frozen=True, slots=True)
class Faults:
    """How likely, from 0 to 1, each trouble is at a call."""

    delay: float = 0.0  # the call takes up to `delay_s` longer
    delay_s: float = 0.01
    short: float = 0.0  # `receive` gives fewer than there are
    doubled: float = 0.0  # a message is stored twice
    unconfirmed: float = 0.0  # `PublishUnconfirmed`, with all, some or none of the messages stored
    lost: float = 0.0  # `ConnectionLost`: an ack may have been done, a publish was not, a receive took nothing
    stale: float = 0.0  # the leases of the reader are lost at an ack: all it holds is delivered again


class FaultyTransport:
    """Wraps a transport, which it closes. The same seed and the same calls give the same troubles."""

    def __init__(self, inner: Transport, *, seed: int, faults: Faults, clock: Clock | None = None) -> None:
        self.inner = inner
        self._faults = faults
        self._dice = random.Random(seed)
        self._clock = clock or SystemClock()
        self._queues: set[str] = set()

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    async def declare(self, *topics: Topic) -> None:
        await self.inner.declare(*topics)
        self._queues.update(topic.name for topic in topics if topic.kind is Kind.QUEUE)

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        await self.stumble()
        stored = [one for message in messages for one in [message] * (2 if self.strikes(self._faults.doubled) else 1)]
        if not self.strikes(self._faults.unconfirmed):
            await self.inner.publish(topic, stored)
            return
        share = self._dice.choice((0.0, 0.5, 1.0))
        await self.inner.publish(topic, [message for message in stored if self._dice.random() < share])
        raise PublishUnconfirmed(f"{len(messages)} messages may or may not be stored")

    async def subscribe(
        self, topic: str, *, group: str = "", prefetch: int = 256, start: Start = "committed", member: str = ""
    ) -> Subscription:
        async def open() -> Subscription:
            return await self.inner.subscribe(topic, group=group, prefetch=prefetch, start=start, member=member)

        return FaultySubscription(self, self._faults, await open(), open if topic in self._queues else None)

    async def lag(self, topic: str, *, group: str = "") -> Lag:
        await self.pause()
        return await self.inner.lag(topic, group=group)

    async def aclose(self) -> None:
        await self.inner.aclose()

    def strikes(self, likely: float) -> bool:
        return self._dice.random() < likely

    async def pause(self) -> None:
        if self.strikes(self._faults.delay):
            await self._clock.sleep(self._dice.random() * self._faults.delay_s)

    async def stumble(self) -> None:
        """Take longer, or not succeed at all."""
        await self.pause()
        if self.strikes(self._faults.lost):
            raise ConnectionLost("the connection was lost")

    def fewer(self, count: int) -> int:
        return self._dice.randint(1, count) if self.strikes(self._faults.short) else count


class FaultySubscription:
    """A reader that may lose its leases: what it held is then delivered again, to it or another, and its acks
    of that are refused."""

    def __init__(
        self,
        transport: FaultyTransport,
        faults: Faults,
        inner: Subscription,
        reopen: Callable[[], Awaitable[Subscription]] | None,
    ) -> None:
        self._transport, self._faults, self._inner, self._reopen = transport, faults, inner, reopen
        self._life = 0
        self._held: set[tuple[int, int, int]] = set()  # life, partition, offset of what is not acked

    async def receive(self, *, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        await self._transport.stumble()
        while True:
            inner, life = self._inner, self._life
            try:
                came = await inner.receive(max_messages=self._transport.fewer(max_messages), timeout_s=timeout_s)
            except Closed:
                if inner is self._inner:
                    raise
                continue  # its leases were lost meanwhile
            self._held.update((life, delivery.partition, delivery.offset) for delivery in came)
            return [delivery._replace(token=(life, delivery.token)) for delivery in came]

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._transport.stumble()
        if deliveries and self._transport.strikes(self._faults.stale):
            await self.lose()
        ours, stale = [], []
        for delivery in deliveries:
            life, token = delivery.token or (None, None)
            if life == self._life:
                ours.append(delivery._replace(token=token))
            elif life is None or (life, delivery.partition, delivery.offset) in self._held:
                stale.append(delivery)
        stale.extend(await self._ack(ours))
        if stale:
            raise StaleDelivery(stale)
        if self._transport.strikes(self._faults.lost):
            raise ConnectionLost("the connection was lost after the ack")

    async def seek(self, to: Seek) -> None:
        await self._transport.pause()
        await self._inner.seek(to)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def lose(self) -> None:
        """Lose the leases now; a LOG has none."""
        if self._reopen is not None:
            old, self._inner = self._inner, await self._reopen()
            self._life += 1
            await old.aclose()

    async def _ack(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Those that are stale indeed."""
        life, stale = self._life, []
        try:
            await self._inner.ack(deliveries)
        except StaleDelivery as error:
            stale = [delivery._replace(token=(life, delivery.token)) for delivery in error.deliveries]
        gone = {(one.partition, one.offset) for one in stale}
        self._held.difference_update(
            (life, one.partition, one.offset) for one in deliveries if (one.partition, one.offset) not in gone
        )
        return stale
