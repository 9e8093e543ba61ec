"""The named points of a consumer at which it may die or fall asleep: a process that is armed does so by itself.

Each is put around a method of the product, or around what its drivers and the system are asked to do, from outside.
"""

from __future__ import annotations

import inspect
import os
import signal
import sqlite3
import stat
from collections.abc import Callable, Iterable
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any, NamedTuple

import consumers.run
import consumers.sinks.sqlite
from bus.registry import load
from bus.transport import Subscription, Transport
from bus.url import scheme
from consumers.reader import LogReader

__all__ = ["Fate", "arm", "points_of"]

Do = Callable[[], None]

EVERYWHERE = ("held", "reading", "before write", "after write", "before ack", "after ack")
IN_TABLES = ("before rows", "after rows", "before commit", "after commit")
IN_POSTGRES = ("before COPY", "after COPY")
IN_FILES = ("torn write", "before fsync", "before rename", "after rename")
ONCE = {"held"}  # a life passes it once for sure


def points_of(sink: str) -> tuple[str, ...]:
    """The names of the points that a consumer into this sink passes."""
    kind = scheme(sink)
    if kind in ("jsonl", "parquet"):
        return EVERYWHERE + IN_FILES
    return EVERYWHERE + IN_TABLES + (() if kind == "sqlite" else IN_POSTGRES)


class Fate(NamedTuple):
    """At the `passing`-th passing of the point, or the first where a life has but one, it gets the signal."""

    point: str
    passing: int = 1
    signal: signal.Signals = signal.SIGKILL


def arm(fate: Fate, sink: str) -> None:
    """It is this process's own, from now on."""
    point, passing, number = fate
    left = 1 if point in ONCE else passing

    def pass_by() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)

    when, _, what = point.partition(" ")
    before, after = (pass_by, _nothing) if when == "before" else (_nothing, pass_by)
    sink_class = load("crawlbus.sinks", scheme(sink))
    if point == "held":
        _put_around(sink_class, "hold", after=pass_by)
    elif point == "reading":
        _put_around(LogReader, "take", before=pass_by)
    elif point == "torn write":
        _tear_writes(pass_by)
    elif what == "write":
        _put_around(sink_class, "write", before, after)
    elif what == "ack":
        _put_around_acks(before, after)
    elif what in ("fsync", "rename"):
        for name in ("fsync",) if what == "fsync" else ("rename", "replace"):
            _put_around(os, name, before, after)
    elif scheme(sink) == "sqlite":
        _put_around_sqlite(what, before, after)
    else:
        _put_around_postgres(what, before, after)


def _nothing() -> None: ...


def _put_around(owner: Any, name: str, before: Do = _nothing, after: Do = _nothing) -> None:
    inner = getattr(owner, name)

    @wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        before()
        result = inner(*args, **kwargs)
        after()
        return result

    @wraps(inner)
    async def outer_async(*args: Any, **kwargs: Any) -> Any:
        before()
        result = await inner(*args, **kwargs)
        after()
        return result

    setattr(owner, name, outer_async if inspect.iscoroutinefunction(inner) else outer)


def _tear_writes(pass_by: Do) -> None:
    """To a regular file: half of it is there."""
    inner = os.write

    def write(file: int, content: Any) -> int:
        half = len(content) // 2 if stat.S_ISREG(os.fstat(file).st_mode) else 0
        if not half:
            return inner(file, content)
        written = inner(file, content[:half])
        pass_by()
        return written  # the caller writes the rest

    os.write = write


def _put_around_acks(before: Do, after: Do) -> None:
    inner = consumers.run.connect_transport

    async def connect(url: str) -> Transport:
        transport = await inner(url)
        subscribe = transport.subscribe

        async def subscribe_too(*args: Any, **kwargs: Any) -> Subscription:
            subscription = await subscribe(*args, **kwargs)
            _put_around(subscription, "ack", before, after)
            return subscription

        transport.subscribe = subscribe_too  # type: ignore[method-assign]
        return transport

    consumers.run.connect_transport = connect  # type: ignore[attr-defined]


def _put_around_sqlite(what: str, before: Do, after: Do) -> None:
    """Of the sink only: the bus may be SQLite's, too."""

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            if (what, sql) != ("commit", "COMMIT"):
                return super().execute(sql, parameters)
            before()
            result = super().execute(sql, parameters)
            after()
            return result

        def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
            if what != "rows":
                return super().executemany(sql, parameters)
            before()
            result = super().executemany(sql, parameters)
            after()
            return result

    connect = partial(sqlite3.connect, factory=Watched)
    consumers.sinks.sqlite.sqlite3 = SimpleNamespace(**{**vars(sqlite3), "connect": connect})  # type: ignore[attr-defined]


def _put_around_postgres(what: str, before: Do, after: Do) -> None:
    from consumers.sinks.postgres import link, store

    if what == "COPY":
        store.COPY_FROM = 1  # small batches go as parameters otherwise
        _put_around(link.Link, "copy", before, after)
    elif what == "rows":
        _put_around(store.Store, "_insert", before, after)
    else:
        _put_around(link.Link, "commit", before, after)
