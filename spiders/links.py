"""`Links`: all links of a page as one object, and the spider middleware that takes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from scrapy import Request
from scrapy.http import Response

from spiders.addon import worker_of

if TYPE_CHECKING:
    from parsel import Selector
    from scrapy.crawler import Crawler

    from spiders.worker import Worker

__all__ = ["Links", "LinksMiddleware"]


class Links:
    """Many requests alike, resolved, filtered, deduplicated and published as one batch.

    `urls` are absolute or relative to the response, as strings or selectors of `a`, `link` or `::attr(href)`; what
    is not http or https is left out. A callback may yield it like a Request, and the crawl is the same as with
    `yield from response.follow_all(urls)`; a Request is built only by the worker that fetches it. Where the project
    has spider middlewares of its own, it becomes single Requests again.
    """

    __slots__ = ("callback", "cb_kwargs", "errback", "headers", "meta", "priority", "urls")

    def __init__(
        self,
        urls: Iterable[str | Selector],
        callback: Callable[..., Any] | None = None,
        *,
        errback: Callable[..., Any] | None = None,
        priority: int = 0,
        meta: dict[str, Any] | None = None,
        cb_kwargs: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.urls = [url if isinstance(url, str) else _href(url) for url in urls]
        self.callback, self.errback, self.priority = callback, errback, priority
        self.meta, self.cb_kwargs, self.headers = meta, cb_kwargs, headers

    def __repr__(self) -> str:
        return f"<Links: {len(self.urls)}>"

    def request(self, url: str, *, encoding: str = "utf-8") -> Request:
        """The single Request of an absolute URL."""
        return Request(
            url, callback=self.callback, errback=self.errback, priority=self.priority, meta=self.meta,
            cb_kwargs=self.cb_kwargs, headers=self.headers, encoding=encoding,
        )  # fmt: skip

    def requests(self, response: Response | None) -> Iterator[Request]:
        """As single Requests; a URL that no Request can have is left out."""
        encoding = getattr(response, "encoding", "utf-8")
        for url in self.urls:
            absolute = url if response is None else response.urljoin(url)
            if absolute.startswith(("http://", "https://")):
                yield self.request(absolute, encoding=encoding)


def _href(selector: Selector) -> str:
    root = selector.root
    if isinstance(root, str):
        return root.strip()
    return str(root.get("href", "")).strip()


class LinksMiddleware:
    """Innermost of the spider middlewares: takes `Links` out, and waits while the outbox is full."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> LinksMiddleware:
        return cls(crawler)

    @property
    def _worker(self) -> Worker:
        return worker_of(self._crawler)

    async def process_spider_output(self, response: Response, result: AsyncIterator[Any]) -> AsyncIterator[Any]:
        worker = self._worker
        async for output in result:
            if type(output) is Links:
                if worker.follows_links:
                    await worker.follow(output, response)
                else:
                    for request in output.requests(response):
                        yield request
            else:
                yield output
            if worker.outbox.full:
                await worker.outbox.room()

    async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for output in start:
            if isinstance(output, Links):
                for request in output.requests(None):
                    yield request
            else:
                yield output
