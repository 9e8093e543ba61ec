"""One SQLite file: a connection and the thread that owns it, shared by all that a process does with it."""

from __future__ import annotations

import asyncio
import os
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from adapters.sqlite.errors import is_busy, translate
from bus.errors import BusError, Closed, Misconfigured, StorageFailed
from bus.url import file_path

__all__ = ["Database", "path_of"]

T = TypeVar("T")

LOCK_WAIT_S = 30.0
GROUP_LIMIT = 256  # writes in one commit
WAL_KEPT_BYTES = 16 * 1024 * 1024

_forked: list[Database] = []  # kept for ever: closing an inherited connection could disturb the parent's file


def path_of(url: str) -> str:
    """The absolute path in `sqlite:///relative.db` or `sqlite:////absolute.db`; the query is not looked at."""
    path = file_path(url)
    if path.name == ":memory:":
        raise Misconfigured(f"{url!r} names no file: write sqlite:///FILE, or memory:// for a bus of one process")
    return os.path.abspath(path)


class _Call(NamedTuple):
    """One function for the thread. `sync` is what its commit waits for, or None where it only reads."""

    fn: Callable[[sqlite3.Connection], Any] | None  # None: close
    sync: Literal["FULL", "NORMAL"] | None
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class _Outcome(NamedTuple):
    call: _Call
    value: Any = None
    error: BaseException | None = None


class _Periodic:
    __slots__ = ("due", "fn", "interval_s")

    def __init__(self, interval_s: float, fn: Callable[[sqlite3.Connection], object]) -> None:
        self.interval_s, self.fn = interval_s, fn
        self.due = time.monotonic() + interval_s


class Database:
    """Runs functions in the thread that owns the connection, many writes in one commit.

    Got by `open`, which counts: the last `aclose` ends the thread. After a fork the child must open its own.
    Errors of SQLite come as `StorageFailed` or `ConnectionLost`; the first call is what opens the file.
    """

    _shared: ClassVar[dict[str, Database]] = {}
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: str) -> None:
        self.path = path
        self._users = 0
        self._closed = False
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._periodic: list[_Periodic] = []
        self._sync = "FULL"
        self._file: tuple[int, int] | None = None
        self._connection: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._reader_guard = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"sqlite {path}", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: str) -> Database:
        """The process's database of this file. Neither waits nor fails."""
        path = os.path.realpath(path)
        with cls._guard:
            database = cls._shared.get(path)
            if database is None:
                database = cls._shared[path] = cls(path)
            database._users += 1
            return database

    async def aclose(self) -> None:
        """Give it back, once for each `open`. What was asked for before is still done."""
        with self._guard:
            self._users -= 1
            if self._users or self._closed:
                return
            self._closed = True
            del self._shared[self.path]
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        self._calls.put(_Call(None, None, ended, loop))
        try:
            await asyncio.shield(ended)
        finally:
            with self._reader_guard:
                if self._reader is not None:
                    self._reader.close()
                    self._reader = None
        self._thread.join()

    async def write(self, fn: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Run `fn` in a transaction and return its result once that is committed.

        If `fn` raises, it changed nothing. Where not `durable`, a power cut may undo it (a killed process never
        does), and it need not wait for the disk.
        """
        value: T = await self._put(fn, "FULL" if durable else "NORMAL")
        return value

    def submit(self, fn: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> asyncio.Future[T]:
        """`write` as a future; cancelling it only stops the waiting."""
        future: asyncio.Future[T] = self._put(fn, "FULL" if durable else "NORMAL")
        return future

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run `fn`, which must not write, on one snapshot."""
        value: T = await self._put(fn, None)
        return value

    def peek(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run `fn`, a look-up of microseconds, in the calling thread, on what is committed now."""
        if self._closed:
            raise Closed(f"{self.path} is closed")
        with self._reader_guard:
            try:
                if self._reader is None:
                    self._reader = sqlite3.connect(
                        self.path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False
                    )
                return fn(self._reader)
            except sqlite3.Error as error:
                raise translate(error, self.path) from error

    def every(self, interval_s: float, fn: Callable[[sqlite3.Connection], object]) -> Callable[[], None]:
        """Run `fn` in a transaction of its own each `interval_s`, even while the event loop is blocked.

        Returns what ends it. An error of SQLite is passed over: the next turn tries again.
        """
        job = _Periodic(interval_s, fn)
        self._periodic.append(job)
        self._calls.put(None)

        def cancel() -> None:
            if job in self._periodic:
                self._periodic.remove(job)

        return cancel

    def _put(self, fn: Callable[[sqlite3.Connection], Any], sync: Literal["FULL", "NORMAL"] | None) -> Any:
        if self._closed:
            raise Closed(f"{self.path} is closed")
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._calls.put(_Call(fn, sync, future, loop))
        return future

    # in the thread

    def _run(self) -> None:
        while True:
            calls = self._next_calls()
            try:
                connection = self._connect()
            except (sqlite3.Error, BusError) as error:
                outcomes = [_Outcome(call, error=self._explain(error)) for call in calls if call.fn]
            else:
                outcomes = self._read(connection, [call for call in calls if call.fn and call.sync is None])
                self._run_periodic(connection)
                outcomes += self._write(connection, [call for call in calls if call.fn and call.sync])
            _settle_all(outcomes)
            if closing := [call for call in calls if call.fn is None]:
                if self._connection is not None:
                    self._connection.close()
                _settle_all([_Outcome(call) for call in closing])
                return

    def _connect(self) -> sqlite3.Connection:
        """Ours. Raises `StorageFailed` where the file is not the one that we opened: what is written to one that was
        deleted is gone when it is closed."""
        if self._connection is None:
            self._connection = _connect(self.path)
            self._file = _file(self.path)
        elif _file(self.path) != self._file:
            raise StorageFailed(
                f"{self.path}: the file was moved, deleted or replaced while it was in use: put it back,"
                " or stop all that uses it and start again"
            )
        return self._connection

    def _next_calls(self) -> list[_Call]:
        """All that waits, or nothing once a periodic job is due."""
        due = min((job.due for job in tuple(self._periodic)), default=None) if self._connection else None
        timeout_s = None if due is None else max(0.0, due - time.monotonic())
        try:
            first = self._calls.get(timeout=timeout_s)
        except queue.Empty:
            return []
        calls = [first] if first else []
        while len(calls) < GROUP_LIMIT:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                break
            if call:
                calls.append(call)
        return calls

    def _read(self, connection: sqlite3.Connection, calls: Sequence[_Call]) -> list[_Outcome]:
        outcomes = []
        for call in calls:
            assert call.fn is not None
            try:
                _patiently(lambda: connection.execute("BEGIN"))
                try:
                    outcomes.append(_Outcome(call, _patiently(partial(call.fn, connection))))
                finally:
                    connection.execute("ROLLBACK")
            except BaseException as error:
                outcomes.append(_Outcome(call, error=self._explain(error)))
        return outcomes

    def _write(self, connection: sqlite3.Connection, calls: Sequence[_Call]) -> list[_Outcome]:
        """One commit for all; a function that raises is undone alone."""
        if not calls:
            return []
        try:
            self._begin(connection, "FULL" if any(call.sync == "FULL" for call in calls) else "NORMAL")
            outcomes = [self._apply(connection, call, alone=len(calls) == 1) for call in calls]
            connection.execute("COMMIT")
            return outcomes
        except BaseException as error:
            _roll_back(connection)
            return [_Outcome(call, error=self._explain(error)) for call in calls]

    def _apply(self, connection: sqlite3.Connection, call: _Call, *, alone: bool) -> _Outcome:
        assert call.fn is not None
        if alone:
            return _Outcome(call, call.fn(connection))
        connection.execute("SAVEPOINT one")
        try:
            outcome = _Outcome(call, call.fn(connection))
        except BaseException as error:
            if not connection.in_transaction:
                raise  # SQLite has undone the whole transaction: a full disk
            connection.execute("ROLLBACK TO one")
            outcome = _Outcome(call, error=self._explain(error))
        connection.execute("RELEASE one")
        return outcome

    def _run_periodic(self, connection: sqlite3.Connection) -> None:
        now = time.monotonic()
        for job in [job for job in tuple(self._periodic) if job.due <= now]:
            job.due = now + job.interval_s
            try:
                self._begin(connection, "NORMAL")
                job.fn(connection)
                connection.execute("COMMIT")
            except sqlite3.Error:
                _roll_back(connection)

    def _begin(self, connection: sqlite3.Connection, sync: str) -> None:
        if sync != self._sync:
            connection.execute(f"PRAGMA synchronous={sync}")
            self._sync = sync
        _patiently(lambda: connection.execute("BEGIN IMMEDIATE"))

    def _explain(self, error: BaseException) -> BaseException:
        if not isinstance(error, sqlite3.Error):
            return error
        explained: BusError = translate(error, self.path)
        explained.__cause__ = error
        return explained


def _file(path: str) -> tuple[int, int] | None:
    """Which one it is; None where there is none."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        _patiently(lambda: connection.execute("PRAGMA journal_mode=WAL"))
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=1000")
        connection.execute(f"PRAGMA journal_size_limit={WAL_KEPT_BYTES}")
        connection.execute("PRAGMA cache_size=-16000")
    except BaseException:
        connection.close()
        raise
    return connection


def _patiently(step: Callable[[], T]) -> T:
    """Repeat while another process holds the lock.

    SQLite's own busy handler backs off up to 100 ms, far longer than our transactions take.
    """
    deadline = time.monotonic() + LOCK_WAIT_S
    pause_s = 0.0003
    while True:
        try:
            return step()
        except sqlite3.Error as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
        time.sleep(pause_s * random.uniform(0.5, 1.5))
        pause_s = min(pause_s * 1.5, 0.005)


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _settle_all(outcomes: Sequence[_Outcome]) -> None:
    """Hand all results to their event loops, each loop woken once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome.call.loop, []).append(outcome)
    for loop, settled in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, settled)
        except RuntimeError:
            pass  # that loop has ended: nobody waits there


def _settle(outcomes: Sequence[_Outcome]) -> None:
    for call, value, error in outcomes:
        if call.future.done():
            continue  # cancelled
        if error is None:
            call.future.set_result(value)
        else:
            call.future.set_exception(error)


def _forget_in_child() -> None:
    for database in Database._shared.values():
        database._closed = True
        _forked.append(database)
    Database._shared.clear()
    Database._guard = threading.Lock()


os.register_at_fork(after_in_child=_forget_in_child)
