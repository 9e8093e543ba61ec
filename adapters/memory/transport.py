"""The bus of one process: the executable specification of `bus.transport`. Plain on purpose."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Self
from weakref import WeakValueDictionary

from adapters.memory.log import Log, LogReader
from adapters.memory.queue import Queue, QueueReader
from bus.capabilities import Acks, Capabilities, Delay, Durability, SeekBy
from bus.clock import Clock, SystemClock
from bus.errors import BusError, Closed, Misconfigured, Unsupported
from bus.message import Delivery, Message
from bus.topic import Kind, Topic
from bus.transport import Lag, Seek, Start, Subscription

__all__ = ["MemoryTransport"]

CAPABILITIES = Capabilities(
    queue_durability=Durability.PROCESS,
    log_durability=Durability.PROCESS,
    acks=Acks.INDIVIDUAL,
    lease_s=None,  # a reader dies only with the whole bus
    counts_redeliveries=True,
    releases_on_close=True,
    delay=Delay.NATIVE,
    seek_by=frozenset(SeekBy),
    exact_lag=True,
    shared_between_processes=False,
    shared_between_hosts=False,
)


class Bus:
    """What the transports of one name share. `lock` is held for every look at a topic: threads may share it, too."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.topics: dict[str, Queue | Log] = {}

    def find(self, name: str) -> Queue | Log:
        topic = self.topics.get(name)
        if topic is None:
            raise BusError(f"topic {name!r} was not declared")
        return topic

    def declare(self, topic: Topic) -> None:
        found = self.topics.get(topic.name)
        if found is None:
            queue = topic.kind is Kind.QUEUE
            self.topics[topic.name] = Queue() if queue else Log(topic.name, topic.retention_s)
        elif isinstance(found, Queue) is not (topic.kind is Kind.QUEUE):
            raise Misconfigured(
                f"topic {topic.name!r} is there and cannot be a {topic.kind.name}, too: "
                "choose another ?prefix= on the bus URL"
            )
        elif isinstance(found, Log):
            found.retention_s = topic.retention_s


_buses: WeakValueDictionary[str, Bus] = WeakValueDictionary()
_buses_lock = threading.Lock()


class MemorySubscription:
    """One reader of one topic."""

    def __init__(self, bus: Bus, clock: Clock, reader: QueueReader | LogReader) -> None:
        self._bus, self._clock, self._reader = bus, clock, reader
        self._reading = False
        self.closed = False

    async def receive(self, *, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        if self._reading:
            raise BusError("two tasks read one subscription")
        self._reading = True
        try:
            await asyncio.sleep(0)  # a reader that always finds something still lets others run
            return await self._receive(max_messages, self._clock.time() + timeout_s)
        finally:
            self._reading = False

    async def _receive(self, max_messages: int, deadline: float) -> Sequence[Delivery]:
        while True:
            with self._bus.lock:
                self._check_open()
                now = self._clock.time()
                if deliveries := self._reader.take(max_messages, now):
                    return deliveries
                if now >= deadline:
                    return ()
                due_s = self._reader.due_in(now)
                rung = self._reader.bell.listen()
            pause_s = deadline - now if due_s is None else min(due_s, deadline - now)
            await self._reader.bell.wait(rung, self._clock, pause_s)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        with self._bus.lock:
            self._check_open()
            self._reader.ack(deliveries, self._clock.time())

    async def seek(self, to: Seek) -> None:
        with self._bus.lock:
            self._check_open()
            self._reader.seek(to, self._clock.time())

    async def aclose(self) -> None:
        with self._bus.lock:
            if not self.closed:
                self.closed = True
                self._reader.close()

    def _check_open(self) -> None:
        if self.closed:
            raise Closed("the subscription is closed")


class MemoryTransport:
    """`memory://NAME`: all transports of one process and one name are one bus, gone with the last of them."""

    capabilities = CAPABILITIES

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus: Bus | None = bus
        self._clock = clock
        self._subscriptions: list[MemorySubscription] = []

    @classmethod
    async def connect(cls, url: str, *, clock: Clock | None = None) -> Self:
        with _buses_lock:
            bus = _buses.get(url)
            if bus is None:
                bus = _buses[url] = Bus()
        return cls(bus, clock or SystemClock())

    async def declare(self, *topics: Topic) -> None:
        bus = self._open()
        with bus.lock:
            for topic in topics:
                bus.declare(topic)

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        bus = self._open()
        with bus.lock:
            bus.find(topic).publish(messages, self._clock.time())

    async def subscribe(
        self, topic: str, *, group: str = "", prefetch: int = 256, start: Start = "committed", member: str = ""
    ) -> Subscription:
        bus = self._open()
        with bus.lock:
            found = bus.find(topic)
            reader: QueueReader | LogReader
            if isinstance(found, Log):
                reader = LogReader(topic, found, group, prefetch, start, self._clock.time())
            elif start == "committed":
                reader = QueueReader(topic, found, prefetch)
            else:
                raise Unsupported(f"{topic!r} is a QUEUE, which has no positions to start from")
        subscription = MemorySubscription(bus, self._clock, reader)
        self._subscriptions = [s for s in self._subscriptions if not s.closed] + [subscription]
        return subscription

    async def lag(self, topic: str, *, group: str = "") -> Lag:
        bus = self._open()
        with bus.lock:
            found = bus.find(topic)
            now = self._clock.time()
            return found.lag(group, now) if isinstance(found, Log) else found.lag(now)

    async def aclose(self) -> None:
        for subscription in self._subscriptions:
            await subscription.aclose()
        self._subscriptions, self._bus = [], None

    def _open(self) -> Bus:
        if self._bus is None:
            raise Closed("the bus is closed")
        return self._bus
