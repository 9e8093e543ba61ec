"""What a state shared between processes promises besides: its leases outlive no process, its counts outlive any."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bus.state import Job, JobState, State
from bus.testing.state_scene import Store, page_id, pages

__all__ = ["ProcessChecks"]

LEASE_S = 1.0
PATIENCE_S = 30.0


class ProcessChecks(Store):
    """Each check starts processes of its own, and ends them."""

    def url_of_store(self) -> tuple[str, str]:
        """Where another process finds this check's store: `module:Class` of the state, and its URL."""
        raise NotImplementedError

    @asynccontextmanager
    async def child(self, deed: str, *numbers: float) -> AsyncIterator[Process]:
        command = [sys.executable, "-m", "bus.testing.state_child", *self.url_of_store(), deed, "shop"]
        process = await asyncio.create_subprocess_exec(*command, *map(str, numbers), stdout=PIPE)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def test_a_killed_process_loses_its_leases_when_they_have_run_out(self) -> None:
        async def play() -> None:
            async with self.child("hold", LEASE_S, 60.0) as child:
                await _hear(child, "held")
                state = await self.connect()
                child.kill()
                await child.wait()
                took_s = await _until_acquired(state, Job("shop", 1))
                assert took_s < LEASE_S + 5.0, took_s
                await state.aclose()

        asyncio.run(play())

    def test_a_blocked_event_loop_keeps_its_leases(self) -> None:
        async def play() -> None:
            async with self.child("hold", LEASE_S, 3 * LEASE_S) as child:
                await _hear(child, "held")
                state = await self.connect()
                hearing = asyncio.create_task(_hear(child, "held still"))
                while not hearing.done():
                    assert not await state.acquire(Job("shop", 1), "start", "me", lease_s=LEASE_S)
                    await asyncio.sleep(LEASE_S / 10)
                await hearing
                await state.aclose()

        asyncio.run(play())

    def test_counts_are_exact_though_processes_are_killed(self) -> None:
        async def play() -> None:
            state = await self.connect()
            job = (await state.join("shop", spider="s")).job
            for lines in (1, 3, 2):
                async with self.child("churn", 10_000) as one, self.child("churn", 10_000) as two:
                    for child in (one, two):
                        for _ in range(lines + 1):
                            await asyncio.wait_for(_line(child), PATIENCE_S)
                    one.kill()
            status = await state.status("shop")
            assert status and status.open > 0
            every = [page_id(n) for n in range(-1, 10_002)]
            unseen = await state.check(job, every)
            assert status.seen == len(every) - len(unseen)
            await state.finish(job, [page for page in every if page not in unseen])
            status = await state.status("shop")
            assert status and (status.open, status.begun) == (0, 0)
            await state.aclose()

        asyncio.run(play())

    def test_what_a_state_holds_outlives_its_connections(self) -> None:
        async def play() -> None:
            state = await self.connect()
            job = (await state.join("shop", spider="s")).job
            await state.mark(job, pages("a", "b"), finish=pages("a"), counts={"items": 3})
            await state.set_state("shop", JobState.PAUSED)
            before = await state.status("shop")
            await state.aclose()
            state = await self.connect()
            assert await state.status("shop") == before
            assert await state.check(job, pages("a", "b", "c")) == set(pages("c"))
            await state.aclose()

        asyncio.run(play())


async def _line(child: Process) -> str:
    assert child.stdout is not None
    line = await child.stdout.readline()
    assert line, "the child has ended"
    return line.decode().strip()


async def _hear(child: Process, word: str) -> None:
    async def listen() -> None:
        while await _line(child) != word:
            pass

    await asyncio.wait_for(listen(), PATIENCE_S)


async def _until_acquired(state: State, job: Job) -> float:
    """Seconds until the lease was free."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not await state.acquire(job, "start", "me", lease_s=LEASE_S):
        assert loop.time() < began + PATIENCE_S
        await asyncio.sleep(0.02)
    return loop.time() - began
