"""The tables of a PostgreSQL sink: looked at, and what is missing is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

from bus.errors import Misconfigured
from consumers.sinks.postgres.link import Link
from consumers.sinks.postgres.options import Options
from consumers.sql_ledger import SqlLedger

__all__ = ["Layout"]

_LOCK = "SELECT pg_advisory_{}(hashtextextended('crawlbus sink', 0))"  # for all tables of the database
_SCHEMA = "SELECT 1 FROM pg_namespace WHERE nspname = ?"
_COLUMNS = """
SELECT w.attname, format_type(w.atttypid, w.atttypmod), format_type(i.atttypid, i.atttypmod)
FROM pg_attribute w LEFT JOIN pg_attribute i
ON i.attrelid = to_regclass(?) AND i.attname = w.attname AND NOT i.attisdropped
WHERE w.attrelid = 'pg_temp.sink_wanted'::regclass AND w.attnum > 0 ORDER BY w.attnum
"""
_LEDGER = ("sink_members", "sink_progress", "sink_quarantine", "sink_gaps")
_VIEW = """
CREATE OR REPLACE VIEW {view} AS SELECT DISTINCT ON (id) * FROM {table} ORDER BY id DESC, scraped_at DESC;
CREATE OR REPLACE FUNCTION {function}(moment timestamptz) RETURNS SETOF {table} LANGUAGE sql STABLE AS
$$SELECT DISTINCT ON (id) * FROM {table} WHERE scraped_at <= $1 ORDER BY id DESC, scraped_at DESC$$
"""


class Layout:
    """Of one table of items. Each method is part of the caller's transaction."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._prefix = f'"{options.schema}".' if options.schema else ""
        self.table = self._named(options.table)

    def _named(self, name: str) -> str:
        return f'{self._prefix}"{name}"'

    def has(self, db: Link, name: str) -> bool:
        """Whether there is such a table, view or index."""
        return bool(db.execute("SELECT 1 WHERE to_regclass(?) IS NOT NULL", (self._named(name),)).fetchall())

    def missing(self, db: Link) -> list[str]:
        """The statements that make what is not there; for the ledger an empty one. Raises `Misconfigured` where what is
        there does not fit."""
        options = self._options
        has_table = self.has(db, options.table)
        found: list[str] = []
        if not has_table:
            if options.schema and not db.execute(_SCHEMA, (options.schema,)).fetchall():
                found.append(f'CREATE SCHEMA "{options.schema}"')
            found.append(self._create())
        added = self._add_columns(db) if has_table else []
        found += added
        found += [
            f'CREATE INDEX "{name}" ON {self.table} {what}' for name, what in self._indexes() if not self.has(db, name)
        ]
        if options.mode == "versions" and (added or not self.has(db, f"{options.table}_latest")):
            view, function = self._named(f"{options.table}_latest"), self._named(f"{options.table}_as_of")
            found.append(_VIEW.format(table=self.table, view=view, function=function))
        if not all(self.has(db, name) for name in _LEDGER):
            found.append("")
        return found

    def make(self, db: Link, statements: list[str]) -> None:
        """However long it takes: an index of a large table."""
        with db.unhurried():
            for statement in statements:
                if statement:
                    db.execute(statement)
                else:
                    SqlLedger.create(db, "BYTEA")

    def lock(self, db: Link) -> None:
        """Until the transaction ends, nobody else makes anything."""
        db.execute(_LOCK.format("xact_lock"))

    @contextmanager
    def alone(self, db: Link) -> Iterator[None]:
        """Nobody else makes anything. Begin the transaction in here: only then it sees what others have made."""
        db.execute(_LOCK.format("lock"))
        try:
            yield
        finally:
            db.rollback()
            if db.is_connected:
                db.execute(_LOCK.format("unlock"))

    def _create(self) -> str:
        options = self._options
        columns = [f'"{name}" {kind}{"" if name == "url" else " NOT NULL"}' for name, kind in options.fixed.items()]
        columns += [f'"{name}" {kind}' for name, kind in options.columns.items()]
        key = ", ".join(f'"{name}"' for name in options.key)
        return f"CREATE TABLE {self.table} ({', '.join(columns)}, PRIMARY KEY ({key}))"

    def _add_columns(self, db: Link) -> list[str]:
        options = self._options
        both = {**options.fixed, **options.columns}
        wanted = ", ".join(f'"{name}" {kind}' for name, kind in both.items())
        db.execute(f"CREATE TEMPORARY TABLE sink_wanted ({wanted}) ON COMMIT DROP")
        columns = db.execute(_COLUMNS, (self.table,)).fetchall()
        db.execute("DROP TABLE pg_temp.sink_wanted")
        for name, kind, there in columns:
            if there != kind and (there is not None or name in options.fixed):
                says = f"?columns= says {kind}" if name in options.columns else f"mode={options.mode} needs {kind}"
                raise Misconfigured(
                    f"the column {name} of the table {self.table} of the sink {options.name} is {there or 'missing'},"
                    f" and {says}: change one of them, or name another table by ?table="
                )
        missing = [name for name, _, there in columns if there is None]
        return [f'ALTER TABLE {self.table} ADD COLUMN IF NOT EXISTS "{name}" {both[name]}' for name in missing]

    def _indexes(self) -> list[tuple[str, str]]:
        known = {**self._options.fixed, **self._options.columns}
        found = []
        for field in self._options.indexes:
            what = f'("{field}")' if field in known else f"((data->>'{field}'))"
            name = f"{self._options.table}_{field}_idx"
            if len(name) > 63:
                name = f"{name[:46]}_{blake2b(name.encode(), digest_size=8).hexdigest()}"
            found.append((name, "USING gin (data jsonb_path_ops)" if field == "data" else what))
        return found
