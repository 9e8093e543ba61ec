"""The contract of a state: what a fleet shares besides messages. Deduplication, what is open, leases, job control.

The six frontier calls are those of ADR 0002: each is atomic, each takes many, each carries the job's run number,
and a call of another run changes nothing. `bus.testing.StateConformance` proves each sentence; `tests/model`
drives the real states through every interleaving.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

__all__ = [
    "MAX_STARTS",
    "Arrival",
    "Attempt",
    "Job",
    "JobState",
    "JobStatus",
    "State",
    "Verdict",
    "WorkerReport",
]

MAX_STARTS = 5
LEASE_S = 30.0


class Job(NamedTuple):
    """One run of a job: `run` counts its restarts from 1."""

    name: str
    run: int


class JobState(Enum):
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    FINISHED = "finished"


class Verdict(Enum):
    """What `arrive` says of a delivery. All but FETCH and ALONE: ack it unread (DEAD: to the dead log first)."""

    FETCH = "fetch"
    DONE = "done"  # the page is finished
    TAKEN = "taken"  # another message has begun it
    SUPERSEDED = "superseded"  # a later attempt of this message has begun it
    ALONE = "alone"  # started MAX_STARTS times without an end: call again with `alone`, nothing else begun
    DEAD = "dead"  # the start alone died, too
    OTHER_RUN = "other run"


class Arrival(NamedTuple):
    """A message that moves into a worker's ready buffer (`arrive`), or leaves it in good order (`release`)."""

    page: bytes
    message: str
    attempt: int = 0
    alone: bool = False


class Attempt(NamedTuple):
    """A retry that has been published and confirmed."""

    page: bytes
    message: str
    attempt: int


class WorkerReport(NamedTuple):
    """What a worker says of itself from time to time. `counters` are absolute, since it started.

    It counts while the lease `worker:…` of the same name lives.
    """

    worker: str
    in_flight: int
    ready: int
    counters: Mapping[str, int] = {}
    bus_away: bool = False


@dataclass(frozen=True, slots=True)
class JobStatus:
    """All that is known of a job. `open` is exact; `counters` are the sums that `mark` was given."""

    job: Job
    spider: str
    state: JobState
    open: int
    seen: int
    start_ended: bool
    loading: int  # live `seed` leases
    forever: int  # live `forever` leases
    suspect: bool
    unaccounted: int
    created_at: float
    finished_at: float | None
    counters: Mapping[str, int] = field(default_factory=dict)
    workers: Sequence[WorkerReport] = ()  # those whose lease lives
    begun: int = 0

    @property
    def drained(self) -> bool:
        """Nothing is left to do: no page open, `start()` ended, no seed loading, nobody who stands by for ever."""
        return not self.open and self.start_ended and not self.loading and not self.forever


class State(Protocol):
    """Shared by all processes of a fleet. Every method may be called by many tasks at once.

    Page ids are 16 bytes. Raises `TransportError` where the store is not reachable.
    """

    @property
    def shared_between_processes(self) -> bool: ...

    @property
    def shared_between_hosts(self) -> bool: ...

    # the frontier

    async def check(self, job: Job, pages: Sequence[bytes]) -> set[bytes]:
        """Those not in `seen`. A plain read, may be stale. Of another run: the empty set."""
        ...

    async def mark(
        self,
        job: Job,
        pages: Iterable[bytes],
        *,
        finish: Iterable[bytes] = (),
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """What is not in `seen` enters `seen` and `open`; if anything entered, a finished job is running again.

        Then, in the same atomic call, `finish` is finished and `counts` is added to the job's counters.
        Only pages whose messages the bus has confirmed may be marked.
        """
        ...

    async def finish(self, job: Job, pages: Iterable[bytes]) -> None:
        """Each page enters `seen`, leaves `open` and `begun`. Only after its links are marked."""
        ...

    async def arrive(self, job: Job, arrivals: Sequence[Arrival]) -> list[Verdict]:
        """DONE: in `seen`, not in `open`. TAKEN, SUPERSEDED: see `Verdict`. Else the page enters `seen` and `open`
        (a finished job is running again), is begun by this message, starts + 1; a higher attempt counts from
        nought. At MAX_STARTS: ALONE, not counted; with `alone`: FETCH, counted; after that: DEAD."""
        ...

    async def retry(self, job: Job, attempts: Iterable[Attempt]) -> None:
        """Where `begun` holds this message with a lower attempt, this attempt is entered, starts 0."""
        ...

    async def release(self, job: Job, arrivals: Iterable[Arrival]) -> None:
        """The starts of the entry with this message id and attempt go down by one, never below nought.
        No entry is made or removed."""
        ...

    async def known(self, job: Job, pages: Iterable[bytes]) -> int:
        """Enter pages in `seen` only (`dedup warm`); returns how many were new."""
        ...

    async def unsee(self, job: Job, pages: Iterable[bytes]) -> int:
        """Take pages that are not open out of `seen` (`dedup forget`); returns how many were there.
        Every process drops its filter of known URLs: `JobStatus.counters['dedup-generation']` goes up by one."""
        ...

    # jobs

    async def join(self, name: str, *, spider: str, resume: bool = True) -> JobStatus:
        """Create the job if it is unknown (running, run 1); a stopped one resumes if `resume`.

        A paused job stays paused, a finished one finished, and a job keeps the spider it was created with:
        `Misconfigured`, and no change, for another one. A job of the spider '' becomes the joining one's, and '' may
        join any.
        """
        ...

    async def restart(self, name: str) -> JobStatus:
        """A new run: forgets dedup and progress, running. Raises `Misconfigured` for an unknown job."""
        ...

    async def forget(self, name: str) -> bool:
        """As `restart`, and the job is unknown until `join`; its run number lives on. False: it was unknown."""
        ...

    async def status(self, name: str) -> JobStatus | None: ...

    async def jobs(self) -> list[JobStatus]: ...

    async def set_state(self, name: str, state: JobState) -> JobStatus:
        """Pause, resume (RUNNING) or stop. A finished job stays finished. `Misconfigured` for an unknown one."""
        ...

    async def end(self, job: Job, *, unaccounted: int | None = None) -> JobState:
        """If the job is running and `drained`: FINISHED, tested and set in one atomic call. Returns the state then.

        A suspect job ends the slow way only: with `unaccounted` (ADR 0002) the open pages do not hinder it; the
        larger of the two numbers is recorded. Of another run: STOPPED, there is nothing left to do for it.
        """
        ...

    async def end_start(self, job: Job, owner: str) -> bool:
        """`start()` has ended and all that it published is marked. False, and no change, without its lease."""
        ...

    # leases, and who is there

    async def acquire(self, job: Job, name: str, owner: str, *, lease_s: float = LEASE_S) -> bool:
        """Take, or keep, a lease. False while another owner's lives, for another run, and for `start` once
        `end_start` has been called. Names: `start`, `seed:…`, `worker:…`, `forever:…`, `slot:…`.

        Renewed from a thread of the state's own each `lease_s / 3` until `drop` or `aclose`, so that a callback
        that blocks the event loop loses nothing; gone at the latest `lease_s` after the death of the process.
        """
        ...

    async def drop(self, job: Job, name: str, owner: str) -> None:
        """Give a lease up; harmless without it."""
        ...

    async def report(self, job: Job, report: WorkerReport) -> JobStatus | None:
        """Record what a worker says of itself, and learn how the job stands (None: it was forgotten)."""
        ...

    async def aclose(self) -> None:
        """Always closes, also if called twice. Leases still held are dropped."""
        ...
