"""`jsonl:///FILE`: one JSON object a line, `.zst` compressed; progress in FILE.progress beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from bus.errors import BusError, Misconfigured, StorageFailed, Unsupported
from bus.url import file_path, query
from consumers.file_ledger import FileLedger, append
from consumers.rows import COLUMNS, Row, make_rows
from consumers.sink import Batch, Changes, Entry, Limits, Progress, Quarantined, Written, refuse_unknown
from consumers.thread import OwnThread

__all__ = ["JsonlSink"]

P = ParamSpec("P")
R = TypeVar("R")


class JsonlSink:
    """A file of JSON lines. An id may stand in it twice: a file cannot take a line back.

    FILE.progress holds the committed length of FILE, and each consumer's members and positions; it is replaced
    atomically once FILE is on disk. What stands behind that length was never committed, and is cut off. Each
    write holds a lock on FILE, so that several consumers may share FILE. FILE.quarantine holds what could not be
    stored, the content as base64.
    """

    limits = Limits()

    def __init__(self, path: Path) -> None:
        self._path, self._ledger = path, FileLedger(path, path, path)
        self._encode = _compressor(path) if path.suffix == ".zst" else _as_is
        self._thread = OwnThread("jsonl-sink")

    @classmethod
    def from_url(cls, url: str) -> JsonlSink:
        """`jsonl:///FILE`, or `jsonl:///FILE.zst`."""
        refuse_unknown(url, query(url), set())
        return cls(file_path(url))

    async def open(self, consumer: str, topic: str) -> None:
        await self._run(self._open, consumer, topic)

    async def hold(self, partitions: Set[int]) -> Mapping[int, Progress | None]:
        return await self._run(self._hold, partitions)

    async def positions(self) -> Sequence[Progress]:
        return await self._run(self._positions)

    async def write(self, batch: Batch) -> Written:
        return await self._run(self._write, batch)

    async def compare(self, entries: Sequence[Entry]) -> Changes:
        raise Unsupported(f"the sink {self._path} is a file, in which no row can be looked up")

    async def quarantined(self) -> Sequence[Quarantined]:
        return await self._run(self._quarantined)

    async def drop(self, ids: Sequence[str]) -> int:
        return await self._run(self._drop, ids)

    async def aclose(self) -> None:
        await self._thread.aclose(self._leave)

    async def _run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await self._thread.call(function, *args, **kwargs)
        except OSError as error:
            raise StorageFailed(f"the sink {self._path} cannot be written: {error.strerror or error}") from None

    # what runs in the thread

    def _open(self, consumer: str, topic: str) -> None:
        with self._ledger.locked() as file:
            if not self._ledger.progress.exists():
                if os.fstat(file).st_size:
                    raise Misconfigured(
                        f"the sink {self._path} exists and was not written by crawlbus"
                        f" (there is no {self._ledger.progress.name} beside it): name another file"
                    )
                self._ledger.create(length=0)
        with self._changing() as (file, state):
            self._cut(file, state["length"])
            self._ledger.join(state, consumer, topic)

    def _hold(self, partitions: Set[int]) -> dict[int, Progress | None]:
        with self._changing() as (_, state):
            return self._ledger.hold(state, partitions)

    def _positions(self) -> list[Progress]:
        with self._ledger.locked():
            return self._ledger.positions(self._ledger.load())

    def _write(self, batch: Batch) -> Written:
        rows, rejects = make_rows(batch.entries)
        rejects += batch.rejects
        lines = b"".join(_line(row) for _, row in rows)
        with self._changing() as (file, state):
            self._cut(file, state["length"])
            if self._ledger.advance(state, batch, rejects) and lines:
                state["length"] += append(file, self._encode(lines))
        return Written(len(rows), len(rejects))

    def _quarantined(self) -> list[Quarantined]:
        self._check_there()
        with self._ledger.locked():
            return self._ledger.quarantined(self._ledger.load())

    def _drop(self, ids: Sequence[str]) -> int:
        self._check_there()
        with self._changing() as (_, state):
            return self._ledger.drop(state, ids)

    def _check_there(self) -> None:
        if not self._ledger.progress.exists():
            raise Misconfigured(f"there is no sink {self._path}: give the --sink that the consumer stores to")

    def _leave(self) -> None:
        with suppress(OSError, BusError):
            if self._ledger.joined and self._ledger.progress.exists():
                with self._changing() as (_, state):
                    self._ledger.leave(state)

    @contextmanager
    def _changing(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The file and the ledger, which is saved at the end."""
        with self._ledger.locked() as file:
            state = self._ledger.load()
            yield file, state
            self._ledger.save(state)

    def _cut(self, file: int, length: int) -> None:
        """Take off what was not committed."""
        size = os.fstat(file).st_size
        if size < length:
            raise StorageFailed(
                f"the sink {self._path} holds {size:,} bytes of the {length:,} that were stored: put it back,"
                f" or delete {self._ledger.progress.name} to store all items again"
            )
        if size > length:
            os.ftruncate(file, length)


def _line(row: Row) -> bytes:
    head = json.dumps(dict(zip(COLUMNS[:-1], row[:-1], strict=True)), ensure_ascii=False, separators=(",", ":"))
    return f'{head[:-1]},"data":{row.data}}}\n'.encode()


def _as_is(lines: bytes) -> bytes:
    return lines


def _compressor(path: Path) -> Callable[[bytes], bytes]:
    """Each batch is a frame of its own, so that a cut at the committed length leaves a valid file."""
    try:
        zstandard = import_module("zstandard")
    except ImportError:
        raise Misconfigured(
            f"the sink {path} is to be compressed: install crawlbus[zstd], or name a file without .zst"
        ) from None
    compress: Callable[[bytes], bytes] = zstandard.ZstdCompressor().compress
    return compress
