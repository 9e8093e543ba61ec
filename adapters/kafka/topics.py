"""Topics as Kafka keeps them: how many partitions and replicas, how long, and which kind.

A QUEUE has `retention.ms=-1` of its own: its records go when they are done. Whatever has anything else is a LOG, so
that no work is ever put where Kafka would drop it for its age; a LOG without a retention has the largest number.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import Any

from aiokafka.errors import KafkaError, LeaderNotAvailableError
from aiokafka.protocol.admin import AlterConfigsRequest, CreateTopicsRequest, DescribeConfigsRequest

from adapters.kafka.cluster import ASK_S, Cluster, raise_for
from adapters.kafka.errors import said
from bus.errors import BusError, ConnectionLost, Misconfigured
from bus.topic import Kind, Topic

__all__ = ["MESSAGE_BYTES", "REPLICAS", "UNKNOWN", "declare", "find", "not_told", "partition_of"]

logger = logging.getLogger(__name__)

QUEUE_PARTITIONS = 16
LOG_PARTITIONS = 4  # so many consumers may share one
REPLICAS = 3
MESSAGE_BYTES = 9 * 1024 * 1024  # a body of 8 MiB, and its headers
SEGMENT_BYTES = 16 * 1024 * 1024  # of a QUEUE: the last segment of a partition stays, done or not
FOR_EVER_MS = 2**63 - 1
TOPIC = 2  # the number of topics among the kinds of resources
OF_TOPIC = 1  # where a value of the configuration comes from, besides the broker and the defaults
UNKNOWN, EXISTS, NO_REPLICAS = 3, 36, 38

_named = set[str]()  # in a warning of this process


def partition_of(key: bytes, partitions: int) -> int:
    """The first 8 bytes of BLAKE2b modulo the number, so that every client agrees; without a key the first one."""
    if not key or partitions == 1:
        return 0
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % partitions


async def declare(cluster: Cluster, topics: Iterable[Topic]) -> None:
    """Create what is missing. Raises `Misconfigured` where one is of the other kind, or can keep nothing."""
    wanted = {topic.name: topic for topic in topics}
    answer = await cluster.metadata(wanted)
    _warn_of_few_replicas(answer)
    missing = [wanted[found["topic"]] for found in answer["topics"] if found["error_code"] == UNKNOWN]
    if missing:
        await _create(cluster, missing, live=len(answer["brokers"]))
    for there in await _look(cluster, wanted):
        topic = wanted[there.name]
        if there.kind is not topic.kind:
            raise Misconfigured(
                f"topic {topic.name!r} is a {there.kind.name} (retention.ms "
                f"{'=' if there.kind is Kind.QUEUE else '<>'} -1) and cannot be a {topic.kind.name}, too: "
                "choose another ?prefix= on the bus URL"
            )
        if topic.kind is Kind.LOG and topic.retention_s not in (None, there.retention_s):
            await _keep(cluster, topic)


async def find(cluster: Cluster, name: str) -> Topic:
    """Raises `BusError` where it is not there."""
    (found,) = (await cluster.metadata([name]))["topics"]
    if found["error_code"] == UNKNOWN:
        raise BusError(f"topic {name!r} was not declared, or was deleted")
    (topic,) = await _look(cluster, [name])
    return topic


async def not_told(cluster: Cluster, name: str) -> BusError:
    """Why the driver does not know the topic: while nobody answers it says the same as of one that is not there."""
    try:
        await find(cluster, name)
    except BusError as error:
        return error
    return ConnectionLost(f"Kafka has not told in time where topic {name!r} is")


async def _create(cluster: Cluster, topics: list[Topic], live: int) -> None:
    replicas = min(REPLICAS, live)
    wanted: list[Any] = [
        (topic.name, _partitions(topic), replicas, [], list(_config(topic, replicas).items())) for topic in topics
    ]
    answer = await cluster.ask(CreateTopicsRequest(wanted, int(ASK_S * 1000), False), "create topics")
    for name, code, *_ in answer.topic_errors:
        if code == NO_REPLICAS:
            raise Misconfigured(
                f"Kafka has too few brokers for {replicas} replicas of topic {name!r}: start the others"
            )
        if code not in (0, EXISTS):
            try:
                raise_for(code, name)
            except KafkaError as error:
                raise said(error, f"create topic {name!r}") from None


def _warn_of_few_replicas(metadata: Any) -> None:
    """A topic that was made while brokers were down, or not yet there, never has more by itself."""
    replicas = min(REPLICAS, len(metadata["brokers"]))
    few = [
        topic["topic"]
        for topic in metadata["topics"]
        if any(len(partition["replicas"]) < replicas for partition in topic["partitions"])
    ]
    if news := sorted(set(few) - _named):
        _named.update(news)
        logger.warning(
            "Kafka keeps fewer than %d replicas of %s: messages may be lost with a broker; add replicas with "
            "kafka-reassign-partitions%s",
            replicas, ", ".join(news), ", then set min.insync.replicas=2" if replicas == REPLICAS else "",
        )  # fmt: skip


def _partitions(topic: Topic) -> int:
    if topic.kind is Kind.LOG:
        return LOG_PARTITIONS
    return QUEUE_PARTITIONS if topic.hold_s is None else 1


def _config(topic: Topic, replicas: int) -> dict[str, str]:
    config = {
        "retention.ms": _retention_ms(topic),
        "retention.bytes": "-1",
        "cleanup.policy": "delete",
        "max.message.bytes": str(MESSAGE_BYTES),
        "min.insync.replicas": "2" if replicas >= REPLICAS else "1",
    }
    if topic.kind is Kind.QUEUE:
        config["segment.bytes"] = str(SEGMENT_BYTES)
    return config


def _retention_ms(topic: Topic) -> str:
    if topic.kind is Kind.QUEUE:
        return "-1"
    return str(FOR_EVER_MS if topic.retention_s is None else int(topic.retention_s * 1000))


async def _look(cluster: Cluster, names: Iterable[str]) -> list[Topic]:
    """Once all have leaders, what they are."""
    names = list(names)

    async def with_leaders() -> Any:
        found = (await cluster.metadata(names))["topics"]
        for topic in found:
            raise_for(topic["error_code"], topic["topic"])
            if any(partition["leader"] < 0 for partition in topic["partitions"]):
                raise LeaderNotAvailableError(topic["topic"])
        return found

    found = await cluster.settled(with_leaders, f"read topic {names[0]!r}")
    configs = await _configs(cluster, names)
    topics = []
    for topic in found:
        name, config = topic["topic"], {key: value for key, (value, _) in configs[topic["topic"]].items()}
        needed = int(config.get("min.insync.replicas", 1))
        for partition in topic["partitions"]:
            if len(partition["replicas"]) < needed:
                raise Misconfigured(
                    f"topic {name!r} has {len(partition['replicas'])} replicas and min.insync.replicas={needed}, so "
                    "that Kafka takes no message for it: add replicas, or lower min.insync.replicas"
                )
        kept_ms = int(config["retention.ms"])
        if kept_ms == -1:
            topics.append(Topic(name, Kind.QUEUE))
        else:
            topics.append(Topic(name, Kind.LOG, None if kept_ms == FOR_EVER_MS else kept_ms / 1000))
    return topics


async def _configs(cluster: Cluster, names: list[str]) -> dict[str, dict[str, tuple[str, int]]]:
    """Of each topic, each value and where it comes from."""
    request = DescribeConfigsRequest([(TOPIC, name, None) for name in names])

    async def ask() -> Any:
        answer = await cluster.ask(request, "read the configuration of topics")
        for code, _, _, name, _ in answer.resources:
            raise_for(code, name)
        return answer

    answer = await cluster.settled(ask, "read the configuration of topics")
    return {name: {entry[0]: (entry[1], entry[3]) for entry in entries} for _, _, _, name, entries in answer.resources}


async def _keep(cluster: Cluster, topic: Topic) -> None:
    """Change the retention, and nothing else: the request names all that the topic has of its own."""
    configs = await _configs(cluster, [topic.name])
    own = {key: value for key, (value, source) in configs[topic.name].items() if source == OF_TOPIC}
    own["retention.ms"] = _retention_ms(topic)
    answer = await cluster.ask(AlterConfigsRequest([(TOPIC, topic.name, list(own.items()))]), "change a topic")
    for code, *_ in answer.resources:
        try:
            raise_for(code, topic.name)
        except KafkaError as error:
            raise said(error, f"change the retention of topic {topic.name!r}") from None
