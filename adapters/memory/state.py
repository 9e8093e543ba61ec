"""The state of one process: the executable specification of `bus.state.State`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self
from weakref import WeakValueDictionary

from bus.clock import Clock, SystemClock
from bus.errors import Closed, Misconfigured
from bus.frontier import Begun, begin, check_spider, ends, retried, starts_given_back
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
    """What the states of one name share. `lock` is held by every call: threads may share it, too."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.runs: dict[str, Run] = {}

    def get(self, job: Job) -> Run | None:
        """The run that a call may change; None for any but the present one."""
        run = self.listed(job.name)
        return run if run and run.job == job else None

    def listed(self, name: str) -> Run | None:
        run = self.runs.get(name)
        return run if run and run.listed else None

    def need(self, name: str) -> Run:
        run = self.listed(name)
        if run is None:
            raise Misconfigured(f"there is no job {name!r}: `crawlbus job list` shows those there are")
        return run

    def restart(self, name: str, now: float, *, listed: bool) -> Run:
        old = self.need(name)
        run = self.runs[name] = Run(Job(name, old.job.run + 1), old.spider, now, listed)
        return run


_stores: WeakValueDictionary[str, Store] = WeakValueDictionary()
_stores_lock = threading.Lock()


class MemoryState:
    """`memory://NAME`: all states of one process and one name are one, gone with the last of them."""

    shared_between_processes = False
    shared_between_hosts = False

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store: Store | None = store
        self._clock = clock
        self._held: dict[tuple[Job, str], str] = {}  # lease -> owner
        self._renewer: threading.Thread | None = None

    @classmethod
    async def connect(cls, url: str, *, clock: Clock | None = None) -> Self:
        with _stores_lock:
            store = _stores.get(url)
            if store is None:
                store = _stores[url] = Store()
        return cls(store, clock or SystemClock())

    @contextmanager
    def _open(self) -> Iterator[Store]:
        store = self._store
        if store is None:
            raise Closed("this state is closed")
        with store.lock:
            yield store

    # the frontier

    async def check(self, job: Job, pages: Sequence[bytes]) -> set[bytes]:
        with self._open() as store:
            run = store.get(job)
            return {page for page in pages if page not in run.pages} if run else set()

    async def mark(
        self,
        job: Job,
        pages: Iterable[bytes],
        *,
        finish: Iterable[bytes] = (),
        counts: Mapping[str, int] | None = None,
    ) -> None:
        with self._open() as store:
            if run := store.get(job):
                for page in pages:
                    if page not in run.pages:
                        run.enter(page)
                for page in finish:
                    run.finish(page)
                run.add(counts or {})

    async def finish(self, job: Job, pages: Iterable[bytes]) -> None:
        await self.mark(job, (), finish=pages)

    async def arrive(self, job: Job, arrivals: Sequence[Arrival]) -> list[Verdict]:
        with self._open() as store:
            run = store.get(job)
            return [run.arrive(arrival) if run else Verdict.OTHER_RUN for arrival in arrivals]

    async def retry(self, job: Job, attempts: Iterable[Attempt]) -> None:
        with self._open() as store:
            if run := store.get(job):
                for attempt in attempts:
                    run.put(attempt.page, retried(run.begun.get(attempt.page), attempt))

    async def release(self, job: Job, arrivals: Iterable[Arrival]) -> None:
        with self._open() as store:
            if run := store.get(job):
                for arrival in arrivals:
                    run.put(arrival.page, starts_given_back(run.begun.get(arrival.page), arrival))

    async def known(self, job: Job, pages: Iterable[bytes]) -> int:
        with self._open() as store:
            if (run := store.get(job)) is None:
                return 0
            new = set(pages) - run.pages.keys()
            run.pages.update(dict.fromkeys(new, False))
            return len(new)

    async def unsee(self, job: Job, pages: Iterable[bytes]) -> int:
        with self._open() as store:
            if (run := store.get(job)) is None:
                return 0
            gone = {page for page in pages if run.pages.get(page) is False}
            for page in gone:
                del run.pages[page]
            run.add({GENERATION: 1})
            return len(gone)

    # jobs

    async def join(self, name: str, *, spider: str, resume: bool = True) -> JobStatus:
        now = self._clock.time()
        with self._open() as store:
            run = store.runs.get(name)
            if run is None:
                run = store.runs[name] = Run(Job(name, 1), spider, now)
            elif not run.listed or not run.spider:
                run.listed, run.spider, run.created_at = True, spider, now
            else:
                check_spider(name, run.spider, spider)
                if resume and run.state is JobState.STOPPED:
                    run.state = JobState.RUNNING
            return run.status(now)

    async def restart(self, name: str) -> JobStatus:
        now = self._clock.time()
        with self._open() as store:
            return store.restart(name, now, listed=True).status(now)

    async def forget(self, name: str) -> bool:
        with self._open() as store:
            if store.listed(name) is None:
                return False
            store.restart(name, self._clock.time(), listed=False)
            return True

    async def status(self, name: str) -> JobStatus | None:
        with self._open() as store:
            run = store.listed(name)
            return run.status(self._clock.time()) if run else None

    async def jobs(self) -> list[JobStatus]:
        with self._open() as store:
            now = self._clock.time()
            return [run.status(now) for _, run in sorted(store.runs.items()) if run.listed]

    async def set_state(self, name: str, state: JobState) -> JobStatus:
        if state is JobState.FINISHED:
            raise ValueError("a job is finished by `end` only")
        with self._open() as store:
            run = store.need(name)
            if run.state is not JobState.FINISHED:
                run.state = state
            return run.status(self._clock.time())

    async def end(self, job: Job, *, unaccounted: int | None = None) -> JobState:
        with self._open() as store:
            if (run := store.get(job)) is None:
                return JobState.STOPPED
            now = self._clock.time()
            if ends(run.status(now), slow=unaccounted is not None):
                run.state, run.finished_at = JobState.FINISHED, now
                run.unaccounted = max(unaccounted or 0, run.open)
            return run.state

    async def end_start(self, job: Job, owner: str) -> bool:
        with self._open() as store:
            run = store.get(job)
            lease = run.leases.get("start") if run else None
            if run is None or lease is None or lease.owner != owner or lease.expires <= self._clock.time():
                return False
            run.start_ended = True
            return True

    # leases, and who is there

    async def acquire(self, job: Job, name: str, owner: str, *, lease_s: float = LEASE_S) -> bool:
        with self._open() as store:
            run, now = store.get(job), self._clock.time()
            if run is None or (name == "start" and run.start_ended):
                return False
            lease = run.leases.get(name)
            if lease and lease.owner != owner and lease.expires > now:
                return False
            run.leases[name] = Lease(owner, lease_s, now + lease_s)
            self._held[job, name] = owner
            store.lock.notify_all()
            if self._renewer is None:
                keep = threading.Thread(target=self._keep_leases, args=(store,), name="memory-leases", daemon=True)
                keep.start()
                self._renewer = keep
            return True

    async def drop(self, job: Job, name: str, owner: str) -> None:
        with self._open() as store:
            self._let_go(store, job, name, owner)

    async def report(self, job: Job, report: WorkerReport) -> JobStatus | None:
        with self._open() as store:
            if run := store.get(job):
                run.reports[report.worker] = report
            listed = store.listed(job.name)
            return listed.status(self._clock.time()) if listed else None

    async def aclose(self) -> None:
        if self._store is None:
            return
        with self._open() as store:
            for (job, name), owner in list(self._held.items()):
                self._let_go(store, job, name, owner)
            self._store = None
            store.lock.notify_all()
        if self._renewer:
            self._renewer.join()

    # inside

    def _let_go(self, store: Store, job: Job, name: str, owner: str) -> None:
        if self._held.get((job, name)) == owner:
            del self._held[job, name]
        if (run := store.get(job)) and (lease := run.leases.get(name)) and lease.owner == owner:
            del run.leases[name]

    def _keep_leases(self, store: Store) -> None:
        renewed = time.monotonic()
        with store.lock:
            while self._store is not None:
                leases = self._own_leases(store)
                due = renewed + min((lease.lease_s for lease in leases), default=LEASE_S) / 3
                if time.monotonic() < due:
                    store.lock.wait(due - time.monotonic())
                    continue
                renewed = time.monotonic()
                for lease in leases:
                    lease.expires = self._clock.time() + lease.lease_s

    def _own_leases(self, store: Store) -> list[Lease]:
        """Those taken here, without any that has become another's since."""
        found = []
        for (job, name), owner in self._held.items():
            run = store.get(job)
            if run and (lease := run.leases.get(name)) and lease.owner == owner:
                found.append(lease)
        return found
