"""The verdict over numbered items: which were published, and how often each was stored."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Set
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from bus.url import file_path, scheme
from consumers.sink import sink_of

__all__ = ["Journal", "Verdict", "stored_numbers", "verdict", "watch"]

# Fires for each row that is to be written, also where an upsert finds it there: storing an item twice shows.
SQLITE_WATCH = """
CREATE TABLE IF NOT EXISTS writes (number INTEGER NOT NULL);
CREATE TRIGGER IF NOT EXISTS watch BEFORE INSERT ON items
BEGIN INSERT INTO writes VALUES (json_extract(new.data, '$.number')); END;
"""
POSTGRES_WATCH = """
CREATE TABLE IF NOT EXISTS writes (number BIGINT NOT NULL);
CREATE OR REPLACE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO writes VALUES ((new.data ->> 'number')::bigint); RETURN new; END $$;
CREATE OR REPLACE TRIGGER watch BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION watch();
"""


class Verdict(NamedTuple):
    """What became of the items. `published` counts those that the bus has confirmed."""

    published: int
    lost: int  # confirmed, and not stored
    duplicated: int  # stored again, how often
    recovered: int  # not confirmed, as the publisher died, and stored all the same
    unexpected: int  # stored, and never published

    @property
    def well(self) -> bool:
        return not (self.lost or self.duplicated or self.unexpected)

    def __str__(self) -> str:
        return ", ".join(f"{name} {number}" for name, number in self._asdict().items())


def verdict(confirmed: Set[int], tried: Set[int], stored: Iterable[int]) -> Verdict:
    """`tried` are all that a publisher has begun to publish; `stored` has a number as often as it was stored."""
    count = Counter(stored)
    found = count.keys()
    return Verdict(
        published=len(confirmed),
        lost=len(confirmed - found),
        duplicated=count.total() - len(count),
        recovered=len(found & (tried - confirmed)),
        unexpected=len(found - tried - confirmed),
    )


class Journal:
    """What publishers have done, in a file that outlives them: `+ 7 9` before the numbers 7 and 8 are published,
    `= 7 9` after."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, sign: str, numbers: range) -> None:
        with self.path.open("a") as file:
            file.write(f"{sign} {numbers.start} {numbers.stop}\n")

    def numbers(self, sign: str) -> set[int]:
        lines = (line.split() for line in self.path.read_text().splitlines()) if self.path.exists() else ()
        return {number for mark, *ends in lines if mark == sign for number in range(*map(int, ends))}

    @property
    def next(self) -> int:
        """The first number that was not tried."""
        return max(self.numbers("+"), default=-1) + 1

    def verdict(self, sink: str) -> Verdict:
        return verdict(self.numbers("="), self.numbers("+"), stored_numbers(sink))


def watch(sink: str) -> None:
    """Make the storage, and let it count what is written from now on."""

    async def make() -> None:
        target = sink_of(sink)
        try:
            await target.open("watch", "none")
        finally:
            await target.aclose()

    asyncio.run(make())
    if scheme(sink) == "sqlite":
        with closing(sqlite3.connect(file_path(sink))) as db:
            db.executescript(SQLITE_WATCH)
    elif scheme(sink).startswith("postgres"):
        import psycopg

        with psycopg.connect(sink) as connection:
            connection.execute(POSTGRES_WATCH)


def stored_numbers(sink: str) -> list[int]:
    """The number of each item, as often as it was stored. A table counts once it is watched."""
    kind = scheme(sink)
    if kind == "sqlite":
        with closing(sqlite3.connect(file_path(sink))) as db:
            db.execute("BEGIN")  # both as of one moment
            rows = db.execute("SELECT json_extract(data, '$.number') FROM items").fetchall()
            writes = db.execute("SELECT number FROM writes").fetchall()
    elif kind.startswith("postgres"):
        import psycopg

        with psycopg.connect(sink) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            rows = connection.execute("SELECT (data ->> 'number')::bigint FROM items").fetchall()
            writes = connection.execute("SELECT number FROM writes").fetchall()
    else:
        return _numbers_in_files(kind, file_path(sink))
    assert {number for (number,) in rows} == {number for (number,) in writes}
    return [number for (number,) in writes]


def _numbers_in_files(kind: str, path: Path) -> list[int]:
    if kind == "jsonl":
        return [json.loads(line)["data"]["number"] for line in path.read_bytes().splitlines()]
    import pyarrow.dataset

    rows = pyarrow.dataset.dataset(path, format="parquet").to_table(columns=["data"]).column("data")
    return [json.loads(data.as_py())["number"] for data in rows]
