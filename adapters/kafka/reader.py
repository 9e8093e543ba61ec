"""`Reader`: what the readers of a QUEUE and of a LOG share."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import UnknownTopicOrPartitionError

from adapters.kafka.cluster import Cluster
from adapters.kafka.patience import failure, look_only, started
from bus.errors import BusError, Closed
from bus.message import Delivery
from bus.topic import Topic

__all__ = ["FETCH", "WAIT_MS", "Reader", "check_there", "start", "stop"]

logger = logging.getLogger(__name__)

# A request of an idle reader waits at the broker for half a second; seeks and rebalances wait for its end. One that is
# far behind has at most a MiB of each partition and 8 MiB of all in hand: the driver asks for more once that is taken.
FETCH: dict[str, Any] = {
    "auto_offset_reset": "none",
    "enable_auto_commit": False,
    "fetch_max_wait_ms": 500,
    "fetch_max_bytes": 8 * 1024 * 1024,
    "max_partition_fetch_bytes": 1024 * 1024,
    "consumer_timeout_ms": 500,
}
WAIT_MS = 10_000  # so soon a reader without news sees that its topic was deleted
USE_UP_S = 60.0
CLOSE_S = 3.0


class Reader:
    """Hands out what a task of its own, the pump, has fetched; tells its caller when the cluster is away."""

    def __init__(self, cluster: Cluster, topic: Topic, prefetch: int) -> None:
        self._cluster, self._name = cluster, topic.name
        self._prefetch = prefetch
        self._failure: BusError | None = None  # raised by each `receive` until something mends it
        self._broken: BusError | None = None  # a task of ours has ended: nothing mends that
        self._waiter: asyncio.Future[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._forget: Callable[[], None] = lambda: None
        self.closed = self._reading = False

    async def receive(self, *, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        if self._reading:
            raise BusError(f"two tasks read one subscription of {self._name!r}")
        self._reading = True
        try:
            return await self._receive(max_messages, timeout_s)
        finally:
            self._reading = False

    async def _receive(self, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            self._check_open()
            if some := self._take(max_messages):
                return some
            if (trouble := self._trouble()) is not None:
                raise trouble
            left_s = deadline - loop.time()
            if left_s <= 0.0:
                await asyncio.sleep(0)  # whoever asks again and again lets the pump work
                return ()
            self._waiter = loop.create_future()
            timer = loop.call_later(left_s, self._ring)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None

    async def aclose(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._forget()
        self._ring()
        await self._close()

    def _listen(self) -> None:
        """It is open: a `receive` that waits hears when the cluster goes away."""
        self._forget = self._cluster.on_change(self._ring)

    def _trouble(self) -> BusError | None:
        """Why nothing comes."""
        return self._failure or (self._cluster.lost() if self._cluster.away else None)

    @abstractmethod
    def _take(self, max_messages: int) -> Sequence[Delivery]:
        """What is there, now."""

    @abstractmethod
    async def _close(self) -> None: ...

    def _check_open(self) -> None:
        if self.closed:
            raise Closed(f"the subscription of {self._name!r} is closed")
        if self._broken is not None:
            raise self._broken

    def _ring(self) -> None:
        """Something may have come for a `receive` that waits."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(task := asyncio.create_task(work))
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Whoever ends a task takes it off the list before: one that ends with an error of its own is a defect."""
        if task in self._tasks and (error := failure(task)) is not None:
            logger.error("a task that reads topic %r ended", self._name, exc_info=error)
            self._broken = BusError(f"reading topic {self._name!r} failed: {error!r}")
            self._ring()

    async def _end_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def start(consumer: AIOKafkaConsumer) -> None:
    """The driver would ask for partitions without news while others are not used up; an answer that waits for news
    then holds up the next question, which all need, for half a second."""
    look_only(consumer._client)
    try:
        await started(consumer.start(), lambda: consumer._fetcher is not None)
    except BaseException:
        await stop(consumer)
        raise
    consumer._fetcher._prefetch_backoff = USE_UP_S


def check_there(consumer: AIOKafkaConsumer, name: str) -> None:
    """The driver waits without a word for a topic that is no more."""
    if consumer._client.cluster.partitions_for_topic(name) is None:
        raise UnknownTopicOrPartitionError(name)


async def stop(consumer: AIOKafkaConsumer) -> None:
    """Ends all tasks of the driver, also where its own `stop` waits for a cluster that is away, or stumbles."""
    stopping = asyncio.create_task(consumer.stop())
    await asyncio.wait([stopping], timeout=CLOSE_S)
    if stopping.done() and not stopping.cancelled() and stopping.exception() is None:
        return
    stopping.cancel()
    coordinator, fetcher = consumer._coordinator, consumer._fetcher
    tasks = [stopping]
    if coordinator is not None:
        names = ("_coordination_task", "_heartbeat_task", "_commit_refresh_task", "_reset_committed_task")
        tasks += [task for name in names if (task := getattr(coordinator, name, None)) is not None]
    if fetcher is not None:
        tasks += [fetcher._fetch_task, *fetcher._pending_tasks]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await consumer._client.close()
