"""`jsonl:///FILE`: one JSON object a line, `.zst` compressed; progress in FILE.progress beside it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from bus.errors import Misconfigured, StorageFailed
from bus.message import Position
from bus.url import file_path, query
from consumers.rows import COLUMNS, Row, clean_text, make_rows, utc_text
from consumers.sink import Batch, Fenced, Gap, Progress, Reject, SinkUnavailable, Written, refuse_unknown
from consumers.thread import OwnThread

__all__ = ["JsonlSink"]

P = ParamSpec("P")
R = TypeVar("R")

LOCK_TIMEOUT_S = 10.0
FORMAT = 1


class JsonlSink:
    """A file of JSON lines. An id may stand in it twice: a file cannot take a line back.

    FILE.progress holds the committed length of FILE, and each consumer's epoch and positions; it is replaced
    atomically once FILE is on disk. What stands behind that length was never committed, and is cut off. Each
    write holds a lock on FILE, so that a stale consumer is fenced, and two of different names may share FILE.
    FILE.quarantine holds what could not be stored, the content as base64.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._quarantine = path.with_name(path.name + ".quarantine")
        self._ledger = path.with_name(path.name + ".progress")
        self._encode = _compressor(path) if path.suffix == ".zst" else _as_is
        self._thread = OwnThread("jsonl-sink")
        self._consumer, self._topic, self._epoch = "", "", 0

    @classmethod
    def from_url(cls, url: str) -> JsonlSink:
        """`jsonl:///FILE`, or `jsonl:///FILE.zst`."""
        refuse_unknown(url, query(url), set())
        return cls(file_path(url))

    async def open(self, consumer: str, topic: str) -> None:
        self._consumer, self._topic = consumer, topic
        await self._run(self._open)

    async def positions(self) -> Sequence[Progress]:
        return await self._run(self._positions)

    async def write(self, batch: Batch) -> Written:
        return await self._run(self._write, batch)

    async def aclose(self) -> None:
        await self._thread.aclose(lambda: None)

    async def _run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await self._thread.call(function, *args, **kwargs)
        except OSError as error:
            raise StorageFailed(f"the sink {self._path} cannot be written: {error.strerror or error}") from None

    # what runs in the thread

    def _open(self) -> None:
        with self._locked() as file:
            if not self._ledger.exists():
                if os.fstat(file).st_size:
                    raise Misconfigured(
                        f"the sink {self._path} exists and was not written by crawlbus"
                        f" (there is no {self._ledger.name} beside it): name another file"
                    )
                self._save({"format": FORMAT, "length": 0, "quarantine": 0, "consumers": {}, "gaps": []})
            ledger = self._load()
            self._cut(file, ledger["length"])
            consumer = ledger["consumers"].setdefault(self._consumer, {"epoch": 0, "topics": {}})
            consumer["epoch"] = self._epoch = consumer["epoch"] + 1
            self._save(ledger)

    def _positions(self) -> list[Progress]:
        with self._locked():
            topics = self._mine(self._load())["topics"]
        return [
            Progress(Position(int(partition), offset, item), message)
            for partition, (offset, item, message) in topics.get(self._topic, {}).items()
        ]

    def _write(self, batch: Batch) -> Written:
        rows, rejects = make_rows(batch.entries)
        rejects += batch.rejects
        lines = b"".join(_line(row) for _, row in rows)
        with self._locked() as file:
            ledger = self._load()
            mine = self._mine(ledger)
            self._cut(file, ledger["length"])
            ledger["length"] += _append(file, self._encode(lines)) if lines else 0
            if rejects:
                ledger["quarantine"] = self._set_aside(rejects, ledger["quarantine"])
            ledger["gaps"] += [self._gap(gap) for gap in batch.gaps]
            mine["topics"].setdefault(self._topic, {}).update(
                {str(p): [at.next.offset, at.next.index, clean_text(at.message)] for p, at in batch.progress.items()}
            )
            self._save(ledger)
        return Written(len(rows), len(rejects))

    def _set_aside(self, rejects: Iterable[Reject], length: int) -> int:
        content = b"".join(self._reject_line(reject) for reject in rejects)
        file = os.open(self._quarantine, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.ftruncate(file, min(length, os.fstat(file).st_size))
            return os.fstat(file).st_size + _append(file, content)
        finally:
            os.close(file)

    def _reject_line(self, reject: Reject) -> bytes:
        value = {
            "consumer": self._consumer, "topic": self._topic, "position": str(reject.position),
            "message": clean_text(reject.id), "at": utc_text(time.time()), "reason": reject.reason,
            "headers": dict(reject.headers), "content": b64encode(reject.content).decode(),
        }  # fmt: skip
        return json.dumps(value, default=repr).encode() + b"\n"

    def _gap(self, gap: Gap) -> dict[str, str]:
        where = {"asked": str(gap.asked), "first": str(gap.first), "end": str(gap.end)}
        return {"consumer": self._consumer, "topic": self._topic, **where, "at": utc_text(time.time())}

    def _mine(self, ledger: dict[str, Any]) -> dict[str, Any]:
        mine: dict[str, Any] | None = ledger["consumers"].get(self._consumer)
        if mine is None or mine["epoch"] != self._epoch:
            raise Fenced(f"another consumer named {self._consumer!r} has taken over the sink {self._path}")
        return mine

    def _cut(self, file: int, length: int) -> None:
        """Take off what was not committed."""
        size = os.fstat(file).st_size
        if size < length:
            raise StorageFailed(
                f"the sink {self._path} holds {size:,} bytes of the {length:,} that were stored: put it back,"
                f" or delete {self._ledger.name} to store all items again"
            )
        if size > length:
            os.ftruncate(file, length)

    def _load(self) -> dict[str, Any]:
        try:
            ledger: dict[str, Any] = json.loads(self._ledger.read_bytes())
            if ledger["format"] != FORMAT:
                raise ValueError(f"its format is {ledger['format']!r}")
        except (ValueError, TypeError, KeyError) as error:
            raise StorageFailed(f"{self._ledger} cannot be read as the progress of a sink: {error}") from None
        return ledger

    def _save(self, ledger: dict[str, Any]) -> None:
        temporary = self._ledger.with_name(self._ledger.name + ".new")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            _append(file, json.dumps(ledger, indent=1).encode())
        finally:
            os.close(file)
        os.replace(temporary, self._ledger)
        _sync_directory(self._ledger.parent)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """FILE, open and locked; a killed process's lock is gone with it."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise Misconfigured(f"the sink {self._path} is not a regular file: name another")
            self._lock(file)
            yield file
        finally:
            os.close(file)

    def _lock(self, file: int) -> None:
        give_up = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
            if time.monotonic() > give_up:
                raise SinkUnavailable(f"the sink {self._path} is locked by another process")
            time.sleep(0.02)


def _line(row: Row) -> bytes:
    head = json.dumps(dict(zip(COLUMNS[:-1], row[:-1], strict=True)), ensure_ascii=False, separators=(",", ":"))
    return f'{head[:-1]},"data":{row.data}}}\n'.encode()


def _append(file: int, content: bytes) -> int:
    """Write at the end, and to the disk; returns how many bytes."""
    os.lseek(file, 0, os.SEEK_END)
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]
    os.fsync(file)
    return len(content)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


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
