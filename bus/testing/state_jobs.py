"""What a state promises of its jobs: join, restart, forget, set_state, end, end_start, run numbers."""

from __future__ import annotations

from bus.errors import Misconfigured
from bus.state import MAX_STARTS, Arrival, Attempt, Job, JobState, Verdict, WorkerReport
from bus.testing.state_scene import Scene, Store, page_id, pages, raises, scene

__all__ = ["JobChecks"]

FETCH = Verdict.FETCH
RUNNING, PAUSED, STOPPED, FINISHED = JobState


class JobChecks(Store):
    """join, restart, forget, status, set_state, end, end_start, and the run number that fences them."""

    @scene
    async def test_join_creates_a_running_job(self, s: Scene) -> None:
        status = await s.two.status("shop")
        assert status and status == await s.one.join("shop", spider="spider")
        assert (status.job, status.spider, status.state) == (Job("shop", 1), "spider", RUNNING)
        assert (status.seen, status.open, status.begun, status.loading, status.forever) == (0, 0, 0, 0, 0)
        assert not status.start_ended and not status.suspect and not status.drained
        assert (status.created_at, status.finished_at) == (s.clock.time(), None)
        assert (dict(status.counters), list(status.workers)) == ({}, [])

    @scene
    async def test_join_resumes_a_stopped_job_only(self, s: Scene) -> None:
        for state, then in ((STOPPED, RUNNING), (PAUSED, PAUSED), (RUNNING, RUNNING)):
            await s.one.set_state("shop", state)
            assert (await s.two.join("shop", spider="spider", resume=False)).state is state
            assert (await s.two.join("shop", spider="spider")).state is then
        await s.one.set_state("shop", RUNNING)
        await s.finish_job()
        assert (await s.two.join("shop", spider="spider")).state is FINISHED

    @scene
    async def test_another_spider_may_not_join(self, s: Scene) -> None:
        await s.one.set_state("shop", STOPPED)
        before = await s.one.status("shop")
        error = await raises(Misconfigured, s.two.join("shop", spider="another"))
        assert str(error) == "job shop is of spider spider: choose another --job"
        assert await s.two.status("shop") == before
        assert (await s.two.join("shop", spider="")).spider == "spider"
        await s.one.join("books", spider="")
        for _ in range(2):
            assert (await s.two.join("books", spider="first")).spider == "first"
        await raises(Misconfigured, s.one.join("books", spider="second"))

    @scene
    async def test_unknown_jobs(self, s: Scene) -> None:
        assert await s.one.status("nothing") is None
        assert await s.one.forget("nothing") is False
        assert "nothing" in str(await raises(Misconfigured, s.one.restart("nothing")))
        assert "nothing" in str(await raises(Misconfigured, s.one.set_state("nothing", PAUSED)))
        assert [status.job.name for status in await s.one.jobs()] == ["shop"]

    @scene
    async def test_jobs_are_listed_by_name_and_apart(self, s: Scene) -> None:
        job = (await s.one.join("books", spider="other")).job
        await s.one.mark(job, pages("a"))
        assert await s.one.check(s.job, pages("a")) == set(pages("a"))
        assert [(j.job, j.spider, j.open) for j in await s.two.jobs()] == [
            (job, "other", 1),
            (s.job, "spider", 0),
        ]

    @scene
    async def test_begun_counts_the_pages_that_are(self, s: Scene) -> None:
        async def begun() -> int:
            status = await s.two.status("shop")
            assert status
            return status.begun

        await s.one.mark(s.job, pages("a", "b", "c"))
        for message in ("m", "m", "another"):  # begun, again, and taken
            await s.arrive("a", message)
        await s.arrive("b", "n")
        assert await begun() == 2
        await s.one.retry(s.job, [Attempt(page_id("b"), "n", 1), Attempt(page_id("c"), "n", 1)])
        await s.one.release(s.job, [Arrival(page_id("a"), "m")])
        assert await begun() == 2
        await s.one.finish(s.job, pages("a", "c", "never begun"))
        await s.one.finish(s.job, pages("a"))
        assert await begun() == 1

    @scene
    async def test_restart_forgets_everything_but_the_name(self, s: Scene) -> None:
        await s.one.mark(s.job, pages("a", "b"), finish=pages("b"), counts={"items": 1})
        await s.arrive("a", "m")
        await s.end_start()
        assert await s.one.acquire(s.job, "worker:w", "w")
        await s.one.report(s.job, WorkerReport("w", 1, 1))
        await s.one.set_state("shop", STOPPED)
        await s.clock.advance(1)
        status = await s.two.restart("shop")
        assert status == await s.one.status("shop")
        assert (status.job, status.spider, status.state) == (Job("shop", 2), "spider", RUNNING)
        assert (status.seen, status.open, status.begun, dict(status.counters)) == (0, 0, 0, {})
        assert not status.start_ended and not status.workers and status.created_at == s.clock.time()
        assert await s.one.check(status.job, pages("a", "b")) == set(pages("a", "b"))
        assert await s.two.arrive(status.job, [Arrival(page_id("a"), "another")]) == [FETCH]

    @scene
    async def test_forget_makes_it_unknown_and_keeps_the_run_number(self, s: Scene) -> None:
        await s.one.mark(s.job, pages("a"))
        assert await s.two.forget("shop") is True
        assert await s.one.status("shop") is None and await s.one.jobs() == []
        assert await s.two.forget("shop") is False
        await raises(Misconfigured, s.one.set_state("shop", PAUSED))
        assert await s.one.arrive(Job("shop", 2), [Arrival(page_id("a"), "m")]) == [Verdict.OTHER_RUN]
        status = await s.two.join("shop", spider="new")
        assert (status.job, status.spider, status.seen) == (Job("shop", 2), "new", 0)

    @scene
    async def test_a_call_of_another_run_changes_nothing(self, s: Scene) -> None:
        await s.one.mark(s.job, pages("old"))
        now = (await s.one.restart("shop")).job
        await s.one.mark(now, pages("open", "done"), finish=pages("done"))
        await s.one.arrive(now, [Arrival(page_id("open"), "m")])
        assert await s.one.acquire(now, "start", "starter")
        before = await s.two.status("shop")
        for job in (s.job, Job("shop", 3), Job("nothing", 1)):
            await self.call_everything(s, job)
            assert await s.two.status("shop") == before
        assert await s.one.status("nothing") is None
        assert await s.one.arrive(now, [Arrival(page_id("open"), "m")] * MAX_STARTS) == [FETCH] * (MAX_STARTS - 1) + [
            Verdict.ALONE
        ]

    async def call_everything(self, s: Scene, job: Job) -> None:
        arrival = Arrival(page_id("open"), "m")
        assert await s.one.check(job, pages("open", "new")) == set()
        await s.one.mark(job, pages("new"), finish=pages("open"), counts={"items": 1})
        await s.one.finish(job, pages("open", "new"))
        assert await s.one.arrive(job, [arrival, Arrival(page_id("new"), "m")]) == [Verdict.OTHER_RUN] * 2
        await s.one.retry(job, [Attempt(page_id("open"), "m", 1)])
        await s.one.release(job, [arrival])
        assert await s.one.known(job, pages("new")) == await s.one.unsee(job, pages("done")) == 0
        assert await s.one.end_start(job, "starter") is False
        assert await s.one.end(job) is STOPPED and await s.one.end(job, unaccounted=1) is STOPPED
        assert await s.two.acquire(job, "seed:s", "seeder") is False
        await s.one.drop(job, "start", "starter")
        await s.one.report(job, WorkerReport("w", 1, 1))

    @scene
    async def test_a_finished_job_stays_finished(self, s: Scene) -> None:
        await s.finish_job()
        for state in (PAUSED, STOPPED, RUNNING):
            assert (await s.two.set_state("shop", state)).state is FINISHED

    @scene
    async def test_set_state(self, s: Scene) -> None:
        for state in (PAUSED, STOPPED, PAUSED, RUNNING):
            assert (await s.one.set_state("shop", state)).state is state
            assert await s.state() is state

    @scene
    async def test_a_job_ends_when_it_is_drained(self, s: Scene) -> None:
        assert await s.one.end(s.job) is RUNNING, "start() has not ended"
        await s.end_start()
        await s.one.mark(s.job, pages("a"))
        assert await s.one.end(s.job) is RUNNING, "a page is open"
        await s.one.finish(s.job, pages("a"))
        for lease in ("seed:file", "forever:w"):
            assert await s.one.acquire(s.job, lease, "x")
            assert await s.two.end(s.job) is RUNNING, lease
            await s.one.drop(s.job, lease, "x")
        await s.clock.advance(5)
        status = await s.two.status("shop")
        assert status and status.drained
        assert await s.two.end(s.job) is FINISHED
        status = await s.one.status("shop")
        assert status and (status.state, status.finished_at, status.unaccounted) == (FINISHED, s.clock.time(), 0)
        await s.clock.advance(5)
        assert await s.one.end(s.job) is FINISHED
        assert await s.two.status("shop") == status

    @scene
    async def test_a_paused_or_stopped_job_does_not_end(self, s: Scene) -> None:
        await s.end_start()
        for state in (PAUSED, STOPPED):
            await s.one.set_state("shop", state)
            assert await s.one.end(s.job) is state
            assert await s.one.end(s.job, unaccounted=0) is state

    @scene
    async def test_the_slow_end_records_what_is_open(self, s: Scene) -> None:
        await s.one.mark(s.job, pages("lost 1", "lost 2"))
        assert await s.one.end(s.job, unaccounted=2) is RUNNING, "start() has not ended"
        await s.end_start()
        assert await s.one.acquire(s.job, "seed:file", "x")
        assert await s.one.end(s.job, unaccounted=2) is RUNNING, "a seed is loading"
        await s.one.drop(s.job, "seed:file", "x")
        assert await s.one.end(s.job) is RUNNING
        assert await s.one.end(s.job, unaccounted=1) is FINISHED
        status = await s.two.status("shop")
        assert status and (status.open, status.unaccounted, status.finished_at) == (2, 2, s.clock.time())
        await s.one.mark(s.job, pages("new"))
        status = await s.two.status("shop")
        assert status and (status.state, status.open, status.unaccounted) == (RUNNING, 3, 0)

    @scene
    async def test_end_start_needs_its_lease(self, s: Scene) -> None:
        assert await s.one.end_start(s.job, "a") is False
        assert await s.one.acquire(s.job, "start", "a", lease_s=60)
        assert await s.two.end_start(s.job, "b") is False
        await s.clock.advance(61)
        assert await s.one.end_start(s.job, "a") is False, "its lease has run out"
        status = await s.two.status("shop")
        assert status and not status.start_ended
        assert await s.two.acquire(s.job, "start", "b")
        assert await s.one.end_start(s.job, "a") is False, "it is another's now"
        assert await s.two.end_start(s.job, "b") is True
        assert await s.two.end_start(s.job, "b") is True
        status = await s.one.status("shop")
        assert status and status.start_ended and status.drained

    @scene
    async def test_start_is_not_leased_again_once_it_has_ended(self, s: Scene) -> None:
        await s.end_start()
        assert await s.two.acquire(s.job, "start", "b") is False
        assert await s.one.acquire((await s.one.restart("shop")).job, "start", "b") is True
