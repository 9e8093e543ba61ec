"""What the sinks that write files have in common: one thread, a ledger under a lock, a batch that is there or not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from bus.errors import BusError, Misconfigured, StorageFailed, Unsupported
from consumers.file_ledger import FileLedger
from consumers.rows import Row, make_rows
from consumers.sink import Batch, Changes, Entry, Limits, Progress, Quarantined, Written
from consumers.thread import OwnThread

__all__ = ["FileSink"]

P = ParamSpec("P")
R = TypeVar("R")


class FileSink(ABC):
    """A sink that writes under its ledger's lock. A kind of it says how rows become bytes, and where these go."""

    limits = Limits()

    def __init__(self, path: Path, ledger: FileLedger) -> None:
        self._path, self._ledger = path, ledger
        self._thread = OwnThread("file-sink")

    async def open(self, consumer: str, topic: str) -> None:
        await self._run(self._open, consumer, topic)

    async def hold(self, partitions: Set[int]) -> Mapping[int, Progress | None]:
        return await self._run(self._hold, partitions)

    async def positions(self) -> Sequence[Progress]:
        return await self._run(self._positions)

    async def write(self, batch: Batch) -> Written:
        return await self._run(self._write, batch)

    async def compare(self, entries: Sequence[Entry]) -> Changes:
        raise Unsupported(f"the sink {self._path} is made of files, in which no row can be looked up")

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

    # what a kind of file does; all of it runs in the thread

    @abstractmethod
    def _create(self) -> None:
        """Make what is missing. Raises `Misconfigured` where something is there that is not ours."""

    @abstractmethod
    def _settled(self, lock: int, state: dict[str, Any]) -> dict[str, Any]:
        """Finish or undo what a write that was cut off has left; returns what is true now. `lock` is the open file."""

    @abstractmethod
    def _encode(self, rows: Sequence[Row]) -> bytes | memoryview: ...

    @abstractmethod
    def _add(self, lock: int, state: dict[str, Any], content: bytes | memoryview, batch: Batch) -> None:
        """Put rows where they go; they count once `state`, changed as it takes, is saved."""

    # what all do

    def _open(self, consumer: str, topic: str) -> None:
        self._create()
        with self._changing() as (_, state):
            self._ledger.join(state, consumer, topic)

    def _hold(self, partitions: Set[int]) -> dict[int, Progress | None]:
        with self._changing() as (_, state):
            return self._ledger.hold(state, partitions)

    def _positions(self) -> list[Progress]:
        with self._reading() as (_, state):
            return self._ledger.positions(state)

    def _write(self, batch: Batch) -> Written:
        rows, rejects = make_rows(batch.entries)
        rejects += batch.rejects
        content = self._encode([row for _, row in rows]) if rows else b""
        with self._changing() as (lock, state):
            if self._ledger.advance(state, batch, rejects) and content:
                self._add(lock, state, content, batch)
        return Written(len(rows), len(rejects))

    def _quarantined(self) -> list[Quarantined]:
        self._check_there()
        with self._reading() as (_, state):
            return self._ledger.quarantined(state)

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
    def _reading(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._ledger.locked() as lock:
            yield lock, self._settled(lock, self._ledger.load())

    @contextmanager
    def _changing(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The lock's file and the ledger, which is saved at the end."""
        with self._reading() as (lock, state):
            yield lock, state
            self._ledger.save(state)
