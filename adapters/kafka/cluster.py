"""`Cluster`: what is asked of Kafka besides messages, on a connection of its own."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.conn import create_conn
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    for_code,
)
from aiokafka.protocol.admin import DeleteRecordsRequest
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest

from adapters.kafka.errors import said
from adapters.kafka.patience import failure, started
from adapters.kafka.url import Servers
from bus.errors import BusError, ConnectionLost, Misconfigured
from bus.tls import MAY_WANT

__all__ = ["CONNECT_S", "Cluster", "raise_for"]

logger = logging.getLogger(__name__)

CONNECT_S = 8.0
ASK_S = 12.0  # for all attempts of one question
PAUSE_S = 0.1
PULSE_S = 2.0
DEAF_S = 4.0  # a frozen broker takes connections, and says nothing
REQUEST_S = 10.0
EARLIEST, LATEST = -2, -1
ONLY_COMMIT = (-1, "")  # the generation and the member of one who commits without being in the group


def raise_for(code: int, *args: Any) -> None:
    """The error of a part of a response, if it is one."""
    if code:
        raise for_code(code)(*args)


class Cluster:
    """Metadata, offsets and a pulse. `away` is true while no broker answers; said once at loss, once at return."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.away = False
        self._client = AIOKafkaClient(request_timeout_ms=int(REQUEST_S * 1000), **servers.driver)
        self._coordinators: dict[str, int] = {}
        self._kept_offsets = False  # it has had a coordinator, so it can
        self._listeners: set[Callable[[], None]] = set()
        self._pulse: asyncio.Task[None] | None = None
        self._broken: BusError | None = None  # the pulse has ended

    async def start(self) -> None:
        """Raises `ConnectionLost` where nobody answers, `Misconfigured` where we are refused."""
        await self._knock()
        try:
            await started(self._client.bootstrap())
        except BaseException as error:
            await self._client.close()
            raise self._nobody() if isinstance(error, KafkaError) else error from None
        self._pulse = asyncio.create_task(self._beat())
        self._pulse.add_done_callback(self._ended)

    async def aclose(self) -> None:
        if (pulse := self._pulse) is not None:
            self._pulse = None
            pulse.cancel()
            await asyncio.gather(pulse, return_exceptions=True)
        await self._client.close()

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call it each time the cluster goes away or comes back, until the function that this gives is called."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def lost(self) -> BusError:
        """Why nothing can be asked: `ConnectionLost` while nobody answers."""
        return self._broken or ConnectionLost(f"Kafka at {self.servers} does not answer")

    # questions

    async def metadata(self, topics: Iterable[str]) -> Any:
        """Brokers, and of each topic its error, partitions and leaders; creates nothing."""
        request = MetadataRequest(list(topics), allow_auto_topic_creation=False)

        async def ask() -> Any:
            answer = await self._client.send(self._anyone(), request)
            self._client.cluster.update_metadata(answer)
            return answer.to_object()

        return await self.settled(ask, "read the metadata of topics")

    async def ask(self, request: Any, what: str) -> Any:
        """A question that any broker can answer."""

        async def ask() -> Any:
            return await self._client.send(self._anyone(), request)

        return await self.settled(ask, what)

    async def bounds(self, topic: str) -> tuple[dict[int, int], dict[int, int]]:
        """The first offset kept and the next one to be given, by partition."""
        return await self.offsets_at(topic, EARLIEST), await self.offsets_at(topic, LATEST)

    async def offsets_at(self, topic: str, time_ms: int) -> dict[int, int]:
        """By partition, the first offset published at or after a time; -1 where there is none."""

        async def ask(leader: int, partitions: list[int]) -> list[tuple[int, int]]:
            request = OffsetRequest(-1, 0, [(topic, [(partition, time_ms) for partition in partitions])])
            answer = await self._client.send(leader, request)
            for _, parts in answer.topics:
                for part in parts:
                    raise_for(part[1], topic)
            return [(part[0], part[3]) for _, parts in answer.topics for part in parts]

        return await self._of_leaders(topic, ask, f"read the offsets of topic {topic!r}")

    async def delete_below(self, topic: str, offsets: Mapping[int, int]) -> None:
        """Drop the records below the offset of each partition."""

        async def ask(leader: int, partitions: list[int]) -> list[tuple[int, int]]:
            wanted = [(partition, offsets[partition]) for partition in partitions if partition in offsets]
            if wanted:
                answer = await self._client.send(leader, DeleteRecordsRequest([(topic, wanted)], int(REQUEST_S * 1000)))
                for _, parts, *_ in answer.topics:
                    for part in parts:
                        raise_for(part[2], topic)
            return []

        await self._of_leaders(topic, ask, f"delete records of topic {topic!r}")

    async def committed(self, group: str, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """What a group has committed; partitions where it has not are left out."""
        request = OffsetFetchRequest(group, [(topic, list(partitions))])
        answer = await self._of_coordinator(group, request, f"read the offsets of group {group!r}")
        return {part[0]: part[1] for _, parts in answer.topics for part in parts if part[1] >= 0}

    async def commit(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        """For a group that has no members."""
        wanted = [(topic, [(partition, offset, "") for partition, offset in offsets.items()])]
        request = OffsetCommitRequest(group, *ONLY_COMMIT, OffsetCommitRequest.DEFAULT_RETENTION_TIME, wanted)
        await self._of_coordinator(group, request, f"commit offsets of group {group!r}")

    async def leave(self, group: str, member: str) -> None:
        """Take a member out of its group: its partitions are the others' at once."""
        await self._of_coordinator(group, LeaveGroupRequest(group, member), f"leave group {group!r}")

    async def find_coordinator(self, group: str) -> None:
        """Raises `Misconfigured` where the cluster answers, and has never kept the offsets of a group."""
        await self._coordinator(group)

    # how they are asked

    async def settled(self, ask: Callable[[], Any], what: str) -> Any:
        """Ask again while brokers come, go and hand over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ASK_S
        while True:
            if self.away:
                raise self.lost()
            try:
                async with asyncio.timeout_at(deadline):
                    return await ask()
            except (KafkaError, OSError) as error:
                if (isinstance(error, KafkaError) and not error.retriable) or loop.time() + PAUSE_S > deadline:
                    raise said(error, what) from None
            await asyncio.sleep(PAUSE_S)

    def _anyone(self) -> int:
        node = self._client.get_random_node()
        if node is None:
            raise KafkaConnectionError("no broker is known")
        return int(node)

    async def _of_leaders(self, topic: str, ask: Callable[[int, list[int]], Any], what: str) -> dict[int, int]:
        """Ask the leader of each partition; all anew where one has just changed."""

        async def round() -> dict[int, int]:
            (found,) = (await self.metadata([topic]))["topics"]
            raise_for(found["error_code"], topic)
            leaders: dict[int, list[int]] = {}
            for partition in found["partitions"]:
                raise_for(partition["error_code"], topic)
                leaders.setdefault(partition["leader"], []).append(partition["partition"])
            answers = await asyncio.gather(*(ask(leader, partitions) for leader, partitions in leaders.items()))
            return {partition: offset for answer in answers for partition, offset in answer}

        result: dict[int, int] = await self.settled(round, what)
        return result

    async def _of_coordinator(self, group: str, request: Any, what: str) -> Any:
        async def ask() -> Any:
            node = await self._coordinator(group)
            try:
                answer = await self._client.send(node, request)
                raise_for(getattr(answer, "error_code", 0), group)
                for _, parts in getattr(answer, "topics", ()):
                    for part in parts:
                        raise_for(part[-1], group)
            except KafkaError:
                self._coordinators.pop(group, None)
                raise
            return answer

        return await self.settled(ask, what)

    async def _coordinator(self, group: str) -> int:
        if (node := self._coordinators.get(group)) is not None:
            return node

        async def ask() -> int:
            return int(await self._client.coordinator_lookup(CoordinationType.GROUP, group))

        try:
            found: int = await self.settled(ask, f"find the coordinator of group {group!r}")
        except ConnectionLost as lost:
            if self.away or self._kept_offsets or not await self._answers():
                raise
            raise Misconfigured(
                "Kafka cannot keep the offsets of consumer groups: offsets.topic.replication.factor is larger than its "
                "number of brokers, or its internal topic is not available; mend the cluster"
            ) from lost
        self._coordinators[group], self._kept_offsets = found, True
        return found

    # is anybody there

    async def _knock(self) -> None:
        """At each door, as the driver's own start does not say why it was refused."""
        reason: BusError | None = None
        for host, port in self.servers.hosts:
            options = {name: value for name, value in self.servers.driver.items() if name != "bootstrap_servers"}
            try:
                async with asyncio.timeout(CONNECT_S / len(self.servers.hosts)):
                    connection = await create_conn(host, port, request_timeout_ms=int(CONNECT_S * 1000), **options)
                connection.close()
                return
            except (KafkaError, OSError, ValueError) as error:
                # another ValueError is SCRAM's, of a server that does not know the password either
                known = isinstance(error, ssl.SSLError) or not isinstance(error, ValueError)
                found = said(error, "connect") if known else None
                reason = found if isinstance(found, Misconfigured) else reason
        raise reason or self._nobody()

    def _nobody(self) -> ConnectionLost:
        wants = "a listener with TLS wants kafka+ssl://, one with SASL a user and a password"
        return ConnectionLost(
            f"no Kafka broker answers at {self.servers}: start it, or correct --bus (CRAWLBUS_BUS); "
            + (MAY_WANT if "ssl_context" in self.servers.driver else wants)
        )

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(PULSE_S / 4 if self.away else PULSE_S)
            away = not await self._answers() and not await self._answers()
            if away != self.away:
                self.away = away
                if away:
                    logger.warning("Kafka at %s does not answer: waiting for it", self.servers)
                    self._coordinators.clear()
                else:
                    logger.warning("Kafka at %s is back", self.servers)
                self._tell()

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()

    def _ended(self, pulse: asyncio.Task[None]) -> None:
        """Without a pulse the loss of the cluster would not be seen: nothing goes on."""
        if pulse is self._pulse and (error := failure(pulse)) is not None:
            logger.error("the pulse of Kafka at %s ended", self.servers, exc_info=error)
            self._broken = BusError(f"the pulse of Kafka at {self.servers} failed: {error!r}")
            self.away = True
            self._tell()

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(DEAF_S):
                answer = await self._client.send(self._anyone(), MetadataRequest([], allow_auto_topic_creation=False))
                return bool(answer.brokers)
        except (KafkaError, OSError):
            return False
