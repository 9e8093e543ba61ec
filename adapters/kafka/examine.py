"""What `crawlbus doctor` asks a Kafka cluster: its version, our rights, its clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.protocol.admin import ApiVersionRequest, CreateTopicsRequest, DeleteTopicsRequest

from adapters.kafka.cluster import Cluster, raise_for
from adapters.kafka.errors import NoRights, translated
from adapters.kafka.patience import look_only, started
from adapters.kafka.topics import REPLICAS, UNKNOWN, find
from bus.errors import BusError
from bus.findings import CONFIGURATION, FAULT, NOTE, OK, Finding, clock, fault
from bus.message import new_id

__all__ = ["examine", "version"]

ANSWER_S = 5.0
TESTED = "4.1"
# A broker tells which requests it knows, not its version: one that knows this request in this form is so new at least.
SIGNS = (("4.1", 74, 1), ("4.0", 2, 10), ("3.0", 2, 7), ("2.3", 11, 5))
# The time of the record is then the broker's. Without the last one a default of the broker could ask for more replicas.
CONFIG = {"message.timestamp.type": "LogAppendTime", "retention.ms": "60000", "min.insync.replicas": "1"}


async def examine(cluster: Cluster, prefix: str) -> list[Finding]:
    """Does on a topic of its own, under the prefix, what a crawl does; the topic is deleted in the end."""
    answer = await cluster.metadata([])
    known = (await cluster.ask(ApiVersionRequest(), "read the version")).api_versions
    found = [version({request: form for request, _, form in known}), _replicas(len(answer["brokers"]))]
    try:
        skew_s = await _try(cluster, f"{prefix}doctor")
    except NoRights as error:
        return [*found, fault("bus", error, _grant(cluster, prefix))]
    except BusError as error:
        return [*found, fault("bus", error)]
    said = f"topics {prefix}* may be made, written, read and deleted, and groups {prefix}* keep their offsets"
    return [*found, Finding("bus", OK, said), clock("bus", skew_s, "the broker")]


def version(newest: Mapping[int, int]) -> Finding:
    """By the newest form of each request that the broker knows."""
    found = next((version for version, request, form in SIGNS if newest.get(request, -1) >= form), None)
    if found is None:
        said = f"Kafka is older than {SIGNS[-1][0]}, and members of a group cannot have names there"
        return Finding("bus", FAULT, said, f"upgrade it to {TESTED}", CONFIGURATION)
    if found == TESTED:
        return Finding("bus", OK, f"Kafka {found} or later")
    mend = f"upgrade it to {TESTED}, with which crawlbus is tested"
    return Finding("bus", NOTE, f"Kafka {found} or later, and older than {TESTED}", mend)


def _replicas(brokers: int) -> Finding:
    if brokers >= REPLICAS:
        return Finding("bus", OK, f"Kafka with {brokers} brokers: topics have {REPLICAS} replicas")
    said = f"Kafka with {brokers} broker{'s' * (brokers > 1)}: a topic has as many replicas, and no more"
    return Finding("bus", NOTE, said, "three brokers survive the loss of one")


async def _try(cluster: Cluster, group: str) -> float:
    """How far the broker's clock is ahead of ours. That we may delete is tried first, so that no topic is left."""
    name = f"{group}.{new_id()}"
    delete = DeleteTopicsRequest([name], int(ANSWER_S * 1000))
    await _ask(cluster, delete, f"delete topic {name!r}")
    wanted: list[Any] = [(name, 1, 1, [], list(CONFIG.items()))]
    await _ask(cluster, CreateTopicsRequest(wanted, int(ANSWER_S * 1000), False), f"create topic {name!r}")
    try:
        await _until_told(cluster, name)
        skew_s = await _write(cluster, name)
        await cluster.commit(group, name, {0: 1})  # takes the right to read the topic, and to be in the group
    finally:
        await _ask(cluster, delete, f"delete topic {name!r}")
    return skew_s


async def _until_told(cluster: Cluster, name: str) -> None:
    """A broker hears of a new topic a moment after the controller has made it."""
    deadline_s = time.monotonic() + ANSWER_S
    while True:
        try:
            await find(cluster, name)
            return
        except BusError:
            if time.monotonic() > deadline_s:
                raise
        await asyncio.sleep(0.1)


async def _ask(cluster: Cluster, request: Any, what: str) -> None:
    answer = await cluster.ask(request, what)
    for topic in getattr(answer, "topic_errors", None) or answer.topic_error_codes:
        if topic[1] != UNKNOWN:
            with translated(what):
                raise_for(topic[1], what)


async def _write(cluster: Cluster, name: str) -> float:
    producer = AIOKafkaProducer(enable_idempotence=True, **cluster.servers.driver)
    look_only(producer.client)
    with translated(f"write to topic {name!r}"):
        try:
            async with asyncio.timeout(ANSWER_S):
                await started(producer.start())
                before = time.time()
                sent = await producer.send_and_wait(name, b"", partition=0)
        finally:
            await producer.stop()
    return float(sent.timestamp) / 1000 - (before + time.time()) / 2


def _grant(cluster: Cluster, prefix: str) -> str:
    user = cluster.servers.driver.get("sasl_plain_username", "NAME")
    names = f"--topic {prefix} --group {prefix} --resource-pattern-type prefixed"
    if not prefix:
        names = "--topic '*' --group '*'"
    start = f"kafka-acls.sh --bootstrap-server {cluster.servers} --add --allow-principal 'User:{user}'"
    return f"{start} --operation All {names}"
