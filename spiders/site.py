"""The generic spider behind `crawlbus crawl https://any.site`: one item for each response of the site."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from ipaddress import ip_address
from itertools import islice
from typing import Any
from urllib.parse import urljoin, urlsplit

from lxml import etree  # type: ignore[import-untyped]
from scrapy import Request
from scrapy.crawler import Crawler
from scrapy.exceptions import CloseSpider, IgnoreRequest
from scrapy.http import HtmlResponse, Response, TextResponse
from scrapy.utils.gz import gunzip
from scrapy.utils.response import get_base_url
from scrapy.utils.sitemap import Sitemap
from w3lib.url import safe_url_string

from bus.errors import Misconfigured
from spiders.addon import BusAddon
from spiders.links import Links
from spiders.spider import BusSpider

__all__ = ["SiteOnly", "SiteSpider", "is_loopback", "links", "site_of", "title", "visible_text"]

MAX_SITEMAP_BYTES = 50 * 1024 * 1024  # of one sitemap, unpacked: sitemaps.org
MAX_SITEMAP_URLS = 50_000
MAX_SITEMAP_LEVELS = 3
BATCH = 1_000
_HIDDEN = " or ".join(f"ancestor::{tag}" for tag in ("script", "style", "noscript", "template"))
_SHOWN = etree.XPath(f"descendant::text()[not({_HIDDEN})]", smart_strings=False)
OPTIONS = ("depth", "pages", "allow", "deny", "sitemap")
USUAL_PORTS = {"http": 80, "https": 443}


class SiteSpider(BusSpider):
    """Follows `a[href]` and `area[href]` to the same host and port, whatever the scheme.

    `depth`: follow so many links from the start. `pages`: stop the job after so many responses. `allow`, `deny`:
    regular expressions that a link's URL must, or must not, contain. `sitemap=1`: read /sitemap.xml too.
    Raises `Misconfigured` for arguments that make no sense.
    """

    name = "site"
    custom_settings = {
        "ROBOTSTXT_OBEY": True,
        "HTTPERROR_ALLOW_ALL": True,
        "DOWNLOAD_DELAY": 1,
        "DOWNLOAD_DELAY_JITTER": 0,
        "CONCURRENT_REQUESTS_PER_DOMAIN": 1,
        "DOWNLOADER_MIDDLEWARES": {"spiders.site.SiteOnly": 50},
    }

    def __init__(
        self,
        url: str = "",
        depth: str | None = None,
        pages: str | None = None,
        allow: str | None = None,
        deny: str | None = None,
        sitemap: str = "0",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if kwargs:
            raise Misconfigured(f"-a {min(kwargs)} is no option of the site spider: {', '.join(OPTIONS)} are")
        self.url = _start_url(url)
        self.site = site_of(self.url)
        self.depth, self.pages = _whole("depth", depth), _whole("pages", pages)
        self.allow, self.deny = _pattern("allow", allow), _pattern("deny", deny)
        if sitemap not in ("0", "1"):
            raise Misconfigured(f"-a sitemap={sitemap} makes no sense: give 0 or 1")
        self.sitemap = sitemap == "1"
        self.responses = 0

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **kwargs: Any) -> SiteSpider:
        spider: SiteSpider = super().from_crawler(crawler, *args, **kwargs)
        if is_loopback(spider.url):
            for name, value in {"DOWNLOAD_DELAY": 0, "CONCURRENT_REQUESTS_PER_DOMAIN": 16}.items():
                crawler.settings.set(name, value, priority="spider")
        return spider

    async def start(self) -> AsyncIterator[Any]:
        yield Request(self.url)
        if self.sitemap:
            yield Request(urljoin(self.url, "/sitemap.xml"), callback=self.parse_sitemap)

    def budget_left(self) -> bool:
        """May more pages be fetched? Asked after each response; of the others' pages, what the last look told."""
        if self.pages is None:
            return True
        crawler = getattr(self, "crawler", None)
        addon = crawler.get_addon(BusAddon) if crawler is not None else None
        others = addon.worker.pages_of_others if addon is not None and addon.worker is not None else 0
        return self.responses + others < self.pages

    def parse(self, response: Response) -> Iterator[Any]:
        """The item of a response, and its links if it is a page."""
        yield self._item(response)
        if isinstance(response, HtmlResponse) and self._goes_on(response):
            yield from self._follow(response, links(response))
        self._count()

    def parse_sitemap(self, response: Response, level: int = 1) -> Iterator[Any]:
        """The item of a sitemap, and what it lists, as deep as what the start page links to."""
        yield self._item(response)
        response.meta["depth"] = 0
        if response.status == 200 and self._goes_on(response):
            yield from self._follow_sitemap(response, level)
        self._count()

    def wants(self, url: str) -> bool:
        """Is a link of the site, allowed and not denied?"""
        if site_of(url) != self.site:
            return False
        return (self.allow is None or bool(self.allow.search(url))) and not (self.deny and self.deny.search(url))

    def _item(self, response: Response) -> dict[str, Any]:
        content_type = response.headers.get(b"Content-Type")
        return {
            "url": response.url,
            "status": response.status,
            "title": title(response) if isinstance(response, HtmlResponse) else None,
            "depth": response.meta.get("depth", 0),
            "content_type": content_type.decode("latin-1") if content_type is not None else None,
            "length": len(response.body),
            "text_sha256": _text_sha256(response) if isinstance(response, TextResponse) else None,
        }

    def _goes_on(self, response: Response) -> bool:
        return self.depth is None or response.meta.get("depth", 0) < self.depth

    def _count(self) -> None:
        """After the links, so that a job that is resumed has lost none."""
        self.responses += 1
        if not self.budget_left():
            raise CloseSpider("pages")

    def _follow(self, response: Response, urls: Iterator[str]) -> Iterator[Links]:
        wanted = (url for url in urls if self.wants(url))
        while batch := list(islice(wanted, BATCH)):
            yield self.follow_all(response, batch)

    def _follow_sitemap(self, response: Response, level: int) -> Iterator[Any]:
        try:
            sitemap = Sitemap(_unpacked(response))
        except (
            ValueError,
            OSError,
            EOFError,
            StopIteration,
            struct.error,
            zlib.error,
            etree.XMLSyntaxError,
        ) as error:
            self.logger.warning("the sitemap %s cannot be read: %s", response.url, error or type(error).__name__)
            return
        urls = (urljoin(response.url, entry["loc"]) for entry in islice(sitemap, MAX_SITEMAP_URLS))
        if sitemap.type == "urlset":
            yield from self._follow(response, urls)
        elif sitemap.type == "sitemapindex" and level < MAX_SITEMAP_LEVELS:
            for url in urls:
                if site_of(url) == self.site:
                    yield Request(url, callback=self.parse_sitemap, cb_kwargs={"level": level + 1})


class SiteOnly:
    """Downloader middleware: a redirect that leaves the site is not followed."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> SiteOnly:
        return cls(crawler)

    def process_request(self, request: Request) -> None:
        spider, stats = self._crawler.spider, self._crawler.stats
        assert isinstance(spider, SiteSpider) and stats is not None
        if request.meta.get("allow_offsite") or site_of(request.url) == spider.site:
            return
        if spider.url in request.meta.get("redirect_urls", ()):
            spider.logger.warning("%s redirects to %s, which is another site: crawl that one", spider.url, request.url)
        stats.inc_value("offsite/filtered")
        raise IgnoreRequest(f"{request.url} is not of the site")


def site_of(url: str) -> tuple[str, int | None] | None:
    """Host and port of an http(s) URL, the port None where it is the scheme's own; None for any other URL."""
    try:
        parts = urlsplit(url if url.isascii() else safe_url_string(url))
        usual = USUAL_PORTS.get(parts.scheme)
        port = None if parts.port == usual else parts.port
    except ValueError:
        return None
    return (parts.hostname, port) if usual and parts.hostname else None


def is_loopback(url: str) -> bool:
    """Does a URL name this machine itself?"""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def links(response: HtmlResponse) -> Iterator[str]:
    """The absolute URLs of `a[href]` and `area[href]`, each once, without fragments; what is no URL is left out."""
    base = get_base_url(response)
    found: dict[str, None] = {}
    for element in response.selector.root.iter("a", "area"):
        href = element.get("href")
        if href is not None and (href := href.strip().partition("#")[0]):
            found[href] = None
    for href in found:
        try:
            yield urljoin(base, href)
        except ValueError:
            continue


def title(response: HtmlResponse) -> str | None:
    """The first title of a page, white space collapsed; None if it has none."""
    for element in response.selector.root.iter("title"):
        return " ".join("".join(element.itertext()).split())
    return None


def visible_text(response: TextResponse) -> str:
    """The text nodes of a page's body, one after the other, but for those in script, style, noscript and template;
    white space collapsed. Of any other text, all of it."""
    if not isinstance(response, HtmlResponse):
        return " ".join(response.text.split())
    body = response.selector.root.find("body")
    return " ".join("".join(_SHOWN(body)).split()) if body is not None else ""


def _text_sha256(response: TextResponse) -> str:
    return sha256(visible_text(response).encode(errors="replace")).hexdigest()


def _unpacked(response: Response) -> bytes:
    body = response.body
    if body[:3] == b"\x1f\x8b\x08":
        return gunzip(body, max_size=MAX_SITEMAP_BYTES)
    if len(body) > MAX_SITEMAP_BYTES:
        raise ValueError(f"{len(body):,} bytes, {MAX_SITEMAP_BYTES:,} are read")
    return body


def _start_url(url: str) -> str:
    try:
        start = Request(url if urlsplit(url).path else url + "/").url
        if site_of(start) is not None:
            return start
    except ValueError:
        pass
    raise Misconfigured(f"-a url={url} cannot be crawled: give a URL like https://example.com")


def _whole(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise Misconfigured(f"-a {name}={text} makes no sense: give a whole number")
    return int(text)


def _pattern(name: str, text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise Misconfigured(f"-a {name}={text} is not a regular expression: {error}") from None
