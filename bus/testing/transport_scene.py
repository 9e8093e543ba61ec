"""What the checks of a transport share: two connections to one bus, topics of their own, and small steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from bus.bands import EARLY_S, Banded
from bus.capabilities import Acks, Capabilities, Delay
from bus.errors import BusError, ConnectionLost, PublishUnconfirmed, StaleDelivery
from bus.message import Delivery, Message, new_id
from bus.topic import Kind, Topic
from bus.transport import Start, Subscription, Transport

__all__ = ["PATIENCE_S", "Bus", "Stage", "ids", "insist", "refused", "staged", "until"]

T = TypeVar("T")

PATIENCE_S = 50.0  # what must happen has this long; a check that passes never waits for it
LATE_S = 2.0  # what should come at once or at its time, on a machine that has other things to do


class Bus:
    """Where a suite gets its connections from, and how it uses them."""

    prefetch = 256
    batch = 64
    lease_s = 30.0
    blocked_leases = 0.7  # how many leases the event loop may be blocked; more where leases live in a thread
    holds_back = True  # a LOG keeps what a registered group has not acked past its retention

    async def connect(self) -> Transport:
        """One more connection to the bus of this check, with leases of `lease_s`, or of the shortest there are."""
        raise NotImplementedError

    async def bare(self) -> Transport:
        """The same, without the delay bands that `bus` puts over a transport that cannot delay."""
        transport = await self.connect()
        return transport.inner if isinstance(transport, Banded) else transport

    async def expel(self, subscription: Subscription) -> None:
        """Make the bus believe that this reader is dead; raise `NotImplementedError` where nothing can."""
        raise NotImplementedError

    async def cut(self, transport: Transport) -> None:
        """Break all connections of this transport to its server, as a network does, without a word to the driver;
        a bus without a server raises `NotImplementedError`."""
        raise NotImplementedError

    async def trim(self, transport: Transport, topic: str) -> None:
        """Return once this LOG, whose retention has passed, has dropped all that it held, or at least the first
        four; raise `NotImplementedError` where nothing can make it. Here: it does so by itself, and soon."""
        if (await transport.lag(topic)).first is None:
            raise NotImplementedError

        async def empty() -> bool:
            lag = await transport.lag(topic)
            return lag.first == lag.end

        await until(empty)

    def size_bytes(self) -> int | None:
        """What the bus takes on the disk, if that can be told."""
        return None


class Stage:
    """Two connections to one bus, and steps with them."""

    def __init__(self, suite: Bus, one: Transport, two: Transport) -> None:
        self.suite, self.one, self.two = suite, one, two
        self.batch = suite.batch
        self._name = new_id()[:8]

    @property
    def can(self) -> Capabilities:
        return self.one.capabilities

    @property
    def prefix(self) -> bool:
        """An ack counts for good only once all before it are acked, and that is stored."""
        return self.can.acks is Acks.PREFIX

    def in_time(self, due: float, *, since: float = 0.0) -> bool:
        """Whether work that was due then, or since its reader is there, may come now: never early, as far as clocks
        are exact, and soon."""
        early_s, late_s = (EARLY_S, LATE_S + 1.0) if self.can.delay is Delay.BANDS else (0.0, LATE_S)
        return due - early_s <= time.time() < max(due, since) + late_s

    def topic(self, kind: Kind, name: str, retention_s: float | None = None) -> Topic:
        """One that no other check has."""
        return Topic(f"check.{self._name}.{name}", kind, retention_s)

    async def declare(self, kind: Kind, name: str, retention_s: float | None = None) -> str:
        topic = self.topic(kind, name, retention_s)
        await self.one.declare(topic)
        await self.two.declare(topic)
        return topic.name

    async def queue(self, name: str = "work") -> str:
        return await self.declare(Kind.QUEUE, name)

    async def log(self, name: str = "record", retention_s: float | None = None) -> str:
        return await self.declare(Kind.LOG, name, retention_s)

    async def reader(
        self, topic: str, *, by: Transport | None = None, prefetch: int = 0, group: str = "", start: Start = "committed"
    ) -> Subscription:
        prefetch = prefetch or self.suite.prefetch
        return await (by or self.one).subscribe(topic, group=group, prefetch=prefetch, start=start)

    async def publish(self, topic: str, count: int = 1, *, spread: bool = False, **fields: Any) -> list[Message]:
        """All with one key, so that they keep their order; `spread`, each with its own, so that readers can share."""
        messages = [Message(new_id(), b"body %d" % i, **fields) for i in range(count)]
        if spread:
            messages = [message._replace(key=message.id.encode()) for message in messages]
        for i in range(0, count, self.batch):
            await self.one.publish(topic, messages[i : i + self.batch])
        return messages

    async def take(self, reader: Subscription, count: int, *, ack: bool = False) -> list[Delivery]:
        """Exactly the next `count` deliveries. Without `ack`, the reader's prefetch must allow for them."""
        taken: list[Delivery] = []
        deadline = time.monotonic() + PATIENCE_S
        while len(taken) < count:
            some = await reader.receive(max_messages=min(self.batch, count - len(taken)), timeout_s=1.0)
            taken.extend(some)
            if ack:
                await reader.ack(some)
            assert time.monotonic() < deadline, f"{len(taken)} of {count} messages came in {PATIENCE_S} s"
        self._counted(taken)
        return taken

    async def work(self, reader: Subscription, count: int) -> list[Delivery]:
        """Take and ack."""
        return await self.take(reader, count, ack=True)

    async def again(self, reader: Subscription, must: Iterable[str], may: Iterable[str] = ()) -> list[Delivery]:
        """What comes until all that must has come: only that and what may, each once; `prefetch` allows for them."""
        missing = set(must)
        allowed = missing | set(may)
        came: list[Delivery] = []
        deadline = time.monotonic() + PATIENCE_S
        while missing:
            some = await insist(lambda: reader.receive(max_messages=self.batch, timeout_s=1.0))
            came.extend(some)
            missing.difference_update(ids(some))
            assert time.monotonic() < deadline, f"{len(missing)} messages did not come in {PATIENCE_S} s"
        found = ids(came)
        assert len(found) == len(set(found)), "one came twice"
        assert set(found) <= allowed, f"{len(set(found) - allowed)} came that must not"
        self._counted(came)
        return came

    async def acked(self, reader: Subscription, some: Sequence[Delivery]) -> list[Delivery]:
        """Those whose ack was not refused as stale."""
        try:
            await insist(lambda: reader.ack(some))
        except StaleDelivery as error:
            return [one for one in some if one not in error.deliveries]
        return list(some)

    def _counted(self, came: Sequence[Delivery]) -> None:
        if not self.can.counts_redeliveries:
            assert {one.redeliveries for one in came} <= {None}, "redeliveries are counted, and that is not declared"

    async def nothing(self, reader: Subscription, wait_s: float = 0.15) -> None:
        came = await reader.receive(max_messages=self.batch, timeout_s=wait_s)
        assert not came, f"{len(came)} messages that should not be there"


def staged(check: Callable[[Any, Stage], Awaitable[None]]) -> Callable[[Bus], None]:
    """Make a plain method of a check: it gets its stage, and everything is closed behind it."""

    async def play(suite: Bus) -> None:
        async with AsyncExitStack() as stack:
            one, two = [await suite.connect() for _ in range(2)]
            for transport in (one, two):
                stack.push_async_callback(transport.aclose)
            async with asyncio.timeout(3 * PATIENCE_S):
                await check(suite, Stage(suite, one, two))

    def method(self: Bus) -> None:
        asyncio.run(play(self))

    method.__name__, method.__doc__ = getattr(check, "__name__", "check"), check.__doc__
    return method


async def refused(error: type[BusError], call: Awaitable[object]) -> Any:
    """The error that the call must end with."""
    try:
        await call
    except error as found:
        return found
    raise AssertionError(f"{error.__name__} was not raised")


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call for as long as the bus is away, as a careful caller does."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await call()
        except (ConnectionLost, PublishUnconfirmed):
            assert time.monotonic() < deadline, f"the bus is away for {PATIENCE_S} s"
            await asyncio.sleep(0.02)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE_S
    while not await condition():
        assert time.monotonic() < deadline, f"not so after {PATIENCE_S} s"
        await asyncio.sleep(0.01)


def ids(found: Sequence[Message] | Sequence[Delivery]) -> list[str]:
    """The ids of messages or deliveries, in order."""
    return [one.message.id if isinstance(one, Delivery) else one.id for one in found]
