"""The SQL of jobs and leases, one function a call. Each runs in the caller's transaction.

`state_jobs` has one row for each run, and all other tables are keyed by its `id`. So a restart only adds a row:
the run before is `over`, seen by no call, and swept away in small steps.
"""

from __future__ import annotations

import json
import sqlite3

from adapters.sqlite import frontier
from bus.errors import Misconfigured
from bus.frontier import check_spider, ends
from bus.process import is_gone, this_process
from bus.state import Job, JobState, JobStatus, WorkerReport

__all__ = [
    "acquire",
    "all_jobs",
    "create",
    "drop",
    "drop_dead",
    "end",
    "end_start",
    "forget",
    "id_of",
    "join",
    "renew",
    "report",
    "restart",
    "set_state",
    "status",
    "sweep",
]

SCHEMA = """
CREATE TABLE IF NOT EXISTS state_jobs (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, run INTEGER NOT NULL, spider TEXT NOT NULL,
    created_at REAL NOT NULL, listed INTEGER NOT NULL DEFAULT 1, over INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'running', open INTEGER NOT NULL DEFAULT 0, seen INTEGER NOT NULL DEFAULT 0,
    begun INTEGER NOT NULL DEFAULT 0, start_ended INTEGER NOT NULL DEFAULT 0, unaccounted INTEGER NOT NULL DEFAULT 0,
    finished_at REAL,
    UNIQUE (name, run));
CREATE TABLE IF NOT EXISTS state_leases (
    job INTEGER NOT NULL, name TEXT NOT NULL, owner TEXT NOT NULL, expires REAL NOT NULL,
    process TEXT NOT NULL, PRIMARY KEY (job, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state_reports (
    job INTEGER NOT NULL, worker TEXT NOT NULL, report TEXT NOT NULL, PRIMARY KEY (job, worker)) WITHOUT ROWID;
"""
LISTED = "FROM state_jobs WHERE listed AND NOT over"
COLUMNS = "id, name, run, spider, state, open, seen, begun, start_ended, unaccounted, created_at, finished_at"


def create(db: sqlite3.Connection) -> None:
    for statement in (SCHEMA + frontier.SCHEMA).split(";"):
        db.execute(statement)


def id_of(db: sqlite3.Connection, job: Job) -> int | None:
    row = db.execute(f"SELECT id {LISTED} AND name = ? AND run = ?", job).fetchone()
    return row[0] if row else None


# jobs


def status(db: sqlite3.Connection, name: str, now: float) -> JobStatus | None:
    row = db.execute(f"SELECT {COLUMNS} {LISTED} AND name = ?", (name,)).fetchone()
    return _status(db, row, now) if row else None


def all_jobs(db: sqlite3.Connection, now: float) -> list[JobStatus]:
    rows = db.execute(f"SELECT {COLUMNS} {LISTED} ORDER BY name").fetchall()
    return [_status(db, row, now) for row in rows]


def _status(db: sqlite3.Connection, row: tuple, now: float) -> JobStatus:  # type: ignore[type-arg]
    id, name, run, spider, state, open, seen, begun, start_ended, unaccounted, created_at, finished_at = row
    leases = db.execute("SELECT name FROM state_leases WHERE job = ? AND expires > ?", (id, now)).fetchall()
    live = [kind.partition(":")[0] for (kind,) in leases]
    return JobStatus(
        job=Job(name, run),
        spider=spider,
        state=JobState(state),
        open=open,
        seen=seen,
        start_ended=bool(start_ended),
        loading=live.count("seed"),
        forever=live.count("forever"),
        suspect=False,  # a file that is synced before a call returns loses nothing
        unaccounted=unaccounted,
        created_at=created_at,
        finished_at=finished_at,
        counters=dict(db.execute("SELECT name, n FROM state_counters WHERE job = ?", (id,)).fetchall()),
        workers=_workers(db, id, now),
        begun=begun,
    )


def _workers(db: sqlite3.Connection, id: int, now: float) -> list[WorkerReport]:
    query = """SELECT worker, report FROM state_reports AS r JOIN state_leases AS l
        ON l.job = r.job AND l.name = 'worker:' || r.worker WHERE r.job = ? AND l.expires > ? ORDER BY worker"""
    return [WorkerReport(worker, *json.loads(row)) for worker, row in db.execute(query, (id, now))]


def _get(db: sqlite3.Connection, name: str, now: float) -> JobStatus:
    found = status(db, name, now)
    if found is None:
        raise Misconfigured(f"there is no job {name!r}: `crawlbus job list` shows those there are")
    return found


def join(db: sqlite3.Connection, name: str, spider: str, now: float, *, resume: bool) -> JobStatus:
    drop_dead(db)  # who starts again after a kill does not meet himself
    added = db.execute(
        """INSERT INTO state_jobs (name, run, spider, created_at) SELECT :name, 1, :spider, :now
        WHERE NOT EXISTS (SELECT 1 FROM state_jobs WHERE name = :name)""",
        {"name": name, "spider": spider, "now": now},
    ).rowcount
    if not added:
        listing = """UPDATE state_jobs SET listed = 1, spider = ?, created_at = ?
            WHERE name = ? AND NOT over AND (NOT listed OR spider = '')"""
        db.execute(listing, (spider, now, name))
        check_spider(name, _get(db, name, now).spider, spider)
        if resume:
            running = "UPDATE state_jobs SET state = ? WHERE name = ? AND NOT over AND state = ?"
            db.execute(running, (JobState.RUNNING.value, name, JobState.STOPPED.value))
    return _get(db, name, now)


def restart(db: sqlite3.Connection, name: str, now: float) -> JobStatus:
    _new_run(db, _get(db, name, now), now, listed=True)
    return _get(db, name, now)


def forget(db: sqlite3.Connection, name: str, now: float) -> bool:
    old = status(db, name, now)
    if old is None:
        return False
    _new_run(db, old, now, listed=False)
    return True


def _new_run(db: sqlite3.Connection, old: JobStatus, now: float, *, listed: bool) -> None:
    name, run = old.job
    db.execute("UPDATE state_jobs SET over = 1 WHERE name = ?", (name,))
    query = "INSERT INTO state_jobs (name, run, spider, created_at, listed) VALUES (?, ?, ?, ?, ?)"
    db.execute(query, (name, run + 1, old.spider, now, listed))


def sweep(db: sqlite3.Connection) -> None:
    """One step of deleting what runs that are over have left."""
    row = db.execute("SELECT id FROM state_jobs WHERE over LIMIT 1").fetchone()
    if row is None or not frontier.sweep(db, row[0]):
        return
    for table in ("state_counters", "state_leases", "state_reports"):
        db.execute(f"DELETE FROM {table} WHERE job = ?", row)
    db.execute("DELETE FROM state_jobs WHERE id = ?", row)


def set_state(db: sqlite3.Connection, name: str, state: JobState, now: float) -> JobStatus:
    old = _get(db, name, now)
    if old.state is JobState.FINISHED:
        return old
    db.execute("UPDATE state_jobs SET state = ? WHERE name = ? AND NOT over", (state.value, name))
    return _get(db, name, now)


def end(db: sqlite3.Connection, id: int, unaccounted: int | None, now: float) -> JobState:
    row = db.execute(f"SELECT {COLUMNS} FROM state_jobs WHERE id = ?", (id,)).fetchone()
    found = _status(db, row, now)
    if not ends(found, slow=unaccounted is not None):
        return found.state
    db.execute(
        "UPDATE state_jobs SET state = ?, finished_at = ?, unaccounted = max(?, open) WHERE id = ?",
        (JobState.FINISHED.value, now, unaccounted or 0, id),
    )
    return JobState.FINISHED


def end_start(db: sqlite3.Connection, id: int, owner: str, now: float) -> bool:
    query = """UPDATE state_jobs SET start_ended = 1 WHERE id = ? AND EXISTS (SELECT 1 FROM state_leases
        WHERE job = id AND state_leases.name = 'start' AND owner = ? AND expires > ?)"""
    return db.execute(query, (id, owner, now)).rowcount == 1


# leases, and who is there


def acquire(db: sqlite3.Connection, id: int, name: str, owner: str, now: float, lease_s: float) -> bool:
    if name == "start" and db.execute("SELECT start_ended FROM state_jobs WHERE id = ?", (id,)).fetchone()[0]:
        return False
    query = """INSERT INTO state_leases VALUES (:id, :name, :owner, :expires, :process)
        ON CONFLICT DO UPDATE SET owner = excluded.owner, expires = excluded.expires, process = excluded.process
        WHERE owner = excluded.owner OR expires <= :now"""
    row = {
        "id": id, "name": name, "owner": owner, "expires": now + lease_s, "now": now, "process": this_process()
    }  # fmt: skip
    return db.execute(query, row).rowcount == 1


def renew(db: sqlite3.Connection, id: int, name: str, owner: str, expires: float) -> None:
    """Also where it has run out, as long as nobody else has taken it."""
    query = "UPDATE state_leases SET expires = ? WHERE job = ? AND name = ? AND owner = ?"
    db.execute(query, (expires, id, name, owner))


def drop_dead(db: sqlite3.Connection) -> None:
    """The leases of processes that are gone need not run out."""
    for (process,) in db.execute("SELECT DISTINCT process FROM state_leases").fetchall():
        if is_gone(process):
            db.execute("DELETE FROM state_leases WHERE process = ?", (process,))


def drop(db: sqlite3.Connection, id: int, name: str, owner: str) -> None:
    db.execute("DELETE FROM state_leases WHERE job = ? AND name = ? AND owner = ?", (id, name, owner))


def report(db: sqlite3.Connection, id: int, worker: str, row: str) -> None:
    db.execute("INSERT OR REPLACE INTO state_reports VALUES (?, ?, ?)", (id, worker, row))
