"""`Worker`: one Scrapy process of a fleet. Owns the connections and the tasks; the scheduler is its face to Scrapy."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from scrapy import Request, signals

from bus.errors import BusError, CodecError, Misconfigured
from bus.lanes import LaneReader
from bus.message import new_id
from bus.process import is_child
from bus.registry import connect_state, connect_transport
from bus.settings import Settings, job_name, state_url
from bus.state import Job, JobState, JobStatus, State, WorkerReport
from bus.topic import LANES, dead_log, item_log, request_queue
from bus.transport import Transport
from bus.url import bus_options
from spiders.addon import addon_of
from spiders.buffer import ReadyBuffer
from spiders.fetch import Fetch
from spiders.follow import Follower
from spiders.hooks import Hooks
from spiders.inflight import InFlight
from spiders.intake import Intake
from spiders.outbox import Outbox, OutboxTopics
from spiders.pages import PageIds
from spiders.patience import insist
from spiders.politeness import FleetDelay
from spiders.presence import Presence
from spiders.project import local_feed
from spiders.requests import RequestCodec
from spiders.seen import SeenFilter
from spiders.slot import take_slot
from spiders.start import StartItems
from spiders.watchdog import watch

if TYPE_CHECKING:
    from scrapy import Spider
    from scrapy.crawler import Crawler
    from scrapy.http import Response

    from spiders.links import Links

__all__ = ["Worker"]

logger = logging.getLogger(__name__)

SPARE_IN_FLIGHT = 64  # handed out and not yet acknowledged, beyond CONCURRENT_REQUESTS
FLUSH_S = 5.0


class Worker:
    """Lives from the scheduler's `open` to its `close`."""

    job: Job
    spider: Spider
    transport: Transport
    state: State
    reader: LaneReader
    codec: RequestCodec
    outbox: Outbox
    ready: ReadyBuffer
    pages: PageIds
    follower: Follower
    presence: Presence
    intake: Intake

    def __init__(
        self,
        crawler: Crawler,
        settings: Settings,
        *,
        forever: bool = False,
        on_look: Callable[[JobStatus], None] | None = None,
    ) -> None:
        self.crawler, self.settings, self.forever, self.on_look = crawler, settings, forever, on_look
        self.id = f"{socket.gethostname()}-{os.getpid()}-{new_id()[:8]}"
        self.seen = SeenFilter()
        self.start_items = StartItems()
        self.follows_links = False
        self.ended = False  # the job is finished, or this worker leaves: nothing more is pending
        self.paused = False
        self.leaving: str | None = None
        self.failed: BaseException | None = None
        self.retry_priority = crawler.settings.getint("RETRY_PRIORITY_ADJUST")
        self.in_flight = InFlight(crawler.settings.getint("CONCURRENT_REQUESTS") + SPARE_IN_FLIGHT)
        self.last: JobStatus | None = None
        self.pages_of_others = 0  # finished by the rest of the fleet, at the last look
        self._refused = 0  # links, and not counted yet
        self._armed = self._opened = False
        self._loop: asyncio.AbstractEventLoop
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: asyncio.Task[None] | None = None
        self._stopping: asyncio.Future[JobStatus] | None = None
        self._said: set[str] = set()
        self._generation: int | None = None

    # life

    async def open(self, spider: Spider) -> None:
        """Connect, join the job, and take the engine's hooks. Raises `BusError`."""
        self.spider = spider
        self._loop = asyncio.get_running_loop()
        options = bus_options(self.settings.bus)
        name = self.settings.job or job_name(spider.name)
        self.transport = await connect_transport(self.settings.bus)
        self.state = await connect_state(state_url(self.settings))
        lanes = {lane: request_queue(options.prefix, name, lane) for lane in LANES}
        logs = item_log(options.prefix, options.retention_s), dead_log(options.prefix, options.retention_s)
        await self.transport.declare(*lanes.values(), *logs)
        status = await self._join(name)
        status = await self.state.report(self.job, WorkerReport(self.id, 0, 0)) or status
        self._refuse_shared_feeds(status)
        if self.forever:
            await self.state.acquire(self.job, f"forever:{self.id}", self.id)
        self.lane_topics = [topic.name for topic in lanes.values()]
        self.reader = await LaneReader.open(
            self.transport, {lane: topic.name for lane, topic in lanes.items()}, prefetch=2 * self.in_flight.limit,
            member=await take_slot(self.state, self.job, self.id),
        )  # fmt: skip
        self.codec = RequestCodec(spider, name, self.job.run)
        self.ready = ReadyBuffer(self.crawler)
        self.pages = PageIds(self.crawler.request_fingerprinter)
        self.follower = Follower(self.crawler, self.pages, self.seen, self.codec)
        topics = OutboxTopics({lane: topic.name for lane, topic in lanes.items()}, logs[0].name, logs[1].name)
        self.outbox = Outbox(
            self.transport, self.state, self.reader, self.codec, topics, self.job, spider.name,
            on_ended=self._on_ended, on_failure=self.fail,
        )  # fmt: skip
        self.outbox.eager = lambda: not self.ready or self.leaving is not None
        self.presence, self.intake = Presence(self), Intake(self)
        self._delay = FleetDelay(self.crawler.engine.downloader)
        Hooks(self.crawler.engine, self._finish, self.stop_job).install()
        self.crawler.signals.connect(self._arm, signals.spider_opened)
        self.outbox.open()
        self._opened = True
        self.heard(status)
        if status.state is JobState.FINISHED and not self.forever:
            logger.info("job %s is finished; `crawlbus crawl --restart` crawls it anew", name)
            self.end()

    async def _join(self, name: str) -> JobStatus:
        """Until it has a lease: a restart may come in between. A child does not undo a stop: its command has begun."""
        while True:
            status = await self.state.join(name, spider=self.spider.name, resume=not is_child())
            self.job = status.job
            if await self.state.acquire(self.job, f"worker:{self.id}", self.id):
                return status

    def _arm(self) -> None:
        """Earlier, waking the engine raises."""
        from spiders.links import LinksMiddleware
        from spiders.start import StartMiddleware

        self._armed = True
        if self.leaving is not None:  # the job was stopped before the engine could be told
            self._close(self.leaving)
            return
        filters = addon_of(self.crawler).filters
        self.follows_links = filters and Follower.usable(self.crawler, self.pages, {LinksMiddleware, StartMiddleware})
        self._spawn(self.presence.run())
        self._spawn(watch(self))
        if not self.ended:
            self._spawn(self.intake.run())

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    async def aclose(self) -> None:
        """Flush what was yielded, hand the rest back, leave."""
        if not self._opened:
            return
        self.leaving = self.leaving or "closed"
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._stopping is not None:
            await self._stopping
        self._count_refused()
        if self.failed is None:
            await self.outbox.flush()
        await self.outbox.aclose()
        try:
            await self._hand_back()
            self.last = await self.presence.report() or self.last
        except BusError as error:
            logger.warning("what was not begun comes back when its lease has run out: %s", error)
        finally:
            await self.reader.aclose()
            await self.state.aclose()
            await self.transport.aclose()

    def begin_grace(self) -> None:
        """What is in flight may finish for `grace_s`; then it is handed back, and the process ends. May be called from
        a signal handler."""
        self._loop.call_soon_threadsafe(self._loop.call_later, self.settings.grace_s, self._give_up)

    def _give_up(self) -> None:
        logger.warning("%d requests were not finished in time; they are handed back", len(self.in_flight.held()))
        self._closing = self._loop.create_task(self._end_now())

    async def _end_now(self) -> None:
        """A bus that cannot be written does not hold us: what is not flushed comes back."""
        try:
            async with asyncio.timeout(FLUSH_S):
                await self.aclose()
        finally:
            os._exit(0)

    async def _hand_back(self) -> None:
        left = self.ready.clear() + self.in_flight.held()
        if left:
            await self.state.release(self.job, [fetch.arrival for fetch in left])

    def fail(self, error: BaseException) -> None:
        """Something that waiting does not mend: this worker ends, and its deliveries come back."""
        if self.failed is not None:
            return
        self.failed = error
        if isinstance(error, BusError):
            logger.critical("%s", error)
        else:
            logger.critical("crawlbus failed", exc_info=error)
        self.leave("failed")

    def leave(self, reason: str) -> None:
        """End this worker in good order."""
        if self.leaving is None:
            self.leaving = reason
            if self._armed:
                self._close(reason)

    def _close(self, reason: str) -> None:
        self._closing = self._loop.create_task(self.crawler.engine.close_spider_async(reason=reason))

    def end(self) -> None:
        """The job is finished: the engine will find itself idle and close."""
        self.ended = True
        self.wake()

    # what the job says

    def heard(self, status: JobStatus) -> None:
        """How the job stands, seen from outside."""
        if status.state is JobState.STOPPED:
            self.leave("stopped")
        self.paused = status.state is JobState.PAUSED
        self.last = status
        self.pages_of_others = status.counters.get("pages", 0) - self.outbox.pages
        if self.on_look is not None:
            self.on_look(status)
        if status.state is JobState.FINISHED and not self.forever and self.idle:
            self.end()
        generation = status.counters.get("dedup-generation", 0)
        if self._generation not in (None, generation):
            self.seen.clear()
        self._generation = generation
        self._delay.scale(len(status.workers))
        if not self.paused:
            self.intake.wake()
            self.wake()

    def stop_job(self, reason: str) -> None:
        """The spider raised CloseSpider: stop the whole fleet."""
        logger.info("the spider closes job %s: %s", self.job.name, reason)
        if self._stopping is None:
            stop = insist(lambda: self.state.set_state(self.job.name, JobState.STOPPED))
            self._stopping = asyncio.ensure_future(stop)

    def look(self) -> None:
        """Something may have ended: see how the job stands."""
        self.presence.look()

    # what the scheduler asks

    @property
    def pending(self) -> bool:
        """Is there, or may there be, anything left for this worker?"""
        return not self.ended or not self.idle

    @property
    def idle(self) -> bool:
        return not (self.in_flight or self.ready) and self.outbox.empty

    def room(self) -> int:
        """How many more requests the ready buffer takes."""
        limit = self.in_flight.limit
        if self.paused or self.leaving is not None or len(self.ready) > limit // 2:
            return 0
        return limit - len(self.ready)

    def next(self) -> Fetch | None:
        """The next request to hand to the engine, if any may start now."""
        if self.paused or self.leaving is not None:
            return None
        if self.in_flight.full:
            self.outbox.hurry()
            return None
        found = self.ready.pop()
        if len(self.ready) <= self.in_flight.limit // 2:
            self.intake.wake()
        if found is None:
            self.outbox.hurry()
            return None
        request, fetch = found
        self.in_flight.hand_out(request, fetch)
        return fetch

    async def follow(self, links: Links, response: Response | None) -> None:
        """Take all links of a page at once; waits while the outbox is full."""
        await self.outbox.room()
        try:
            found, duplicates = self.follower.follow(links, response)
        except CodecError:  # each of them is a dead letter then, as single requests would be
            found, duplicates = self.follower.one_by_one(links, response), 0
        self.outbox.links(found)
        self.refused(duplicates)
        self.ended = False

    def refused(self, duplicates: int) -> None:
        """So many links were known."""
        self._refused += duplicates

    def _count_refused(self) -> None:
        """Once a page: to count costs more than to refuse a link."""
        if self._refused:
            self.outbox.count("duplicates", self._refused)
            self.crawler.stats.inc_value("dupefilter/filtered", self._refused)
            self._refused = 0

    # how a request ends

    def _finish(self, request: Request) -> None:
        self._count_refused()
        fetch = self.in_flight.take_back(request)
        if fetch is None:
            return  # robots.txt, media, the self-test; or one that was given back as a retry
        fetch.ignored |= fetch.retry_delay_s is not None  # a handler of `request_scheduled` dropped its retry
        if (verdict := fetch.verdict()) is not None:
            self.outbox.reject(fetch, *verdict)
        else:
            self.outbox.finish(fetch)

    def give_back(self, fetch: Fetch) -> None:
        """Its retry is on its way to the outbox: the engine's end of it means nothing any more."""
        assert fetch.request is not None
        self.in_flight.take_back(fetch.request)
        self.outbox.retry(fetch)

    def _on_ended(self, count: int) -> None:
        self.in_flight.ended(count)
        if self.idle:
            self.look()
        self.wake()

    async def alone(self) -> None:
        """Wait until nothing of this process is begun."""
        while self.in_flight.begun or self.ready:
            self.outbox.hurry()
            await self.in_flight.less()

    def bury(self, request: Request) -> None:
        """The engine dropped a request without telling."""
        logger.error("%s left the engine without an end; it goes to the dead log", request)
        if (fetch := self.in_flight.take_back(request)) is not None:
            self.outbox.reject(fetch, "lost", "the engine dropped it without telling")

    # small things

    def wake(self) -> None:
        """Let the engine ask for requests at once, rather than at its heartbeat of 5 s."""
        slot = self.crawler.engine._slot
        if self._armed and slot is not None and slot.closing is None:
            slot.nextcall.schedule()

    def once(self, kind: str, level: str, text: str) -> None:
        """Log the first of a kind."""
        if kind not in self._said:
            self._said.add(kind)
            logger.log(getattr(logging, level), "%s (said once; `crawlbus dead list` shows them all)", text)

    def _refuse_shared_feeds(self, status: JobStatus) -> None:
        feed = local_feed(self.crawler.settings)
        if feed is not None and len(status.workers) > 1:
            raise Misconfigured(
                f"FEEDS writes to the local file {feed}, and another worker of job {status.job.name} is running: "
                "use --sink in place of FEEDS"
            )
