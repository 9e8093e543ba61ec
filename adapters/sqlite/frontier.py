"""The SQL of a frontier: pages and what is begun, one function a call. Each runs in the caller's transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from bus.frontier import Begun, begin, retried, starts_given_back
from bus.state import Arrival, Attempt, JobState, Verdict

__all__ = ["SCHEMA", "add", "arrive", "check", "known", "mark", "release", "retry", "sweep", "unsee"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS state_pages (
    job INTEGER NOT NULL, page BLOB NOT NULL, open INTEGER NOT NULL, PRIMARY KEY (job, page)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state_begun (
    job INTEGER NOT NULL, page BLOB NOT NULL, message TEXT NOT NULL, attempt INTEGER NOT NULL,
    starts INTEGER NOT NULL, PRIMARY KEY (job, page)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state_counters (
    job INTEGER NOT NULL, name TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (job, name)) WITHOUT ROWID;
"""
CHUNK = 500  # parameters of one statement
SWEEP = 5_000  # pages of an earlier run that one step deletes

ENTER = "INSERT OR IGNORE INTO state_pages VALUES (?, ?, ?)"
PUT = "INSERT OR REPLACE INTO state_begun VALUES (?, ?, ?, ?, ?)"
LOOK = """SELECT open, message, attempt, starts FROM state_pages LEFT JOIN state_begun USING (job, page)
    WHERE job = ? AND page = ?"""
COUNT = """UPDATE state_jobs SET open = open + :opened - :closed, seen = seen + :seen, begun = begun + :begun,
    state = CASE WHEN :opened AND state = :finished THEN :running ELSE state END,
    finished_at = CASE WHEN :opened THEN NULL ELSE finished_at END,
    unaccounted = CASE WHEN :opened THEN 0 ELSE unaccounted END WHERE id = :job"""


def check(db: sqlite3.Connection, job: int, pages: Sequence[bytes]) -> set[bytes]:
    unseen = set(pages)
    for i in range(0, len(pages), CHUNK):
        some = pages[i : i + CHUNK]
        marks = ",".join("?" * len(some))
        query = f"SELECT page FROM state_pages WHERE job = ? AND page IN ({marks})"
        unseen.difference_update(page for (page,) in db.execute(query, (job, *some)))
    return unseen


def mark(db: sqlite3.Connection, job: int, pages: Iterable[bytes], finish: Iterable[bytes]) -> None:
    opened = db.executemany(ENTER, [(job, page, 1) for page in pages]).rowcount
    done = [(job, page) for page in set(finish)]
    closed = new = ended = 0
    if done:
        close = "UPDATE state_pages SET open = 0 WHERE job = ? AND page = ? AND open"
        closed = db.executemany(close, done).rowcount
        if closed < len(done):
            new = db.executemany(ENTER, [(job, page, 0) for _, page in done]).rowcount
        ended = db.executemany("DELETE FROM state_begun WHERE job = ? AND page = ?", done).rowcount
    _count(db, job, opened=max(opened, 0), closed=closed, seen=max(opened, 0) + new, begun=-ended)


def _count(
    db: sqlite3.Connection, job: int, *, opened: int = 0, closed: int = 0, seen: int = 0, begun: int = 0
) -> None:
    """Keep the counts; where anything was opened, a finished job is running again."""
    if opened or closed or seen or begun:
        states = {"finished": JobState.FINISHED.value, "running": JobState.RUNNING.value}
        db.execute(COUNT, {"job": job, "opened": opened, "closed": closed, "seen": seen, "begun": begun, **states})


def arrive(db: sqlite3.Connection, job: int, arrivals: Sequence[Arrival]) -> list[Verdict]:
    verdicts, opened, begun = [], 0, 0
    for arrival in arrivals:
        is_open, *fields = db.execute(LOOK, (job, arrival.page)).fetchone() or (None, None)
        if is_open == 0:
            verdicts.append(Verdict.DONE)
            continue
        if is_open is None:
            db.execute(ENTER, (job, arrival.page, 1))
            opened += 1
        entry = _begun(fields)
        begun += entry is None  # `begin` makes an entry where there is none
        verdicts.append(_begin(db, job, arrival, entry))
    _count(db, job, opened=opened, seen=opened, begun=begun)
    return verdicts


def _begin(db: sqlite3.Connection, job: int, arrival: Arrival, entry: Begun | None) -> Verdict:
    verdict, new = begin(entry, arrival)
    _put(db, job, arrival.page, entry, new)
    return verdict


def retry(db: sqlite3.Connection, job: int, attempts: Iterable[Attempt]) -> None:
    for attempt in attempts:
        entry = _entry(db, job, attempt.page)
        _put(db, job, attempt.page, entry, retried(entry, attempt))


def release(db: sqlite3.Connection, job: int, arrivals: Iterable[Arrival]) -> None:
    for arrival in arrivals:
        entry = _entry(db, job, arrival.page)
        _put(db, job, arrival.page, entry, starts_given_back(entry, arrival))


def _entry(db: sqlite3.Connection, job: int, page: bytes) -> Begun | None:
    query = "SELECT message, attempt, starts FROM state_begun WHERE job = ? AND page = ?"
    row = db.execute(query, (job, page)).fetchone()
    return Begun(*row) if row else None


def _begun(fields: Sequence[str | int | None]) -> Begun | None:
    return Begun(*fields) if fields[0] is not None else None  # type: ignore[arg-type]


def _put(db: sqlite3.Connection, job: int, page: bytes, entry: Begun | None, new: Begun | None) -> None:
    if new is not None and new != entry:
        db.execute(PUT, (job, page, *new))


def known(db: sqlite3.Connection, job: int, pages: Iterable[bytes]) -> int:
    new = max(db.executemany(ENTER, [(job, page, 0) for page in pages]).rowcount, 0)
    _count(db, job, seen=new)
    return new


def unsee(db: sqlite3.Connection, job: int, pages: Iterable[bytes]) -> int:
    query = "DELETE FROM state_pages WHERE job = ? AND page = ? AND NOT open"
    gone = max(db.executemany(query, [(job, page) for page in pages]).rowcount, 0)
    _count(db, job, seen=-gone)
    return gone


def add(db: sqlite3.Connection, job: int, counts: Mapping[str, int]) -> None:
    query = "INSERT INTO state_counters VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n"
    db.executemany(query, [(job, name, n) for name, n in counts.items()])


def sweep(db: sqlite3.Connection, job: int) -> bool:
    """Delete some pages of a run that is over; True once none is left."""
    for table in ("state_pages", "state_begun"):
        some = f"SELECT page FROM {table} WHERE job = ? LIMIT ?"
        query = f"DELETE FROM {table} WHERE job = ? AND page IN ({some})"
        if db.execute(query, (job, job, SWEEP)).rowcount:
            return False
    return True
