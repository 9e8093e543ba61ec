"""QUEUE topics: one consumer group each, whose members commit what is done without gaps."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
    TopicAuthorizationFailedError,
)

from adapters.kafka.cluster import Cluster
from adapters.kafka.errors import said
from adapters.kafka.group import Part
from adapters.kafka.member import Member
from adapters.kafka.reader import WAIT_MS, Reader, check_there
from adapters.kafka.record import message_of
from bus.backoff import Backoff
from bus.errors import BusError, ConnectionLost, Misconfigured, StaleDelivery, Unsupported
from bus.message import Delivery
from bus.topic import Topic
from bus.transport import Lag, Seek

__all__ = ["QueueSubscription", "queue_lag"]

logger = logging.getLogger(__name__)

COMMIT_EACH_S = 0.5
COMMIT_SOON_S = 0.05  # once nothing is unacknowledged
COMMIT_S = 5.0
TIDY_EACH_S = 30.0
PAUSE_S = 0.1
PATIENT_LEASES = 2  # so long a rebalance may take
CHECK_EACH_S = 1.0  # while nothing is fetched


async def queue_lag(cluster: Cluster, topic: Topic) -> Lag:
    """`ready` is all that is not yet committed, so it holds what is unacknowledged, too."""
    name = topic.name
    first, end = await cluster.bounds(name)
    committed = await cluster.committed(name, name, end)
    ready = sum(max(0, end[number] - max(first[number], committed.get(number, 0))) for number in end)
    return Lag(ready, None, 0, exact=True)


class QueueSubscription(Reader):
    """One member of the group that is named as its topic.

    An `ack` closes the delivery; the prefix of each partition that is closed is committed within half a second, and
    before the partition goes to another. So after a crash there come again, of each partition that the dead one had:
    what was unacknowledged (at most `prefetch` of all), what was acknowledged behind the first of these, and half a
    second of acks; never more than `bus.watermark.WINDOW` and `prefetch` of a partition.
    A rebalance leaves valid what is unacknowledged of the partitions that stay; the others' deliveries are stale.
    """

    def __init__(self, cluster: Cluster, topic: Topic, prefetch: int, lease_s: float, member: str) -> None:
        super().__init__(cluster, topic, prefetch)
        self._lease_s = lease_s
        self._member = Member(cluster, self._name, lease_s, member, self)
        self._parts: dict[int, Part] = {}
        self._turn: deque[Part] = deque()  # those with something in their buffer
        self._paused: set[Part] = set()  # those whose window is full
        self._buffered = self._unacked = 0
        self._drained = asyncio.Event()
        self._dirty = asyncio.Event()
        self._committing = asyncio.Lock()

    async def begin(self) -> None:
        """Join the group, and have the partitions."""
        await self._cluster.find_coordinator(self._name)
        await self._member.join()
        self._listen()
        self._spawn(self._pump())
        self._spawn(self._commit_from_time_to_time())
        self._spawn(self._tidy())

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._check_open()
        if not deliveries:
            return
        if self._cluster.away:
            raise self._cluster.lost()
        if not self._member.is_sure:
            await self._become_sure()
        stale, freed = [], 0
        for delivery in deliveries:
            part = delivery.token
            if not isinstance(part, Part) or part.owner is not self:
                stale.append(delivery)
            elif part.held:
                if part.mark is not None and part.mark.close(delivery.offset):
                    freed += 1
            elif delivery.offset >= part.committed:
                stale.append(delivery)
        if freed:
            self._unacked -= freed
            self._dirty.set()
            self._resume()
            self._ring()
        if stale:
            raise StaleDelivery(stale)

    async def seek(self, to: Seek) -> None:
        raise Unsupported(f"{self._name!r} is a QUEUE, which has no positions")

    # delivering

    def _take(self, max_messages: int) -> Sequence[Delivery]:
        room = min(max_messages, self._prefetch - self._unacked)
        if room <= 0 or not self._turn or not self._member.is_sure:
            return ()
        name, taken = self._name, list[Delivery]()
        share = max(1, room // len(self._turn))
        while room > len(taken) and self._turn:
            part = self._turn.popleft()
            if part.full:
                self._pause(part)
                continue
            records = part.deliver(min(share, room - len(taken), len(part.buffer)))
            if part.buffer:
                self._turn.append(part)
            number = part.number
            taken += [Delivery(message_of(record), name, number, record.offset, None, part) for record in records]
        self._buffered -= len(taken)
        self._unacked += len(taken)
        if self._buffered <= self._prefetch // 2:
            self._drained.set()
        return taken

    def _pause(self, part: Part) -> None:
        """So much behind its first open message is done that a crash would repeat too much: no more of it now."""
        self._paused.add(part)
        self._buffered -= len(part.buffer)
        part.position = part.buffer[0].offset
        part.buffer.clear()
        self._member.consumer.pause(self._tp(part.number))
        self._member.consumer.seek(self._tp(part.number), part.position)

    def _resume(self) -> None:
        for part in [part for part in self._paused if not part.full]:
            self._paused.discard(part)
            self._member.consumer.resume(self._tp(part.number))

    def _tp(self, number: int) -> TopicPartition:
        return TopicPartition(self._name, number)

    def _trouble(self) -> BusError | None:
        if (error := self._member.failure or super()._trouble()) is not None:
            return error
        return self._unsettled() if self._member.silent_s > PATIENT_LEASES * self._lease_s else None

    def _unsettled(self) -> ConnectionLost:
        return ConnectionLost(f"group {self._name!r} of Kafka does not come to rest, or its coordinator is away")

    # fetching

    async def _pump(self) -> None:
        while True:
            try:
                await self._has_room()
                self._member.check()
                room = self._prefetch - self._buffered
                found = await self._member.consumer.getmany(timeout_ms=WAIT_MS, max_records=room)
                if not found:
                    check_there(self._member.consumer, self._name)
                self._failure = None
                for place, records in found.items():
                    self._add(place.partition, records)
                self._ring()
            except NoOffsetForPartitionError:
                await self._begin_parts()  # it could not when the partitions came
            except OffsetOutOfRangeError as error:
                for place in error.args[0]:
                    self._lose(place.partition)
                    self._parts[place.partition] = Part(self, place.partition)
                await self._begin_parts()
            except (TopicAuthorizationFailedError, GroupAuthorizationFailedError) as error:
                self._failure = said(error, f"read topic {self._name!r}")
                self._ring()
                await asyncio.sleep(1)
            except KafkaError as error:
                logger.warning("joining group %s anew: %s", self._name, type(error).__name__)
                await self._join_anew()

    async def _has_room(self) -> None:
        """A full buffer must not keep us from hearing what is wrong: what it holds may wait for that to be mended."""
        while self._buffered >= self._prefetch:
            self._drained.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_EACH_S):
                    await self._drained.wait()
            self._member.check()

    def _add(self, number: int, records: Iterable[Any]) -> None:
        part = self._parts.get(number)
        if part is None:
            return  # it was lost meanwhile
        before = len(part.buffer)
        part.add(records)
        self._buffered += len(part.buffer) - before
        if not before and part.buffer:
            self._turn.append(part)

    async def _begin_parts(self) -> None:
        """Where the group has come to; at the first record where it never committed, as all may be undone."""
        numbers = [number for number, part in self._parts.items() if part.position is None]
        if not numbers:
            return
        try:
            committed = await self._cluster.committed(self._name, self._name, numbers)
            first, end = await self._cluster.bounds(self._name)
            known = [number for number in numbers if number in first and number in end]
            for number in known:
                offset = committed.get(number, first[number])
                if not first[number] <= offset <= end[number]:
                    logger.warning(
                        "Kafka does not have %s/%d at %d, where its readers had come to: they go on at %d",
                        self._name, number, offset, first[number],
                    )  # fmt: skip
                    offset = first[number]
                if (part := self._parts.get(number)) is not None and part.position is None:
                    part.position = offset
                    self._member.consumer.seek(self._tp(number), offset)
            if known != numbers:  # they were added just now: the driver asks again
                await asyncio.sleep(PAUSE_S)
        except (BusError, IllegalStateError):
            await asyncio.sleep(PAUSE_S)  # the driver asks again

    async def _join_anew(self) -> None:
        for number in list(self._parts):
            self._lose(number)
        backoff = Backoff(first_s=1.0)
        while True:
            await asyncio.sleep(backoff.next_s())  # what made the driver give up may last
            try:
                await self._member.join_anew()
                self._failure = None
                return
            except BusError as error:
                self._failure = error
                self._ring()

    # having partitions

    def held(self) -> Collection[int]:
        return self._parts

    async def flush(self) -> None:
        try:
            await self._commit()
        except BusError:
            pass  # it will come again

    async def take_over(self, numbers: Collection[int], *, kept: bool) -> None:
        for number in list(self._parts):
            if not kept or number not in numbers:
                self._lose(number)
        for number in numbers:
            part = self._parts.setdefault(number, Part(self, number))
            if part.position is not None:
                self._member.consumer.seek(self._tp(number), part.position)
            if part in self._paused:
                self._member.consumer.pause(self._tp(number))
        await self._begin_parts()
        self._ring()

    def wake(self) -> None:
        self._ring()

    def _lose(self, number: int) -> None:
        part = self._parts.pop(number)
        part.held = False
        self._paused.discard(part)
        self._buffered -= len(part.buffer)
        self._unacked -= len(part.mark or ())
        if part.buffer:
            self._turn.remove(part)
            part.buffer.clear()
        self._drained.set()

    async def _become_sure(self) -> None:
        """Wait for the end of a rebalance, or ask the group by a commit."""
        try:
            async with asyncio.timeout(PATIENT_LEASES * self._lease_s):
                await self._member.settled.wait()
                while self._parts and not self._member.is_sure:
                    await self._commit(prove=True)
                    if not self._member.is_sure:
                        await asyncio.sleep(PAUSE_S)
                        await self._member.settled.wait()
        except TimeoutError:
            raise self._unsettled() from None

    # committing

    async def _commit(self, *, prove: bool = False) -> None:
        """What is done without gaps; to prove that we are in the group, also what was committed before."""
        async with self._committing:
            parts = [part for part in self._parts.values() if part.mark is not None and (prove or part.to_commit)]
            if not parts:
                return
            offsets = {self._tp(part.number): part.mark.next for part in parts if part.mark is not None}
            asked = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(COMMIT_S):
                    await self._member.consumer.commit(offsets)
            except (CommitFailedError, IllegalStateError) as error:
                if isinstance(error.__cause__, RebalanceInProgressError):
                    self._dirty.set()
                else:
                    for number in list(self._parts):
                        self._lose(number)
                return
            except (KafkaError, TimeoutError) as error:
                raise said(error, f"commit to group {self._name!r}") from None
            for part in parts:
                part.committed = offsets[self._tp(part.number)]
            self._member.prove(asked)

    async def _commit_from_time_to_time(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                if self._member.settled.is_set():
                    await self._commit()
            except BusError:
                self._dirty.set()
            await asyncio.sleep(COMMIT_EACH_S if self._unacked else COMMIT_SOON_S)

    async def _tidy(self) -> None:
        """Whoever owns a partition removes the records that are done."""
        below: dict[int, int] = {}
        while True:
            await asyncio.sleep(TIDY_EACH_S)
            done = {part.number: part.committed for part in self._parts.values() if part.committed > 0}
            news = {number: offset for number, offset in done.items() if below.get(number) != offset}
            try:
                if news:
                    await self._cluster.delete_below(self._name, news)
                    below |= news
            except Misconfigured as error:
                logger.warning("%s; what is done stays on the disks", error)
                return
            except BusError:
                pass

    async def _close(self) -> None:
        await self._end_tasks()
        if self._member.belongs and not self._cluster.away:
            await self.flush()
        await self._member.leave()
        for number in list(self._parts):
            self._lose(number)
