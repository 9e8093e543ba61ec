"""What a state promises of its frontier: check, mark, finish, arrive, retry, release, known, unsee."""

from __future__ import annotations

import asyncio

from bus.state import MAX_STARTS, Arrival, Attempt, JobState, State, Verdict
from bus.testing.state_scene import Scene, Store, page_id, pages, scene

__all__ = ["FrontierChecks"]

FETCH, DONE, TAKEN, SUPERSEDED = Verdict.FETCH, Verdict.DONE, Verdict.TAKEN, Verdict.SUPERSEDED
RUNNING, PAUSED, STOPPED, FINISHED = JobState


class FrontierChecks(Store):
    """check, mark, finish, arrive, retry, release, known, unsee."""

    @scene
    async def test_check_tells_what_is_not_seen_and_changes_nothing(self, s: Scene) -> None:
        await s.one.mark(s.job, pages("a"))
        for _ in range(2):
            assert await s.two.check(s.job, pages("a", "b", "b", "c")) == set(pages("b", "c"))
        assert await s.two.check(s.job, []) == set()
        assert await s.numbers() == (1, 1, 0)

    @scene
    async def test_calls_take_thousands(self, s: Scene) -> None:
        many = pages(*range(5000))
        await s.one.mark(s.job, many[:4000])
        assert await s.two.check(s.job, many) == set(many[4000:])
        verdicts = await s.one.arrive(s.job, [Arrival(page, page.hex()) for page in many])
        assert verdicts == [FETCH] * 5000
        assert await s.numbers() == (5000, 5000, 5000)
        await s.two.finish(s.job, many[1000:])
        assert await s.numbers() == (5000, 1000, 1000)
        await s.two.release(s.job, [Arrival(page, page.hex()) for page in many])
        await s.two.retry(s.job, [Attempt(page, page.hex(), 1) for page in many])
        verdicts = await s.one.arrive(s.job, [Arrival(page, page.hex()) for page in many])
        assert verdicts == [SUPERSEDED] * 1000 + [DONE] * 4000
        assert await s.one.unsee(s.job, many) == 4000
        assert await s.one.known(s.job, many) == 4000

    @scene
    async def test_calls_take_none(self, s: Scene) -> None:
        await s.one.mark(s.job, [])
        await s.one.finish(s.job, [])
        assert await s.one.arrive(s.job, []) == []
        await s.one.retry(s.job, [])
        await s.one.release(s.job, [])
        assert await s.one.known(s.job, []) == await s.one.unsee(s.job, []) == 0
        assert await s.numbers() == (0, 0, 0)

    @scene
    async def test_iterables_are_read_once(self, s: Scene) -> None:
        await s.one.mark(s.job, iter(pages("a", "b")), finish=iter(pages("a")))
        await s.one.finish(s.job, iter(pages("b")))
        assert await s.one.known(s.job, iter(pages("c"))) == 1
        assert await s.one.unsee(s.job, iter(pages("c"))) == 1
        assert await s.numbers() == (2, 0, 0)

    @scene
    async def test_mark_enters_each_page_once(self, s: Scene) -> None:
        await s.one.mark(s.job, pages("a", "a", "b"))
        await s.two.mark(s.job, pages("b", "c"))
        assert await s.numbers() == (3, 3, 0)

    @scene
    async def test_mark_does_not_open_what_is_seen(self, s: Scene) -> None:
        await s.one.finish(s.job, pages("a"))
        await s.one.mark(s.job, pages("a"))
        assert await s.numbers() == (1, 0, 0)

    @scene
    async def test_mark_then_finishes(self, s: Scene) -> None:
        await s.arrive("p", "m")
        await s.one.mark(s.job, pages("p", "a", "b"), finish=pages("p", "a"))
        assert await s.numbers() == (3, 1, 0)
        assert await s.arrive("a", "m2") is DONE

    @scene
    async def test_mark_adds_counts(self, s: Scene) -> None:
        await s.one.mark(s.job, [], counts={"items": 2, "dead": 1})
        await s.two.mark(s.job, pages("a"), counts={"items": 3})
        status = await s.one.status(s.job.name)
        assert status and status.counters == {"items": 5, "dead": 1}

    @scene
    async def test_mark_of_a_new_page_sets_a_finished_job_running(self, s: Scene) -> None:
        await s.one.finish(s.job, pages("a"))
        await s.finish_job()
        await s.one.mark(s.job, pages("a"), finish=pages("a"), counts={"items": 1})
        assert await s.state() is FINISHED
        await s.one.mark(s.job, pages("a", "b"))
        assert await s.state() is RUNNING
        status = await s.two.status(s.job.name)
        assert status and status.finished_at is None
        assert await s.one.end(s.job) is RUNNING

    @scene
    async def test_mark_leaves_paused_and_stopped_jobs(self, s: Scene) -> None:
        for n, state in enumerate((PAUSED, STOPPED)):
            await s.one.set_state(s.job.name, state)
            await s.one.mark(s.job, pages(n))
            assert await s.arrive(f"arrived {n}", "m") is FETCH
            assert await s.state() is state

    @scene
    async def test_finish_enters_seen_leaves_open_and_begun(self, s: Scene) -> None:
        await s.one.mark(s.job, pages("a"))
        await s.arrive("a", "m")
        assert await s.numbers() == (1, 1, 1)
        for _ in range(2):
            await s.two.finish(s.job, pages("a", "never heard of", "a"))
            assert await s.numbers() == (2, 0, 0)
        assert await s.one.check(s.job, pages("a", "never heard of")) == set()

    @scene
    async def test_finish_leaves_a_finished_job(self, s: Scene) -> None:
        await s.finish_job()
        await s.one.finish(s.job, pages("a"))
        assert await s.state() is FINISHED

    @scene
    async def test_arrive_begins_a_page_seen_or_not(self, s: Scene) -> None:
        await s.one.mark(s.job, pages("marked"))
        assert await s.arrive("marked", "m1") is FETCH
        assert await s.arrive("unmarked", "m2") is FETCH
        assert await s.numbers() == (2, 2, 2)
        assert await s.two.check(s.job, pages("unmarked")) == set()

    @scene
    async def test_arrive_done(self, s: Scene) -> None:
        await s.arrive("a", "m")
        await s.one.finish(s.job, pages("a"))
        await s.finish_job()
        assert await s.arrive("a", "m") is DONE
        assert await s.arrive("a", "m", 3) is DONE
        assert await s.arrive("a", "another") is DONE
        assert await s.numbers() == (1, 0, 0)
        assert await s.state() is FINISHED

    @scene
    async def test_arrive_taken(self, s: Scene) -> None:
        assert await s.arrive("a", "m") is FETCH
        assert await s.arrive("a", "another", 7) is TAKEN
        assert await s.arrive("a", "m") is FETCH, "a redelivery"

    @scene
    async def test_arrive_superseded(self, s: Scene) -> None:
        assert await s.arrive("a", "m", 2) is FETCH
        assert await s.arrive("a", "m", 1) is SUPERSEDED
        assert await s.arrive("a", "m", 2) is FETCH
        assert await s.arrive("a", "m", 3) is FETCH
        assert await s.arrive("a", "m", 2) is SUPERSEDED

    @scene
    async def test_arrive_answers_in_order(self, s: Scene) -> None:
        await s.one.finish(s.job, pages("done"))
        arrivals = [Arrival(page_id("done"), "m"), Arrival(page_id("a"), "m1"), Arrival(page_id("a"), "m2")]
        arrivals += [Arrival(page_id("a"), "m1", 1), Arrival(page_id("a"), "m1"), Arrival(page_id("b"), "m3")]
        assert await s.one.arrive(s.job, arrivals) == [DONE, FETCH, TAKEN, FETCH, SUPERSEDED, FETCH]
        assert await s.numbers() == (3, 2, 2)

    @scene
    async def test_arrive_sets_a_finished_job_running(self, s: Scene) -> None:
        await s.finish_job()
        assert await s.arrive("new", "m") is FETCH
        assert await s.state() is RUNNING
        await s.two.finish(s.job, pages("new"))
        assert await s.two.end(s.job) is FINISHED

    @scene
    async def test_poison_is_counted_by_starts(self, s: Scene) -> None:
        for _ in range(MAX_STARTS):
            assert await s.arrive("a", "m") is FETCH
        for _ in range(3):
            assert await s.arrive("a", "m") is Verdict.ALONE, "refusing does not count"
        assert await s.arrive("a", "m", alone=True) is FETCH
        for alone in (True, False, True):
            assert await s.arrive("a", "m", alone=alone) is Verdict.DEAD
        assert await s.numbers() == (1, 1, 1), "it is the caller who finishes a dead page"
        assert await s.arrive("a", "m", 1) is FETCH, "a higher attempt counts from nought"

    @scene
    async def test_a_start_alone_counts_like_another(self, s: Scene) -> None:
        for _ in range(MAX_STARTS):
            assert await s.arrive("a", "m", alone=True) is FETCH
        assert await s.arrive("a", "m") is Verdict.ALONE

    @scene
    async def test_retry_enters_the_attempt_with_no_starts(self, s: Scene) -> None:
        for _ in range(MAX_STARTS):
            await s.arrive("a", "m")
        await s.two.retry(s.job, [Attempt(page_id("a"), "m", 1)])
        assert await s.numbers() == (1, 1, 1)
        assert await s.arrive("a", "m") is SUPERSEDED
        for _ in range(MAX_STARTS):
            assert await s.arrive("a", "m", 1) is FETCH
        assert await s.arrive("a", "m", 1) is Verdict.ALONE

    @scene
    async def test_retry_changes_nothing_else(self, s: Scene) -> None:
        await s.arrive("a", "m", 2)
        await s.one.mark(s.job, pages("marked"))
        attempts = [Attempt(page_id("a"), "m", n) for n in (1, 2)]
        attempts += [Attempt(page_id("a"), "another", 9), Attempt(page_id("marked"), "m", 1)]
        await s.one.retry(s.job, [*attempts, Attempt(page_id("unknown"), "m", 1)])
        assert await s.numbers() == (2, 2, 1)
        for _ in range(MAX_STARTS - 1):
            assert await s.arrive("a", "m", 2) is FETCH
        assert await s.arrive("a", "m", 2) is Verdict.ALONE, "its starts were kept"

    @scene
    async def test_release_takes_a_start_back(self, s: Scene) -> None:
        mine = Arrival(page_id("a"), "m")
        for _ in range(3 * MAX_STARTS):
            assert await s.arrive("a", "m") is FETCH
            await s.two.release(s.job, [mine])
        await s.one.release(s.job, [mine, mine])
        assert await s.arrive("a", "another") is TAKEN, "an entry is never removed"
        for _ in range(MAX_STARTS):
            assert await s.arrive("a", "m") is FETCH, "never below nought"
        assert await s.arrive("a", "m") is Verdict.ALONE

    @scene
    async def test_release_is_of_this_message_and_attempt(self, s: Scene) -> None:
        for _ in range(MAX_STARTS):
            await s.arrive("a", "m", 1)
        others = [
            Arrival(page_id("a"), "another", 1),
            Arrival(page_id("a"), "m", 0),
            Arrival(page_id("a"), "m", 2),
        ]
        await s.one.release(s.job, [*others, Arrival(page_id("unknown"), "m")])
        assert await s.arrive("a", "m", 1) is Verdict.ALONE
        assert await s.numbers() == (1, 1, 1), "no entry is made"

    @scene
    async def test_known_enters_seen_only(self, s: Scene) -> None:
        await s.one.mark(s.job, pages("open"))
        assert await s.one.known(s.job, pages("a", "b", "a", "open")) == 2
        assert await s.numbers() == (3, 1, 0)
        assert await s.arrive("a", "m") is DONE
        assert await s.arrive("open", "m") is FETCH

    @scene
    async def test_known_leaves_a_finished_job(self, s: Scene) -> None:
        await s.finish_job()
        assert await s.one.known(s.job, pages("a")) == 1
        assert await s.state() is FINISHED

    @scene
    async def test_unsee_forgets_what_is_not_open(self, s: Scene) -> None:
        await s.one.mark(s.job, pages("open", "done"), finish=pages("done"))
        assert await s.two.unsee(s.job, pages("open", "done", "done", "unknown")) == 1
        assert await s.numbers() == (1, 1, 0)
        assert await s.one.check(s.job, pages("open", "done")) == set(pages("done"))
        await s.two.unsee(s.job, [])
        status = await s.one.status(s.job.name)
        assert status and status.counters["dedup-generation"] == 2

    @scene
    async def test_two_messages_of_one_page_at_once(self, s: Scene) -> None:
        for n in range(20):
            calls = [state.arrive(s.job, [Arrival(page_id(n), f"{i}")]) for i, state in enumerate((s.one, s.two))]
            assert {v for (v,) in await asyncio.gather(*calls)} == {FETCH, TAKEN}

    @scene
    async def test_open_is_kept_exactly_under_concurrency(self, s: Scene) -> None:
        async def work(state: State, first: int) -> None:
            for n in range(first, first + 60):
                await state.mark(s.job, pages(n, n + 1, n + 2), finish=pages(n))
                await state.arrive(s.job, [Arrival(page_id(n + 1), f"{first}")])
                await state.finish(s.job, pages(n + 1))

        await asyncio.gather(*(work(state, first) for state in (s.one, s.two) for first in (0, 20, 40)))
        assert await s.numbers() == (102, 1, 0)

    @scene
    async def test_the_end_is_one_atomic_call(self, s: Scene) -> None:
        await s.end_start()
        for n in range(40):
            before = page_id(n)
            await s.one.mark(s.job, [before])
            await asyncio.gather(s.one.mark(s.job, pages(f"link {n}"), finish=[before]), s.two.end(s.job))
            assert await s.state() is RUNNING
            await asyncio.gather(s.one.finish(s.job, pages(f"link {n}")), s.two.end(s.job))
            assert await s.one.end(s.job) is FINISHED
