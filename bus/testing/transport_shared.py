"""The checks of a transport that processes share: they start, stop and kill real processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from bus.errors import StaleDelivery
from bus.message import Delivery, Message, new_id
from bus.testing.checks import no_loss, once_each
from bus.testing.transport_scene import PATIENCE_S, Bus, Stage, ids, staged

__all__ = ["SharedChecks"]

SHORT_LEASE_S = 0.6

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
        return self._connection.recv()


class Child(Pipe):
    """Another process of the fleet."""

    def __init__(self, process: multiprocessing.process.BaseProcess, connection: Connection) -> None:
        super().__init__(connection)
        self._process = process

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    async def hear_all(self, quiet_s: float) -> list[str]:
        """Ids it tells, until it was quiet for so long, or is gone."""
        told: list[str] = []
        heard = time.monotonic()
        try:
            while self._connection.poll() or time.monotonic() - heard < quiet_s:
                if self._connection.poll():
                    told.extend(self._connection.recv())
                    heard = time.monotonic()
                else:
                    await asyncio.sleep(0.005)
        except EOFError:
            pass
        return told

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


async def hold_three(suite: Bus, topic: str, pipe: Pipe) -> None:
    """Take three, ack the first, tell; then wait for a word, ack the rest and tell how that went."""
    transport = await suite.connect()
    reader = await transport.subscribe(topic, prefetch=3)
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


async def hold_and_block(suite: Bus, topic: str, pipe: Pipe) -> None:
    """Take one, and block the event loop for several leases before the ack."""
    transport = await suite.connect()
    reader = await transport.subscribe(topic, prefetch=1)
    (held,) = await reader.receive(max_messages=1, timeout_s=10)
    pipe.tell("held")
    time.sleep(4 * suite.lease_s)  # noqa: ASYNC251
    await reader.ack([held])
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
    """Ack what comes, and tell it."""
    transport = await suite.connect()
    reader = await transport.subscribe(topic, prefetch=8)
    pipe.tell([])
    while True:
        some = await reader.receive(max_messages=8, timeout_s=1)
        if some:
            await reader.ack(some)
            pipe.tell(ids(some))


class SharedChecks(Bus):
    """What holds among the processes of one machine. All is pickled to be sent there, so a suite holds plain values."""

    @staged
    async def test_killed_reader_gives_its_work_up(self, stage: Stage) -> None:
        """Within about its lease; what it had acked does not come again."""
        self.lease_s = SHORT_LEASE_S
        topic = await stage.queue()
        await stage.publish(topic, 3)
        with child(self, hold_three, topic) as other:
            held = await other.hear()
            transport = await self.connect()
            reader = await transport.subscribe(topic, prefetch=4)
            other.kill()
            began = time.monotonic()
            again = await stage.take(reader, 2)
        assert time.monotonic() - began < 3 * self.lease_s + 2
        once_each(held[1:], ids(again))
        await reader.ack(again)
        await stage.nothing(reader, 2 * self.lease_s)
        await transport.aclose()

    @staged
    async def test_stopped_reader_learns_that_it_lost_its_work(self, stage: Stage) -> None:
        """A process that slept through its lease finds its acks refused, and another has the work."""
        self.lease_s = SHORT_LEASE_S
        topic = await stage.queue()
        await stage.publish(topic, 3)
        with child(self, hold_three, topic) as other:
            held = await other.hear()
            other.send_signal(signal.SIGSTOP)
            transport = await self.connect()
            reader = await transport.subscribe(topic, prefetch=4)
            again = await stage.take(reader, 2)
            other.send_signal(signal.SIGCONT)
            other.tell("ack now")
            assert sorted(await other.hear()) == sorted(held[1:])
        await reader.aclose()
        assert len(await stage.work(await stage.reader(topic, by=transport), 2)) == 2
        once_each(held[1:], ids(again))
        await transport.aclose()

    @staged
    async def test_leases_live_while_the_event_loop_is_blocked(self, stage: Stage) -> None:
        self.lease_s = SHORT_LEASE_S
        topic = await stage.queue()
        await stage.publish(topic, 1)
        with child(self, hold_and_block, topic) as other:
            assert await other.hear() == "held"
            transport = await self.connect()
            reader = await transport.subscribe(topic, prefetch=1)
            await stage.nothing(reader, 3 * self.lease_s)
            assert await other.hear() == "acked"
            await stage.nothing(reader)
        await transport.aclose()

    @staged
    async def test_confirmed_survives_a_kill(self, stage: Stage) -> None:
        """Of a process killed while it publishes, all that it had been confirmed is there."""
        topic = await stage.queue()
        confirmed: list[str] = []
        with child(self, publish_for_ever, topic) as other:
            while len(confirmed) < 300:
                confirmed.extend(await other.hear())
            other.kill()
        there = await self._rest(stage, topic)
        no_loss(confirmed, there)
        assert len(there) == len(set(there))

    @staged
    async def test_processes_share_the_work(self, stage: Stage) -> None:
        """While one is killed and all publish and ack at once: each message is done by one, or is left."""
        self.lease_s = SHORT_LEASE_S
        topic = await stage.queue()
        sent: list[str] = []
        done: list[str] = []
        with child(self, work_for_ever, topic) as first, child(self, work_for_ever, topic) as second:
            assert await first.hear() == await second.hear() == []
            for i in range(60):
                await asyncio.sleep(0.003)
                sent.extend(ids(await stage.publish(topic, 5)))
                if i == 40:
                    first.kill()
            done.extend(await first.hear_all(0.05))
            assert done, "the one that was killed had done nothing"
            done.extend(await second.hear_all(4 * self.lease_s))
        done.extend(await self._rest(stage, topic))
        # the killed one may have acked its last batch without a word of it
        assert len(set(sent) - set(done)) <= 8
        assert len(done) == len(set(done)), "done twice"

    @staged
    async def test_a_reader_hears_of_other_processes(self, stage: Stage) -> None:
        """A message of another process wakes an idle reader."""
        topic = await stage.queue()
        reader = await stage.reader(topic)
        with child(self, publish_when_told, topic) as other:
            assert await other.hear() == "here"
            for _ in range(5):
                waiting = asyncio.create_task(reader.receive(max_messages=1, timeout_s=15))
                await asyncio.sleep(0.02)
                began = time.monotonic()
                other.tell(True)
                await reader.ack(await waiting)
                assert time.monotonic() - began < 2

    async def _rest(self, stage: Stage, topic: str) -> list[str]:
        """All that is ready, worked off."""
        reader = await stage.reader(topic, prefetch=64)
        rest: list[str] = []
        while some := await reader.receive(max_messages=64, timeout_s=0.3):
            rest.extend(ids(some))
            await reader.ack(some)
        return rest
