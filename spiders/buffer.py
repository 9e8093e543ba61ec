"""`ReadyBuffer`: the short buffer between the bus and the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrapy.squeues import FifoMemoryQueue
from scrapy.utils.misc import build_from_crawler, load_object

from bus.errors import CodecError
from spiders.fetch import Fetch

if TYPE_CHECKING:
    from scrapy import Request
    from scrapy.crawler import Crawler

__all__ = ["ReadyBuffer"]


class ReadyBuffer:
    """Requests that have arrived and wait for the engine, in Scrapy's own priority queue, so that the balance
    between hosts and the priorities of requests stay; requests of one priority come in bus order.

    What a dead worker held comes first: behind newer work it would be begun by one short life after another, finished
    by none, and taken for poison.
    """

    def __init__(self, crawler: Crawler) -> None:
        queue = load_object(crawler.settings["SCHEDULER_PRIORITY_QUEUE"])
        self._again, self._fresh = (
            build_from_crawler(queue, crawler, downstream_queue_cls=FifoMemoryQueue, key="") for _ in range(2)
        )
        self._fetches: dict[Request, Fetch] = {}

    def __len__(self) -> int:
        return len(self._fetches)

    def push(self, request: Request, fetch: Fetch) -> None:
        """Raises `CodecError` for a request that the queue cannot place, as with a list for a `download_slot`."""
        fetch.request = request
        try:
            (self._again if fetch.delivery.redeliveries else self._fresh).push(request)
        except Exception as error:
            raise CodecError(f"not a request that can be queued: {error}") from None
        self._fetches[request] = fetch

    def pop(self) -> tuple[Request, Fetch] | None:
        if not self._fetches:
            return None
        request = (self._again or self._fresh).pop()
        return request, self._fetches.pop(request)

    def clear(self) -> list[Fetch]:
        """Take everything out."""
        left = [item[1] for item in iter(self.pop, None)]
        self._again.close()
        self._fresh.close()
        return left
