"""What an SQL sink knows beside its rows: members, progress, quarantine and gaps, in tables of the same database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from datetime import UTC, datetime
from hashlib import blake2b
from json import dumps, loads
from typing import Any, Protocol

from bus.message import Position
from consumers.members import LEASE_S, Member, lives, lost, new_member, to_take
from consumers.rows import clean_text
from consumers.sink import Batch, Gap, Progress, Quarantined, Reject

__all__ = ["Database", "SqlLedger"]

# `target` is the table of items: the same consumer may fill two of them, and each has progress of its own.
SCHEMA = """
CREATE TABLE IF NOT EXISTS sink_members (
    consumer TEXT, target TEXT, topic TEXT, member TEXT, process TEXT NOT NULL, until_s DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (consumer, target, topic, member)
);
CREATE TABLE IF NOT EXISTS sink_progress (
    consumer TEXT, target TEXT, topic TEXT, "partition" INTEGER, epoch BIGINT NOT NULL, member TEXT NOT NULL,
    "offset" BIGINT, item INTEGER, message TEXT,
    PRIMARY KEY (consumer, target, topic, "partition")
);
CREATE TABLE IF NOT EXISTS sink_quarantine (
    id TEXT PRIMARY KEY, consumer TEXT NOT NULL, target TEXT NOT NULL, topic TEXT NOT NULL,
    "partition" INTEGER NOT NULL, "offset" BIGINT NOT NULL, item INTEGER NOT NULL, message TEXT NOT NULL,
    at TEXT NOT NULL, reason TEXT NOT NULL, headers TEXT NOT NULL, content {blob} NOT NULL
);
CREATE TABLE IF NOT EXISTS sink_gaps (
    consumer TEXT, target TEXT, topic TEXT, "partition" INTEGER,
    asked TEXT NOT NULL, first TEXT NOT NULL, "end" TEXT NOT NULL, at TEXT NOT NULL
);
"""
OURS = "consumer = ? AND target = ? AND topic = ?"


class _Cursor(Protocol):
    @property
    def rowcount(self) -> int: ...

    def fetchall(self) -> Sequence[Any]: ...


class Database(Protocol):
    """A connection in a transaction. Statements have `?` for each parameter."""

    def execute(self, statement: str, parameters: Sequence[Any] = (), /) -> _Cursor: ...


class SqlLedger:
    """One member of a consumer. Each call is part of the caller's transaction, which must be serial with those of the
    other members; times are s since the epoch, by a clock that all members share."""

    def __init__(self, consumer: str, target: str, topic: str) -> None:
        self._ours, self._consumer = (consumer, target, topic), consumer
        self._member = new_member()
        self._epochs: dict[int, int] = {}

    @staticmethod
    def create(db: Database, blob: str) -> None:
        """Create the tables that are missing; `blob` is the type of bytes."""
        for statement in SCHEMA.format(blob=blob).split(";\n"):
            if statement.strip():
                db.execute(statement)

    def hold(self, db: Database, partitions: Set[int], now_s: float) -> dict[int, Progress | None]:
        """`Sink.hold`."""
        live = self._meet(db, now_s)
        rows = {row[0]: row[1:] for row in self._rows(db)}
        owners = {partition: row[1] for partition, row in rows.items()}
        taken = to_take(partitions, owners, live, self._member.id)
        if others := taken & self._epochs.keys():  # another had them meanwhile, and is further
            self._epochs = {}
            raise lost(self._consumer, min(others))
        for partition in taken:
            db.execute(
                """INSERT INTO sink_progress (consumer, target, topic, "partition", epoch, member)
                VALUES (?, ?, ?, ?, 1, ?) ON CONFLICT (consumer, target, topic, "partition")
                DO UPDATE SET epoch = sink_progress.epoch + 1, member = excluded.member""",
                (*self._ours, partition, self._member.id),
            )
        held = {row[0]: row[1:] for row in self._rows(db) if row[2] == self._member.id and row[0] in partitions}
        self._epochs = {partition: row[0] for partition, row in held.items()}
        return {partition: _progress(partition, *row[2:]) for partition, row in held.items()}

    def _meet(self, db: Database, now_s: float) -> list[str]:
        """Renew our lease, and strike those out who are gone; returns who is live."""
        listing = f"SELECT member, process, until_s FROM sink_members WHERE {OURS}"
        members = [Member(*row) for row in db.execute(listing, self._ours).fetchall()]
        for member in members:
            if member.id == self._member.id or not lives(member, now_s):
                db.execute(f"DELETE FROM sink_members WHERE {OURS} AND member = ?", (*self._ours, member.id))
        me = self._member._replace(until_s=now_s + LEASE_S)
        db.execute("INSERT INTO sink_members VALUES (?, ?, ?, ?, ?, ?)", (*self._ours, *me))
        return [member.id for member in members if lives(member, now_s)]

    def _rows(self, db: Database) -> Sequence[Any]:
        columns = '"partition", epoch, member, "offset", item, message'
        return db.execute(f"SELECT {columns} FROM sink_progress WHERE {OURS}", self._ours).fetchall()

    def positions(self, db: Database) -> list[Progress]:
        """`Sink.positions`."""
        found = (_progress(row[0], *row[3:]) for row in self._rows(db))
        return [progress for progress in found if progress is not None]

    def advance(self, db: Database, batch: Batch) -> None:
        """Everything of a batch but its rows and rejects. Call it first: it raises `Fenced`."""
        for partition, progress in batch.progress.items():
            moved = db.execute(
                f"""UPDATE sink_progress SET "offset" = ?, item = ?, message = ?
                WHERE {OURS} AND "partition" = ? AND epoch = ?""",
                (*progress.next[1:], _escape(progress.message), *self._ours, partition, self._epochs.get(partition)),
            )
            if moved.rowcount != 1:
                self._epochs.pop(partition, None)
                raise lost(self._consumer, partition)
        self._record(db, batch.gaps)
        self.drop(db, batch.resolved)

    def _record(self, db: Database, gaps: Iterable[Gap]) -> None:
        for gap in gaps:
            values = (*self._ours, gap.asked.partition, str(gap.asked), str(gap.first), str(gap.end))
            db.execute(  # it is there if this batch is a repeated one
                f'DELETE FROM sink_gaps WHERE {OURS} AND "partition" = ? AND asked = ? AND first = ? AND "end" = ?',
                values,
            )
            db.execute("INSERT INTO sink_gaps VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*values, _now()))

    def set_aside(self, db: Database, rejects: Iterable[Reject]) -> None:
        """Into quarantine; what stands there already gets the new reason."""
        for reject in rejects:
            values = (
                self._key(reject), *self._ours, *reject.position, _escape(reject.id), _now(),
                clean_text(reject.reason).replace("\0", ""), dumps(dict(reject.headers), default=repr), reject.content,
            )  # fmt: skip
            db.execute(
                """INSERT INTO sink_quarantine VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT (id) DO UPDATE SET at = excluded.at, reason = excluded.reason""",
                values,
            )

    def _key(self, reject: Reject) -> str:
        """The same for the same thing, however often it is set aside."""
        text = repr((self._ours, str(reject.position), reject.id))
        return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()

    @staticmethod
    def quarantined(db: Database, target: str) -> list[Quarantined]:
        """`Sink.quarantined`, of one table of items."""
        rows = db.execute(
            """SELECT id, consumer, topic, at, "partition", "offset", item, reason, message, headers, content
            FROM sink_quarantine WHERE target = ? ORDER BY at, topic, "partition", "offset", item""",
            (target,),
        ).fetchall()
        return [_quarantined(*row) for row in rows]

    @staticmethod
    def drop(db: Database, ids: Sequence[str]) -> int:
        """`Sink.drop`."""
        return sum(db.execute("DELETE FROM sink_quarantine WHERE id = ?", (id,)).rowcount for id in ids)

    def leave(self, db: Database) -> None:
        """What we hold is free."""
        db.execute(f"DELETE FROM sink_members WHERE {OURS} AND member = ?", (*self._ours, self._member.id))


def _progress(partition: int, offset: int | None, item: int, message: str) -> Progress | None:
    return None if offset is None else Progress(Position(partition, offset, item), _unescape(message))


def _quarantined(
    id: str, consumer: str, topic: str, at: str,
    partition: int, offset: int, item: int, reason: str, message: str, headers: str, content: bytes,
) -> Quarantined:  # fmt: skip
    reject = Reject(Position(partition, offset, item), reason, _unescape(message), loads(headers), bytes(content))
    return Quarantined(id, consumer, topic, at, reject)


def _escape(text: str) -> str:
    """Text that every database takes, NUL and lone surrogates too; a usual id is as it was."""
    return dumps(text)[1:-1]


def _unescape(text: str) -> str:
    return str(loads(f'"{text}"'))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
