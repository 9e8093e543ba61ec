"""The real states, driven from snapshot to snapshot: a call on a snapshot gives its answer and the next snapshot.

A state's call depends on nothing but what is stored (its clock stands still here), so each distinct call on each
distinct snapshot is made once and its answer kept: this is what makes an exhaustive search of a real store affordable.
"""

from __future__ import annotations

from collections.abc import Coroutine
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from adapters.memory.state import Lease, MemoryState, Run
from adapters.memory.state import Store as MemoryStore
from bus.frontier import Begun
from bus.state import LEASE_S, Job, JobState, State
from bus.testing.state_scene import HandClock

JOB = "shop"
Pages = frozenset[tuple[bytes, bool]]


class Snapshot(NamedTuple):
    """All that a state holds of the job. `open` is the count that the state keeps, `pages` what is true."""

    run: int = 1
    state: JobState = JobState.RUNNING
    start_ended: bool = True
    suspect: bool = False
    open: int = 0
    pages: Pages = frozenset()
    begun: frozenset[tuple[bytes, Begun]] = frozenset()
    leases: frozenset[tuple[str, str]] = frozenset()  # name, owner

    @property
    def job(self) -> Job:
        return Job(JOB, self.run)

    @property
    def seen(self) -> frozenset[bytes]:
        return _seen(self.pages)

    @property
    def are_open(self) -> frozenset[bytes]:
        return _open(self.pages)


@lru_cache(100_000)
def _seen(pages: Pages) -> frozenset[bytes]:
    return frozenset(page for page, _ in pages)


@lru_cache(100_000)
def _open(pages: Pages) -> frozenset[bytes]:
    return frozenset(page for page, is_open in pages if is_open)


class Driver(Protocol):
    """A real state whose contents can be set and read."""

    state: State

    def load(self, snapshot: Snapshot) -> None: ...

    def dump(self) -> Snapshot: ...

    def run(self, call: Coroutine[Any, Any, Any]) -> Any: ...


class MemoryDriver:
    def __init__(self) -> None:
        self._store = MemoryStore()
        self.state = MemoryState(self._store, HandClock(0.0))

    def load(self, s: Snapshot) -> None:
        run = Run(s.job, "spider", 0.0, state=s.state, start_ended=s.start_ended, suspect=s.suspect, open=s.open)
        run.pages, run.begun = dict(s.pages), dict(s.begun)
        run.leases = {name: Lease(owner, LEASE_S, LEASE_S) for name, owner in s.leases}
        self._store.runs[JOB] = run

    def dump(self) -> Snapshot:
        run = self._store.runs[JOB]
        return Snapshot(
            run.job.run,
            run.state,
            run.start_ended,
            run.suspect,
            run.open,
            frozenset(run.pages.items()),
            frozenset(run.begun.items()),
            frozenset((name, lease.owner) for name, lease in run.leases.items()),
        )

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        try:
            call.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("the memory state never waits")

    def close(self) -> None:
        self.run(self.state.aclose())


class Store:
    """`do(snapshot, call, …)`: the answer of the real state, and what it holds afterwards."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._known: dict[Any, tuple[Any, Snapshot]] = {}

    def do(self, before: Snapshot, call: str, *args: Any, **options: Any) -> tuple[Any, Snapshot]:
        key = (before, call, args, *options.items())
        if (known := self._known.get(key)) is None:
            known = self._known[key] = self._make(before, call, args, options)
        return known

    @property
    def calls(self) -> int:
        return len(self._known)

    def _make(self, before: Snapshot, call: str, args: Any, options: Any) -> tuple[Any, Snapshot]:
        self._driver.load(before)
        answer = self._driver.run(getattr(self._driver.state, call)(*args, **options))
        after = self._driver.dump()
        assert after.open == len(after.are_open), f"{call}{args} miscounts: {after}"
        assert after.are_open >= {page for page, _ in after.begun}, f"{call}{args}: begun, and not open: {after}"
        return answer, after
