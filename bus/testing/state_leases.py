"""What a state promises of its leases, its reports and its close."""

from __future__ import annotations

import asyncio

from bus.errors import Closed
from bus.state import JobState, WorkerReport
from bus.testing.state_scene import Scene, Store, pages, raises, scene

__all__ = ["LeaseChecks"]


class LeaseChecks(Store):
    """acquire, drop, report, aclose."""

    @scene
    async def test_a_lease_has_one_owner(self, s: Scene) -> None:
        assert await s.one.acquire(s.job, "start", "a", lease_s=60)
        assert await s.one.acquire(s.job, "start", "a", lease_s=60), "kept"
        assert not await s.two.acquire(s.job, "start", "b", lease_s=60)
        assert await s.two.acquire(s.job, "seed:x", "b", lease_s=60), "another name"
        other = (await s.one.join("books", spider="s")).job
        assert await s.two.acquire(other, "start", "b", lease_s=60), "another job"

    @scene
    async def test_a_lease_runs_out(self, s: Scene) -> None:
        assert await s.one.acquire(s.job, "start", "a", lease_s=60)
        await s.clock.advance(59)
        assert not await s.two.acquire(s.job, "start", "b", lease_s=60)
        await s.clock.advance(1)
        assert await s.two.acquire(s.job, "start", "b", lease_s=60)
        assert not await s.one.acquire(s.job, "start", "a", lease_s=60)

    @scene
    async def test_only_the_owner_drops(self, s: Scene) -> None:
        assert await s.one.acquire(s.job, "start", "a")
        await s.two.drop(s.job, "start", "b")
        assert not await s.two.acquire(s.job, "start", "b")
        await s.one.drop(s.job, "start", "a")
        await s.one.drop(s.job, "start", "a")
        assert await s.two.acquire(s.job, "start", "b")

    @scene
    async def test_at_most_one_takes_it(self, s: Scene) -> None:
        calls = [(s.one, s.two)[n % 2].acquire(s.job, "start", f"{n}") for n in range(10)]
        assert sum(await asyncio.gather(*calls)) == 1

    @scene
    async def test_live_leases_are_counted(self, s: Scene) -> None:
        for name in ("seed:a", "seed:b", "forever:w"):
            assert await s.one.acquire(s.job, name, "x", lease_s=60)
        status = await s.two.status("shop")
        assert status and (status.loading, status.forever) == (2, 1)
        await s.clock.advance(60)
        status = await s.two.status("shop")
        assert status and (status.loading, status.forever) == (0, 0)

    @scene
    async def test_a_restart_takes_all_leases(self, s: Scene) -> None:
        for name in ("start", "seed:a", "forever:w"):
            assert await s.one.acquire(s.job, name, "x")
        status = await s.two.restart("shop")
        assert (status.loading, status.forever) == (0, 0)
        assert await s.two.acquire(status.job, "start", "y")

    def test_a_lease_is_renewed_until_it_is_dropped(self) -> None:
        async def play() -> None:
            one, two = await self.connect(), await self.connect()
            job = (await one.join("shop", spider="s")).job
            assert await one.acquire(job, "start", "a", lease_s=0.6)
            loop = asyncio.get_running_loop()
            end = loop.time() + 2.0
            while loop.time() < end:
                assert not await two.acquire(job, "start", "b", lease_s=0.6)
                await asyncio.sleep(0.1)
            await one.aclose()
            assert await two.acquire(job, "start", "b", lease_s=0.6), "aclose gives leases up"
            await two.aclose()

        asyncio.run(play())

    @scene
    async def test_reports_are_of_workers_that_live(self, s: Scene) -> None:
        assert await s.one.acquire(s.job, "worker:w1", "w1", lease_s=60)
        first, second = WorkerReport("w1", 3, 4, {"pages": 1}), WorkerReport("w1", 1, 2, {"pages": 9})
        status = await s.one.report(s.job, first)
        assert status and list(status.workers) == [first]
        await s.two.report(s.job, WorkerReport("w2", 1, 1))
        await s.one.report(s.job, second)
        status = await s.two.status("shop")
        assert status and list(status.workers) == [second], "w2 has no lease"
        assert dict(status.workers[0].counters) == {"pages": 9}
        await s.clock.advance(60)
        status = await s.two.status("shop")
        assert status and list(status.workers) == []

    @scene
    async def test_a_report_tells_how_the_job_stands(self, s: Scene) -> None:
        report = WorkerReport("w", 0, 0)
        await s.two.set_state("shop", JobState.PAUSED)
        status = await s.one.report(s.job, report)
        assert status and status.state is JobState.PAUSED
        await s.two.restart("shop")
        status = await s.one.report(s.job, report)
        assert status and status.job.run == 2
        await s.two.forget("shop")
        assert await s.one.report(s.job, report) is None

    @scene
    async def test_aclose(self, s: Scene) -> None:
        assert await s.one.acquire(s.job, "start", "a")
        await s.one.mark(s.job, pages("a"))
        await s.one.aclose()
        await s.one.aclose()
        await raises(Closed, s.one.status("shop"))
        await raises(Closed, s.one.mark(s.job, pages("b")))
        await raises(Closed, s.one.acquire(s.job, "start", "a"))
        assert await s.two.acquire(s.job, "start", "b")
        assert await s.numbers() == (1, 1, 0)
