"""Delay bands: how a QUEUE honours `not_before` on a bus that cannot do it by itself.

One queue for each of a few lengths of time, and in it the order of arrival is the order of leaving, so that nobody
has to sort (Kafka has no other way; RabbitMQ expires messages only at the head of a queue). A message waits in the
largest band that is not longer than its time, and goes round until it is due.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from bus.backoff import Backoff
from bus.capabilities import Capabilities, Delay
from bus.errors import BusError, Closed, ConnectionLost, PublishUnconfirmed, StaleDelivery
from bus.findings import Examined, Finding
from bus.message import Delivery, Message
from bus.topic import LANES, Kind, Topic
from bus.transport import Lag, Seek, Start, Subscription, Transport

__all__ = ["BANDS_S", "Banded", "band_of", "bands"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

BANDS_S = (1, 10, 60, 600, 3600)
FORWARD = 256  # messages that one forwarder holds of one band
LOOK_S = 5.0
WAIT_S = 30.0
EARLY_S = 0.005  # a hold queue counts in milliseconds, and the clocks of hosts differ


def band_of(left_s: float) -> int:
    """The largest band that is not longer than the time left; at least the first one."""
    return max((band for band in BANDS_S if band <= left_s), default=BANDS_S[0])


def bands(queue: str) -> list[Topic]:
    """The bands of a queue; its lanes share them: `crawlbus.shop.requests.delay-10`."""
    return [Topic(_band(queue, band_s), Kind.QUEUE, hold_s=band_s) for band_s in BANDS_S]


def _base(queue: str) -> str:
    stem, _, lane = queue.rpartition(".")
    return stem if stem and lane in LANES and lane else queue


def _band(queue: str, band_s: int) -> str:
    return f"{_base(queue)}.delay-{band_s}"


class Banded:
    """A transport that honours `not_before`, over one that does not; closes it. Never more than 5 ms early, at most
    about a second late. Its own headers, `to` (the queue), `not-before` and `until` (when the band lets it go), never
    reach a reader.

    Where the bus does not `HOLD`, a process forwards from the bands that it has put something into; and one that reads
    a queue from all of its bands in which it finds something, which it looks for every 5 s.
    """

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.capabilities: Capabilities = replace(inner.capabilities, delay=Delay.BANDS)
        self._holds = inner.capabilities.delay is Delay.HOLDS
        self._banded: dict[str, bool] = {}  # by topic: is it a QUEUE?
        self._forwarders: dict[str, _Forwarder] = {}

    async def declare(self, *topics: Topic) -> None:
        """The topics, and the bands of each QUEUE."""
        queues = [topic for topic in topics if topic.kind is Kind.QUEUE]
        more = {band.name: band for queue in queues for band in bands(queue.name)}
        await self.inner.declare(*topics, *more.values())
        self._banded.update((topic.name, topic.kind is Kind.QUEUE) for topic in topics)

    async def _is_banded(self, topic: str) -> bool:
        """Of a topic that only others have declared, too. Raises `BusError` where nobody has."""
        if topic not in self._banded:
            if (await self.inner.lag(topic)).end is not None:
                self._banded[topic] = False
            else:
                await self.declare(Topic(topic, Kind.QUEUE))
        return self._banded[topic]

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        """What is due goes straight to its queue, the rest to its bands; returns when all is confirmed."""
        if not any(message.not_before for message in messages) or not await self._is_banded(topic):
            await self.inner.publish(topic, messages)
            return
        calls: dict[str, list[Message]] = {}
        now = time.time()
        for message in messages:
            left_s = (message.not_before or 0.0) - now
            if left_s <= 0:
                calls.setdefault(topic, []).append(message._replace(not_before=None))
            else:
                band_s = band_of(left_s)
                if not self._holds:
                    self._forwarder(topic).read(_band(topic, band_s))
                calls.setdefault(_band(topic, band_s), []).append(_held(message, topic, now + band_s))
        for result in await asyncio.gather(
            *(self.inner.publish(*call) for call in calls.items()), return_exceptions=True
        ):
            if isinstance(result, BaseException):
                raise result

    async def subscribe(
        self, topic: str, *, group: str = "", prefetch: int = 256, start: Start = "committed", member: str = ""
    ) -> Subscription:
        banded = await self._is_banded(topic)
        inner = await self.inner.subscribe(topic, group=group, prefetch=prefetch, start=start, member=member)
        if not banded:
            return inner
        forwarder = None
        if not self._holds:
            forwarder = self._forwarder(topic)
            forwarder.join(member)
        return _Reader(self, inner, forwarder)

    def _forwarder(self, queue: str) -> _Forwarder:
        return self._forwarders.setdefault(_base(queue), _Forwarder(self, queue))

    async def lag(self, topic: str, *, group: str = "") -> Lag:
        """`delayed` is that of all lanes together, and told for the queue without a lane only."""
        lag = await self.inner.lag(topic, group=group)
        if not await self._is_banded(topic):
            return lag
        if topic != _base(topic):
            return replace(lag, delayed=0)
        held = await asyncio.gather(*(self.inner.lag(band.name) for band in bands(topic)))
        counts = [None if one.ready is None else one.ready + (one.unacked or 0) for one in held]
        delayed = None if None in counts else sum(count for count in counts if count)
        return replace(lag, delayed=delayed, exact=lag.exact and all(one.exact for one in held))

    async def examine(self, prefix: str = "") -> Sequence[Finding]:
        """As the transport below says."""
        return await self.inner.examine(prefix) if isinstance(self.inner, Examined) else []

    async def aclose(self) -> None:
        try:
            for forwarder in self._forwarders.values():
                await forwarder.aclose()
        finally:
            await self.inner.aclose()


class _Reader:
    """A subscription that sends back what came out of a band and is not due yet.

    In a task of its own: a `receive` that is cancelled between the publish and the ack would send it twice.
    """

    def __init__(self, bus: Banded, inner: Subscription, forwarder: _Forwarder | None) -> None:
        self._bus, self._inner, self._forwarder = bus, inner, forwarder
        self._early: list[Delivery] = []
        self._returning: asyncio.Task[None] | None = None
        self._closed = False

    async def receive(self, *, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        deadline = time.monotonic() + timeout_s
        while True:
            self._check()
            left_s = max(0.0, deadline - time.monotonic())
            due = self._due_of(await self._inner.receive(max_messages=max_messages, timeout_s=left_s))
            if self._early:
                self._return()
            if due or time.monotonic() >= deadline:
                return due

    def _due_of(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        if not any("until" in delivery.message.headers for delivery in deliveries):
            return deliveries
        due = []
        for delivery in deliveries:
            message, queue = _freed(delivery.message)
            if queue is not None and (message.not_before or 0.0) - time.time() > EARLY_S:
                self._early.append(delivery)
            else:
                due.append(delivery._replace(message=message._replace(not_before=None)))
        return due

    def _check(self) -> None:
        """Raises what keeps messages from going on."""
        if self._forwarder is not None:
            self._forwarder.check()
        if self._returning is not None and self._returning.done():
            returning, self._returning = self._returning, None
            returning.result()

    def _return(self) -> None:
        if self._returning is None or self._returning.done():
            self._returning = asyncio.create_task(self._return_all())

    async def _return_all(self) -> None:
        while self._early:
            early, self._early = self._early, []
            await _insist(lambda some=early: _again(self._bus, self._inner, some))  # type: ignore[misc]

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._inner.ack(deliveries)

    async def seek(self, to: Seek) -> None:
        await self._inner.seek(to)

    async def aclose(self) -> None:
        try:
            if self._returning is not None:
                self._returning.cancel()
                await asyncio.gather(self._returning, return_exceptions=True)
            if self._forwarder is not None and not self._closed:
                await self._forwarder.leave()
        finally:
            self._closed = True
            await self._inner.aclose()


class _Forwarder:
    """Reads bands of a queue, and moves on what its band lets go.

    A band that nobody uses is not read: on Kafka each reader costs a worker some requests a second.
    """

    def __init__(self, bus: Banded, queue: str) -> None:
        self._bus, self._queue, self._member = bus, queue, ""
        self._readers = 0
        self._watch: asyncio.Task[None] | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failure: BaseException | None = None

    def join(self, member: str) -> None:
        """One more reader of a lane."""
        self._readers += 1
        self._member = member
        if self._readers == 1:
            self._failure = None
            self._watch = asyncio.create_task(self._find_used())

    async def leave(self) -> None:
        self._readers -= 1
        if not self._readers:
            await self.aclose()

    def check(self) -> None:
        """Raises what has ended a band: nobody would find out otherwise that delayed messages stay where they are."""
        if self._failure is not None:
            raise self._failure

    def read(self, band: str) -> None:
        """There is something in it."""
        if band not in self._tasks:
            self._tasks[band] = asyncio.create_task(self._run(band))

    async def aclose(self) -> None:
        tasks = [*self._tasks.values(), *([self._watch] if self._watch is not None else [])]
        self._tasks = {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _find_used(self) -> None:
        """What others put into a band, who may be gone."""
        while unread := {band.name for band in bands(self._queue)} - self._tasks.keys():
            for band in unread:
                with suppress(BusError):
                    if (await self._bus.inner.lag(band)).ready != 0:
                        self.read(band)
            await asyncio.sleep(LOOK_S)

    async def _run(self, band: str) -> None:
        subscription: Subscription | None = None
        try:
            subscription = await _insist(
                lambda: self._bus.inner.subscribe(band, prefetch=FORWARD, member=self._member)
            )
            while True:
                await self._forward(subscription, float(band.rpartition("-")[2]))
        except Closed:
            pass
        except Exception as error:
            self._failure = error
        finally:
            if subscription is not None:
                with suppress(BusError):
                    await subscription.aclose()

    async def _forward(self, reader: Subscription, longest_s: float) -> None:
        """What there is, in the order of arrival, which is that of leaving. One whose publisher's clock is ahead holds
        the others up no longer than the band is long."""
        waiting = list(await _insist(lambda: reader.receive(max_messages=FORWARD, timeout_s=WAIT_S)))
        latest = time.time() + longest_s
        while waiting:
            now = time.time()
            times = (min(_until(one.message), latest) for one in waiting)
            count = next((i for i, at in enumerate(times) if at > now), len(waiting))
            if not count:
                await asyncio.sleep(min(_until(waiting[0].message), latest) - now)
                continue
            due, waiting = waiting[:count], waiting[count:]
            await _insist(lambda some=due: _again(self._bus, reader, some))  # type: ignore[misc]


async def _again(bus: Banded, reader: Subscription, deliveries: Sequence[Delivery]) -> None:
    """To their queues, or to the next band; confirmed, then acked. What is another's by now was forwarded twice."""
    calls: dict[str, list[Message]] = {}
    for delivery in deliveries:
        message, queue = _freed(delivery.message)
        if queue is None:
            logger.error("message %s in a delay band is none of ours, and is dropped", message.id)
        else:
            calls.setdefault(queue, []).append(message)
    for queue, messages in calls.items():
        await bus.publish(queue, messages)
    with suppress(StaleDelivery):
        await reader.ack(deliveries)


async def _insist(call: Callable[[], Awaitable[T]]) -> T:
    """Until the bus has answered: whoever reads the queue says that it is away."""
    backoff = Backoff()
    while True:
        try:
            return await call()
        except (ConnectionLost, PublishUnconfirmed):
            await asyncio.sleep(backoff.next_s())


def _held(message: Message, queue: str, until: float) -> Message:
    headers = {**message.headers, "to": queue, "not-before": message.not_before, "until": until}
    return message._replace(headers=headers, not_before=None)


def _freed(message: Message) -> tuple[Message, str | None]:
    """The message as it was published, and its queue."""
    headers = dict(message.headers)
    queue, not_before = headers.pop("to", None), headers.pop("not-before", None)
    headers.pop("until", None)
    due = float(not_before) if isinstance(not_before, float | int) else None
    return message._replace(headers=headers, not_before=due), queue if isinstance(queue, str) else None


def _until(message: Message) -> float:
    until = message.headers.get("until")
    return float(until) if isinstance(until, float | int) else 0.0
