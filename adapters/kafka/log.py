"""LOG topics: partitions that everybody reads from where they like; a group is nothing but a committed position."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, UnknownTopicOrPartitionError

from adapters.kafka.cluster import CONNECT_S, Cluster
from adapters.kafka.errors import said
from adapters.kafka.reader import FETCH, WAIT_MS, Reader, check_there, start, stop
from adapters.kafka.record import message_of
from adapters.kafka.topics import not_told
from bus.backoff import Backoff
from bus.errors import BusError, ConnectionLost, PositionExpired
from bus.message import Delivery, Position
from bus.topic import Topic
from bus.transport import Lag, Seek, Start

__all__ = ["LogSubscription", "log_lag"]

REQUEST_MS = 10_000
HAND_BYTES = 16 * 1024 * 1024  # no more is fetched while bodies of so much are waiting


async def log_lag(cluster: Cluster, topic: Topic, group: str) -> Lag:
    """`ready` is all that the group has not acked."""
    name = topic.name
    first, end = await cluster.bounds(name)
    done = await cluster.committed(_group_id(name, group), name, end) if group else {}
    ready = sum(max(0, end[number] - max(first[number], done.get(number, 0))) for number in end)
    return Lag(ready, None, 0, exact=True, first=first, end=end)


class LogSubscription(Reader):
    """One reader with a place of its own. It fetches from its first `receive` on, and anew after a `seek`."""

    def __init__(self, cluster: Cluster, topic: Topic, group: str, prefetch: int) -> None:
        super().__init__(cluster, topic, prefetch)
        self._group = _group_id(self._name, group) if group else ""
        self._next: dict[int, int] = {}  # the offset that `receive` gives next, by partition
        self._floor: dict[int, int] = {}  # all below is acked, or was passed over by a seek
        self._committed: dict[int, int] = {}
        self._buffer: deque[Any] = deque()
        self._size_bytes = 0  # of the bodies in the buffer
        self._drained = asyncio.Event()
        self._consumer: AIOKafkaConsumer | None = None

    async def begin(self, start: Start) -> None:
        positions = await self._resolve("earliest" if start == "committed" else start)
        if self._group:
            self._committed = await self._cluster.committed(self._group, self._name, positions)
        self._go_to(positions | self._committed if start == "committed" else positions)
        self._listen()

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._check_open()
        done: dict[int, int] = {}
        for delivery in deliveries:
            done[delivery.partition] = max(done.get(delivery.partition, 0), delivery.offset + 1)
        if self._group:
            news = {number: offset for number, offset in done.items() if offset > self._committed.get(number, 0)}
            if news:
                await self._cluster.commit(self._group, self._name, news)
                self._committed |= news
        for number, offset in done.items():
            if number in self._floor:
                self._floor[number] = max(self._floor[number], min(offset, self._next[number]))
        self._ring()

    async def seek(self, to: Seek) -> None:
        self._check_open()
        positions = await self._resolve(to)
        await self._end_tasks()
        self._go_to(positions)
        self._ring()

    def _go_to(self, positions: Mapping[int, int]) -> None:
        self._next, self._floor = dict(positions), dict(positions)
        self._drop()
        self._failure = None

    def _drop(self) -> None:
        self._buffer.clear()
        self._size_bytes = 0

    async def _resolve(self, to: Seek) -> dict[int, int]:
        """The offsets that `to` means, of each partition to read."""
        first, end = await self._cluster.bounds(self._name)
        if to == "earliest":
            return first
        if to == "latest":
            return end
        if isinstance(to, datetime):
            time_ms = int((to if to.tzinfo else to.replace(tzinfo=UTC)).timestamp() * 1000)
            found = await self._cluster.offsets_at(self._name, max(0, time_ms))
            return {number: offset if offset >= 0 else end[number] for number, offset in found.items()}
        named: dict[int, int] = {}
        for position in to:
            assert isinstance(position, Position)
            number, offset, _ = position
            if not first.get(number, 0) <= offset <= end.get(number, -1):
                raise _expired(number, offset, first, end)
            named[number] = offset
        return named

    def _take(self, max_messages: int) -> Sequence[Delivery]:
        if not self._tasks and self._failure is None:
            self._spawn(self._pump())
        room = min(max_messages, self._prefetch - sum(self._next.values()) + sum(self._floor.values()))
        taken: list[Delivery] = []
        while self._buffer and len(taken) < room:
            record = self._buffer.popleft()
            self._size_bytes -= record.serialized_value_size
            self._next[record.partition] = record.offset + 1
            taken.append(Delivery(message_of(record), self._name, record.partition, record.offset, None))
        if len(self._buffer) <= self._prefetch // 2:
            self._drained.set()
        return taken

    async def _pump(self) -> None:
        """Fetch from `_next` on; after the loss of the cluster, again."""
        backoff = Backoff()
        while True:
            consumer = self._consumer = AIOKafkaConsumer(
                request_timeout_ms=REQUEST_MS, **FETCH, **self._cluster.servers.driver
            )
            try:
                async with asyncio.timeout(CONNECT_S):
                    await start(consumer)
                places = {TopicPartition(self._name, number): offset for number, offset in self._next.items()}
                consumer.assign(list(places))
                for place, offset in places.items():
                    consumer.seek(place, offset)
                await self._fetch(consumer)
            except OffsetOutOfRangeError as error:
                if await self._is_expired(error):
                    return
            except (KafkaError, OSError) as error:
                found = said(error, f"read topic {self._name!r}")
                if isinstance(error, UnknownTopicOrPartitionError):
                    found = await not_told(self._cluster, self._name)
                self._failure = found if not isinstance(found, ConnectionLost) else None
            finally:
                self._drop()
                await stop(consumer)
            self._ring()
            await asyncio.sleep(backoff.next_s())

    async def _fetch(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            while len(self._buffer) >= self._prefetch or self._size_bytes >= HAND_BYTES:
                self._drained.clear()
                await self._drained.wait()
            found = await consumer.getmany(timeout_ms=WAIT_MS, max_records=self._prefetch - len(self._buffer))
            if not found:
                check_there(consumer, self._name)
            for records in found.values():
                self._buffer.extend(records)
                self._size_bytes += sum(record.serialized_value_size for record in records)
            self._failure = None
            self._ring()

    async def _is_expired(self, error: OffsetOutOfRangeError) -> bool:
        try:
            first, end = await self._cluster.bounds(self._name)
        except BusError:
            return False
        for place, offset in error.args[0].items():
            if not first[place.partition] <= offset <= end[place.partition]:
                self._failure = _expired(place.partition, offset, first, end)
                self._ring()
                return True
        return False

    async def _close(self) -> None:
        await self._end_tasks()


def _group_id(topic: str, group: str) -> str:
    return f"{topic}.{group}"


def _expired(number: int, offset: int, first: Mapping[int, int], end: Mapping[int, int]) -> PositionExpired:
    start, stop = Position(number, first.get(number, 0)), Position(number, end.get(number, 0))
    return PositionExpired(Position(number, offset), start, stop)
