"""When a job ends whose pages are still open though nothing is left to do; and which number a worker gets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import Any, cast

import pytest

from adapters.memory.state import MemoryState
from adapters.memory.transport import MemoryTransport
from bus.message import Message, new_id
from bus.state import LEASE_S, Job, JobState, WorkerReport
from bus.topic import LANES, request_queue
from bus.transport import Lag
from spiders.presence import SlowEnd
from spiders.slot import take_slot
from spiders.worker import Worker

RUNNING, FINISHED = JobState.RUNNING, JobState.FINISHED
QUEUES = [request_queue("crawlbus.", "shop", lane) for lane in LANES]
PAGE = b"p" * 16


class Vague(MemoryTransport):
    """A bus that cannot tell everything about its queues."""

    vague: dict[str, Any]

    async def lag(self, topic: str, *, group: str = "") -> Lag:
        return replace(await super().lag(topic, group=group), **self.vague)


@dataclass
class Idle:
    """What `SlowEnd` asks of its worker."""

    transport: Vague
    state: MemoryState
    job: Job
    idle: bool = True
    lane_topics = tuple(queue.name for queue in QUEUES)

    def __post_init__(self) -> None:
        self._end = SlowEnd(cast(Worker, self))

    async def look(self, at_s: float) -> JobState:
        status = await self.state.status("shop")
        assert status is not None
        return await self._end.look(status, at_s)

    def works(self) -> None:
        self._end.begin_anew()

    async def publish(self, **kw: Any) -> None:
        await self.transport.publish(QUEUES[0].name, [Message(new_id(), b"", {}, PAGE, **kw)])


def scene(test: Callable[[Idle], Awaitable[None]], **vague: Any) -> None:
    """A job with one open page, `start()` ended, an empty bus, and one worker that is idle."""

    async def run() -> None:
        url = f"memory://{token_hex(4)}"
        async with (
            aclosing(await Vague.connect(url)) as transport,
            aclosing(await MemoryState.connect(url)) as state,
        ):
            transport.vague = vague
            await transport.declare(*QUEUES)
            job = (await state.join("shop", spider="shop")).job
            await state.acquire(job, "start", "w")
            await state.mark(job, [PAGE])
            await state.end_start(job, "w")
            await state.acquire(job, "worker:w", "w")
            await state.report(job, WorkerReport("w", 0, 0))
            await test(Idle(transport, state, job))

    asyncio.run(run())


async def ends(worker: Idle) -> None:
    assert await worker.look(0) is RUNNING
    assert await worker.look(2 * LEASE_S) is RUNNING
    assert await worker.look(2 * LEASE_S + 1) is FINISHED
    status = await worker.state.status("shop")
    assert status is not None and status.unaccounted == 1


async def never_ends(worker: Idle) -> None:
    for at_s in range(0, 600, 20):
        assert await worker.look(at_s) is RUNNING


@pytest.mark.parametrize("vague", [{}, {"unacked": None}, {"unacked": None, "readers": 1}])
def test_it_ends_when_the_bus_was_empty_at_two_looks(vague: dict[str, Any]) -> None:
    scene(ends, **vague)


@pytest.mark.parametrize(
    "vague",
    [{"exact": False}, {"ready": None}, {"delayed": None}, {"unacked": 1}, {"unacked": None, "readers": 2}],
)
def test_what_is_not_known_to_be_nothing_is_something(vague: dict[str, Any]) -> None:
    scene(never_ends, **vague)


def test_one_look_at_something_begins_the_wait_anew() -> None:
    async def look(worker: Idle) -> None:
        assert await worker.look(0) is RUNNING
        await worker.publish()
        assert await worker.look(100) is RUNNING
        async with aclosing(await worker.transport.subscribe(QUEUES[0].name)) as reader:
            (delivery,) = await reader.receive(max_messages=1, timeout_s=5)
            assert await worker.look(200) is RUNNING, "in a reader's hands"
            await reader.ack([delivery])
        assert await worker.look(300) is RUNNING
        assert await worker.look(300 + 2 * LEASE_S + 1) is FINISHED

    scene(look)


def test_a_message_that_waits_for_its_time_hinders() -> None:
    async def look(worker: Idle) -> None:
        await worker.publish(not_before=4e9)
        await never_ends(worker)

    scene(look)


def test_a_busy_worker_anywhere_hinders() -> None:
    async def look(worker: Idle) -> None:
        assert await worker.look(0) is RUNNING
        await worker.state.acquire(worker.job, "worker:v", "v")
        for report in (WorkerReport("v", 1, 0), WorkerReport("v", 0, 1)):
            await worker.state.report(worker.job, report)
            assert await worker.look(100) is RUNNING
        await worker.state.drop(worker.job, "worker:v", "v")
        assert await worker.look(200) is RUNNING
        assert await worker.look(300) is FINISHED

    scene(look)


def test_this_worker_may_have_something_since_its_report() -> None:
    async def look(worker: Idle) -> None:
        assert await worker.look(0) is RUNNING
        worker.idle = False
        assert await worker.look(100) is RUNNING
        worker.idle = True
        assert await worker.look(101) is FINISHED

    scene(look)


def test_what_was_seen_before_this_worker_had_work_does_not_count() -> None:
    async def look(worker: Idle) -> None:
        assert await worker.look(0) is RUNNING
        worker.works()
        assert await worker.look(100) is RUNNING
        assert await worker.look(100 + 2 * LEASE_S + 1) is FINISHED

    scene(look)


@pytest.mark.parametrize("lease", ["seed:file", "forever:w"])
def test_a_seed_that_loads_and_a_worker_that_stands_by_hinder(lease: str) -> None:
    async def look(worker: Idle) -> None:
        await worker.state.acquire(worker.job, lease, "w")
        await never_ends(worker)

    scene(look)


def test_the_lowest_number_that_no_live_worker_has() -> None:
    async def take() -> None:
        async with aclosing(await MemoryState.connect(f"memory://{token_hex(4)}")) as state:
            job = (await state.join("shop", spider="shop")).job
            assert [await take_slot(state, job, owner) for owner in "abc"] == ["0", "1", "2"]
            assert await take_slot(state, job, "b") == "1", "its own"
            await state.drop(job, "slot:0", "a")
            assert await take_slot(state, job, "d") == "0"
            await state.restart(job.name)
            assert await take_slot(state, job, "e") == "", "it waits for ever in a run that is over"

    asyncio.run(take())
