"""The state in one SQLite file, shared by the processes of one machine."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Self, TypeVar

from adapters.sqlite import frontier, jobs
from adapters.sqlite.database import Database, path_of
from bus.clock import Clock, SystemClock
from bus.errors import BusError, Closed
from bus.state import LEASE_S, Arrival, Attempt, Job, JobState, JobStatus, Verdict, WorkerReport

__all__ = ["SqliteState"]

T = TypeVar("T")
SWEEP_S = 2.0
DEAD_SWEEP_S = 0.5
GENERATION = "dedup-generation"


class SqliteState:
    """`sqlite:///FILE`. What must never be undone waits for the disk: mark, finish, and all that a user asked for.

    A power cut may undo arrive, release, retry, leases and reports that no later durable call followed: whoever
    made them is gone, too, and their messages come back.
    """

    shared_between_processes = True
    shared_between_hosts = False

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._closed = False
        self._renewals: dict[tuple[Job, str, str], Callable[[], None]] = {}
        self._sweeps = [database.every(SWEEP_S, jobs.sweep), database.every(DEAD_SWEEP_S, jobs.drop_dead)]

    @classmethod
    async def connect(cls, url: str, *, clock: Clock | None = None) -> Self:
        database = Database.open(path_of(url))
        try:
            await database.write(_create)
        except BaseException:
            await database.aclose()
            raise
        return cls(database, clock or SystemClock())

    # the frontier

    async def check(self, job: Job, pages: Sequence[bytes]) -> set[bytes]:
        return await self._read(_of_run(job, set(), lambda db, id: frontier.check(db, id, pages)))

    async def mark(
        self,
        job: Job,
        pages: Iterable[bytes],
        *,
        finish: Iterable[bytes] = (),
        counts: Mapping[str, int] | None = None,
    ) -> None:
        pages, finish = list(pages), list(finish)

        def call(db: sqlite3.Connection, id: int) -> None:
            frontier.mark(db, id, pages, finish)
            frontier.add(db, id, counts or {})

        await self._write(_of_run(job, None, call))

    async def finish(self, job: Job, pages: Iterable[bytes]) -> None:
        await self.mark(job, (), finish=pages)

    async def arrive(self, job: Job, arrivals: Sequence[Arrival]) -> list[Verdict]:
        other = [Verdict.OTHER_RUN] * len(arrivals)
        return await self._hint(_of_run(job, other, lambda db, id: frontier.arrive(db, id, arrivals)))

    async def retry(self, job: Job, attempts: Iterable[Attempt]) -> None:
        attempts = list(attempts)
        await self._hint(_of_run(job, None, lambda db, id: frontier.retry(db, id, attempts)))

    async def release(self, job: Job, arrivals: Iterable[Arrival]) -> None:
        arrivals = list(arrivals)
        await self._hint(_of_run(job, None, lambda db, id: frontier.release(db, id, arrivals)))

    async def known(self, job: Job, pages: Iterable[bytes]) -> int:
        pages = list(pages)
        return await self._write(_of_run(job, 0, lambda db, id: frontier.known(db, id, pages)))

    async def unsee(self, job: Job, pages: Iterable[bytes]) -> int:
        pages = list(pages)

        def call(db: sqlite3.Connection, id: int) -> int:
            frontier.add(db, id, {GENERATION: 1})
            return frontier.unsee(db, id, pages)

        return await self._write(_of_run(job, 0, call))

    # jobs

    async def join(self, name: str, *, spider: str, resume: bool = True) -> JobStatus:
        return await self._write(partial(jobs.join, name=name, spider=spider, now=self._clock.time(), resume=resume))

    async def restart(self, name: str) -> JobStatus:
        return await self._write(partial(jobs.restart, name=name, now=self._clock.time()))

    async def forget(self, name: str) -> bool:
        return await self._write(partial(jobs.forget, name=name, now=self._clock.time()))

    async def status(self, name: str) -> JobStatus | None:
        return await self._read(partial(jobs.status, name=name, now=self._clock.time()))

    async def jobs(self) -> list[JobStatus]:
        return await self._read(partial(jobs.all_jobs, now=self._clock.time()))

    async def set_state(self, name: str, state: JobState) -> JobStatus:
        if state is JobState.FINISHED:
            raise ValueError("a job is finished by `end` only")
        return await self._write(partial(jobs.set_state, name=name, state=state, now=self._clock.time()))

    async def end(self, job: Job, *, unaccounted: int | None = None) -> JobState:
        now = self._clock.time()
        return await self._write(
            _of_run(job, JobState.STOPPED, lambda db, id: jobs.end(db, id, unaccounted, now))
        )

    async def end_start(self, job: Job, owner: str) -> bool:
        now = self._clock.time()
        return await self._write(_of_run(job, False, lambda db, id: jobs.end_start(db, id, owner, now)))

    # leases, and who is there

    async def acquire(self, job: Job, name: str, owner: str, *, lease_s: float = LEASE_S) -> bool:
        def call(db: sqlite3.Connection, id: int) -> bool:
            return jobs.acquire(db, id, name, owner, self._clock.time(), lease_s)

        if not await self._hint(_of_run(job, False, call)):
            return False
        self._stop_renewing(job, name, owner)

        def renew(db: sqlite3.Connection, id: int) -> None:
            jobs.renew(db, id, name, owner, self._clock.time() + lease_s)

        self._renewals[job, name, owner] = self._database.every(lease_s / 3, _of_run(job, None, renew))
        return True

    async def drop(self, job: Job, name: str, owner: str) -> None:
        self._stop_renewing(job, name, owner)
        await self._hint(_of_run(job, None, lambda db, id: jobs.drop(db, id, name, owner)))

    async def report(self, job: Job, report: WorkerReport) -> JobStatus | None:
        row = json.dumps([report.in_flight, report.ready, dict(report.counters), report.bus_away])
        await self._hint(_of_run(job, None, lambda db, id: jobs.report(db, id, report.worker, row)))
        return await self.status(job.name)

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        for stop in self._sweeps:
            stop()
        held = list(self._renewals)
        for job, name, owner in held:
            self._stop_renewing(job, name, owner)

        def drop_all(db: sqlite3.Connection) -> None:
            for job, name, owner in held:
                if (id := jobs.id_of(db, job)) is not None:
                    jobs.drop(db, id, name, owner)

        try:
            if held:
                await self._database.write(drop_all, durable=False)
        except BusError:
            pass  # they run out by themselves
        finally:
            await self._database.aclose()

    # inside

    def _stop_renewing(self, job: Job, name: str, owner: str) -> None:
        if stop := self._renewals.pop((job, name, owner), None):
            stop()

    def _open(self) -> Database:
        if self._closed:
            raise Closed("this state is closed")
        return self._database

    async def _read(self, call: Callable[[sqlite3.Connection], T]) -> T:
        return await self._open().read(call)

    async def _write(self, call: Callable[[sqlite3.Connection], T]) -> T:
        return await self._open().write(call)

    async def _hint(self, call: Callable[[sqlite3.Connection], T]) -> T:
        """Write, without waiting for the disk."""
        return await self._open().write(call, durable=False)


def _of_run(
    job: Job, otherwise: T, call: Callable[[sqlite3.Connection, int], T]
) -> Callable[[sqlite3.Connection], T]:
    """The call on the rows of this run of the job; a call of another run changes nothing and gets `otherwise`."""

    def on(db: sqlite3.Connection) -> T:
        id = jobs.id_of(db, job)
        return otherwise if id is None else call(db, id)

    return on


def _create(db: sqlite3.Connection) -> None:
    jobs.create(db)
    jobs.drop_dead(db)  # who only looks sees nobody who is gone
