"""What `crawlbus doctor` asks a Kafka cluster."""

from __future__ import annotations

from adapters.kafka.cluster import Cluster
from bus.findings import NOTE, OK, Finding

__all__ = ["examine"]

REPLICAS = 3


async def examine(cluster: Cluster) -> list[Finding]:
    """How many brokers, and whether the offsets of groups can be kept."""
    answer = await cluster.metadata([])
    brokers = len(answer["brokers"])
    if brokers >= REPLICAS:
        found = [Finding("bus", OK, f"Kafka with {brokers} brokers: topics have {REPLICAS} replicas")]
    else:
        said = f"Kafka with {brokers} broker{'s' * (brokers > 1)}: a topic has as many replicas, and no more"
        found = [Finding("bus", NOTE, said, "three brokers survive the loss of one")]
    await cluster.find_coordinator("crawlbus-doctor")
    return [*found, Finding("bus", OK, "it keeps the offsets of consumer groups")]
