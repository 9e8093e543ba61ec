"""The state of one process: the executable specification of `bus.state.State`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self
from weakref import WeakValueDictionary

from bus.clock import Clock, SystemClock
from bus.errors import Closed, Misconfigured
from bus.frontier import Begun, begin, ends, retried, starts_given_back
from bus.state import LEASE_S, Arrival, Attempt, Job, JobState, JobStatus, Verdict, WorkerReport

__all__ = ["MemoryState"]

GENERATION = "dedup-generation"


@dataclass(slots=True)
class Lease:
    owner: str
    lease_s: float
    expires: float


@dataclass(slots=True)
class Run:
    """One run of a job. A restart puts a new one in its place: a call of the old one finds nothing."""

    job: Job
    spider: str
    created_at: float
    listed: bool = True
    state: JobState = JobState.RUNNING
    start_ended: bool = False
    suspect: bool = False
    unaccounted: int = 0
    finished_at: float | None = None
    pages: dict[bytes, bool] = field(default_factory=dict)  # seen; True while open
    open: int = 0
    begun: dict[bytes, Begun] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    reports: dict[str, WorkerReport] = field(default_factory=dict)

    def enter(self, page: bytes) -> None:
        """A page enters `seen` and `open`: there is work, so a finished job is running again."""
        self.pages[page] = True
        self.open += 1
        if self.state is JobState.FINISHED:
            self.state, self.finished_at, self.unaccounted = JobState.RUNNING, None, 0

    def finish(self, page: bytes) -> None:
        self.open -= self.pages.get(page, False)
        self.pages[page] = False
        self.begun.pop(page, None)

    def arrive(self, arrival: Arrival) -> Verdict:
        is_open = self.pages.get(arrival.page)
        if is_open is False:
            return Verdict.DONE
        if is_open is None:
            self.enter(arrival.page)
        verdict, entry = begin(self.begun.get(arrival.page), arrival)
        self.put(arrival.page, entry)
        return verdict

    def put(self, page: bytes, entry: Begun | None) -> None:
        if entry is not None:
            self.begun[page] = entry

    def add(self, counts: Mapping[str, int]) -> None:
        for name, n in counts.items():
            self.counters[name] = self.counters.get(name, 0) + n

    def live(self, prefix: str, now: float) -> set[str]:
        """What follows `prefix` in the names of the leases that live."""
        return {
            name.removeprefix(prefix)
            for name, lease in self.leases.items()
            if name.startswith(prefix) and lease.expires > now
        }

    def status(self, now: float) -> JobStatus:
        workers = self.live("worker:", now)
        return JobStatus(
            job=self.job,
            spider=self.spider,
            state=self.state,
            open=self.open,
            seen=len(self.pages),
            start_ended=self.start_ended,
            loading=len(self.live("seed:", now)),
            forever=len(self.live("forever:", now)),
            suspect=self.suspect,
            unaccounted=self.unaccounted,
            created_at=self.created_at,
            finished_at=self.finished_at,
            counters=dict(self.counters),
            workers=[report for name, report in sorted(self.reports.items()) if name in workers],
            begun=len(self.begun),
        )


class Store:
    """What the states of one name share. `lock` guards it against the threads that renew leases."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runs: dict[str, Run] = {}


_stores: WeakValueDictionary[str, Store] = WeakValueDictionary()


class MemoryState:
    """`memory://NAME`: all states of one process and one name are one; it is gone with the last of them."""

    shared_between_processes = False
    shared_between_hosts = False

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._closed = False
        self._held: dict[tuple[Job, str], str] = {}
        self._changed = threading.Condition(store.lock)
        self._renewer: threading.Thread | None = None

    @classmethod
    async def connect(cls, url: str, *, clock: Clock | None = None) -> Self:
        return cls(_stores.setdefault(url, Store()), clock or SystemClock())

    # the frontier

    async def check(self, job: Job, pages: Sequence[bytes]) -> set[bytes]:
        run = self._run(job)
        return {page for page in pages if page not in run.pages} if run else set()

    async def mark(
        self,
        job: Job,
        pages: Iterable[bytes],
        *,
        finish: Iterable[bytes] = (),
        counts: Mapping[str, int] | None = None,
    ) -> None:
        if run := self._run(job):
            for page in pages:
                if page not in run.pages:
                    run.enter(page)
            for page in finish:
                run.finish(page)
            run.add(counts or {})

    async def finish(self, job: Job, pages: Iterable[bytes]) -> None:
        await self.mark(job, (), finish=pages)

    async def arrive(self, job: Job, arrivals: Sequence[Arrival]) -> list[Verdict]:
        run = self._run(job)
        return [run.arrive(arrival) if run else Verdict.OTHER_RUN for arrival in arrivals]

    async def retry(self, job: Job, attempts: Iterable[Attempt]) -> None:
        if run := self._run(job):
            for attempt in attempts:
                run.put(attempt.page, retried(run.begun.get(attempt.page), attempt))

    async def release(self, job: Job, arrivals: Iterable[Arrival]) -> None:
        if run := self._run(job):
            for arrival in arrivals:
                run.put(arrival.page, starts_given_back(run.begun.get(arrival.page), arrival))

    async def known(self, job: Job, pages: Iterable[bytes]) -> int:
        if (run := self._run(job)) is None:
            return 0
        new = set(pages) - run.pages.keys()
        run.pages.update(dict.fromkeys(new, False))
        return len(new)

    async def unsee(self, job: Job, pages: Iterable[bytes]) -> int:
        if (run := self._run(job)) is None:
            return 0
        gone = {page for page in pages if run.pages.get(page) is False}
        for page in gone:
            del run.pages[page]
        run.add({GENERATION: 1})
        return len(gone)

    # jobs

    async def join(self, name: str, *, spider: str) -> JobStatus:
        runs = self._runs()
        run = runs.get(name)
        if run is None:
            run = runs[name] = Run(Job(name, 1), spider, self._clock.time())
        elif not run.listed:
            run.listed, run.spider, run.created_at = True, spider, self._clock.time()
        elif run.state is JobState.STOPPED:
            run.state = JobState.RUNNING
        return run.status(self._clock.time())

    async def restart(self, name: str) -> JobStatus:
        return self._renew(name, listed=True).status(self._clock.time())

    async def forget(self, name: str) -> bool:
        if await self.status(name) is None:
            return False
        self._renew(name, listed=False)
        return True

    async def status(self, name: str) -> JobStatus | None:
        run = self._runs().get(name)
        return run.status(self._clock.time()) if run and run.listed else None

    async def jobs(self) -> list[JobStatus]:
        now = self._clock.time()
        return [run.status(now) for _, run in sorted(self._runs().items()) if run.listed]

    async def set_state(self, name: str, state: JobState) -> JobStatus:
        if state is JobState.FINISHED:
            raise ValueError("a job is finished by `end` only")
        run = self._listed(name)
        if run.state is not JobState.FINISHED:
            run.state = state
        return run.status(self._clock.time())

    async def end(self, job: Job, *, unaccounted: int | None = None) -> JobState:
        if (run := self._run(job)) is None:
            return JobState.STOPPED
        now = self._clock.time()
        if ends(run.status(now), slow=unaccounted is not None):
            run.state, run.finished_at = JobState.FINISHED, now
            run.unaccounted = max(unaccounted or 0, run.open)
        return run.state

    async def end_start(self, job: Job, owner: str) -> bool:
        if (run := self._run(job)) is None:
            return False
        lease = run.leases.get("start")
        if lease is None or lease.owner != owner or lease.expires <= self._clock.time():
            return False
        run.start_ended = True
        return True

    # leases, and who is there

    async def acquire(self, job: Job, name: str, owner: str, *, lease_s: float = LEASE_S) -> bool:
        run, now = self._run(job), self._clock.time()
        if run is None or (name == "start" and run.start_ended):
            return False
        with self._store.lock:
            lease = run.leases.get(name)
            if lease and lease.owner != owner and lease.expires > now:
                return False
            run.leases[name] = Lease(owner, lease_s, now + lease_s)
            self._held[job, name] = owner
            self._changed.notify()
        if self._renewer is None:
            self._renewer = threading.Thread(target=self._keep_leases, name="memory-leases", daemon=True)
            self._renewer.start()
        return True

    async def drop(self, job: Job, name: str, owner: str) -> None:
        run = self._run(job)
        with self._store.lock:
            self._let_go(run, job, name, owner)

    async def report(self, job: Job, report: WorkerReport) -> JobStatus | None:
        if run := self._run(job):
            run.reports[report.worker] = report
        return await self.status(job.name)

    async def aclose(self) -> None:
        if self._closed:
            return
        with self._store.lock:
            for (job, name), owner in list(self._held.items()):
                self._let_go(self._store.runs.get(job.name), job, name, owner)
            self._closed = True
            self._changed.notify()
        if self._renewer:
            self._renewer.join()

    # inside

    def _runs(self) -> dict[str, Run]:
        if self._closed:
            raise Closed("this state is closed")
        return self._store.runs

    def _run(self, job: Job) -> Run | None:
        run = self._runs().get(job.name)
        return run if run and run.listed and run.job == job else None

    def _listed(self, name: str) -> Run:
        run = self._runs().get(name)
        if run is None or not run.listed:
            raise Misconfigured(f"there is no job {name!r}: `crawlbus job list` shows those there are")
        return run

    def _renew(self, name: str, *, listed: bool) -> Run:
        old = self._listed(name)
        run = Run(Job(name, old.job.run + 1), old.spider, self._clock.time(), listed)
        self._store.runs[name] = run
        return run

    def _let_go(self, run: Run | None, job: Job, name: str, owner: str) -> None:
        if self._held.get((job, name)) == owner:
            del self._held[job, name]
        if run and run.job == job and (lease := run.leases.get(name)) and lease.owner == owner:
            del run.leases[name]

    def _keep_leases(self) -> None:
        renewed = time.monotonic()
        with self._changed:
            while not self._closed:
                leases = [lease for lease in map(self._own, self._held) if lease]
                due = renewed + min((lease.lease_s for lease in leases), default=LEASE_S) / 3
                if time.monotonic() < due:
                    self._changed.wait(due - time.monotonic())
                    continue
                renewed = time.monotonic()
                for lease in leases:
                    lease.expires = self._clock.time() + lease.lease_s

    def _own(self, held: tuple[Job, str]) -> Lease | None:
        """A lease that was taken here, unless it has become another's since."""
        job, name = held
        run = self._store.runs.get(job.name)
        lease = run.leases.get(name) if run and run.job == job else None
        return lease if lease and lease.owner == self._held[held] else None
