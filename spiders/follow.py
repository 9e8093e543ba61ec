"""`Follower`: the batch rules for `Links` that stand for Scrapy's own middlewares on single Requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from scrapy import Request
from scrapy.downloadermiddlewares.offsite import OffsiteMiddleware
from scrapy.http import HtmlResponse, Response
from scrapy.spidermiddlewares import depth, httperror, metacopy, referer, start, urllength
from scrapy.utils.response import get_base_url
from w3lib.url import safe_url_string

from spiders.batch import Link
from spiders.pages import PageIds, is_plain
from spiders.requests import RequestCodec
from spiders.seen import SeenFilter

if TYPE_CHECKING:
    from scrapy.crawler import Crawler

    from spiders.links import Links

__all__ = ["Follower"]

_KNOWN = {
    depth.DepthMiddleware, httperror.HttpErrorMiddleware, metacopy.MetaCopyDetectionMiddleware,
    referer.RefererMiddleware, start.StartSpiderMiddleware, urllength.UrlLengthMiddleware,
}  # fmt: skip
_HTTP = ("http://", "https://")


class Follower:
    """Resolves, filters and fingerprints the links of a page at once: known URLs first, by plain string.

    Depth, URL length, offsite and referer give what Scrapy's middlewares give one by one.
    """

    def __init__(self, crawler: Crawler, pages: PageIds, seen: SeenFilter, codec: RequestCodec) -> None:
        self._crawler, self._pages, self._seen, self._codec = crawler, pages, seen, codec
        self._depth = crawler.get_spider_middleware(depth.DepthMiddleware)
        self._referer = crawler.get_spider_middleware(referer.RefererMiddleware)
        length = crawler.get_spider_middleware(urllength.UrlLengthMiddleware)
        self._max_url = length.maxlength if length is not None else None
        self._offsite = crawler.get_downloader_middleware(OffsiteMiddleware)
        self._hosts: dict[str, bool] = {}
        assert crawler.spider is not None
        self._spider = crawler.spider

    @staticmethod
    def usable(crawler: Crawler, pages: PageIds, ours: set[type]) -> bool:
        """May links go as a batch? Not past a middleware or fingerprinter of the project's own."""
        middlewares = crawler.engine.scraper.spidermw.middlewares
        offsite = crawler.get_downloader_middleware(OffsiteMiddleware)
        return (
            pages.plain
            and all(type(each) in _KNOWN | ours for each in middlewares)
            and (offsite is None or type(offsite) is OffsiteMiddleware)
        )

    def follow(self, links: Links, response: Response | None) -> tuple[list[tuple[bytes, Link]], int]:
        """(page, link) of those not known as seen, and the number of duplicates. Raises `CodecError` if a
        callback or the meta cannot travel."""
        meta, priority = dict(links.meta or {}), links.priority
        if response is not None and self._depth is not None:
            probe = Request("data:,", meta=meta, priority=priority)
            if self._depth.get_processed_request(probe, response) is None:
                return [], 0
            meta, priority = dict(probe.meta), probe.priority
        source = response.url if response is not None else ""
        templates = _Templates(self._codec, links, meta, priority, self._referrer_of(links, response))
        templates.check()
        found: list[tuple[bytes, Link]] = []
        duplicates = 0
        page_of, add = self._pages.of_url, self._seen.add
        for url in _resolve(links.urls, response):
            if not self._allowed(url, meta):
                continue
            page = page_of(url)
            if add(page):
                found.append((page, Link(url, priority, source, template=templates.of(url))))
            else:
                duplicates += 1
        return found, duplicates

    def one_by_one(self, links: Links, response: Response | None) -> list[tuple[bytes, Link]]:
        """As single Requests, without the rules: for links whose template cannot travel."""
        source = response.url if response is not None else ""
        found = []
        for request in links.requests(response):
            page = self._pages.of_url(request.url)
            if self._seen.add(page):
                found.append((page, Link(request.url, request.priority, source, request=request)))
        return found

    def _allowed(self, url: str, meta: dict[str, Any]) -> bool:
        if self._max_url is not None and len(url) > self._max_url:
            self._crawler.stats.inc_value("urllength/request_ignored_count")
            return False
        if self._offsite is None or meta.get("allow_offsite"):
            return True
        origin = _origin(url)
        allowed = self._hosts.get(origin)
        if allowed is None:
            allowed = self._offsite.should_follow(Request(url), self._spider)
            if len(self._hosts) > 10_000:
                self._hosts.clear()
            self._hosts[origin] = allowed
        if not allowed:
            self._crawler.stats.inc_value("offsite/filtered")
        return allowed

    def _referrer_of(self, links: Links, response: Response | None) -> Callable[[str], str | None]:
        """The Referer of a URL; every policy of the standard looks at its origin only."""
        middleware = self._referer
        if middleware is None or response is None or any(name.lower() == "referer" for name in links.headers or ()):
            return lambda url: None
        probe = Request("data:,", meta=links.meta)
        policy = middleware.policy(response, probe)
        known: dict[str, str | None] = {}

        def referrer(url: str) -> str | None:
            origin = _origin(url)
            if origin not in known:
                known[origin] = policy.referrer(response.url, url)
            return known[origin]

        return referrer


class _Templates:
    """One encoded template per Referer."""

    def __init__(
        self,
        codec: RequestCodec,
        links: Links,
        meta: dict[str, Any],
        priority: int,
        referrer: Callable[[str], str | None],
    ) -> None:
        self._codec, self._links, self._meta, self._priority = codec, links, meta, priority
        self._referrer = referrer
        self._known: dict[str | None, tuple[int, bytes]] = {}

    def check(self) -> None:
        """Can these links travel at all? Before any of them is entered as seen."""
        self._codec.template(self._fields(None))

    def of(self, url: str) -> tuple[int, bytes]:
        referrer = self._referrer(url)
        template = self._known.get(referrer)
        if template is None:
            template = self._codec.template(self._fields(referrer))
            self._known[referrer] = template
        return template

    def _fields(self, referrer: str | None) -> dict[str, Any]:
        links = self._links
        headers = {**(links.headers or {}), **({} if referrer is None else {"Referer": referrer})}
        return {
            "callback": links.callback, "errback": links.errback, "meta": self._meta,
            "cb_kwargs": links.cb_kwargs or {}, "headers": headers, "priority": self._priority,
        }  # fmt: skip


def _origin(url: str) -> str:
    end = url.find("/", 8)
    return url if end < 0 else url[:end]


def _resolve(urls: list[str], response: Response | None) -> Iterator[str]:
    """Absolute http(s) URLs, as Request would make them safe; the plain ones without parsing."""
    if response is None:
        yield from (safe_url_string(url) for url in urls if url.startswith(_HTTP))
        return
    base = get_base_url(response) if isinstance(response, HtmlResponse) else response.url
    parts = urlsplit(base)
    origin = f"{parts.scheme}://{parts.netloc}"
    folder = base.partition("?")[0].partition("#")[0]
    folder = folder[: folder.rfind("/", 8) + 1] or origin + "/"
    encoding = getattr(response, "encoding", "utf-8")
    for url in urls:
        if url.startswith(_HTTP):
            guess = url
        elif url.startswith("/"):
            guess = origin + url
        else:
            guess = folder + url
        if not url or not is_plain(guess) or url.startswith("//"):
            guess = response.urljoin(url)
            if not guess.startswith(_HTTP):
                continue
            guess = safe_url_string(guess, encoding)
        yield guess
