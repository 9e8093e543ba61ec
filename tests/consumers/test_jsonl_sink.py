"""The jsonl sink keeps the contract; and what is its own."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import consumers.file_ledger
from bus.errors import Misconfigured, StorageFailed
from bus.message import Position
from consumers.sink import Reject
from consumers.sinks.jsonl import JsonlSink
from consumers.testing import TOPIC, SinkConformance, batch_of, record
from tests.consumers.scene import jsonl_items
from tests.consumers.sinks import failure, fill


class TestJsonlSink(SinkConformance):
    sink_class = JsonlSink
    once_each = compares = False

    @pytest.fixture(autouse=True)
    def _target(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = tmp_path / "items.jsonl"
        self.url = f"jsonl:///{self.path}"
        monkeypatch.setattr(consumers.file_ledger, "LOCK_TIMEOUT_S", 0.5)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_bytes().split(b"\n")[:-1]]

    def untouched(self) -> bool:
        return not any(self.path.parent.iterdir())

    def gaps(self) -> list[tuple[str, str, str]]:
        state = json.loads((self.path.parent / "items.jsonl.progress").read_text())
        return [(gap["asked"], gap["first"], gap["end"]) for gap in state["gaps"]]

    @contextmanager
    def blocked(self) -> Iterator[None]:
        with self.path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def broken(self) -> Iterator[None]:
        in_the_way = self.path.parent / "items.jsonl.progress.new"
        in_the_way.mkdir()
        yield
        in_the_way.rmdir()


def path_in(directory: Path) -> Path:
    return directory / "items.jsonl"


def test_what_was_not_committed_is_cut_off(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    asyncio.run(fill(JsonlSink(path), batch_of([record(1), record(2)])))
    with path.open("ab") as file:
        file.write(b'{"id": "half a li')  # as a kill between the write and the progress leaves it
    assert len(path.read_bytes().splitlines()) == 3
    asyncio.run(fill(JsonlSink(path)))
    assert len(jsonl_items(path)) == 2
    with path.open("ab") as file:
        file.write(b'{"id": "half')
    asyncio.run(fill(JsonlSink(path), batch_of([record(3)], start=2)))
    assert [item["data"]["number"] for item in jsonl_items(path)] == [1, 2, 3]


def test_what_another_left_half_written_is_cut_off_too(tmp_path: Path) -> None:
    """Two consumers share the file; one is killed in a write."""
    path = path_in(tmp_path)

    async def run() -> None:
        sink = JsonlSink(path)
        await sink.open("default", TOPIC)
        await sink.hold({0})
        await sink.write(batch_of([record(1)]))
        with path.open("ab") as file:
            file.write(b'{"id": "half')
        await sink.write(batch_of([record(2)], start=1))
        await sink.aclose()

    asyncio.run(run())
    assert [item["data"]["number"] for item in jsonl_items(path)] == [1, 2]


def test_quarantine_is_a_file_of_lines_beside_it(tmp_path: Path) -> None:
    batch = batch_of([record(1)])
    batch.rejects.append(Reject(Position(0, 9), "not items\ud800", "m9", {"job": b"\xff"}, b"\x00body"))
    asyncio.run(fill(JsonlSink(path_in(tmp_path)), batch))
    (line,) = (tmp_path / "items.jsonl.quarantine").read_text().splitlines()
    found = json.loads(line)
    assert (found["position"], found["reason"], found["content"]) == ("0/9", "not items\ufffd", "AGJvZHk=")


def test_a_file_of_someone_else_is_never_touched(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    path.write_text('{"mine": true}\n')
    error = failure(fill(JsonlSink(path), batch_of([record(1)])))
    assert isinstance(error, Misconfigured) and "was not written by crawlbus" in str(error)
    assert path.read_text() == '{"mine": true}\n' and len(list(tmp_path.iterdir())) == 1


def test_a_file_that_was_moved_away_is_said_with_the_mend(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    asyncio.run(fill(JsonlSink(path), batch_of([record(1)])))
    path.rename(tmp_path / "old.jsonl")
    error = failure(fill(JsonlSink(path), batch_of([record(2)], start=1)))
    assert isinstance(error, StorageFailed) and "delete items.jsonl.progress" in str(error)
    (tmp_path / "items.jsonl.progress").unlink()
    asyncio.run(fill(JsonlSink(path), batch_of([record(1)])))
    assert len(jsonl_items(path)) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', '{"format": 2}', "\0\0"])
def test_a_damaged_progress_file_is_said(content: str, tmp_path: Path) -> None:
    asyncio.run(fill(JsonlSink(path_in(tmp_path)), batch_of([record(1)])))
    (tmp_path / "items.jsonl.progress").write_text(content)
    error = failure(fill(JsonlSink(path_in(tmp_path))))
    assert isinstance(error, StorageFailed) and "items.jsonl.progress cannot be read" in str(error)
    assert len(jsonl_items(path_in(tmp_path))) == 1


def test_a_directory_is_no_file() -> None:
    with pytest.raises(Misconfigured, match="is a directory: name a file in it"):
        JsonlSink(Path())


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


def test_it_has_no_options() -> None:
    with pytest.raises(Misconfigured, match="no option 'table'; it has: none"):
        JsonlSink.from_url("jsonl:///x.jsonl?table=a")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(path_in(tmp_path))
    assert "is not a regular file" in str(failure(fill(JsonlSink(path_in(tmp_path)))))
