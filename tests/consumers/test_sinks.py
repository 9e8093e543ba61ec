"""What all sinks that live on this machine's disk have in common."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from bus.errors import StorageFailed
from consumers.testing import batch_of, record
from tests.consumers.scene import new_sink, stored_items
from tests.consumers.sinks import failure, fill, positions

KINDS = pytest.mark.parametrize("kind", ["sqlite", "jsonl"])
ROOT = Path(__file__).parents[2]


@KINDS
def test_no_directory(kind: str, tmp_path: Path) -> None:
    error = failure(fill(new_sink(kind, tmp_path / "none")))
    assert isinstance(error, StorageFailed) and str(tmp_path / "none") in str(error)


@KINDS
def test_a_directory_is_no_file(kind: str, tmp_path: Path) -> None:
    (tmp_path / f"items.{kind}").mkdir()
    assert isinstance(failure(fill(new_sink(kind, tmp_path))), StorageFailed)


CHILD = """
import asyncio, os, resource, sys
from pathlib import Path
from bus.errors import StorageFailed
from consumers.testing import TOPIC, batch_of, record
from tests.consumers.scene import new_sink

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
        at = (await sink.hold({0}))[0]
        stored = at.next.offset if at else 0
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
