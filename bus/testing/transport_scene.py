"""What the checks of a transport share: two connections to one bus, topics of their own, and small steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from bus.errors import BusError
from bus.message import Delivery, Message, new_id
from bus.topic import Kind, Topic
from bus.transport import Start, Subscription, Transport

__all__ = ["Bus", "Stage", "ids", "refused", "staged", "until"]

PATIENCE_S = 20.0  # what must happen has this long; a check that passes never waits for it


class Bus:
    """Where a suite gets its connections from, and how it uses them."""

    prefetch = 256
    batch = 64
    lease_s = 30.0

    async def connect(self) -> Transport:
        """One more connection to the bus of this check, with leases of `lease_s` where it has any."""
        raise NotImplementedError

    async def expel(self, subscription: Subscription) -> None:
        """Make the bus believe that this reader is dead; raise `NotImplementedError` where nothing can."""
        raise NotImplementedError

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
    def can(self) -> Any:
        return self.one.capabilities

    async def declare(self, kind: Kind, name: str, retention_s: float | None = None) -> str:
        topic = Topic(f"check.{self._name}.{name}", kind, retention_s)
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

    async def publish(self, topic: str, count: int = 1, **fields: Any) -> list[Message]:
        messages = [Message(new_id(), b"body %d" % i, **fields) for i in range(count)]
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
        return taken

    async def work(self, reader: Subscription, count: int) -> list[Delivery]:
        """Take and ack."""
        return await self.take(reader, count, ack=True)

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


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE_S
    while not await condition():
        assert time.monotonic() < deadline, f"not so after {PATIENCE_S} s"
        await asyncio.sleep(0.01)


def ids(found: Sequence[Message] | Sequence[Delivery]) -> list[str]:
    """The ids of messages or deliveries, in order."""
    return [one.message.id if isinstance(one, Delivery) else one.id for one in found]
