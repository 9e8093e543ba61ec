"""`BusScheduler`: Scrapy's scheduler interface, which is synchronous, over a worker, which is not."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from scrapy.core.scheduler import BaseScheduler
from scrapy.utils.defer import deferred_from_coro

from spiders.addon import addon_of
from spiders.batch import Link
from spiders.fetch import current_fetch
from spiders.worker import Worker

if TYPE_CHECKING:
    from scrapy import Request, Spider
    from scrapy.crawler import Crawler
    from twisted.internet.defer import Deferred

__all__ = ["BusScheduler"]


class BusScheduler(BaseScheduler):
    """`next_request` takes from the worker's ready buffer, `enqueue_request` appends to its outbox; neither waits
    and neither raises."""

    def __init__(self, crawler: Crawler) -> None:
        self._addon = addon_of(crawler)
        self._worker = Worker(crawler, self._addon.settings, forever=self._addon.forever, on_look=self._addon.on_look)
        self._addon.worker = self._worker
        self._stats = crawler.stats
        self._filters = self._addon.filters

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> BusScheduler:
        return cls(crawler)

    def open(self, spider: Spider) -> Deferred[None] | None:
        return _deferred(self._addon.guard(self._worker.open(spider)))

    def close(self, reason: str) -> Deferred[None] | None:
        return _deferred(self._worker.aclose())

    def has_pending_requests(self) -> bool:
        return self._worker.pending

    def next_request(self) -> Request | None:
        fetch = self._worker.next()
        current_fetch.set(fetch)
        if fetch is None:
            return None
        self._stats.inc_value("scheduler/dequeued")
        return fetch.request

    def enqueue_request(self, request: Request) -> bool:
        worker, fetch = self._worker, current_fetch.get()
        if fetch is not None and request is fetch.request and fetch.retry_delay_s is not None:
            worker.give_back(fetch)
            return True
        root = fetch is None or (fetch.is_start and fetch.handler is None)  # of `start()`, or a redirect of such
        page = worker.pages.of(request, fetch, root=root, filtered=self._filters and not request.dont_filter)
        if not worker.seen.add(page):
            worker.refused(1)
            return False
        source = fetch.request.url if fetch is not None and fetch.request is not None else "start"
        worker.ended = False
        worker.outbox.link(page, Link(request.url, request.priority, source, start=root, request=request))
        self._stats.inc_value("scheduler/enqueued")
        return True


def _deferred(coroutine: Coroutine[Any, Any, None]) -> Deferred[None]:
    deferred: Deferred[None] = deferred_from_coro(coroutine)
    return deferred
