"""`Member`: the driver's consumer in the group of a QUEUE, and how certain it is that it still belongs there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from adapters.kafka.cluster import Cluster
from adapters.kafka.errors import translated
from adapters.kafka.group import Keep
from adapters.kafka.reader import FETCH, start, stop
from adapters.kafka.topics import not_told
from bus.errors import BusError

__all__ = ["Holder", "Member"]

logger = logging.getLogger(__name__)

JOIN_S = 28.0
HEARTBEAT_S = 1.0  # how soon a member hears that another comes or goes
ANSWER_S = 5.0  # more than the longest that the group may let a member wait
NEVER_MS = 2**31 - 1
OUTSIDE = ("", -1)


class Holder(Protocol):
    """Whoever has the partitions."""

    def held(self) -> Collection[int]: ...

    async def flush(self) -> None:
        """A rebalance begins: what is done must be known before another may have the partition."""
        ...

    async def take_over(self, numbers: Collection[int], *, kept: bool) -> None:
        """It is over, and these are ours. `kept`: those that we had before have not been another's since."""
        ...

    def wake(self) -> None:
        """What was held back while it was not certain whose it is may be handed out."""
        ...


class Member(ConsumerRebalanceListener):  # type: ignore[misc]  # the driver has no types
    """A member with a `name` is one that the group waits for: its successor of that name has its partitions at once.

    The driver knows the group's answers, and tells neither the generation nor when it was last heard; both decide here
    what may be done with a delivery, so its coordinator is looked into.
    """

    def __init__(self, cluster: Cluster, topic: str, lease_s: float, name: str, holder: Holder) -> None:
        self.consumer: AIOKafkaConsumer
        self.life = OUTSIDE  # the id and the generation of the last assignment
        self.settled = asyncio.Event()  # no rebalance is under way
        self._cluster, self._topic, self._lease_s, self._name = cluster, topic, lease_s, name
        self._holder = holder
        self._proven = 0.0  # when the group last knew us
        self._defect: Exception | None = None  # why it could not take over its partitions

    async def join(self) -> None:
        """Returns once it has partitions, or is told that there are none left for it."""
        self.consumer = AIOKafkaConsumer(
            group_id=self._topic,
            group_instance_id=self._name or None,
            session_timeout_ms=int(self._lease_s * 1000),
            rebalance_timeout_ms=int(self._lease_s * 1000),
            heartbeat_interval_ms=int(min(HEARTBEAT_S, self._lease_s / 3) * 1000),
            max_poll_interval_ms=NEVER_MS,
            partition_assignment_strategy=[Keep(self._holder.held)],
            request_timeout_ms=int((self._lease_s + ANSWER_S) * 1000),
            **FETCH,
            **self._cluster.servers.driver,
        )
        self.consumer.subscribe([self._topic], listener=self)
        with translated(f"join group {self._topic!r}"):
            try:
                async with asyncio.timeout(JOIN_S):
                    await start(self.consumer)
            except UnknownTopicOrPartitionError:
                raise await not_told(self._cluster, self._topic) from None
        self._watch_heartbeat()
        self._proven = _now()  # as far as `silent_s` goes; it is not sure of anything before it has partitions

    async def join_anew(self) -> None:
        """After the driver gave up. Whoever was expelled for another of its name has none from then on."""
        self.settled.clear()
        self.life, self._name, self._defect = OUTSIDE, "", None
        await self.leave()
        await self.join()

    async def leave(self) -> None:
        """The others have its partitions at once."""
        coordinator = self.consumer._coordinator
        named = coordinator is not None and coordinator._group_instance_id and coordinator.member_id
        await stop(self.consumer)
        if named and not self._cluster.away:
            try:
                await self._cluster.leave(self._topic, named)  # the driver lets a member with a name stay
            except BusError:
                pass

    def check(self) -> None:
        """Raises what the driver keeps until it is asked; till then it does not try again to be in the group."""
        if self._defect is not None:
            raise KafkaError(repr(self._defect))
        self.consumer._coordinator.check_errors()

    @property
    def failure(self) -> BusError | None:
        """Until it has joined anew."""
        if self._defect is None:
            return None
        return BusError(f"taking over partitions of {self._topic!r} failed: {self._defect!r}")

    @property
    def belongs(self) -> bool:
        """As far as it has heard."""
        return self.life == _life(self.consumer)

    @property
    def is_sure(self) -> bool:
        """Is it certain that no other has our partitions? Not after a pause of the whole process, for one."""
        return self.settled.is_set() and self.silent_s < 0.9 * self._lease_s

    @property
    def silent_s(self) -> float:
        """For how long the group has not known us."""
        return _now() - self._proven

    def prove(self, asked: float) -> None:
        """The group knew us when we asked."""
        self._proven = max(self._proven, asked)

    def _watch_heartbeat(self) -> None:
        coordinator = self.consumer._coordinator
        beat = coordinator._do_heartbeat

        async def watched() -> bool:
            asked, was_sure = _now(), self.is_sure
            if known := bool(await beat()):
                self.prove(asked)
                if not was_sure:
                    self._holder.wake()
            return known

        coordinator._do_heartbeat = watched

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        self.settled.clear()
        if self.belongs:
            await self._holder.flush()
        elif self.life is not OUTSIDE:
            self.consumer._coordinator._group_instance_id = None  # else two of one name expel each other for ever

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        member, generation = now = _life(self.consumer)
        kept = self.life == (member, generation - 1)  # no generation in which others could have had them
        self.life = now
        try:
            await self._holder.take_over([place.partition for place in assigned], kept=kept)
        except Exception as error:  # the driver would hide it
            logger.exception("group %s cannot be read", self._topic)
            self._defect = error
            self._holder.wake()
            return
        self.prove(_now())
        self.settled.set()


def _life(consumer: AIOKafkaConsumer) -> tuple[str, int]:
    coordinator: Any = consumer._coordinator
    return OUTSIDE if coordinator is None else (coordinator.member_id, coordinator.generation)


def _now() -> float:
    return asyncio.get_running_loop().time()
