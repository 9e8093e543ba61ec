"""The PostgreSQL sink keeps the contract; and what is its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

import consumers.sinks.postgres.link
from consumers.sinks.postgres import PostgresSink
from consumers.testing import SinkConformance
from tests.servers import kinds, new_database, shared_url


@pytest.fixture(params=kinds("postgres"))
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty one."""
    with new_database(shared_url(request.param)) as url:
        yield url


def ask(url: str, question: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as db:
        return db.execute(question.encode()).fetchall()


TEXT = """to_char(scraped_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


def items(url: str, table: str = "items") -> list[dict[str, Any]]:
    found = ask(url, f"SELECT id, job, spider, url, {TEXT}, data::text FROM {table} ORDER BY scraped_at")
    names = ("id", "job", "spider", "url", "scraped_at")
    return [{**dict(zip(names, row, strict=False)), "data": json.loads(row[5])} for row in found]


class TestPostgresSink(SinkConformance):
    sink_class = PostgresSink

    @pytest.fixture(autouse=True)
    def _target(self, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url = database
        monkeypatch.setattr(consumers.sinks.postgres.link, "LOCK_TIMEOUT_S", 0.5)

    def rows(self) -> list[dict[str, Any]]:
        return items(self.url)

    def untouched(self) -> bool:
        return not ask(self.url, "SELECT 1 FROM pg_class WHERE relnamespace = 'public'::regnamespace")

    def gaps(self) -> list[tuple[str, str, str]]:
        return [row[:3] for row in ask(self.url, 'SELECT asked, first, "end" FROM sink_gaps ORDER BY at, asked')]

    @contextmanager
    def blocked(self) -> Iterator[None]:
        with psycopg.connect(self.url) as db:
            db.execute("LOCK TABLE items IN EXCLUSIVE MODE")
            yield

    @contextmanager
    def broken(self) -> Iterator[None]:
        with psycopg.connect(self.url, autocommit=True) as db:
            db.execute(
                """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$BEGIN RAISE EXCEPTION 'broken'; END$$"""
            )
            db.execute("CREATE TRIGGER broken BEFORE INSERT ON sink_quarantine EXECUTE FUNCTION refuse()")
            yield
            db.execute("DROP TRIGGER broken ON sink_quarantine")

    def as_stored(self, value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("\0", "\ufffd")
        if isinstance(value, list):
            return [self.as_stored(child) for child in value]
        if not isinstance(value, dict):
            return value
        found: dict[str, Any] = {}
        for key in sorted(value, key=lambda key: "\0" in key):
            name = str(self.as_stored(key))
            while name in found:
                name += "\ufffd"
            found[name] = self.as_stored(value[key])
        return found
