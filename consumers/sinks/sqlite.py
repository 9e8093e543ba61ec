"""`sqlite:///FILE?table=items`: items, progress and quarantine in one file, a batch in one transaction."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from typing import ParamSpec, TypeVar

from bus.errors import BusError, Closed, Misconfigured, StorageFailed
from bus.message import Position
from bus.url import file_path, query
from consumers.rows import COLUMNS, Row, clean_text, make_rows, reject_item
from consumers.sink import Batch, Fenced, Gap, Progress, Reject, SinkUnavailable, Written, refuse_unknown
from consumers.thread import OwnThread

__all__ = ["SqliteSink"]

P = ParamSpec("P")
R = TypeVar("R")

BUSY_TIMEOUT_S = 10.0
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DATA = {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG}

# `target` is the table of items: the same consumer may fill two of them, and each has progress of its own.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS "{table}" (
    id TEXT PRIMARY KEY, job TEXT NOT NULL, spider TEXT NOT NULL, url TEXT, scraped_at TEXT NOT NULL,
    data JSON NOT NULL
);
CREATE TABLE IF NOT EXISTS sink_consumers (
    consumer TEXT, target TEXT, epoch INTEGER NOT NULL, PRIMARY KEY (consumer, target)
);
CREATE TABLE IF NOT EXISTS sink_progress (
    consumer TEXT, target TEXT, topic TEXT, "partition" INTEGER,
    "offset" INTEGER NOT NULL, item INTEGER NOT NULL, message TEXT NOT NULL,
    PRIMARY KEY (consumer, target, topic, "partition")
);
CREATE TABLE IF NOT EXISTS sink_quarantine (
    consumer TEXT, target TEXT, topic TEXT, "partition" INTEGER, "offset" INTEGER, item INTEGER,
    message TEXT NOT NULL, at TEXT NOT NULL, reason TEXT NOT NULL,
    headers JSON NOT NULL, content BLOB NOT NULL,
    PRIMARY KEY (consumer, target, topic, "partition", "offset", item, message)
);
CREATE TABLE IF NOT EXISTS sink_gaps (
    consumer TEXT, target TEXT, topic TEXT, "partition" INTEGER,
    asked TEXT NOT NULL, first TEXT NOT NULL, "end" TEXT NOT NULL, at TEXT NOT NULL
);
"""
_UPSERT = """INSERT INTO "{table}" (id, job, spider, url, scraped_at, data) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET job = excluded.job, spider = excluded.spider, url = excluded.url,
scraped_at = excluded.scraped_at, data = excluded.data"""
_TAKE_OVER = """INSERT INTO sink_consumers VALUES (?, ?, 1)
ON CONFLICT DO UPDATE SET epoch = epoch + 1 RETURNING epoch"""


class SqliteSink:
    """A table of items, upserted by id. Its file may be the bus's own: all other tables are named `sink_…`.

    WAL with `synchronous=FULL`: what `write` returned survives a power cut. It runs in a thread of its own.
    """

    def __init__(self, path: Path, table: str = "items") -> None:
        if _TABLE.fullmatch(table) is None or table.lower().startswith(("sink_", "sqlite_")):
            raise Misconfigured(
                f"?table={table} of the sqlite sink is no name: use letters, digits and _,"
                " and neither sink_ nor sqlite_ in front"
            )
        self._path, self._table = path, table
        self._upsert = _UPSERT.format(table=table)
        self._thread = OwnThread("sqlite-sink")
        self._connection: sqlite3.Connection | None = None
        self._inode: tuple[int, int] = (0, 0)
        self._who: tuple[str, str] = ("", table)
        self._topic, self._epoch = "", 0

    @classmethod
    def from_url(cls, url: str) -> SqliteSink:
        """`sqlite:///FILE?table=items`."""
        options = query(url)
        refuse_unknown(url, options, {"table"})
        return cls(file_path(url), options.get("table", "items"))

    async def open(self, consumer: str, topic: str) -> None:
        self._who, self._topic = (consumer, self._table), topic
        await self._run(self._open)

    async def positions(self) -> Sequence[Progress]:
        return await self._run(self._positions)

    async def write(self, batch: Batch) -> Written:
        return await self._run(self._write, batch)

    async def aclose(self) -> None:
        await self._thread.aclose(self._close)

    async def _run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await self._thread.call(function, *args, **kwargs)
        except sqlite3.Error as error:
            raise self._translate(error) from None

    def _translate(self, error: sqlite3.Error) -> BusError:
        if _code(error) in _BUSY:
            return SinkUnavailable(f"the sink {self._path} is locked by another process")
        return StorageFailed(f"the sink {self._path} cannot be written: {error}")

    # what runs in the thread

    def _open(self) -> None:
        self._close()
        if not self._path.parent.is_dir():
            raise StorageFailed(f"the sink {self._path} cannot be made: there is no directory {self._path.parent}")
        db = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        self._connection = db
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        info = os.stat(self._path)
        self._inode = (info.st_dev, info.st_ino)
        self._transact(db, self._take_over)

    def _take_over(self, db: sqlite3.Connection) -> None:
        for statement in _SCHEMA.format(table=self._table).split(";\n"):
            db.execute(statement)
        columns = [row[1] for row in db.execute(f'PRAGMA table_info("{self._table}")')]
        if not set(COLUMNS) <= set(columns):
            raise Misconfigured(
                f"the table {self._table} of {self._path} has other columns than an item: name another by ?table="
            )
        (self._epoch,) = db.execute(_TAKE_OVER, self._who).fetchone()

    def _positions(self) -> list[Progress]:
        return self._transact(self._db(), self._read_positions)

    def _read_positions(self, db: sqlite3.Connection) -> list[Progress]:
        self._check_epoch(db)
        rows = db.execute(
            'SELECT "partition", "offset", item, message FROM sink_progress'
            " WHERE consumer = ? AND target = ? AND topic = ?",
            (*self._who, self._topic),
        )
        return [Progress(Position(*row[:3]), row[3]) for row in rows]

    def _write(self, batch: Batch) -> Written:
        return self._transact(self._db(), lambda db: self._store(db, batch))

    def _store(self, db: sqlite3.Connection, batch: Batch) -> Written:
        self._check_epoch(db)
        rows, rejects = make_rows(batch.entries)
        refused = self._insert(db, rows)
        by_position = {entry.position: entry for entry in batch.entries}
        rejects += [reject_item(by_position[position], reason) for position, reason in refused]
        rejects += batch.rejects
        self._quarantine(db, rejects)
        self._record_gaps(db, batch.gaps)
        db.executemany(
            "INSERT OR REPLACE INTO sink_progress VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(*self._who, self._topic, *at.next, clean_text(at.message)) for at in batch.progress.values()],
        )
        return Written(len(rows) - len(refused), len(rejects))

    def _insert(self, db: sqlite3.Connection, rows: Sequence[tuple[Position, Row]]) -> list[tuple[Position, str]]:
        """Insert all that the table takes, halving what it refuses (a CHECK or a trigger of the user's)."""
        if not rows:
            return []
        db.execute("SAVEPOINT rows")
        try:
            db.executemany(self._upsert, [row for _, row in rows])
        except sqlite3.Error as error:
            if _code(error) not in _DATA:
                raise
            db.execute("ROLLBACK TO rows")
            refused = [(rows[0][0], str(error))] if len(rows) == 1 else self._insert_halves(db, rows)
        else:
            refused = []
        db.execute("RELEASE rows")
        return refused

    def _insert_halves(
        self, db: sqlite3.Connection, rows: Sequence[tuple[Position, Row]]
    ) -> list[tuple[Position, str]]:
        middle = len(rows) // 2
        return self._insert(db, rows[:middle]) + self._insert(db, rows[middle:])

    def _quarantine(self, db: sqlite3.Connection, rejects: Iterable[Reject]) -> None:
        db.executemany(
            "INSERT OR REPLACE INTO sink_quarantine VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (*self._who, self._topic, *reject.position, clean_text(reject.id), _now(),
                 clean_text(reject.reason), dumps(dict(reject.headers), default=repr), reject.content)
                for reject in rejects
            ],
        )  # fmt: skip

    def _record_gaps(self, db: sqlite3.Connection, gaps: Iterable[Gap]) -> None:
        db.executemany(
            "INSERT INTO sink_gaps VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *self._who,
                    self._topic,
                    gap.asked.partition,
                    str(gap.asked),
                    str(gap.first),
                    str(gap.end),
                    _now(),
                )
                for gap in gaps
            ],
        )

    def _check_epoch(self, db: sqlite3.Connection) -> None:
        row = db.execute("SELECT epoch FROM sink_consumers WHERE consumer = ? AND target = ?", self._who).fetchone()
        if row is None or row[0] != self._epoch:
            raise Fenced(f"another consumer named {self._who[0]!r} has taken over the sink {self._path}")

    def _transact(self, db: sqlite3.Connection, work: Callable[[sqlite3.Connection], R]) -> R:
        db.execute("BEGIN IMMEDIATE")
        try:
            self._check_file()
            result = work(db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return result

    def _check_file(self) -> None:
        """A file that was moved or deleted would be written to, and be gone when it is closed."""
        try:
            info = os.stat(self._path)
        except OSError:
            info = None
        if info is None or (info.st_dev, info.st_ino) != self._inode:
            raise StorageFailed(f"the sink {self._path} was moved, deleted or replaced while it was written to")

    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise Closed("the sink is closed")
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE)
    return code & 0xFF


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
