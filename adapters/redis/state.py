"""The state in Redis, shared by the machines of a fleet."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Self

from adapters.redis.jobs import known, report_row
from adapters.redis.leases import Lease, LeaseKeeper
from adapters.redis.nodes import Argument, Nodes, nodes_of
from adapters.redis.scripts import FRONTIER, INDEX, JOBS
from bus.clock import Clock
from bus.errors import BusError, Misconfigured
from bus.findings import Finding
from bus.frontier import check_spider
from bus.process import is_dead, this_holder
from bus.state import LEASE_S, Arrival, Attempt, Job, JobState, JobStatus, Verdict, WorkerReport

__all__ = ["RedisState"]

CHUNK = 500  # pages of one script, where the contract does not ask for one atomic call
INTSET_LOAD = 200, 512  # mean load of a bucket, and the members of the largest intset it is meant for
VERDICTS = {
    "F": Verdict.FETCH,
    "D": Verdict.DONE,
    "T": Verdict.TAKEN,
    "S": Verdict.SUPERSEDED,
    "A": Verdict.ALONE,
    "X": Verdict.DEAD,
}
INDEX_KEY = "{crawlbus}:jobs"


class RedisState:
    """`redis://HOST:PORT/DB`, `rediss://…`, `redis+sentinel://HOST,HOST/NAME/DB`, `redis+cluster://HOST,HOST`.

    Time is the server's, so the clocks of the machines do not matter.

    A page is kept as the first 64 bits of its id: two of n pages are taken for one with a probability of about
    n² / 2^65 (n = 10^6: 3e-8; 10^8: 3e-4; 10^9: 0.03, and then one page in 10^9 is not fetched).

    What a server that is killed may lose is set by its `appendfsync`; with `everysec` the last second or two at a power
    cut, nothing at a kill. Every script compares the id of the server process with the one in the job, before it does
    anything else, and where they differ the job is *suspect* (ADR 0002). Not noticed is a loss that leaves the
    id as it was (a failover forth and back before anybody calls), and a restart, a forgetting or the joining of a new
    job that was itself among the writes that were lost: the job is then as before it.
    """

    shared_between_processes = True
    shared_between_hosts = True

    def __init__(self, servers: Nodes, keepers: Nodes, clock: Clock | None) -> None:
        self._servers = servers
        self._keepers = keepers  # of the thread that renews the leases
        self._clock = clock
        self._closed = False
        self._keeper = LeaseKeeper(self._renew, keepers.aclose)

    @classmethod
    async def connect(cls, url: str, *, clock: Clock | None = None) -> Self:
        """Raises `Misconfigured` where the server will not do, `ConnectionLost` where nobody answers."""
        state = cls(nodes_of(url), nodes_of(url), clock)
        try:
            await state._names()
        except BaseException:
            await state.aclose()
            raise
        return state

    # the frontier

    async def check(self, job: Job, pages: Sequence[bytes]) -> set[bytes]:
        unseen: set[bytes] = set()
        for some in _chunks(pages):
            if (answer := await self._frontier("check", job, _members(some))) is not None:
                unseen.update(page for page, new in zip(some, answer, strict=True) if new == ord("1"))
        return unseen

    async def mark(
        self,
        job: Job,
        pages: Iterable[bytes],
        *,
        finish: Iterable[bytes] = (),
        counts: Mapping[str, int] | None = None,
    ) -> None:
        new, done = _members(pages), _members(finish)
        added: Iterable[Argument] = chain.from_iterable((counts or {}).items())
        await self._frontier("mark", job, (len(new), *new, len(done), *done, *added))

    async def finish(self, job: Job, pages: Iterable[bytes]) -> None:
        await self.mark(job, (), finish=pages)

    async def arrive(self, job: Job, arrivals: Sequence[Arrival]) -> list[Verdict]:
        rows = [(a.message, a.attempt, int(a.alone)) for a in arrivals]
        answer = await self._frontier("arrive", job, _rows([a.page for a in arrivals], rows))
        if answer is None:
            return [Verdict.OTHER_RUN] * len(arrivals)
        return [VERDICTS[letter] for letter in answer.decode()]

    async def retry(self, job: Job, attempts: Iterable[Attempt]) -> None:
        attempts = list(attempts)
        rows = [(a.message, a.attempt) for a in attempts]
        await self._frontier("retry", job, _rows([a.page for a in attempts], rows))

    async def release(self, job: Job, arrivals: Iterable[Arrival]) -> None:
        arrivals = list(arrivals)
        rows = [(a.message, a.attempt) for a in arrivals]
        await self._frontier("release", job, _rows([a.page for a in arrivals], rows))

    async def known(self, job: Job, pages: Iterable[bytes]) -> int:
        return sum([await self._frontier("known", job, _members(some)) or 0 for some in _chunks(list(pages))])

    async def unsee(self, job: Job, pages: Iterable[bytes]) -> int:
        gone = await self._frontier("unsee", job, (1,)) or 0
        for some in _chunks(list(pages)):
            gone += await self._frontier("unsee", job, (0, *_members(some))) or 0
        return gone

    # jobs

    async def join(self, name: str, *, spider: str, resume: bool = True) -> JobStatus:
        await self._names(name)
        reply = await self._jobs("join", name, 0, (spider, self._load, int(resume)))
        if isinstance(reply, bytes):
            check_spider(name, reply.decode(), spider)
        await self._sweep(name)
        return await self._status_of(name, reply)

    async def restart(self, name: str) -> JobStatus:
        reply = await self._jobs("restart", name, 0, (1, self._load))
        await self._sweep(name)
        return await self._status_of(name, reply)

    async def forget(self, name: str) -> bool:
        reply = await self._jobs("restart", name, 0, (0, self._load))
        await self._sweep(name)
        return reply is not None

    async def status(self, name: str) -> JobStatus | None:
        reply = await self._jobs("status", name, 0)
        return None if reply is None else await self._status_of(name, reply)

    async def jobs(self) -> list[JobStatus]:
        found = await asyncio.gather(*(self.status(name) for name in await self._names()))
        return sorted((status for status in found if status), key=lambda status: status.job)

    async def set_state(self, name: str, state: JobState) -> JobStatus:
        if state is JobState.FINISHED:
            raise ValueError("a job is finished by `end` only")
        return await self._status_of(name, await self._jobs("set_state", name, 0, (state.value,)))

    async def end(self, job: Job, *, unaccounted: int | None = None) -> JobState:
        reply = await self._jobs("finish", *job, ("" if unaccounted is None else unaccounted,))
        return JobState.STOPPED if reply is None else JobState(reply.decode())

    async def end_start(self, job: Job, owner: str) -> bool:
        return bool(await self._jobs("end_start", *job, (owner,)))

    # leases, and who is there

    async def acquire(self, job: Job, name: str, owner: str, *, lease_s: float = LEASE_S) -> bool:
        holder, mine = "", (name, owner, this_holder(), repr(lease_s))
        while holder := (await self._jobs("acquire", *job, (*mine, holder))).decode():
            if not is_dead(holder):
                return False
        self._keeper.keep(Lease(job, name, owner), lease_s)
        return True

    async def drop(self, job: Job, name: str, owner: str) -> None:
        self._keeper.stop(Lease(job, name, owner))
        await self._jobs("drop", *job, (name, owner))

    async def report(self, job: Job, report: WorkerReport) -> JobStatus | None:
        reply = await self._jobs("report", *job, (report.worker, report_row(report)))
        return None if reply is None else await self._status_of(job.name, reply)

    async def examine(self, prefix: str = "") -> Sequence[Finding]:
        """What `crawlbus doctor` says of each server."""
        return await self._servers.examine()

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        held = await self._keeper.aclose()
        try:
            for job, name, owner in held:
                await self._jobs("drop", *job, (name, owner))
        except BusError:
            pass  # they run out by themselves
        finally:
            await self._servers.aclose()

    # inside

    @property
    def _load(self) -> int:
        load, entries = INTSET_LOAD
        return min(load, load * self._servers.intset_entries // entries)

    def _now(self) -> str:
        return repr(self._clock.time()) if self._clock else ""

    async def _frontier(self, call: str, job: Job, arguments: Iterable[Argument]) -> Any:
        """The answer, None for another run than the present one."""
        return await self._servers.run(FRONTIER, _key(job.name), (call, job.run, self._now(), *arguments))

    async def _jobs(self, call: str, name: str, run: int, arguments: Iterable[Argument] = ()) -> Any:
        return await self._servers.run(JOBS, _key(name), (call, run, self._now(), *arguments))

    async def _names(self, *added: str) -> list[str]:
        return sorted(name.decode() for name in await self._servers.run(INDEX, INDEX_KEY, added))

    async def _sweep(self, name: str) -> None:
        while await self._jobs("sweep", name, 0):
            pass

    async def _status_of(self, name: str, reply: Sequence[Any] | None) -> JobStatus:
        """Leases of processes that are gone need not run out: who starts again after a kill does not meet himself."""
        if reply is None:
            raise Misconfigured(f"there is no job {name!r}: `crawlbus job list` shows those there are")
        status, gone = known(name, reply)
        if gone:
            await self._jobs("drop_gone", name, 0, sorted(gone))
        return status

    async def _renew(self, lease: Lease, lease_s: float) -> None:
        """In the keeper's thread."""
        job, name, owner = lease
        arguments: tuple[Argument, ...] = (name, owner, this_holder(), repr(lease_s))
        await self._keepers.run(JOBS, _key(job.name), ("renew", job.run, self._now(), *arguments))
        if not self._keeper.holds(lease):  # it was dropped meanwhile, and may just have been made again
            await self._keepers.run(JOBS, _key(job.name), ("drop", job.run, self._now(), name, owner))


def _key(name: str) -> str:
    """A job's record; its hash tag is in all keys of the job, so that they are on one node."""
    return f"{{crawlbus:{name}}}"


def _members(pages: Iterable[bytes]) -> tuple[int, ...]:
    """Pages as they are stored: the first 64 bits as a signed integer, which is what Redis packs best."""
    heads = [page[:8] for page in pages]
    return struct.unpack(f">{len(heads)}q", b"".join(heads))


def _rows(pages: Iterable[bytes], rows: Sequence[tuple[Argument, ...]]) -> Iterable[Argument]:
    return chain.from_iterable((page, *row) for page, row in zip(_members(pages), rows, strict=True))


def _chunks(pages: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
    return (pages[i : i + CHUNK] for i in range(0, len(pages), CHUNK))
