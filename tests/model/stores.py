"""The real states, driven from snapshot to snapshot: a call on a snapshot gives its answer and the next snapshot.

A state's call depends on nothing but what is stored (its clock stands still here), so each distinct call on each
distinct snapshot is made once and its answer kept: this is what makes an exhaustive search of a real store affordable.
"""

from __future__ import annotations

import asyncio
import sqlite3
import struct
from collections.abc import Coroutine
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import redis

from adapters.memory.state import Lease, MemoryState, Run
from adapters.memory.state import Store as MemoryStore
from adapters.redis.state import RedisState
from adapters.sqlite.database import Database
from adapters.sqlite.state import SqliteState
from bus.frontier import Begun
from bus.process import this_holder, this_process
from bus.state import LEASE_S, Job, JobState, State
from bus.testing.clock import FakeClock

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

    @property
    def state(self) -> State: ...

    def load(self, snapshot: Snapshot) -> None: ...

    def dump(self) -> Snapshot: ...

    def run(self, call: Coroutine[Any, Any, Any]) -> Any: ...

    def close(self) -> None: ...


class MemoryDriver:
    def __init__(self) -> None:
        self._store = MemoryStore()
        self.state = MemoryState(self._store, FakeClock(0.0))

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


class SqliteDriver:
    """On a file of its own. It has no `suspect`: a file that is synced before a call returns loses nothing."""

    def __init__(self, path: Path) -> None:
        self._runner = asyncio.Runner()
        self.state: SqliteState = self.run(SqliteState.connect(f"sqlite:///{path}", clock=FakeClock(0.0)))
        self._database = Database.open(str(path))

    def load(self, s: Snapshot) -> None:
        assert not s.suspect

        def fill(db: sqlite3.Connection) -> None:
            for table in ("jobs", "pages", "begun", "leases", "reports", "counters"):
                db.execute(f"DELETE FROM state_{table}")
            db.execute(
                """INSERT INTO state_jobs (id, name, run, spider, created_at, state, open, seen, begun, start_ended)
                VALUES (1, ?, ?, 'spider', 0, ?, ?, ?, ?, ?)""",
                (JOB, s.run, s.state.value, s.open, len(s.pages), len(s.begun), s.start_ended),
            )
            db.executemany("INSERT INTO state_pages VALUES (1, ?, ?)", s.pages)
            db.executemany("INSERT INTO state_begun VALUES (1, ?, ?, ?, ?)", [(p, *b) for p, b in s.begun])
            leases = [(name, owner, LEASE_S, this_process()) for name, owner in s.leases]
            db.executemany("INSERT INTO state_leases VALUES (1, ?, ?, ?, ?)", leases)

        self.run(self._database.write(fill, durable=False))

    def dump(self) -> Snapshot:
        def look(db: sqlite3.Connection) -> Snapshot:
            query = "SELECT id, run, state, start_ended, open, seen, begun FROM state_jobs WHERE NOT over"
            id, run, state, start_ended, open, seen, counted = db.execute(query).fetchone()
            pages = db.execute("SELECT page, open FROM state_pages WHERE job = ?", (id,)).fetchall()
            assert seen == len(pages), f"seen is {len(pages)}, and counted as {seen}"
            query = "SELECT page, message, attempt, starts FROM state_begun WHERE job = ?"
            begun = db.execute(query, (id,)).fetchall()
            assert counted == len(begun), f"begun is {len(begun)}, and counted as {counted}"
            leases = db.execute("SELECT name, owner FROM state_leases WHERE job = ?", (id,))
            return Snapshot(
                run,
                JobState(state),
                bool(start_ended),
                False,
                open,
                frozenset((page, bool(is_open)) for page, is_open in pages),
                frozenset((page, Begun(*fields)) for page, *fields in begun),
                frozenset(leases),
            )

        snapshot: Snapshot = self.run(self._database.read(look))
        return snapshot

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(call)

    def close(self) -> None:
        self.run(self.state.aclose())
        self.run(self._database.aclose())
        self._runner.close()


class RedisDriver:
    """In a database of its own, which it empties. One bucket a page, so that every new page splits one."""

    RECORD = f"{{crawlbus:{JOB}}}"

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self._client = redis.Redis.from_url(url, decode_responses=True)
        self._client.flushdb()
        self.state: RedisState = self.run(RedisState.connect(url, clock=FakeClock(0.0)))
        self._server = self._client.info("server")["run_id"]

    def load(self, s: Snapshot) -> None:
        record = {
            "run": s.run, "listed": 1, "spider": "spider", "created_at": 0, "state": s.state.value,
            "server": self._server, "start_ended": int(s.start_ended), "suspect": int(s.suspect),
            "unaccounted": 0, "buckets": 1, "load": 1, "open": s.open, "seen": len(s.pages), "begun": len(s.begun),
        }  # fmt: skip
        begun = {_member(page): f"{b.attempt} {b.starts} {b.message}" for page, b in s.begun}
        leases = {name: f"{LEASE_S}\n{this_holder()}\n{owner}" for name, owner in s.leases}
        prefix = f"{self.RECORD}:{s.run}:"
        with self._client.pipeline(transaction=False) as pipe:
            pipe.delete(*self._client.keys("{*"), self.RECORD)
            pipe.hset(self.RECORD, mapping=record)
            for name, fields in (("begun", begun), ("leases", leases)):
                if fields:
                    pipe.hset(prefix + name, mapping=fields)
            for name, pages in (("s0", s.seen), ("o0", s.are_open)):
                if pages:
                    pipe.sadd(prefix + name, *map(_member, pages))
            pipe.execute()

    def dump(self) -> Snapshot:
        record = self._client.hgetall(self.RECORD)
        prefix, buckets = f"{self.RECORD}:{record['run']}:", range(int(record["buckets"]))
        with self._client.pipeline(transaction=False) as pipe:
            for name in "so":
                pipe.sunion([f"{prefix}{name}{bucket}" for bucket in buckets])
            pipe.hgetall(prefix + "begun")
            pipe.hgetall(prefix + "leases")
            seen, are_open, begun, leases = pipe.execute()
        assert len(seen) == int(record["seen"]) and are_open <= seen
        assert len(begun) == int(record["begun"])
        return Snapshot(
            int(record["run"]),
            JobState(record["state"]),
            record["start_ended"] == "1",
            record["suspect"] == "1",
            int(record["open"]),
            frozenset((_page(member), member in are_open) for member in seen),
            frozenset((_page(member), _begun(entry)) for member, entry in begun.items()),
            frozenset((name, lease.split("\n", 2)[2]) for name, lease in leases.items()),
        )

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(call)

    def close(self) -> None:
        self.run(self.state.aclose())
        self._client.close()
        self._runner.close()


def _member(page: bytes) -> str:
    return str(struct.unpack(">q", page[:8])[0])


def _page(member: str) -> bytes:
    return struct.pack(">q", int(member)).ljust(16, b".")


def _begun(entry: str) -> Begun:
    attempt, starts, message = entry.split(" ", 2)
    return Begun(message, int(attempt), int(starts))


class Do(Protocol):
    """`do(snapshot, call, …)`: the answer, and what the state holds afterwards."""

    def __call__(self, before: Snapshot, call: str, *args: Any, **options: Any) -> tuple[Any, Snapshot]: ...


class Store:
    """`do` makes the calls on the real state."""

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
        return answer, after
