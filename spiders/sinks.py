"""`SinkBeside`: the consumer that runs beside a single worker, as a child, or in the process for a memory bus."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from scrapy import signals

from bus.errors import ConnectionLost
from bus.registry import connect_state, connect_transport, load
from bus.state import JobState, JobStatus, State
from bus.transport import Transport
from bus.url import scheme
from spiders.addon import worker_of
from spiders.children import Child, ChildFailed, Reached

if TYPE_CHECKING:
    from scrapy.crawler import Crawler

__all__ = ["SinkBeside", "consumer_child", "is_behind"]

logger = logging.getLogger(__name__)


class SinkBeside(NamedTuple):
    """Drains the item log into `sink` while the worker crawls, and ends when it has drained."""

    bus: str
    state: str
    sink: str
    job: str

    def attach(self, crawler: Crawler) -> _Running:
        """Begin when the spider opens; the spider's end waits until all is stored."""
        running = _Running(self, crawler)
        crawler.signals.connect(running.opened, signals.spider_opened)
        crawler.signals.connect(running.closed, signals.spider_closed)
        return running


class _Running:
    def __init__(self, sink: SinkBeside, crawler: Crawler) -> None:
        self._sink, self._crawler = sink, crawler
        self._child: Child | None = None
        self._stop = asyncio.Event()
        self._task: asyncio.Task[int] | None = None
        self._held: list[Transport | State] = []
        self._in_process = scheme(sink.bus) == "memory"
        self.code = 0
        self.errors = ""

    async def opened(self, **_: Any) -> None:
        if self._in_process:  # held until all is stored: a bus of one process ends with its last user
            self._held = [await connect_transport(self._sink.bus), await connect_state(self._sink.state)]
        self._begin()
        assert self._task is not None
        self._task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[int]) -> None:
        """A crawl whose items nobody stores does not go on."""
        if not task.cancelled() and (task.exception() is not None or task.result() not in (0, 4)):
            worker_of(self._crawler).leave("sink failed")

    def _begin(self) -> None:
        sink = self._sink
        if self._in_process:
            consume: Callable[..., Awaitable[int]] = load("crawlbus.parts", "consume")
            self._task = asyncio.ensure_future(consume(sink.bus, sink.state, sink.sink, sink.job, self._stop))
        else:
            self._child = consumer_child(sink.bus, sink.state, sink.sink, sink.job, Reached(True))
            self._task = asyncio.ensure_future(self._child.run())

    async def closed(self, spider: Any, reason: str, **_: Any) -> None:
        if self._task is None:
            return
        last = worker_of(spider.crawler).last
        over = last is not None and last.state in (JobState.FINISHED, JobState.STOPPED)
        if not over:
            self._leave()
        try:
            self.code = await self._task
            if over and not self.code and await self._is_behind():
                self._begin()
                self.code = await self._task
        except ChildFailed as failed:
            self.code, self.errors = failed.code, failed.errors
        finally:
            for connection in self._held:
                await connection.aclose()

    async def _is_behind(self) -> bool:
        try:
            state = await connect_state(self._sink.state)
            try:
                status = await state.status(self._sink.job)
            finally:
                await state.aclose()
        except ConnectionLost as error:
            logger.warning("whether all is stored is not known (`crawlbus consume` stores the rest): %s", error)
            return False
        return status is not None and is_behind(status)

    def _leave(self) -> None:
        self._stop.set()
        if self._child is not None:
            self._child.stop()


def is_behind(status: JobStatus) -> bool:
    """May a consumer that has ended with the job have stored less than there is?

    The workers of a stopped job still publish what they had begun; a spider that does not close when idle may go on
    after the job was finished.
    """
    counts = status.counters
    return status.state is JobState.STOPPED or counts.get("items_stored:default", 0) < counts.get("items", 0)


def consumer_child(bus: str, state: str, sink: str, job: str, reached: Reached) -> Child:
    """`crawlbus consume` for one job, until it has drained."""
    environment = {"CRAWLBUS_BUS": bus, "CRAWLBUS_STATE": state, "CRAWLBUS_SINK": sink}
    arguments = ["consume", "--job", job, "--until-drained", "--wait", "3600"]
    return Child(arguments, environment, reached, final=frozenset({0, 4}), tells_ready=False)
