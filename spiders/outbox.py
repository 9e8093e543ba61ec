"""`Outbox`: everything a crawl yields, published, confirmed, marked, finished and acknowledged in that order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from bus.dead import Reason
from bus.errors import StaleDelivery
from bus.items import item_messages
from bus.message import Delivery, Message
from bus.state import Job, State
from bus.transport import Transport
from spiders.batch import Batch, Link, Prepared
from spiders.fetch import Fetch
from spiders.patience import insist
from spiders.requests import RequestCodec

__all__ = ["Outbox", "OutboxTopics"]

logger = logging.getLogger(__name__)

MAX_ENTRIES = 10_000
MAX_BYTES = 16 * 1024 * 1024  # of items and request bodies
HASTE_ENDED = 32  # so many deliveries wait for their ack: go at once
LINGER_S = 0.05  # otherwise gather for so long, as long as nobody waits


class Reader(Protocol):
    async def ack(self, deliveries: Sequence[Delivery]) -> None: ...


class OutboxTopics(NamedTuple):
    """Names of the topics an outbox publishes to."""

    lanes: dict[str, str]
    items: str
    dead: str


class Outbox:
    """Ordered and bounded. One batch at a time: check -> publish -> confirmed -> mark and finish -> ack (ADR 0002);
    a batch begins only when the one before it is marked. No entry is ever dropped: what fails for want of a
    connection is repeated, anything else ends the worker through `on_failure`, and the deliveries come back.
    """

    def __init__(
        self,
        transport: Transport,
        state: State,
        reader: Reader,
        codec: RequestCodec,
        topics: OutboxTopics,
        job: Job,
        spider: str,
        *,
        on_ended: Callable[[int], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._transport, self._state, self._reader, self._codec = transport, state, reader, codec
        self._topics, self._job, self._spider = topics, job, spider
        self._on_ended, self._on_failure = on_ended, on_failure
        self._batch = Batch()
        self._filling, self._acked = 0, -1  # numbers of batches
        self._busy = self._broken = self._said_unfit = False
        self.pages = self.published = 0  # finished, and new requests, through here
        self._due = asyncio.Event()
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._acks: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.eager: Callable[[], bool] = lambda: False  # does somebody wait for what is in here?

    # what goes in

    def link(self, page: bytes, link: Link) -> None:
        """A request that some page, or `start()`, has yielded."""
        self._batch.links.setdefault(page, link)
        self._batch.size_bytes += len(link.request.body) if link.request is not None else 0
        self._added()

    def links(self, links: Iterable[tuple[bytes, Link]]) -> None:
        """Many at once."""
        found = self._batch.links
        before = len(found)
        for page, link in links:
            found.setdefault(page, link)
        self._added(len(found) - before)

    def item(self, packed: bytes) -> None:
        """An item that has passed the pipelines."""
        self._batch.items.append(packed)
        self._batch.size_bytes += len(packed)
        self._added()

    def finish(self, fetch: Fetch) -> None:
        """The request is done: all it yielded is in here."""
        self._batch.finished.append(fetch)
        self._added()

    def retry(self, fetch: Fetch) -> None:
        """Once more, after `fetch.retry_delay_s`."""
        self._batch.retries.append(fetch)
        self._added()

    def reject(self, fetch: Fetch, reason: Reason, detail: str) -> None:
        """Never again: to the dead log, then finished."""
        self._batch.rejected.append((fetch, reason, detail))
        self._added()

    def bury(self, letter: Message, reason: Reason) -> None:
        """A dead letter that is no request of its own, such as an item that cannot be encoded."""
        self._batch.dead.append(letter)
        self.count("dead")
        self.count(f"dead.{reason}")
        self._added()

    def count(self, name: str, by: int = 1) -> None:
        """Add to the job's counters, with the next batch."""
        self._batch.counts[name] += by

    def _added(self, entries: int = 1) -> None:
        batch = self._batch
        batch.size += entries
        if self._busy or self._due.is_set():
            return
        large = batch.size >= MAX_ENTRIES // 4 or batch.size_bytes >= MAX_BYTES // 4
        if batch.ended >= HASTE_ENDED or large or self.eager():
            self._due.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._due.set)

    def hurry(self) -> None:
        """Somebody waits: send what is there now."""
        if self._batch.size or self._batch.counts:
            self._due.set()

    # how it stands

    @property
    def empty(self) -> bool:
        """Nothing waits, and nothing is under way that is not yet marked and acknowledged."""
        return not self._batch.size and not self._busy and self._acks is None

    @property
    def full(self) -> bool:
        return self._batch.size >= MAX_ENTRIES or self._batch.size_bytes >= MAX_BYTES

    async def room(self) -> None:
        """Wait while the outbox is full, so that a callback may yield a million links."""
        while self.full and not self._broken:
            self.hurry()
            await self._wait_for_change()

    async def flush(self) -> None:
        """Wait until all that is in here now is marked and acknowledged, or the outbox has failed."""
        last = self._filling if self._batch.size or self._batch.counts else self._filling - 1
        while self._acked < last and not self._broken:
            if self._filling <= last:
                self.hurry()
            await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    # what goes out

    def open(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        """Stop sending; what is left stays unacknowledged, and comes back."""
        for task in (self._task, self._acks):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()

    async def _run(self) -> None:
        try:
            while True:
                await self._due.wait()
                await self.send()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._broken = True
        self._changed.set()
        self._on_failure(error)

    async def send(self) -> None:
        """Send one batch: all that is in here now."""
        batch, self._batch = self._batch, Batch()
        number, self._filling = self._filling, self._filling + 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due.clear()
        self._busy = True
        try:
            out = await self._publish(batch)
            await self._settle(out)
            await self._ack_behind(number, out.ended)
        finally:
            self._busy = False
            self._changed.set()
            if self._batch.size:
                self._added(0)

    async def _publish(self, batch: Batch) -> Prepared:
        """Check, encode, publish; returns when the bus has confirmed all."""
        job, pages = self._job, list(batch.links)
        unseen = await insist(lambda: self._state.check(job, pages)) if pages else set()
        out = batch.prepare([page for page in pages if page in unseen], self._codec, job.name, self._spider)
        if out.unfit and not self._said_unfit:
            self._said_unfit = True
            logger.error("a request cannot travel: %s (said once; `crawlbus dead list` shows them all)", out.unfit[0])
        calls = [(self._topics.lanes[lane], messages) for lane, messages in out.requests.items()]
        calls += out.retries.items()
        if out.items:
            calls.append((self._topics.items, item_messages(job.name, self._spider, job.run, out.items)))
        if out.dead:
            calls.append((self._topics.dead, out.dead))
        await _all(self._publish_to(topic, messages) for topic, messages in calls)
        return out

    async def _publish_to(self, topic: str, messages: list[Message]) -> None:
        await insist(lambda: self._transport.publish(topic, messages))

    async def _settle(self, out: Prepared) -> None:
        """Mark and finish in one call, then enter the retries. Only after the confirms, before any ack."""
        job = self._job
        if out.mark or out.finish or out.counts.total():
            await insist(lambda: self._state.mark(job, out.mark, finish=out.finish, counts=out.counts))
        self.pages += out.counts["pages"]
        self.published += len(out.mark)
        if out.attempts:
            await insist(lambda: self._state.retry(job, out.attempts))

    async def _ack_behind(self, number: int, ended: list[Fetch]) -> None:
        """Acknowledge while the next batch is on its way; never two at a time."""
        if self._acks is not None:
            await self._acks
        if ended:
            self._acks = asyncio.get_running_loop().create_task(self._ack(number, ended))
        else:
            self._acked = number

    async def _ack(self, number: int, ended: list[Fetch]) -> None:
        try:
            await insist(lambda: self._reader.ack([fetch.delivery for fetch in ended]))
        except StaleDelivery as stale:
            logger.info(
                "%d deliveries were no longer ours: their pages are finished all the same",
                len(stale.deliveries),
            )
        except Exception as error:
            self._fail(error)
            return
        finally:
            self._acks = None
            self._changed.set()
        self._acked = number
        self._on_ended(len(ended))


async def _all(calls: Iterable[Awaitable[None]]) -> None:
    """Run side by side; wait for all of them, then raise the first error."""
    waiting = list(calls)
    if len(waiting) == 1:
        await waiting[0]
        return
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
