"""QUEUE topics: one consumer group each, whose members commit what is done without gaps."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
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
from adapters.kafka.errors import said, translated
from adapters.kafka.group import Keep, Part
from adapters.kafka.reader import FETCH, Reader, stop
from adapters.kafka.record import message_of
from adapters.kafka.topics import Place
from bus.backoff import Backoff
from bus.errors import BusError, ConnectionLost, Misconfigured, StaleDelivery, Unsupported
from bus.message import Delivery
from bus.transport import Lag, Seek

__all__ = ["QueueSubscription", "queue_lag"]

logger = logging.getLogger(__name__)

COMMIT_EACH_S = 0.5
COMMIT_SOON_S = 0.05  # once nothing is unacknowledged
COMMIT_S = 5.0
JOIN_S = 28.0
HEARTBEAT_S = 1.0  # how soon a member hears that another comes or goes
TIDY_EACH_S = 30.0
WAIT_MS = 60_000
NEVER_MS = 2**31 - 1


async def queue_lag(cluster: Cluster, place: Place) -> Lag:
    """`ready` is all that is not yet committed, so it holds what is unacknowledged, too."""
    name = place.topic.name
    committed = await cluster.committed(name, name, range(place.partitions))
    first, end = await cluster.bounds(name)
    ready = sum(max(0, end[number] - max(first[number], committed.get(number, 0))) for number in end)
    return Lag(ready, None, 0, exact=True)


class QueueSubscription(Reader):
    """One member of the group that is named as its topic.

    An `ack` closes the delivery; the prefix of each partition that is closed is committed within half a second, and at
    once before the partition goes to another. So after a crash there come again, of each partition that the dead one
    had: what was unacknowledged (at most `prefetch` of all), what was acknowledged behind the first of these, and half
    a second of acks; never more than `bus.watermark.WINDOW`.
    A rebalance leaves valid what is unacknowledged of the partitions that stay; the others' deliveries are stale.
    """

    def __init__(self, cluster: Cluster, place: Place, prefetch: int, lease_s: float, member: str) -> None:
        super().__init__(cluster, place, prefetch)
        self._lease_s, self._member = lease_s, member
        self._consumer: AIOKafkaConsumer
        self._parts: dict[int, Part] = {}
        self._turn: deque[Part] = deque()  # those with something in their buffer
        self._paused: set[Part] = set()  # those whose window is full
        self._buffered = self._unacked = 0
        self._drained = asyncio.Event()
        self._dirty = asyncio.Event()
        self._settled = asyncio.Event()  # no rebalance is under way
        self._committing = asyncio.Lock()
        self._life: tuple[str, int] = ("", -1)  # the member's id and the generation of the last assignment
        self._proven = 0.0  # when the group last knew us

    async def begin(self) -> None:
        """Join the group, and have the partitions."""
        await self._cluster.find_coordinator(self._name)
        await self._join(self._member)
        self._spawn(self._pump())
        self._spawn(self._commit_from_time_to_time())
        self._spawn(self._tidy())

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._check_open()
        if not deliveries:
            return
        if self._cluster.away:
            raise self._cluster.lost()
        if not (self._settled.is_set() and self._is_sure()):
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
        if room <= 0 or not self._turn or not self._settled.is_set() or not self._is_sure():
            return ()
        taken: list[Delivery] = []
        share = max(1, room // len(self._turn))
        while room > len(taken) and self._turn:
            part = self._turn.popleft()
            for _ in range(min(share, room - len(taken), len(part.buffer))):
                if part.full:
                    self._pause(part)
                    break
                record = part.deliver()
                self._buffered -= 1
                taken.append(Delivery(message_of(record), self._name, part.number, record.offset, None, part))
            if part.buffer:
                self._turn.append(part)
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
        self._consumer.pause(self._tp(part.number))
        self._consumer.seek(self._tp(part.number), part.position)

    def _resume(self) -> None:
        for part in [part for part in self._paused if not part.full]:
            self._paused.discard(part)
            self._consumer.resume(self._tp(part.number))

    def _tp(self, number: int) -> TopicPartition:
        return TopicPartition(self._name, number)

    # fetching

    async def _pump(self) -> None:
        while True:
            try:
                while self._buffered >= self._prefetch:
                    self._drained.clear()
                    await self._drained.wait()
                room = self._prefetch - self._buffered
                found = await self._consumer.getmany(timeout_ms=WAIT_MS, max_records=room)
                self._failure = None
                for place, records in found.items():
                    self._add(place.partition, records)
                self._ring()
            except NoOffsetForPartitionError:
                await self._begin()  # it could not when the partitions came
            except OffsetOutOfRangeError as error:
                for place in error.args[0]:
                    self._lose(place.partition)
                    self._parts[place.partition] = Part(self, place.partition)
                await self._begin()
            except (TopicAuthorizationFailedError, GroupAuthorizationFailedError) as error:
                self._failure = said(error, f"read topic {self._name!r}")
                self._ring()
                await asyncio.sleep(1)
            except KafkaError as error:
                logger.warning("joining group %s anew: %s", self._name, type(error).__name__)
                await self._join_anew()

    def _add(self, number: int, records: Iterable[Any]) -> None:
        part = self._parts.get(number)
        if part is None:
            return  # it was lost meanwhile
        before = len(part.buffer)
        part.add(records)
        self._buffered += len(part.buffer) - before
        if not before and part.buffer:
            self._turn.append(part)

    async def _begin(self) -> None:
        """Where the group has come to; at the first record where it never committed, as all may be undone."""
        numbers = [number for number, part in self._parts.items() if part.position is None]
        if not numbers:
            return
        try:
            committed = await self._cluster.committed(self._name, self._name, numbers)
            first, end = await self._cluster.bounds(self._name)
            for number in numbers:
                offset = committed.get(number, first[number])
                if not first[number] <= offset <= end[number]:
                    logger.warning(
                        "Kafka does not have %s/%d at %d, where its readers had come to: they go on at %d",
                        self._name, number, offset, first[number],
                    )  # fmt: skip
                    offset = first[number]
                if (part := self._parts.get(number)) is not None and part.position is None:
                    part.position = offset
                    self._consumer.seek(self._tp(number), offset)
        except (BusError, IllegalStateError):
            await asyncio.sleep(0.1)  # the driver asks again

    # belonging to the group

    async def _join(self, member: str) -> None:
        self._consumer = consumer = AIOKafkaConsumer(
            group_id=self._name,
            group_instance_id=member or None,
            session_timeout_ms=int(self._lease_s * 1000),
            rebalance_timeout_ms=int(self._lease_s * 1000),
            heartbeat_interval_ms=int(min(HEARTBEAT_S, self._lease_s / 3) * 1000),
            max_poll_interval_ms=NEVER_MS,
            partition_assignment_strategy=[Keep(lambda: self._parts)],
            request_timeout_ms=int((self._lease_s + 5) * 1000),
            **FETCH,
            **self._cluster.servers.driver,
        )
        consumer.subscribe([self._name], listener=_Listener(self))
        try:
            with translated(f"join group {self._name!r}"):
                async with asyncio.timeout(JOIN_S):
                    await consumer.start()
        except BaseException:
            await stop(consumer)
            raise
        self._watch_heartbeat()

    def _watch_heartbeat(self) -> None:
        """Each answer proves that the group knew us when we asked."""
        coordinator = self._consumer._coordinator
        beat = coordinator._do_heartbeat

        async def watched() -> bool:
            asked = asyncio.get_running_loop().time()
            if known := bool(await beat()):
                self._proven = max(self._proven, asked)
                self._ring()
            return known

        coordinator._do_heartbeat = watched

    async def _join_anew(self) -> None:
        """The driver gave up; a member of a fixed name that was expelled for it is a nameless one from then on."""
        self._settled.clear()
        for number in list(self._parts):
            self._lose(number)
        await stop(self._consumer)
        backoff = Backoff()
        while True:
            try:
                await self._join("")
                break
            except BusError as error:
                self._failure = error
                self._ring()
                await asyncio.sleep(backoff.next_s())
        self._failure = None

    async def revoked(self) -> None:
        """A rebalance begins: what is done must be known before another may have the partition."""
        self._settled.clear()
        coordinator = self._consumer._coordinator
        if self._life == (coordinator.member_id, coordinator.generation):
            try:
                await self._commit()
            except BusError:
                pass  # it will come again
        elif self._life[1] >= 0:
            coordinator._group_instance_id = None  # else two of one name would expel each other for ever

    async def assigned(self, numbers: Collection[int]) -> None:
        """Partitions that were ours in the generation just before cannot have been another's since."""
        coordinator = self._consumer._coordinator
        member, generation = coordinator.member_id, coordinator.generation
        kept = set(numbers) if self._life == (member, generation - 1) else set()
        for number in list(self._parts):
            if number not in kept:
                self._lose(number)
        for number in numbers:
            part = self._parts.setdefault(number, Part(self, number))
            if part.position is not None:
                self._consumer.seek(self._tp(number), part.position)
            if part in self._paused:
                self._consumer.pause(self._tp(number))
        self._life = (member, generation)
        await self._begin()
        self._proven = asyncio.get_running_loop().time()
        self._settled.set()
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

    def _is_sure(self) -> bool:
        """Is it certain that no other has our partitions? Not after a pause of the whole process, for one."""
        return asyncio.get_running_loop().time() - self._proven < 0.9 * self._lease_s

    async def _become_sure(self) -> None:
        """Wait for the end of a rebalance, or ask the group by a commit."""
        try:
            async with asyncio.timeout(2 * self._lease_s):
                while True:
                    await self._settled.wait()
                    if self._is_sure() or not self._parts:
                        return
                    await self._commit(prove=True)
                    if not self._is_sure():
                        await asyncio.sleep(0.05)
        except TimeoutError:
            raise ConnectionLost(f"group {self._name!r} of Kafka does not come to rest") from None

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
                    await self._consumer.commit(offsets)
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
            self._proven = max(self._proven, asked)

    async def _commit_from_time_to_time(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                if self._settled.is_set():
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
        coordinator = self._consumer._coordinator
        if not self._cluster.away and self._life == (coordinator.member_id, coordinator.generation):
            try:
                await self._commit()
            except BusError:
                pass
        named = coordinator._group_instance_id and coordinator.member_id
        await stop(self._consumer)
        if named and not self._cluster.away:
            try:
                await self._cluster.leave(self._name, named)  # the driver lets a member of a fixed name stay
            except BusError:
                pass
        for number in list(self._parts):
            self._lose(number)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # the driver has no types
    def __init__(self, subscription: QueueSubscription) -> None:
        self._subscription = subscription

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._subscription.revoked()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        await self._subscription.assigned([place.partition for place in assigned])
