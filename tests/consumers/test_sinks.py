"""The contract of a sink, on each of them."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import consumers.sinks.jsonl
import consumers.sinks.sqlite
from bus.errors import BusError, Misconfigured, StorageFailed
from bus.message import Position
from consumers.sink import Batch, Fenced, Gap, Progress, Reject, Sink, SinkUnavailable, Written
from consumers.sinks.jsonl import JsonlSink
from consumers.sinks.sqlite import SqliteSink
from tests.consumers.scene import (
    TOPIC,
    batch_of,
    jsonl_items,
    new_sink,
    query,
    record,
    sqlite_items,
    stored_items,
)

KINDS = pytest.mark.parametrize("kind", ["sqlite", "jsonl"])
ROOT = Path(__file__).parents[2]


async def opened(sink: Sink, consumer: str = "default", topic: str = TOPIC) -> Sink:
    await sink.open(consumer, topic)
    await sink.hold({0})
    return sink


async def fill(sink: Sink, *batches: Batch, consumer: str = "default") -> list[Written]:
    """Open, write, close."""
    try:
        await sink.open(consumer, TOPIC)
        await sink.hold({partition for batch in batches for partition in batch.progress})
        return [await sink.write(batch) for batch in batches]
    finally:
        await sink.aclose()


async def positions(sink: Sink, consumer: str = "default", topic: str = TOPIC) -> list[Progress]:
    try:
        await sink.open(consumer, topic)
        return sorted(await sink.positions())
    finally:
        await sink.aclose()


def failure(work: Coroutine[Any, Any, Any]) -> BusError:
    with pytest.raises(BusError) as caught:
        asyncio.run(work)
    return caught.value


@KINDS
def test_rows_and_progress_are_there_for_the_next_one(kind: str, tmp_path: Path) -> None:
    batch = batch_of([record(1), record(2, {"name": "ü\0", "price": None})])
    batch.progress[3] = Progress(Position(3, 7, 2), "half")
    assert asyncio.run(fill(new_sink(kind, tmp_path), batch)) == [Written(2, 0)]
    first, second = stored_items(kind, tmp_path)
    assert first == {
        "id": record(1).id, "job": "shop", "spider": "shop", "url": "https://shop.example/1",
        "scraped_at": "2027-01-15T08:00:01.000000Z", "data": {"number": 1},
    }  # fmt: skip
    assert second["data"] == {"name": "ü\0", "price": None}
    assert asyncio.run(positions(new_sink(kind, tmp_path))) == [
        Progress(Position(0, 2), "m1"),
        Progress(Position(3, 7, 2), "half"),
    ]


@KINDS
def test_each_consumer_and_topic_has_progress_of_its_own(kind: str, tmp_path: Path) -> None:
    asyncio.run(fill(new_sink(kind, tmp_path), batch_of([record(1)]), consumer="a"))
    assert asyncio.run(positions(new_sink(kind, tmp_path), "b")) == []
    assert asyncio.run(positions(new_sink(kind, tmp_path), "a", "other.items")) == []
    asyncio.run(fill(new_sink(kind, tmp_path), batch_of([record(2)], start=9), consumer="b"))
    assert asyncio.run(positions(new_sink(kind, tmp_path), "a"))[0].next == Position(0, 1)
    assert len(stored_items(kind, tmp_path)) == 2


def test_a_table_holds_an_id_once_with_its_last_values(tmp_path: Path) -> None:
    again = record(1, {"v": 2})._replace(url=None)
    asyncio.run(
        fill(
            new_sink("sqlite", tmp_path),
            batch_of([record(1, {"v": 0}), record(1, {"v": 1})]),
            batch_of([again]),
        )
    )
    assert [(row["data"], row["url"]) for row in stored_items("sqlite", tmp_path)] == [({"v": 2}, None)]


@KINDS
def test_a_stale_consumer_is_fenced_and_changes_nothing(kind: str, tmp_path: Path) -> None:
    async def run() -> None:
        old, new = new_sink(kind, tmp_path), new_sink(kind, tmp_path)
        other = await opened(new_sink(kind, tmp_path), "other")
        await opened(old)
        await old.write(batch_of([record(1)]))
        await opened(new)
        with pytest.raises(Fenced, match="'default' has taken over"):
            await old.write(batch_of([record(2)], start=1))
        with pytest.raises(Fenced):
            await old.positions()
        assert (await new.positions())[0].next == Position(0, 1)
        await new.write(batch_of([record(3)], start=1))
        await other.write(batch_of([record(4)]))  # another name is not in the way
        for sink in (old, new, other):
            await sink.aclose()
            await sink.aclose()

    asyncio.run(run())
    assert [row["data"]["number"] for row in stored_items(kind, tmp_path)] == [1, 3, 4]


@KINDS
def test_quarantine_and_gaps_are_stored_with_the_rest(kind: str, tmp_path: Path) -> None:
    batch = batch_of([record(1), record(2, {"v": 10**5000}), record(3)])
    batch.rejects.append(Reject(Position(0, 9), "not items\ud800", "m9\udfff", {"job": b"\xff"}, b"\x00body"))
    batch.gaps.append(Gap(Position(0, 3), Position(0, 8), Position(0, 12)))
    assert asyncio.run(fill(new_sink(kind, tmp_path), batch, batch)) == [Written(2, 2), Written(2, 2)]
    if kind == "sqlite":
        path = tmp_path / "items.sqlite"
        assert [row["data"]["number"] for row in sqlite_items(path)] == [1, 3]
        found = query(path, 'SELECT "offset", reason, message, content FROM sink_quarantine ORDER BY "offset"')
        assert [row[0] for row in found] == [1, 9]  # the second write of the same is no second row
        assert "4,300 digits" in found[0][1] and found[1][1:] == ("not items\ufffd", "m9\ufffd", b"\x00body")
        assert query(path, 'SELECT asked, first, "end" FROM sink_gaps')[0] == ("0/3", "0/8", "0/12")
    else:
        lines = [json.loads(x) for x in (tmp_path / "items.jsonl.quarantine").read_text().splitlines()]
        assert [line["position"] for line in lines[:2]] == ["0/1", "0/9"] and lines[1]["content"] == "AGJvZHk="
        assert json.loads((tmp_path / "items.jsonl.progress").read_text())["gaps"][0]["first"] == "0/8"


def test_what_a_users_constraint_refuses_is_quarantined_alone(tmp_path: Path) -> None:
    asyncio.run(fill(new_sink("sqlite", tmp_path)))
    path = tmp_path / "items.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            "CREATE TRIGGER no_sevens BEFORE INSERT ON items WHEN new.data ->> 'number' % 7 = 0"
            " BEGIN SELECT RAISE(ABORT, 'no sevens'); END"
        )
        db.execute("CREATE TABLE audit (id TEXT)")
        db.execute("CREATE TRIGGER audited AFTER UPDATE ON items BEGIN INSERT INTO audit VALUES (new.id); END")
    (written,) = asyncio.run(fill(new_sink("sqlite", tmp_path), batch_of(map(record, range(1, 101)))))
    assert written == Written(86, 14)
    assert len(sqlite_items(path)) == 86
    assert query(path, "SELECT DISTINCT reason FROM sink_quarantine") == [("no sevens",)]
    assert query(path, "SELECT * FROM audit") == []  # no row was written, and then written again
    assert asyncio.run(positions(new_sink("sqlite", tmp_path)))[0].next == Position(0, 100)


def test_two_tables_of_one_file_have_progress_each(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    asyncio.run(fill(SqliteSink(path, "a"), batch_of([record(1)])))
    assert asyncio.run(positions(SqliteSink(path, "b"))) == []
    assert len(sqlite_items(path, "a")) == 1 and sqlite_items(path, "b") == []


def test_the_table_is_as_documented_and_durable(tmp_path: Path) -> None:
    asyncio.run(fill(new_sink("sqlite", tmp_path), batch_of([record(1)])))
    path = tmp_path / "items.sqlite"
    columns = [row[1:3] for row in query(path, "PRAGMA table_info(items)")]
    text = [(name, "TEXT") for name in ("id", "job", "spider", "url", "scraped_at")]
    assert columns == [*text, ("data", "JSON")]
    assert query(path, "PRAGMA journal_mode") == [("wal",)]
    assert query(path, "SELECT json_valid(data), typeof(data) FROM items") == [(1, "text")]


def test_a_lost_lock_is_an_outage_and_nothing_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers.sinks.sqlite, "BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(consumers.sinks.jsonl, "LOCK_TIMEOUT_S", 0.05)

    async def locked(kind: str) -> None:
        sink = await opened(new_sink(kind, tmp_path))
        if kind == "sqlite":
            with closing(sqlite3.connect(tmp_path / "items.sqlite", isolation_level=None)) as db:
                db.execute("BEGIN IMMEDIATE")
                with pytest.raises(SinkUnavailable, match="is locked by another process"):
                    await sink.write(batch_of([record(1)]))
        else:
            with (tmp_path / "items.jsonl").open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                with pytest.raises(SinkUnavailable, match="is locked by another process"):
                    await sink.write(batch_of([record(1)]))
        assert stored_items(kind, tmp_path) == []
        assert await sink.write(batch_of([record(1)])) == Written(1, 0)
        await sink.aclose()

    for kind in ("sqlite", "jsonl"):
        asyncio.run(locked(kind))


# files of lines


def test_what_was_not_committed_is_cut_off(tmp_path: Path) -> None:
    asyncio.run(fill(new_sink("jsonl", tmp_path), batch_of([record(1), record(2)])))
    path = tmp_path / "items.jsonl"
    with path.open("ab") as file:
        file.write(b'{"id": "half a li')  # as a kill between the write and the progress leaves it
    assert len(path.read_bytes().splitlines()) == 3
    asyncio.run(fill(new_sink("jsonl", tmp_path)))
    assert len(jsonl_items(path)) == 2
    with path.open("ab") as file:
        file.write(b'{"id": "half')
    asyncio.run(fill(new_sink("jsonl", tmp_path), batch_of([record(3)], start=2)))
    assert [item["data"]["number"] for item in jsonl_items(path)] == [1, 2, 3]


def test_what_another_left_half_written_is_cut_off_too(tmp_path: Path) -> None:
    """Two consumers share the file; one is killed in a write."""
    path = tmp_path / "items.jsonl"

    async def run() -> None:
        sink = await opened(new_sink("jsonl", tmp_path))
        await sink.write(batch_of([record(1)]))
        with path.open("ab") as file:
            file.write(b'{"id": "half')
        await sink.write(batch_of([record(2)], start=1))
        await sink.aclose()

    asyncio.run(run())
    assert [item["data"]["number"] for item in jsonl_items(path)] == [1, 2]


def test_a_file_of_someone_else_is_never_touched(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"mine": true}\n')
    error = failure(fill(new_sink("jsonl", tmp_path), batch_of([record(1)])))
    assert isinstance(error, Misconfigured) and "was not written by crawlbus" in str(error)
    assert path.read_text() == '{"mine": true}\n' and len(list(tmp_path.iterdir())) == 1


def test_a_file_that_was_moved_away_is_said_with_the_mend(tmp_path: Path) -> None:
    asyncio.run(fill(new_sink("jsonl", tmp_path), batch_of([record(1)])))
    (tmp_path / "items.jsonl").rename(tmp_path / "old.jsonl")
    error = failure(fill(new_sink("jsonl", tmp_path), batch_of([record(2)], start=1)))
    assert isinstance(error, StorageFailed) and "delete items.jsonl.progress" in str(error)
    (tmp_path / "items.jsonl.progress").unlink()
    asyncio.run(fill(new_sink("jsonl", tmp_path), batch_of([record(1)])))
    assert len(jsonl_items(tmp_path / "items.jsonl")) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', "\0\0"])
def test_a_damaged_progress_file_is_said(content: str, tmp_path: Path) -> None:
    asyncio.run(fill(new_sink("jsonl", tmp_path), batch_of([record(1)])))
    (tmp_path / "items.jsonl.progress").write_text(content)
    error = failure(fill(new_sink("jsonl", tmp_path)))
    assert isinstance(error, StorageFailed) and "items.jsonl.progress cannot be read" in str(error)
    assert len(jsonl_items(tmp_path / "items.jsonl")) == 1


def test_zstd_frames_make_one_file(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "items.jsonl.zst"
    asyncio.run(fill(JsonlSink(path), batch_of([record(1)]), batch_of([record(2)], start=1)))
    with path.open("ab") as file:
        file.write(b"\x28\xb5\x2f\xfd half a frame")
    asyncio.run(fill(JsonlSink(path), batch_of([record(3)], start=2)))
    with zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True) as text:
        assert [json.loads(line)["data"]["number"] for line in text.read().splitlines()] == [1, 2, 3]


def test_zstd_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(Misconfigured, match=r"install crawlbus\[zstd\]"):
        JsonlSink(tmp_path / "items.jsonl.zst")


# what is not a sink


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite://host/items", "three slashes"),
        ("sqlite:///", "names no file"),
        ("sqlite:///x.db?tabel=a", "no option 'tabel'; it has: table"),
        ("sqlite:///x.db?table=a b", "is no name"),
        ("sqlite:///x.db?table=sink_progress", "neither sink_ nor sqlite_"),
        ("sqlite:///x.db?table=", "is no name"),
    ],
)
def test_bad_urls(url: str, says: str) -> None:
    with pytest.raises(Misconfigured, match=says):
        SqliteSink.from_url(url)


def test_bad_jsonl_url() -> None:
    with pytest.raises(Misconfigured, match="no option 'table'; it has: none"):
        JsonlSink.from_url("jsonl:///x.jsonl?table=a")


@KINDS
def test_no_directory(kind: str, tmp_path: Path) -> None:
    error = failure(fill(new_sink(kind, tmp_path / "none")))
    assert isinstance(error, StorageFailed) and str(tmp_path / "none") in str(error)


def test_a_file_that_is_no_database_and_a_table_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "items.sqlite").write_text("hello " * 1000)
    assert "is not a database" in str(failure(fill(new_sink("sqlite", tmp_path))))
    path = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE items (name TEXT)")
    error = failure(fill(SqliteSink(path)))
    assert isinstance(error, Misconfigured) and "?table=" in str(error)
    assert query(path, "SELECT name FROM sqlite_master") == [("items",)]  # nothing was made beside it


def test_a_pipe_and_a_directory_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "items.jsonl")
    assert "is not a regular file" in str(failure(fill(new_sink("jsonl", tmp_path))))
    (tmp_path / "d.jsonl").mkdir()
    assert isinstance(failure(fill(JsonlSink(tmp_path / "d.jsonl"))), StorageFailed)
    assert isinstance(failure(fill(SqliteSink(tmp_path / "d.jsonl"))), StorageFailed)


def test_a_database_that_is_replaced_while_open_is_noticed(tmp_path: Path) -> None:
    async def run() -> None:
        sink = await opened(new_sink("sqlite", tmp_path))
        await sink.write(batch_of([record(1)]))
        shutil.move(tmp_path / "items.sqlite", tmp_path / "away.sqlite")
        try:
            await sink.write(batch_of([record(2)], start=1))
        finally:
            await sink.aclose()

    assert "was moved, deleted or replaced" in str(failure(run()))


CHILD = """
import asyncio, os, resource, sys
from pathlib import Path
from bus.errors import StorageFailed
from tests.consumers.scene import TOPIC, batch_of, new_sink, record

async def main():
    kind, directory, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if os.geteuid() == 0 and sys.argv[4] == "nobody":
        os.setuid(65534)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sink = new_sink(kind, directory)
    stored = 0
    try:
        await sink.open("default", TOPIC)
        at = await sink.positions()
        stored = at[0].next.offset if at else 0
        while stored < 200:
            await sink.write(batch_of([record(stored + n, {"text": "x" * 2000}) for n in range(10)], start=stored))
            stored += 10
        print("all", stored)
    except StorageFailed as error:
        print("failed", stored, error)
    finally:
        await sink.aclose()

asyncio.run(main())
"""


def in_child(kind: str, directory: Path, limit: int = 0, user: str = "") -> str:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), kind, str(directory), str(limit), user],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


@KINDS
def test_a_full_disk_stores_whole_batches_only_and_goes_on_when_there_is_room(kind: str, tmp_path: Path) -> None:
    verdict, count, says = in_child(kind, tmp_path, limit=200_000).split(maxsplit=2)
    assert verdict == "failed" and "cannot be written" in says
    assert 0 < int(count) < 200
    assert asyncio.run(positions(new_sink(kind, tmp_path)))[0].next.offset == int(count)
    assert len(stored_items(kind, tmp_path)) == int(count)
    assert in_child(kind, tmp_path).split() == ["all", "200"]
    assert len({item["id"] for item in stored_items(kind, tmp_path)}) == 200


@KINDS
def test_a_read_only_directory(kind: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        asyncio.run(fill(new_sink(kind, path), batch_of([record(1)])))
        for entry in path.iterdir():
            entry.chmod(0o444)
        path.chmod(0o555)
        verdict, count, says = in_child(kind, path, user="nobody").split(maxsplit=2)
        path.chmod(0o755)
    assert (verdict, count) == ("failed", "0") and "cannot be written" in says
    assert len(says.strip().splitlines()) == 1
