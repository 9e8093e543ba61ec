"""`Publisher`: the one producer of a transport, idempotent, so that its own retries neither double nor reorder."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError, UnknownTopicOrPartitionError

from adapters.kafka.cluster import CONNECT_S, Cluster
from adapters.kafka.errors import said
from adapters.kafka.patience import look_only, started
from adapters.kafka.record import HEADER
from adapters.kafka.topics import MESSAGE_BYTES, not_told, partition_of
from bus.errors import Misconfigured, OverLimit, PublishUnconfirmed
from bus.head import pack_head
from bus.message import Message

__all__ = ["Publisher"]

CONFIRM_S = 28.0
REQUEST_S = 10.0
BATCH_BYTES = 256 * 1024
CLOSE_S = 3.0


class Publisher:
    """What is sent while a request is under way shares the next one; nothing lingers.

    A batch that Kafka has refused leaves a hole in the numbers by which it knows our batches, and all that follow
    would be refused: the next `publish` has a new producer. What was given to the old one is sent or fails.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._retired: set[asyncio.Task[None]] = set()

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        """Raises `PublishUnconfirmed` where no answer came in time: the messages may still be stored later."""
        if self._cluster.away:
            raise self._cluster.lost()
        heads = [pack_head(message) for message in messages]
        producer = await self._started()
        sent: list[asyncio.Future[Any]] = []
        try:
            async with asyncio.timeout(CONFIRM_S):
                for message, packed in zip(messages, heads, strict=True):
                    partitions = len(await producer.partitions_for(topic))  # others may add some at any time
                    partition = partition_of(message.key, partitions)
                    headers = [(HEADER, packed)]
                    sent.append(await producer.send(topic, message.body, message.key or None, partition, None, headers))
                for future in sent:
                    await future
        except TimeoutError:
            raise PublishUnconfirmed(
                f"Kafka has not confirmed {len(messages)} messages for {topic!r} in {CONFIRM_S:g} s; is the "
                "cluster up, and has the topic as many replicas in sync as its min.insync.replicas?"
            ) from None
        except KafkaError as error:
            if not sent:  # refused before anything was given to the producer
                unknown = isinstance(error, UnknownTopicOrPartitionError)
                raise (await not_told(self._cluster, topic) if unknown else self._refused(error, topic)) from None
            self._retire(producer)
            found = self._refused(error, topic)
            if isinstance(found, Misconfigured | OverLimit):
                raise found from None
            raise PublishUnconfirmed(
                f"Kafka has not confirmed messages for {topic!r}: {type(error).__name__}"
            ) from None
        finally:
            for future in sent:
                if not future.cancel() and not future.cancelled():
                    future.exception()  # seen: the first one was raised

    async def aclose(self) -> None:
        if self._producer is not None:
            self._retire(self._producer)
        await asyncio.gather(*self._retired)

    def _refused(self, error: KafkaError, topic: str) -> Exception:
        return said(error, f"publish to topic {topic!r}")

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is not None:
            return self._producer
        async with self._starting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    enable_idempotence=True,
                    max_request_size=MESSAGE_BYTES,
                    max_batch_size=BATCH_BYTES,
                    request_timeout_ms=int(REQUEST_S * 1000),
                    **self._cluster.servers.driver,
                )
                look_only(producer.client)
                try:
                    async with asyncio.timeout(CONNECT_S):
                        await started(producer.start())
                except BaseException as error:
                    await _stop(producer)
                    if isinstance(error, KafkaConnectionError | TimeoutError):
                        raise self._cluster.lost() from None
                    if isinstance(error, KafkaError | OSError):
                        raise said(error, "publish") from None
                    raise
                self._producer = producer
        return self._producer

    def _retire(self, producer: AIOKafkaProducer) -> None:
        if self._producer is producer:
            self._producer = None
            task = asyncio.create_task(_stop(producer))
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)


async def _stop(producer: AIOKafkaProducer) -> None:
    """Send what it has; of a cluster that is away, give it up, and end the driver's tasks."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await producer.flush()
    except TimeoutError:
        producer._message_accumulator.fail_all(KafkaConnectionError("closed"))
        await producer.client.close()
    with suppress(KafkaError, KeyError):  # a batch that was given up is not where the driver looks for it
        await producer.stop()
