"""The bus in one SQLite file: shared by the processes of one machine, on the disk before `publish` returns."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Self

from adapters.sqlite.database import Database, path_of
from adapters.sqlite.log import LogSubscription, append, log_lag, trim
from adapters.sqlite.queue import Owners, QueueSubscription, insert, queue_lag
from adapters.sqlite.schema import TopicRow, create_tables, declare, find_topic
from adapters.sqlite.watch import Watcher
from bus.capabilities import Acks, Capabilities, Delay, Durability, SeekBy
from bus.errors import Closed, Misconfigured, Unsupported
from bus.message import Message
from bus.topic import Kind, Topic
from bus.transport import Lag, Start, Subscription
from bus.url import query

__all__ = ["SqliteTransport"]

LEASE_S = 30.0
TRIM_EACH_S = 1.0
SWEEP_EACH_S = 0.5


class SqliteTransport:
    """`sqlite:///FILE`. Work is deleted when it is acked; the pages it leaves are used again."""

    def __init__(self, database: Database, lease_s: float) -> None:
        self.capabilities = Capabilities(
            queue_durability=Durability.FSYNC,
            log_durability=Durability.FSYNC,
            acks=Acks.INDIVIDUAL,
            lease_s=lease_s,
            counts_redeliveries=True,
            releases_on_close=True,
            delay=Delay.NATIVE,
            seek_by=frozenset(SeekBy),
            exact_lag=True,
            shared_between_processes=True,
            shared_between_hosts=False,
        )
        self._database = database
        self._watcher = Watcher(database)
        self._owners = Owners(lease_s)
        self._topics: dict[str, TopicRow] = {}
        self._subscriptions: list[QueueSubscription | LogSubscription] = []
        self._periodic: list[Callable[[], None]] = []
        self._trimmed: set[str] = set()
        self._renewing = self._closed = False

    @classmethod
    async def connect(cls, url: str, *, lease_s: float = LEASE_S) -> Self:
        """Open the file, or make it. A lease is renewed each `lease_s / 3` and ends with its process."""
        if unknown := sorted(query(url)):
            raise Misconfigured(f"the bus URL has an option {unknown[0]!r} that sqlite:// does not know: leave it out")
        database = Database.open(path_of(url))
        try:
            await database.write(lambda connection: create_tables(connection, database.path))
        except BaseException:
            await database.aclose()
            raise
        return cls(database, lease_s)

    async def declare(self, *topics: Topic) -> None:
        self._check_open()
        missing = [t for t in topics if (row := self._topics.get(t.name)) is None or row.topic != t]
        if not missing:
            return
        for row in await self._database.write(lambda connection: [declare(connection, t) for t in missing]):
            self._topics[row.topic.name] = row
            self._keep_trimmed(row)

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        row = await self._find(topic)
        if messages:
            store = insert if row.topic.kind is Kind.QUEUE else append
            await self._database.write(store(row, messages))
            self._watcher.wake(row.id)

    async def subscribe(
        self, topic: str, *, group: str = "", prefetch: int = 256, start: Start = "committed", member: str = ""
    ) -> Subscription:
        row = await self._find(topic)
        subscription: QueueSubscription | LogSubscription
        if row.topic.kind is Kind.QUEUE:
            if start != "committed":
                raise Unsupported(f"{topic!r} is a QUEUE, which has no positions to start from")
            subscription = QueueSubscription(self._database, self._watcher, self._owners, row, prefetch)
            if not self._renewing:
                self._renewing = True
                self._periodic.append(self._database.every(self._owners.lease_s / 3, self._owners.renew))
                self._periodic.append(self._database.every(SWEEP_EACH_S, self._owners.sweep))
        else:
            subscription = log = LogSubscription(self._database, self._watcher, row, group, prefetch)
            await log.begin(start)
        self._subscriptions = [s for s in self._subscriptions if not s.closed] + [subscription]
        return subscription

    async def lag(self, topic: str, *, group: str = "") -> Lag:
        row = await self._find(topic)
        if row.topic.kind is Kind.QUEUE:
            return await self._database.read(lambda connection: queue_lag(connection, row.id))
        return await self._database.read(lambda connection: log_lag(connection, row.id, group))

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            for subscription in self._subscriptions:
                await subscription.aclose()
        finally:
            for cancel in self._periodic:
                cancel()
            await self._database.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the bus in {self._database.path} is closed")

    async def _find(self, name: str) -> TopicRow:
        self._check_open()
        row = self._topics.get(name)
        if row is None:
            row = self._topics[name] = await self._database.read(lambda connection: find_topic(connection, name))
        return row

    def _keep_trimmed(self, row: TopicRow) -> None:
        """From time to time, and in bounded steps, remove what is past its retention."""
        name, kind, retention_s, _ = row.topic
        if kind is Kind.LOG and retention_s is not None and name not in self._trimmed:
            self._trimmed.add(name)
            interval_s = min(TRIM_EACH_S, max(0.01, retention_s / 10))

            def step(connection: sqlite3.Connection) -> None:
                kept_s = self._topics[name].topic.retention_s
                if kept_s is not None:
                    trim(connection, row.id, kept_s)

            self._periodic.append(self._database.every(interval_s, step))
