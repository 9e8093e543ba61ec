"""The PostgreSQL sink keeps the contract, and makes its tables by itself."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from secrets import token_hex
from typing import Any

import psycopg
import pytest

import consumers.sinks.postgres.link
from bus.errors import Misconfigured
from consumers.sink import Changes, Written
from consumers.sinks.postgres import PostgresSink
from consumers.testing import SinkConformance, batch_of, record
from tests.consumers.postgres import KIND, ask, fill, items, member
from tests.consumers.sinks import failure
from tests.servers import kinds, new_database

on_postgres = pytest.mark.parametrize("server_url", [KIND], indirect=True)


@pytest.fixture
def database(server_url: str) -> Iterator[str]:
    """The URL of an empty one."""
    with new_database(server_url) as url:
        yield url


@pytest.mark.parametrize("server_url", kinds("postgres"), indirect=True)
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
        """No U+0000; a key that meets another by that gets one U+FFFD more."""
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


def columns(url: str, table: str) -> dict[str, str]:
    found = ask(
        url,
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0",
        table,
    )
    return dict(found)


ITEM = {
    "id": "text", "job": "text", "spider": "text", "url": "text",
    "scraped_at": "timestamp with time zone", "data": "jsonb",
}  # fmt: skip


@on_postgres
def test_the_table_is_as_documented(database: str) -> None:
    asyncio.run(fill(database))
    assert columns(database, "items") == ITEM
    with pytest.raises(psycopg.errors.UniqueViolation):
        ask(database, "INSERT INTO items VALUES ('a', '', '', '', now(), '{}'), ('a', '', '', '', now(), '{}')")


@on_postgres
def test_a_table_in_a_schema_of_its_own_has_its_ledger_there(database: str) -> None:
    asyncio.run(fill(database, batch_of([record(1)])))
    asyncio.run(fill(f"{database}?table=shop.items", batch_of([record(2)])))
    assert [row["data"]["number"] for row in items(database, "shop.items")] == [2]
    assert [row["data"]["number"] for row in items(database, "public.items")] == [1]
    for schema in ("public", "shop"):
        assert ask(database, f'SELECT "offset" FROM {schema}.sink_progress') == [(1,)]
    assert PostgresSink.from_url(f"{database}?table=shop.other").limits.items > 0


@on_postgres
def test_columns_have_the_values_of_fields_of_their_names(database: str) -> None:
    asyncio.run(fill(database, batch_of([record(1, {"price": 9})])))
    url = f"{database}?columns=price:numeric(10,2),tags:text[],seen:timestamp with time zone,deep:jsonb,title:text"
    full = {"price": "1.5", "tags": ["a", None, 'b"'], "seen": "2026-01-02T03:04:05Z", "deep": [{}], "title": {"a": 1}}
    asyncio.run(fill(url, batch_of([record(2, full), record(3, {"price": None}), record(4, {"Price": 1})], start=1)))
    asked = ask(
        database,
        "SELECT price::text, tags, seen = '2026-01-02 03:04:05Z', deep, title FROM items ORDER BY scraped_at",
    )
    nothing = (None,) * 5
    assert asked == [nothing, ("1.50", ["a", None, 'b"'], True, [{}], '{"a": 1}'), nothing, nothing]
    assert items(database)[1]["data"] == full
    asyncio.run(fill(url, batch_of([record(1, {"price": 9})])))  # as a replay does
    assert ask(database, "SELECT price FROM items ORDER BY scraped_at LIMIT 1")[0][0] == 9


@on_postgres
def test_indexes_are_made_once(database: str) -> None:
    url = f"{database}?columns=price:numeric&index=price,job,brand,data,{'x' * 40}&table={'t' * 40}"
    for _ in range(2):
        asyncio.run(fill(url))
    found = [row[0].partition(" USING ")[2] for row in ask(
        database, "SELECT indexdef FROM pg_indexes WHERE tablename LIKE 'ttt%' ORDER BY indexname")]  # fmt: skip
    assert sorted(found) == [
        "btree (((data ->> 'brand'::text)))", f"btree (((data ->> '{'x' * 40}'::text)))", "btree (id)", "btree (job)",
        "btree (price)", "gin (data jsonb_path_ops)",
    ]  # fmt: skip


@on_postgres
@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("?columns=price:numeric", "?columns=price:text", "column price .* is numeric, and .columns= says text"),
        ("", "?columns=price:nothing", 'type "nothing" does not exist'),
        ("", "?columns=price:serial", "serial"),
        ("", "?columns=price:int not null", "columns="),
        ("", "?mode=versions", "column hash .* is missing, and mode=versions needs bytea"),
        ("?mode=append", "", "cannot be used with mode=latest"),
        ("?mode=versions", "", "cannot be used with mode=latest"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_the_mend(
    before: str, after: str, says: str, database: str
) -> None:
    asyncio.run(fill(database + before))
    was = columns(database, "items")
    error = failure(fill(database + after))
    assert isinstance(error, Misconfigured), repr(error)
    with pytest.raises(Misconfigured, match=says):
        raise error
    assert "?table=" in str(error) and "\n" not in str(error)
    assert columns(database, "items") == was


@on_postgres
def test_several_may_open_at_once(database: str) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            url = f"{database}?table=shop.items&mode=versions&columns=price:numeric&index=price"
            await asyncio.gather(*(member(stack, url, f"c{n}") for n in range(6)))
            await asyncio.gather(*(member(stack, url + ",job") for n in range(6)))

    asyncio.run(run())


@on_postgres
def test_who_may_only_write_needs_no_more(database: str) -> None:
    url = f"{database}?columns=price:numeric&index=price&mode=versions"
    asyncio.run(fill(url, batch_of([record(1)])))
    name = database.rpartition("/")[2]
    ask(database, f"CREATE ROLE {name} LOGIN PASSWORD 'pass%word'")
    mine = url.replace("crawlbus:open-sesame@", f"{name}:pass%25word@")
    try:
        error = failure(fill(mine))
        assert isinstance(error, Misconfigured) and "permission denied" in str(error) and "pass" not in str(error)[:60]
        ask(database, f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}")
        assert asyncio.run(fill(mine, batch_of([record(2)], start=1))) == [Written(1, 0)]
    finally:
        ask(database, f"DROP OWNED BY {name}; DROP ROLE {name}")
    assert len(items(database)) == 2


@on_postgres
def test_an_older_item_replaces_nothing_and_an_equal_one_is_not_written(database: str) -> None:
    def versions() -> list[tuple[Any, ...]]:
        return ask(database, "SELECT id, xmin::text, data->>'v' FROM items ORDER BY id")

    old = [record(n, {"v": "old"}) for n in range(60)]
    new = [item._replace(data={"v": "new"}, scraped_at=2e9) for item in old]
    asyncio.run(fill(database, batch_of(new)))
    before = versions()
    for again in (new, old, [*new, *old], [*old, *new], new[:9], old[:9]):
        assert asyncio.run(fill(database, batch_of(again))) == [Written(len(again), 0)]
        assert versions() == before
    later = [item._replace(data={"v": "later"}) for item in new]
    asyncio.run(fill(database, batch_of([*new, *later])))
    assert {row[2] for row in versions()} == {"later"}


@on_postgres
def test_compare_counts_by_id(database: str) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            sink = await member(stack, database)
            await sink.write(batch_of(record(n) for n in range(10)))
            other = record(2, {"v": 1})
            late = other._replace(id=record(3).id, scraped_at=1.0)
            entries = batch_of([record(1), other, late, record(77), record(77)]).entries
            assert await sink.compare(entries) == Changes(1, 1, 2)
            assert await sink.compare([]) == Changes(0, 0, 0)
            history = PostgresSink.from_url(f"{database}?mode=versions&table=history")
            stack.push_async_callback(history.aclose)
            assert await history.compare(entries) == Changes(4, 0, 0)

    asyncio.run(run())


@on_postgres
def test_a_database_of_another_encoding_is_refused(server_url: str) -> None:
    name = f"latin_{token_hex(8)}"
    ask(server_url, f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    try:
        error = failure(fill(f"{server_url.rpartition('/')[0]}/{name}"))
        assert isinstance(error, Misconfigured) and "LATIN1: make one with ENCODING 'UTF8'" in str(error)
    finally:
        ask(server_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("?tabel=a", "no option 'tabel'; it has: .*columns.*mode.*sslmode.*table"),
        ("?mode=newest", "mode=newest .* is not one of latest, versions, append"),
        ("?nul=drop", "nul=drop .* is not one of replace, reject"),
        ("?table=a b", "table=a b .* is no name"),
        ("?table=a.b.c", "is no name"),
        ("?table=sink_progress", "and not sink_"),
        ("?table=", "is no name"),
        (f"?table={'x' * 49}", "is no name"),
        ("?columns=price", "columns=price .* is no column: write a field of the items and a type"),
        ("?columns=price:numeric);DROP TABLE x", "is no column"),
        ("?columns=id:text", "and none of id"),
        ("?columns=a b:text", "is no column"),
        ("?index=a-b", "index=a-b"),
        ("?connect_timeout", "no option 'connect_timeou'|cannot be read|connect_timeout"),
    ],
)
def test_bad_urls(options: str, says: str) -> None:
    with pytest.raises(Misconfigured, match=says):
        PostgresSink.from_url(f"postgresql://user:secret@127.0.0.1/db{options}")


@pytest.mark.parametrize("url", ["postgresql://user:sec%zzret@host/db", "postgresql://user:se cret@ho st:1:2/db"])
def test_a_url_that_libpq_cannot_read_shows_no_password(url: str) -> None:
    with pytest.raises(Misconfigured, match=r"cannot be read|a space as %20") as caught:
        PostgresSink.from_url(url)
    assert url.partition("@")[0].rpartition(":")[2] not in str(caught.value)


def test_without_its_driver_the_extra_is_named() -> None:
    program = "import sys; sys.modules['psycopg'] = None; from consumers.sink import sink_of; sink_of(sys.argv[1])"
    for scheme in ("postgresql", "postgres"):
        run = subprocess.run(
            [sys.executable, "-c", program, f"{scheme}://host/db"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert "needs the Python package psycopg: pip install 'crawlbus[postgres]'" in run.stderr
