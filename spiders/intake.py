"""`Intake`: from the bus to the ready buffer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from bus.backoff import Backoff
from bus.codec import SCHEMA
from bus.dead import dead_letter
from bus.errors import CodecError, ConnectionLost, OverLimit, StaleDelivery
from bus.message import Delivery
from bus.state import Arrival, Verdict
from bus.work import delay
from spiders.fetch import Fetch
from spiders.patience import OUTAGE, insist

if TYPE_CHECKING:
    from scrapy import Request

    from spiders.worker import Worker

__all__ = ["Intake"]

logger = logging.getLogger(__name__)

PAGE_BYTES = 16
RECEIVE_S = 5.0
NEWER_SCHEMA_DELAY_S = 60.0


class Intake:
    """Receives, asks the state whether to fetch (`arrive`), decodes, and fills the ready buffer.

    A request that was started too often without an end is fetched alone: nothing else of this process is begun
    until it is finished, so that no healthy neighbour is blamed for what it does.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._poison: list[tuple[Delivery, Arrival]] = []
        self._room = asyncio.Event()
        self._room.set()

    def wake(self) -> None:
        """There is room in the ready buffer."""
        self._room.set()

    async def run(self) -> None:
        """Until cancelled."""
        backoff = Backoff()
        while True:
            try:
                await self._turn()
            except ConnectionLost as error:
                OUTAGE.begin(self, error)
                await asyncio.sleep(backoff.next_s())
            else:
                OUTAGE.end(self)
                backoff.reset()

    async def _turn(self) -> None:
        worker = self._worker
        if self._poison:
            await self._fetch_alone(*self._poison.pop())
            return
        room = worker.room()
        if not room:
            self._room.clear()
            await self._room.wait()
            return
        deliveries = await worker.reader.receive(max_messages=room, timeout_s=RECEIVE_S)
        if deliveries:
            await self._admit(deliveries)

    async def _admit(self, deliveries: Sequence[Delivery]) -> None:
        worker = self._worker
        asked: list[tuple[Delivery, Arrival]] = []
        unread: list[Delivery] = []
        for delivery in deliveries:
            headers = delivery.message.headers
            page, schema, run = headers.get("page"), headers.get("schema"), headers.get("run")
            if isinstance(schema, int) and schema > SCHEMA:
                await self._put_back(delivery)
            elif not isinstance(page, bytes) or len(page) != PAGE_BYTES or not isinstance(run, int):
                await self._bury(delivery, "its headers name no page and run")
            elif run != worker.job.run:
                unread.append(delivery)
            else:
                asked.append((delivery, Arrival(page, delivery.message.id, delivery.message.attempt)))
        arrivals = [arrival for _, arrival in asked]
        verdicts = await insist(lambda: worker.state.arrive(worker.job, arrivals)) if asked else []
        for (delivery, arrival), verdict in zip(asked, verdicts, strict=True):
            if verdict is Verdict.FETCH:
                self._begin(Fetch(delivery, arrival.page))
            elif verdict in (Verdict.ALONE, Verdict.DEAD):
                self._poison.append((delivery, arrival))
            else:
                unread.append(delivery)
        if unread:
            worker.outbox.count("duplicates", len(unread))
            await self._ack(unread)
        worker.wake()

    def _begin(self, fetch: Fetch) -> None:
        """Into the ready buffer; what cannot be decoded is dead."""
        worker = self._worker
        try:
            request = worker.codec.decode(fetch.delivery.message)
            if fetch.attempt:
                request.priority += worker.retry_priority * fetch.attempt
            worker.ready.push(request, fetch)
        except CodecError as error:
            worker.once("decode", "ERROR", f"a request that cannot be read: {error}")
            worker.in_flight.begun += 1
            worker.outbox.reject(fetch, "limit" if isinstance(error, OverLimit) else "decode", str(error))

    async def _fetch_alone(self, delivery: Delivery, arrival: Arrival) -> None:
        worker = self._worker
        await worker.alone()
        arrival = arrival._replace(alone=True)
        verdict = (await insist(lambda: worker.state.arrive(worker.job, [arrival])))[0]
        fetch = Fetch(delivery, arrival.page, alone=True)
        if verdict is Verdict.FETCH:
            logger.warning("a request was started too often without an end; it is fetched alone now")
            self._begin(fetch)
            worker.wake()
        elif verdict is Verdict.DEAD:
            fetch.request = self._request_of(delivery)
            worker.in_flight.begun += 1
            worker.outbox.reject(fetch, "poison", "each worker that fetched it died before it was finished")
        else:
            await self._ack([delivery])
            return
        await worker.alone()

    def _request_of(self, delivery: Delivery) -> Request | None:
        """For its URL."""
        try:
            return self._worker.codec.decode(delivery.message)
        except CodecError:
            return None

    async def _put_back(self, delivery: Delivery) -> None:
        self._worker.once("schema", "WARNING", "requests of a newer version of crawlbus are put back for later")
        worker = self._worker
        await self._no_stale(lambda: delay(worker.transport, worker.reader, delivery, NEWER_SCHEMA_DELAY_S))

    async def _bury(self, delivery: Delivery, why: str) -> None:
        """A message that no call of the state can be made for: dead log, then ack; its page stays unaccounted."""
        worker = self._worker
        worker.once("headers", "ERROR", f"a message that is no request: {why}")
        letter = dead_letter(
            delivery.message, reason="decode", detail=why, job=worker.job.name, spider=worker.spider.name, url=None,
            at=time.time(), source=delivery.topic, whole=False,
        )  # fmt: skip
        worker.outbox.bury(letter, "decode")
        await worker.outbox.flush()
        await self._ack([delivery])

    async def _ack(self, deliveries: list[Delivery]) -> None:
        await self._no_stale(lambda: self._worker.reader.ack(deliveries))

    async def _no_stale(self, call: Callable[[], Awaitable[None]]) -> None:
        try:
            await insist(call)
        except StaleDelivery:
            pass  # it is another's now, who will find the same
