"""Writes batches into PostgreSQL: all rows at once, or by halves around those that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import psycopg

from bus.errors import StorageFailed, Unsupported
from consumers.rows import reject_item
from consumers.sink import Batch, Changes, Entry, Reject, Written
from consumers.sinks.postgres.errors import is_of_a_row, reason, took_too_long
from consumers.sinks.postgres.link import Link
from consumers.sinks.postgres.options import Options
from consumers.sinks.postgres.staged import Staged, Stager, newest, stage
from consumers.sinks.postgres.statements import Statements
from consumers.sinks.postgres.wire import copy_stream, parameters
from consumers.sql_ledger import SqlLedger

__all__ = ["Store"]

COPY_FROM = 50  # rows; fewer go as parameters of the INSERT

_ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtextextended(?, 1))"


class _Refused(Exception):
    """One of the rows that are stored together is."""

    def __init__(self, error: psycopg.Error) -> None:
        super().__init__(error)
        self.error = error


class Store:
    """Uses its connection in transactions of its own; on an error the caller rolls back."""

    def __init__(self, link: Link, statements: Statements, options: Options) -> None:
        self._link, self._statements, self._options = link, statements, options
        self.topic = ""

    def check(self) -> None:
        """Raises `psycopg.Error` where the table does not take our rows."""
        self._link.execute(f"EXPLAIN {self._statements.store_given()}", self._parameters([]))

    def write(self, ledger: SqlLedger, batch: Batch) -> Written:
        """`Sink.write`."""
        merge = None if self._options.mode == "append" else self._merged
        staged = Stager(self._in_order(batch.entries), merge, rejects_nul=self._options.rejects_nul)
        refused: list[Reject] = []
        try:
            self._write_all(ledger, batch, staged)
        except _Refused:
            self._link.rollback()
            refused = self._write_by_halves(ledger, batch, staged)
        stored, rejected = len(staged.rows) - len(refused), len(batch.rejects) + len(staged.rejects) + len(refused)
        return Written(stored, rejected, staged.sanitized)

    def _in_order(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """By id, as who else writes: so both wait for each other in one order. Of one id, in the order of the log."""
        return entries if self._options.mode == "append" else sorted(entries, key=lambda entry: entry[1][0])

    def _write_all(self, ledger: SqlLedger, batch: Batch, staged: Stager) -> None:
        """The way of nearly all batches. No lock is held while we send rows: who is stopped then stops nobody."""
        copies = len(batch.entries) >= COPY_FROM
        if copies:
            self._link.make_staging(self._statements.staging)
        self._link.begin()
        rows = self._copy(staged) if copies else [*chain.from_iterable(staged.parts())]
        ledger.advance(self._link, batch)
        self._insert(rows, copied=copies)
        ledger.set_aside(self._link, [*staged.rejects, *batch.rejects])
        self._commit()

    def _write_by_halves(self, ledger: SqlLedger, batch: Batch, staged: Stager) -> list[Reject]:
        for _ in staged.parts():  # those that were not made yet
            pass
        self._link.begin()
        ledger.advance(self._link, batch)
        entries = {entry.position: entry for entry in batch.entries}
        refused = [reject_item(entries[row.position], why) for row, why in self._halve(staged.rows)]
        ledger.set_aside(self._link, [*staged.rejects, *batch.rejects, *refused])
        self._commit()
        return refused

    def _halve(self, rows: list[Staged]) -> list[tuple[Staged, str]]:
        """Store all that the table takes; returns what it refuses, and why."""
        self._link.execute("SAVEPOINT sink_rows")
        try:
            self._insert(self._merged(rows), copied=False)
        except _Refused as refused:
            self._link.execute("ROLLBACK TO SAVEPOINT sink_rows; RELEASE SAVEPOINT sink_rows")
            if len(rows) == 1:
                return [(rows[0], reason(refused.error))]
            middle = len(rows) // 2
            return self._halve(rows[:middle]) + self._halve(rows[middle:])
        self._link.execute("RELEASE SAVEPOINT sink_rows")
        return []

    def _merged(self, rows: Sequence[Staged]) -> Sequence[Staged]:
        if self._options.mode == "append":
            return rows
        return newest(rows, each_time=self._options.mode == "versions")

    def _copy(self, staged: Stager) -> Sequence[Staged]:
        try:
            self._link.copy(copy_stream(staged.parts(), with_place=self._statements.with_place))
        except psycopg.Error as error:
            raise _Refused(error) if is_of_a_row(error) else error from None
        return staged.rows

    def _insert(self, rows: Sequence[Staged], *, copied: bool) -> None:
        if not rows:
            return
        if self._options.mode == "versions":  # what a row becomes depends on those before and behind it
            self._link.execute(_ONE_AT_A_TIME, (self._options.table,))
        statement = self._statements.store_staged() if copied else self._statements.store_given()
        given = self._parameters(None if copied else rows)
        try:
            stored = self._link.execute(statement, given, plan_anew=self._options.mode == "versions").rowcount
        except psycopg.Error as error:
            if is_of_a_row(error) or (took_too_long(error) and len(rows) > 1):  # half of them may be in time
                raise _Refused(error) from None
            raise
        if self._options.mode == "append" and stored < len(rows):
            self._check_same(given, copied=copied)

    def _check_same(self, given: Sequence[object], *, copied: bool) -> None:
        """What is at our places already must be our own."""
        statement = self._statements.others_staged() if copied else self._statements.others_given()
        if others := self._link.execute(statement, given, plan_anew=True).fetchall()[0][0]:
            raise StorageFailed(
                f"the table {self._options.table} of the sink {self._options.name} holds {others:,} other items at"
                " these places of the log (it was made anew, or its items are changed): name another table by ?table="
            )

    def _commit(self) -> None:
        self._link.commit()

    def _parameters(self, rows: Sequence[Staged] | None) -> list[object]:
        with_place = self._statements.with_place
        given: list[object] = [] if rows is None else [*parameters(rows, with_place=with_place)]
        return [*given, self.topic] if with_place else given

    def compare(self, entries: Sequence[Entry], *, has_table: bool) -> Changes:
        """`Sink.compare`."""
        if self._options.mode == "append":
            raise Unsupported(f"the sink {self._options.name} has mode=append: no row is looked up by its id")
        rows = self._merged(stage(entries, rejects_nul=self._options.rejects_nul)[0])
        if not has_table:
            return Changes(len({row.id for row in rows}), 0, 0)
        found = self._link.execute(self._statements.compare(), self._parameters(rows), plan_anew=True)
        new, count, changed = found.fetchall()[0]
        return Changes(new, changed, count - new - changed)
