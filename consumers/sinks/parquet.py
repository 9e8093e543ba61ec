"""`parquet:///DIRECTORY`: one Parquet file for each batch; progress in `_crawlbus.progress` in there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bus.errors import Misconfigured
from bus.message import Position
from bus.url import file_path, query
from consumers.file_ledger import FileLedger, append, sync_directory
from consumers.file_sink import FileSink
from consumers.rows import COLUMNS, Row
from consumers.sink import Batch, Limits, refuse_unknown

__all__ = ["ParquetSink"]

NAMED_PARTITIONS = 4  # so many ranges go into a file's name
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("job", pa.string(), nullable=False),
        pa.field("spider", pa.string(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("scraped_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("data", pa.string(), nullable=False),
    ]
)
FEW_VALUES = ["job", "spider"]


class ParquetSink(FileSink):
    """A directory of Parquet files. An id may stand in two of them: what is written is never changed.

    A batch is one file, `items-NUMBER-CONSUMER-PARTITION-FIRST-NEXT.parquet`. The ledger says first which file comes,
    and what will be true with it; then the file is written under another name, and renamed; then the ledger says what
    is true. So whoever comes after a kill finds the file, or not, and knows. What is not yet whole, and all that is
    no data, begins with `_`, which pyarrow, Spark and others pass over.
    """

    limits = Limits(items=100_000, size_bytes=16 * 1024 * 1024, seconds=60.0)

    def __init__(self, directory: Path) -> None:
        base = directory / "_crawlbus"
        super().__init__(directory, FileLedger(directory, base, directory / "_crawlbus.lock", "files"))

    @classmethod
    def from_url(cls, url: str) -> ParquetSink:
        """`parquet:///DIRECTORY`."""
        refuse_unknown(url, query(url), set())
        return cls(file_path(url))

    def _create(self) -> None:
        if not self._path.is_dir():
            self._path.mkdir(exist_ok=True)
            sync_directory(self._path.parent)
        others = [name for name in os.listdir(self._path) if not name.startswith("_crawlbus.")]
        if others and not self._ledger.progress.exists():
            raise Misconfigured(
                f"the sink {self._path} holds files and was not written by crawlbus"
                f" (there is no {self._ledger.progress.name} in it): name another directory"
            )
        with self._ledger.locked():
            if not self._ledger.progress.exists():
                self._ledger.create()

    def _settled(self, lock: int, state: dict[str, Any]) -> dict[str, Any]:
        """A file that is there was wholly written; of one that is not, nothing is kept."""
        if "pending" not in state:
            return state
        pending = state.pop("pending")
        name: str = pending["file"]
        if _is_whole(self._path / name):
            then: dict[str, Any] = pending["then"]
            return then
        for left in (name, _temporary(name)):
            (self._path / left).unlink(missing_ok=True)
        return state

    def _encode(self, rows: Sequence[Row]) -> memoryview:
        columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
        columns["scraped_at"] = pa.array(columns["scraped_at"], pa.string()).cast(SCHEMA.field("scraped_at").type)
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns, SCHEMA), sink, compression="zstd", use_dictionary=FEW_VALUES)
        return memoryview(sink.getvalue())

    def _add(self, lock: int, state: dict[str, Any], content: bytes | memoryview, batch: Batch) -> None:
        state["files"] += 1
        name = f"items-{state['files']:06}-{self._ledger.consumer}-{_ranges(batch)}"
        name = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:200] + ".parquet"
        self._ledger.save({**self._settled(lock, self._ledger.load()), "pending": {"file": name, "then": state}})
        temporary = self._path / _temporary(name)
        try:
            _put(temporary, content)
            os.replace(temporary, self._path / name)
        except BaseException:
            with suppress(OSError):  # of a disk that is full
                temporary.unlink()
            raise
        sync_directory(self._path)


def _temporary(name: str) -> str:
    return f"_{name}.new"


def _put(path: Path, content: bytes | memoryview) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        append(file, content)
    finally:
        os.close(file)


def _is_whole(path: Path) -> bool:
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid):
        return False
    return True


def _ranges(batch: Batch) -> str:
    """What a file holds of each partition: `0-17.3-2017` is partition 0 from item 3 of message 17 up to before 2017."""
    ranges = list(_by_partition(batch))
    more = [f"and-{len(ranges) - NAMED_PARTITIONS}-more"] if len(ranges) > NAMED_PARTITIONS else []
    return "_".join([*ranges[:NAMED_PARTITIONS], *more])


def _by_partition(batch: Batch) -> Iterator[str]:
    positions = sorted(entry.position for entry in batch.entries)
    last = {position.partition: position for position in positions}
    first = {position.partition: position for position in reversed(positions)}
    for partition, end in last.items():
        moved = batch.progress.get(partition)
        next = Position(partition, end.offset + 1) if moved is None else moved.next
        yield f"{partition}-{str(first[partition]).partition('/')[2]}-{str(next).partition('/')[2]}"
