"""`postgresql://user:password@host/db?table=items`: the contract, in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from contextlib import suppress
from functools import partial
from typing import ParamSpec, TypeVar

import psycopg

import consumers.sinks.postgres.link as limits
from bus.errors import BusError, Misconfigured
from bus.findings import Finding
from consumers.sink import Batch, Changes, Entry, Limits, Progress, Quarantined, Written
from consumers.sinks.postgres.errors import misfit, translate
from consumers.sinks.postgres.examine import examine
from consumers.sinks.postgres.layout import Layout
from consumers.sinks.postgres.link import Link
from consumers.sinks.postgres.options import Options, read_url
from consumers.sinks.postgres.statements import Statements
from consumers.sinks.postgres.store import Store
from consumers.sql_ledger import SqlLedger
from consumers.thread import OwnThread

__all__ = ["PostgresSink"]

P = ParamSpec("P")
R = TypeVar("R")

WATCH_S = 0.5
LEAVE_S = 5.0  # `aclose` does not wait longer for a server that does not answer

_HOLD = "SELECT pg_advisory_xact_lock(hashtextextended(?, 0))"
_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"


class PostgresSink:
    """A table of items. The ledger is in the same schema, in tables named `sink_…`.

    What `write` returned is durable as far as the server's `synchronous_commit` says, and at least on its own disk. A
    connection that was lost is made anew by the next call.
    """

    limits = Limits(5000, 8 * 1024 * 1024, 1.0)

    def __init__(self, options: Options) -> None:
        self._options, self._link, self._layout = options, Link(options.parameters, options.schema), Layout(options)
        self._ledger, self._member_of = SqlLedger("", options.table, ""), ""
        self._store = Store(self._link, Statements(options, self._layout.table), options)
        self._thread = OwnThread("postgres-sink")

    @classmethod
    def from_url(cls, url: str) -> PostgresSink:
        """`postgresql://user:password@host/db`, with `?table=`, `mode=`, `columns=`, `index=`, `nul=` and libpq's."""
        return cls(read_url(url))

    async def open(self, consumer: str, topic: str) -> None:
        await self._run(self._open, consumer, topic)

    async def hold(self, partitions: Set[int]) -> Mapping[int, Progress | None]:
        return await self._run(self._hold, partitions)

    async def positions(self) -> Sequence[Progress]:
        return await self._run(lambda: self._ledger.positions(self._link))

    async def write(self, batch: Batch) -> Written:
        return await self._run(lambda: self._store.write(self._ledger, batch))

    async def compare(self, entries: Sequence[Entry]) -> Changes:
        return await self._run(self._compare, entries)

    async def quarantined(self) -> Sequence[Quarantined]:
        return await self._run(self._quarantined)

    async def drop(self, ids: Sequence[str]) -> int:
        return await self._run(self._drop, ids)

    async def examine(self, prefix: str = "") -> Sequence[Finding]:
        """What `crawlbus doctor` asks the server; nothing of it is left."""
        return await self._run(examine, self._link, self._options, self._layout, self._store)

    async def aclose(self) -> None:
        await self._watch(self._thread.aclose(self._close), LEAVE_S, closing=True)

    async def _run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await self._watch(self._thread.call(self._call, partial(function, *args, **kwargs)), limits.STUCK_S)
        except psycopg.Error as error:
            raise translate(error, self._options.name) from None

    async def _watch(self, work: Awaitable[R], after_s: float, *, closing: bool = False) -> R:
        """Wait; but a server that has not answered for `after_s` is cut off. The work begins at once: not only when
        this loop comes round again, which a consumer fills with reading."""
        watching = asyncio.create_task(self._look(after_s, closing))
        try:
            return await work
        finally:
            watching.cancel()

    async def _look(self, after_s: float, closing: bool) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            self._link.cut_if_stuck(after_s, unhurried=closing)

    # what runs in the thread

    def _call(self, function: Callable[[], R]) -> R:
        try:
            self._link.connect()
            return function()
        finally:
            self._link.rollback()  # what was not committed

    def _open(self, consumer: str, topic: str) -> None:
        self._leave()
        if self._link.encoding != "UTF8":
            raise Misconfigured(
                f"the database of the sink {self._options.name} has the encoding {self._link.encoding}: make one"
                " with ENCODING 'UTF8', which holds every text"
            )
        try:
            self._make_tables()
        except psycopg.Error as error:
            raise misfit(error, self._options) or error from None
        self._ledger = SqlLedger(consumer, self._options.table, topic)
        self._store.topic, self._member_of = topic, f"{self._layout.table} {topic} {consumer}"

    def _make_tables(self) -> None:
        self._link.begin()
        missing = self._layout.missing(self._link)
        if not missing:
            self._store.check()
        self._link.rollback()
        if missing:
            with self._layout.alone(self._link):
                self._link.begin()
                self._layout.make(self._link, self._layout.missing(self._link))
                self._store.check()
                self._link.commit()

    def _hold(self, partitions: Set[int]) -> dict[int, Progress | None]:
        self._link.begin()
        self._link.execute(_HOLD, (f"hold {self._member_of}",))
        held = self._ledger.hold(self._link, partitions, self._link.execute(_NOW).fetchall()[0][0])
        self._link.commit()
        return held

    def _compare(self, entries: Sequence[Entry]) -> Changes:
        try:
            return self._store.compare(entries, has_table=self._layout.has(self._link, self._options.table))
        except psycopg.Error as error:
            raise misfit(error, self._options) or error from None

    def _quarantined(self) -> list[Quarantined]:
        there = self._layout.has(self._link, "sink_quarantine")
        return SqlLedger.quarantined(self._link, self._options.table) if there else []

    def _drop(self, ids: Sequence[str]) -> int:
        if not self._layout.has(self._link, "sink_quarantine"):
            return 0
        self._link.begin()
        dropped = SqlLedger.drop(self._link, ids)
        self._link.commit()
        return dropped

    def _leave(self) -> None:
        """What we hold is free."""
        if self._member_of:
            self._link.begin()
            self._ledger.leave(self._link)
            self._link.commit()
        self._member_of = ""

    def _close(self) -> None:
        with suppress(psycopg.Error, BusError):
            if self._link.is_connected:
                self._leave()
        self._link.close()
