"""The checks of a transport that processes share: they start, stop and kill real processes."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections import Counter
from collections.abc import Collection
from functools import partial

from bus.capabilities import Delay
from bus.message import Message, new_id
from bus.testing.checks import no_loss
from bus.testing.transport_child import (
    child,
    hold_all,
    hold_and_block,
    hold_three,
    publish_for_ever,
    publish_when_told,
    work_for_ever,
)
from bus.testing.transport_scene import PATIENCE_S, Bus, Stage, ids, staged, until

__all__ = ["SharedChecks"]

SHORT_LEASE_S = 0.6
COMMIT_S = 1.5  # a bus that acks a prefix stores it each second, about
WORK = 8  # what `work_for_ever` holds at once


class SharedChecks(Bus):
    """What holds among the processes of one machine. All is pickled to be sent there, so a suite holds plain values."""

    @staged
    async def test_killed_reader_gives_its_work_up(self, stage: Stage) -> None:
        """Within about its lease; what it had acked does not come again, where an ack stands alone."""
        self.lease_s = SHORT_LEASE_S
        topic = await stage.queue()
        await stage.publish(topic, 3)
        with child(self, hold_three, topic) as other:
            held = await other.hear()
            transport = await self.connect()
            reader = await transport.subscribe(topic, prefetch=4)
            other.kill()
            began = time.monotonic()
            again = await stage.again(reader, held[1:], held[:1] if stage.prefix else [])
        assert time.monotonic() - began < 3 * (transport.capabilities.lease_s or 0) + 2
        await reader.ack(again)
        await stage.nothing(reader, 0.3)
        await transport.aclose()

    @staged
    async def test_a_successor_takes_a_killed_members_work_over(self, stage: Stage) -> None:
        """At once: not after the lease, which is a long one here."""
        self.lease_s = 30.0
        topic = await stage.queue()
        await stage.publish(topic, 3)
        with child(self, partial(hold_three, member="slot-0"), topic) as other:
            held = await other.hear()
            other.kill()
            transport = await self.connect()
            began = time.monotonic()
            reader = await transport.subscribe(topic, prefetch=4, member="slot-0")
            await reader.ack(await stage.again(reader, held[1:], held[:1] if stage.prefix else []))
            assert time.monotonic() - began < 5
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
            may = held[:1] if stage.prefix else []
            await stage.again(reader, held[1:], may)
            other.send_signal(signal.SIGCONT)
            other.tell("ack now")
            assert sorted(await other.hear()) == sorted(held[1:])
        await reader.aclose()
        await stage.again(await stage.reader(topic, by=transport, prefetch=4), held[1:], may)
        await transport.aclose()

    @staged
    async def test_leases_live_while_the_event_loop_is_blocked(self, stage: Stage) -> None:
        """Nobody else is given the work, and the late ack counts."""
        self.lease_s = SHORT_LEASE_S
        topic = await stage.queue()
        await stage.publish(topic, 1)
        with child(self, hold_and_block, topic) as other:
            assert await other.hear() == "held"
            transport = await self.connect()
            if not stage.prefix:  # there, one that comes may be given the other's partition at any time
                reader = await transport.subscribe(topic, prefetch=1)
                await stage.nothing(reader, self.blocked_leases * 0.75 * (transport.capabilities.lease_s or 0))
                await reader.aclose()
            assert await other.hear() == "acked"
        await stage.nothing(await stage.reader(topic, by=transport))
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
        there = await self._rest(stage, topic, confirmed)
        no_loss(confirmed, there)
        assert len(there) == len(set(there))

    @staged
    async def test_killed_while_work_is_delayed(self, stage: Stage) -> None:
        """A process dies that read, and forwarded what was due: its work comes, once or twice, and none early."""
        if not stage.can.delays:
            return
        topic = await stage.queue()
        bands = stage.can.delay is Delay.BANDS
        with child(self, partial(hold_all, member="slot-0"), topic) as other:
            now, step_s = time.time(), 0.04 if bands else 0.01
            sent = [Message(new_id(), b"", not_before=now + 0.3 + i * step_s) for i in range(60)]
            await stage.one.publish(topic, sent)
            came = await other.hear()
            other.kill()
        due = {message.id: message.not_before or 0 for message in sent}
        reader = await stage.one.subscribe(topic, prefetch=200, member="slot-0")
        missing, came = set(due), []
        async with asyncio.timeout(PATIENCE_S):
            while missing:
                some = ids(await reader.receive(max_messages=100, timeout_s=1))
                assert all(stage.in_time(due[one], since=math.inf) for one in some)
                missing.difference_update(some)
                came.extend(some)
        assert len(came) == len(set(came)) or bands

    @staged
    async def test_processes_share_the_work(self, stage: Stage) -> None:
        """While one is killed and all publish and ack at once: each message is done by one, or is left. Where acks are
        stored as a prefix, what the killed one acked at last may be done twice."""
        self.lease_s = SHORT_LEASE_S
        topic = await stage.queue()
        sent: list[str] = []
        done: list[list[tuple[float, list[str]]]] = [[], []]  # when, and what, by each child

        async def publish() -> None:
            sent.extend(ids(await stage.publish(topic, 5, spread=True)))
            for told, worker in zip(done, (first, second), strict=True):
                told.extend(worker.heard())

        async def drained() -> bool:
            done[1].extend(second.heard())
            lag = await stage.two.lag(topic)
            return (lag.ready or 0) + (lag.unacked or 0) == 0 and lost() <= WORK

        def lost() -> int:
            return len(set(sent).difference(*(some for told in done for _, some in told), rest))

        rest: list[str] = []
        with child(self, work_for_ever, topic) as first, child(self, work_for_ever, topic) as second:
            async with asyncio.timeout(PATIENCE_S):
                while not all(done):
                    await publish()
            for i in range(60):
                await asyncio.sleep(0.003)
                await publish()
                if i == 40:
                    first.kill()
                    killed = time.monotonic()
            await until(drained)
            rest.extend(await self._rest(stage, topic))
            done[1].extend(second.heard())
        assert lost() <= WORK  # the killed one may have acked its last ones without a word
        again = {one for at, some in done[0] if at > killed - COMMIT_S for one in some} if stage.prefix else set()
        times = Counter([one for told in done for _, some in told for one in some] + rest)
        twice = [one for one, count in times.items() if count > 1 + (one in again)]
        assert not twice, f"{len(twice)} were done twice"

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

    async def _rest(self, stage: Stage, topic: str, wanted: Collection[str] = ()) -> list[str]:
        """All that is ready, worked off."""
        reader = await stage.reader(topic, prefetch=64)
        rest: list[str] = []
        async with asyncio.timeout(PATIENCE_S):
            while (some := await reader.receive(max_messages=64, timeout_s=0.3)) or not set(wanted) <= set(rest):
                rest.extend(ids(some))
                await reader.ack(some)
        return rest
