"""The parquet sink keeps the contract; and what is its own."""

from __future__ import annotations

import asyncio
import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

import consumers.file_ledger
from bus.errors import Misconfigured, StorageFailed
from bus.message import Position
from consumers.sink import Batch, Entry, Progress
from consumers.sinks.parquet import ParquetSink
from consumers.testing import SinkConformance, batch_of, record
from tests.consumers.sinks import failure, fill, positions

ROOT = Path(__file__).parents[2]


def table(path: Path) -> pa.Table:
    """As any reader of a directory sees it."""
    return pyarrow.dataset.dataset(path, format="parquet").to_table()


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir() if not file.name.startswith("_crawlbus."))


def parquet_items(path: Path) -> list[dict[str, Any]]:
    rows = table(path).to_pylist() if path.exists() and names(path) else []
    for row in rows:
        row["scraped_at"] = row["scraped_at"].isoformat(timespec="microseconds").replace("+00:00", "Z")
        row["data"] = json.loads(row["data"])
    return rows


class TestParquetSink(SinkConformance):
    sink_class = ParquetSink
    once_each = compares = False

    @pytest.fixture(autouse=True)
    def _target(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = tmp_path / "items"
        self.url = f"parquet:///{self.path}"
        monkeypatch.setattr(consumers.file_ledger, "LOCK_TIMEOUT_S", 0.5)

    def rows(self) -> list[dict[str, Any]]:
        return parquet_items(self.path)

    def untouched(self) -> bool:
        return not self.path.exists()

    def gaps(self) -> list[tuple[str, str, str]]:
        state = json.loads((self.path / "_crawlbus.progress").read_text())
        return [(gap["asked"], gap["first"], gap["end"]) for gap in state["gaps"]]

    @contextmanager
    def blocked(self) -> Iterator[None]:
        with (self.path / "_crawlbus.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def broken(self) -> Iterator[None]:
        in_the_way = self.path / "_items-000002-default-0-1-50.parquet.new"
        in_the_way.mkdir()
        yield
        in_the_way.rmdir()


def test_the_columns_are_as_documented(tmp_path: Path) -> None:
    path = tmp_path / "items"
    asyncio.run(fill(ParquetSink(path), batch_of([record(1), record(2)._replace(url=None)])))
    found = table(path)
    text = [(name, "string") for name in ("id", "job", "spider", "url")]
    schema = [(field.name, str(field.type)) for field in found.schema]
    assert schema == [*text, ("scraped_at", "timestamp[us, tz=UTC]"), ("data", "string")]
    assert [field.name for field in found.schema if field.nullable] == ["url"]
    (name,) = names(path)
    group = pyarrow.parquet.read_metadata(path / name).row_group(0)
    assert {group.column(n).compression for n in range(group.num_columns)} == {"ZSTD"}


def test_a_file_is_named_by_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "items"
    several = batch_of([record(n) for n in range(3)], partition=1, start=90)
    several.entries += [Entry(Position(0, 20, n), record(10 + n)) for n in (3, 4)]
    several.progress[0] = Progress(Position(0, 20, 5), "m20")
    many = Batch()
    for partition in range(6):
        part = batch_of([record(partition)], partition=partition, start=100)
        many.entries += part.entries
        many.progress |= part.progress
    retried = Batch(entries=[Entry(Position(0, 7), record(7))], resolved=[])
    asyncio.run(fill(ParquetSink(path), several, many, retried, consumer="default:shop"))
    assert names(path) == [
        "items-000001-default_shop-0-20.3-20.5_1-90-93.parquet",
        "items-000002-default_shop-0-100-101_1-100-101_2-100-101_3-100-101_and-2-more.parquet",
        "items-000003-default_shop-0-7-8.parquet",
    ]


def test_no_rows_make_no_file(tmp_path: Path) -> None:
    path = tmp_path / "items"
    unstorable = record(1, {"v": 10**5000})
    asyncio.run(fill(ParquetSink(path), Batch(progress={0: Progress(Position(0, 3), "")}), batch_of([unstorable])))
    assert names(path) == []


CHILD = """
import asyncio, json, os, signal, sys
from itertools import count
from pathlib import Path
import consumers.file_ledger
from consumers.sinks.parquet import ParquetSink
from consumers.testing import TOPIC, batch_of, record
from tests.consumers.test_parquet import names, parquet_items

CALLS = ("open", "write", "fsync", "replace", "close")

def arm(left):
    def watched(call):
        def step(*args, **kwargs):
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return call(*args, **kwargs)
        return step
    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))

async def live(path, steps=None):
    sink = ParquetSink(path)
    await sink.open("default", TOPIC)
    at = (await sink.hold({0}))[0]
    start = 0 if at is None else at.next.offset
    left = [name for name in os.listdir(path) if name.startswith("_") and "_crawlbus" not in name]
    if steps is not None:
        arm(steps)
    await sink.write(batch_of([record(start + n) for n in range(3)], start=start))
    if steps is not None:
        os._exit(0)
    await sink.aclose()
    return start, left

def numbers(path):
    return sorted(row["data"]["number"] for row in parquet_items(path))

def apart(work):
    pid = os.fork()  # from a process without threads
    if not pid:
        print(json.dumps(work()), flush=True)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

for steps in count():
    path = Path(sys.argv[1]) / str(steps)
    apart(lambda: asyncio.run(live(path)))
    ended = apart(lambda: asyncio.run(live(path, steps)))
    apart(lambda: numbers(path))
    apart(lambda: asyncio.run(live(path)))
    apart(lambda: [numbers(path), len(names(path))])
    if not ended:
        break
"""


def test_a_kill_before_any_step_of_a_write(tmp_path: Path) -> None:
    """A write of three rows on top of three, killed before each call to the system in turn, and repeated."""
    run = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert run.returncode == 0, run.stderr
    told = [json.loads(line) for line in run.stdout.splitlines()]
    lives = [told[n : n + 4] for n in range(0, len(told), 4)]
    assert len(lives) > 20
    for first, seen, (start, left), (after, files) in lives:
        assert first == [0, []]
        assert seen in (list(range(3)), list(range(6))), "a reader sees whole files"
        assert start == len(seen), "and what it sees is what counts"
        assert left == [], "nothing of the write that was cut off is left"
        assert after == list(range(start + 3)) and files == len(after) // 3
    assert [len(seen) for _, seen, _, _ in lives] == sorted(len(seen) for _, seen, _, _ in lives)
    assert {len(seen) for _, seen, _, _ in lives} == {3, 6}


def test_a_file_that_was_renamed_but_is_not_whole_does_not_count(tmp_path: Path) -> None:
    """As a disk leaves it that keeps no order of writes."""
    path = tmp_path / "items"
    asyncio.run(fill(ParquetSink(path), batch_of([record(1)])))
    progress = path / "_crawlbus.progress"
    state = json.loads(progress.read_text())
    name = "items-000002-default-0-1-2.parquet"
    progress.write_text(json.dumps({**state, "pending": {"file": name, "then": {**state, "files": 2}}}))
    whole = (path / names(path)[0]).read_bytes()
    (path / name).write_bytes(whole[: len(whole) // 2])
    assert asyncio.run(positions(ParquetSink(path)))[0].next.offset == 1
    assert names(path) == ["items-000001-default-0-0-1.parquet"]


def test_a_directory_of_someone_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").write_text("mine")
    error = failure(fill(ParquetSink(tmp_path), batch_of([record(1)])))
    assert isinstance(error, Misconfigured) and "was not written by crawlbus" in str(error)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.parquet"]


def test_no_directory_and_a_file_in_its_place(tmp_path: Path) -> None:
    error = failure(fill(ParquetSink(tmp_path / "none" / "items")))
    assert isinstance(error, StorageFailed) and "No such file or directory" in str(error)
    (tmp_path / "file").write_text("mine")
    assert isinstance(failure(fill(ParquetSink(tmp_path / "file"))), StorageFailed)


def test_it_has_no_options() -> None:
    with pytest.raises(Misconfigured, match="no option 'compression'; it has: none"):
        ParquetSink.from_url("parquet:///items?compression=zstd")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from bus.errors import Misconfigured\nfrom consumers.sink import sink_of\n"
        "try: sink_of('parquet:///items')\nexcept Misconfigured as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "parquet:// needs the Python package pyarrow: pip install 'crawlbus[parquet]'"
