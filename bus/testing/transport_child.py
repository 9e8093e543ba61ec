"""Other processes of a fleet, for the checks of a transport: how they start, talk and die, and what they do."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from bus.errors import StaleDelivery
from bus.message import Delivery, Message, new_id
from bus.testing.transport_scene import PATIENCE_S, Bus, ids
from bus.topic import Kind, Topic

__all__ = [
    "Child",
    "Pipe",
    "child",
    "hold_all",
    "hold_and_block",
    "hold_three",
    "publish_for_ever",
    "publish_when_told",
    "work_for_ever",
]

Role = Callable[["Bus", str, "Pipe"], Coroutine[Any, Any, None]]


class Pipe:
    """A process's end of its line to the check, without blocking the event loop for long."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def tell(self, what: Any) -> None:
        self._connection.send(what)

    async def hear(self) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not self._connection.poll():
            assert time.monotonic() < deadline, "the other process says nothing"
            await asyncio.sleep(0.005)
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise AssertionError("the other process has failed, and said on its stderr why") from None


class Child(Pipe):
    """Another process of the fleet."""

    def __init__(self, process: multiprocessing.process.BaseProcess, connection: Connection) -> None:
        super().__init__(connection)
        self._process = process

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def heard(self) -> Iterator[Any]:
        """All that it has told, without waiting; the last words of a dead one, too."""
        try:
            while self._connection.poll():
                yield self._connection.recv()
        except (EOFError, ConnectionResetError):
            pass

    def kill(self) -> None:
        """As `kill -9`, and wait until it is gone."""
        self._process.kill()
        self._process.join(PATIENCE_S)


@contextmanager
def child(suite: Bus, role: Role, topic: str) -> Iterator[Child]:
    """A process in which `role` runs with a connection of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(suite, role, topic, theirs), daemon=True)
    process.start()
    theirs.close()
    one = Child(process, ours)
    try:
        yield one
    finally:
        one.kill()
        process.close()
        ours.close()


def _run(suite: Bus, role: Role, topic: str, connection: Connection) -> None:
    asyncio.run(role(suite, topic, Pipe(connection)))


async def hold_three(suite: Bus, topic: str, pipe: Pipe, *, member: str = "") -> None:
    """Take three, ack the first, tell; then wait for a word, ack the rest and tell how that went."""
    transport = await suite.connect()
    reader = await transport.subscribe(topic, prefetch=3, member=member)
    held: list[Delivery] = []
    while len(held) < 3:
        held.extend(await reader.receive(max_messages=3 - len(held), timeout_s=5))
    await reader.ack(held[:1])
    pipe.tell(ids(held))
    await pipe.hear()
    try:
        await reader.ack(held[1:])
        pipe.tell([])
    except StaleDelivery as error:
        pipe.tell(ids(error.deliveries))
    await pipe.hear()


async def hold_all(suite: Bus, topic: str, pipe: Pipe, *, member: str = "") -> None:
    """Take what comes, ack nothing, and tell it."""
    transport = await suite.connect()
    await transport.declare(Topic(topic, Kind.QUEUE))  # so that it forwards what its bands let go
    reader = await transport.subscribe(topic, prefetch=1000, member=member)
    while True:
        if some := await reader.receive(max_messages=100, timeout_s=1):
            pipe.tell(ids(some))


async def hold_and_block(suite: Bus, topic: str, pipe: Pipe) -> None:
    """Take one, block the event loop as long as is allowed, ack, close, and tell."""
    transport = await suite.connect()
    reader = await transport.subscribe(topic, prefetch=1)
    (held,) = await reader.receive(max_messages=1, timeout_s=10)
    pipe.tell("held")
    time.sleep(suite.blocked_leases * (transport.capabilities.lease_s or 0))  # noqa: ASYNC251
    await reader.ack([held])
    await transport.aclose()
    pipe.tell("acked")
    await pipe.hear()


async def publish_for_ever(suite: Bus, topic: str, pipe: Pipe) -> None:
    """Tell the ids of each batch once it is confirmed."""
    transport = await suite.connect()
    while True:
        messages = [Message(new_id(), b"x" * 200) for _ in range(10)]
        await transport.publish(topic, messages)
        pipe.tell(ids(messages))


async def publish_when_told(suite: Bus, topic: str, pipe: Pipe) -> None:
    transport = await suite.connect()
    pipe.tell("here")
    while await pipe.hear():
        await transport.publish(topic, [Message(new_id(), b"")])


async def work_for_ever(suite: Bus, topic: str, pipe: Pipe) -> None:
    """Ack what comes, and tell when it was and what was not stale."""
    transport = await suite.connect()
    reader = await transport.subscribe(topic, prefetch=8)
    while True:
        some = await reader.receive(max_messages=8, timeout_s=1)
        stale: Sequence[Delivery] = ()
        try:
            await reader.ack(some)
        except StaleDelivery as error:
            stale = error.deliveries
        if some:
            pipe.tell((time.monotonic(), ids([one for one in some if one not in stale])))
