"""`jsonl:///FILE`: one JSON object a line, `.zst` compressed; progress in FILE.progress beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bus.errors import Misconfigured, StorageFailed
from bus.url import file_path, query
from consumers.file_ledger import FileLedger, append
from consumers.file_sink import FileSink
from consumers.rows import COLUMNS, Row
from consumers.sink import Batch, refuse_unknown

__all__ = ["JsonlSink"]


class JsonlSink(FileSink):
    """A file of JSON lines. An id may stand in it twice: a file cannot take a line back.

    FILE.progress holds the committed length of FILE, and each consumer's members and positions; it is replaced
    atomically once FILE is on disk. What stands behind that length was never committed, and is cut off. Each
    write holds a lock on FILE, so that several consumers may share FILE. FILE.quarantine holds what could not be
    stored, the content as base64.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, FileLedger(path, path, path, "length"))
        self._compress = _compressor(path) if path.suffix == ".zst" else _as_is

    @classmethod
    def from_url(cls, url: str) -> JsonlSink:
        """`jsonl:///FILE`, or `jsonl:///FILE.zst`."""
        refuse_unknown(url, query(url), set())
        return cls(file_path(url))

    def _create(self) -> None:
        with self._ledger.locked() as file:
            if self._ledger.progress.exists():
                return
            if os.fstat(file).st_size:
                raise Misconfigured(
                    f"the sink {self._path} exists and was not written by crawlbus"
                    f" (there is no {self._ledger.progress.name} beside it): name another file"
                )
            self._ledger.create()

    def _settled(self, lock: int, state: dict[str, Any]) -> dict[str, Any]:
        """Take off what was not committed."""
        size, length = os.fstat(lock).st_size, state["length"]
        if size < length:
            raise StorageFailed(
                f"the sink {self._path} holds {size:,} bytes of the {length:,} that were stored: put it back,"
                f" or delete {self._ledger.progress.name} to store all items again"
            )
        if size > length:
            os.ftruncate(lock, length)
        return state

    def _encode(self, rows: Sequence[Row]) -> bytes:
        return self._compress(b"".join(map(_line, rows)))

    def _add(self, lock: int, state: dict[str, Any], content: bytes | memoryview, batch: Batch) -> None:
        state["length"] += append(lock, content)


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
