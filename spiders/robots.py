"""robots.txt by RFC 9309, in place of Scrapy's middleware.

Scrapy's lets disallowed pages through while robots.txt is under way, keeps what it read for ever, and takes an error
page for "all is allowed".
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urljoin

from scrapy import Request, signals
from scrapy.exceptions import DownloadFailedError, IgnoreRequest, NotConfigured
from scrapy.http.request import NO_CALLBACK
from scrapy.utils.httpobj import urlparse_cached
from scrapy.utils.misc import build_from_crawler, load_object

if TYPE_CHECKING:
    from scrapy.crawler import Crawler
    from scrapy.http import Response
    from scrapy.robotstxt import RobotParser

__all__ = ["RobotsCache", "RobotsMiddleware", "RobotsUnreachable", "Rules"]

logger = logging.getLogger(__name__)

MAX_AGE_S = 24 * 3600.0  # RFC 9309 2.4
MAX_REDIRECTS = 10  # 2.3.1.2: at least five, also to other hosts
MAX_PARSED_BYTES = 500 * 1024  # 2.5: at least so much
MAX_HOSTS = 10_000
# The first two failures are looked at again within the retries of the page that asked, later ones seldom.
FIRST_PAUSES_S = (1.0, 2.0)
MIN_PAUSE_S, MAX_PAUSE_S = 300.0, 3600.0
FETCH_PRIORITY = 1000


class RobotsUnreachable(DownloadFailedError):
    """robots.txt answers 429 or 5xx, or not at all: nothing of that host may be fetched now (RFC 9309 2.3.1.4).

    A kind of failed download, so RETRY_EXCEPTIONS holds it: the page is tried again later, and is a dead letter
    after its last attempt.
    """


class Rules(NamedTuple):
    """What is known of one host. `parser` None: all is allowed. `trouble`: why it cannot be known at present."""

    parser: RobotParser | None = None
    trouble: str | None = None
    failures: int = 0  # in a row
    known: bool = True  # was robots.txt ever answered?


class RobotsCache:
    """The rules of up to `size` hosts, the least recently used dropped first, each for at most 24 hours.

    After a failure, the old rules go on if there are any (RFC 9309 2.4), else the host is in trouble; it is looked at
    again after 1 s, 2 s, 5 min, 10 min and so on up to 1 h.
    """

    def __init__(self, size: int = MAX_HOSTS, clock: Callable[[], float] = time.monotonic) -> None:
        self._size, self._clock = size, clock
        self._entries: OrderedDict[str, tuple[Rules, float]] = OrderedDict()

    def get(self, origin: str) -> Rules | None:
        """None: robots.txt is to be fetched."""
        entry = self._entries.get(origin)
        if entry is None or entry[1] <= self._clock():
            return None
        self._entries.move_to_end(origin)
        return entry[0]

    def answered(self, origin: str, parser: RobotParser | None) -> Rules:
        """The host has told its rules."""
        return self._put(origin, Rules(parser), MAX_AGE_S)

    def failed(self, origin: str, trouble: str) -> Rules:
        """The host could not tell its rules."""
        old = self._entries[origin][0] if origin in self._entries else Rules(known=False)
        rules = old._replace(trouble=None if old.known else trouble, failures=old.failures + 1)
        return self._put(origin, rules, _pause_s(rules.failures))

    def _put(self, origin: str, rules: Rules, lifetime_s: float) -> Rules:
        self._entries[origin] = (rules, self._clock() + lifetime_s)
        self._entries.move_to_end(origin)
        while len(self._entries) > self._size:
            self._entries.popitem(last=False)
        return rules


def _pause_s(failures: int) -> float:
    if failures <= len(FIRST_PAUSES_S):
        return FIRST_PAUSES_S[failures - 1]
    doublings = min(failures - len(FIRST_PAUSES_S) - 1, 10)
    return min(MAX_PAUSE_S, MIN_PAUSE_S * 2.0**doublings)


class RobotsMiddleware:
    """Honours ROBOTSTXT_OBEY, ROBOTSTXT_USER_AGENT, ROBOTSTXT_PARSER and the meta key `dont_obey_robotstxt`.

    A forbidden page raises `IgnoreRequest`, a host in trouble `RobotsUnreachable`. No page of a host is let through
    before its robots.txt has been read; there is one fetch of it at a time. Stats and the signal `robots_parsed` are
    Scrapy's. Only http and https have a robots.txt.
    """

    def __init__(self, crawler: Crawler) -> None:
        settings = crawler.settings
        if not settings.getbool("ROBOTSTXT_OBEY"):
            raise NotConfigured
        self._crawler = crawler
        self._own_agent: str | None = settings["ROBOTSTXT_USER_AGENT"]
        self._default_agent: str = settings["USER_AGENT"]
        self._parser_class: type[RobotParser] = load_object(settings["ROBOTSTXT_PARSER"])
        build_from_crawler(self._parser_class, crawler, b"")  # a missing library is said now
        self._cache = RobotsCache()
        self._fetching: dict[str, asyncio.Task[Rules]] = {}

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> RobotsMiddleware:
        return cls(crawler)

    async def process_request(self, request: Request) -> None:
        if request.meta.get("dont_obey_robotstxt"):
            return
        origin = _origin(request)
        if origin is None:
            return
        rules = self._cache.get(origin) or await self._fetch_once(origin, request)
        if rules.trouble is not None:
            raise RobotsUnreachable(f"{origin}/robots.txt is not reachable ({rules.trouble})")
        if rules.parser is None:
            return
        agent = self._own_agent or request.headers.get(b"User-Agent") or self._default_agent
        if not rules.parser.allowed(request.url, agent):
            self._crawler.stats.inc_value("robotstxt/forbidden")
            level = logging.WARNING if request.meta.get("is_start_request") else logging.DEBUG
            logger.log(level, "Forbidden by robots.txt: %s", request)
            raise IgnoreRequest("Forbidden by robots.txt")

    async def _fetch_once(self, origin: str, request: Request) -> Rules:
        task = self._fetching.get(origin)
        if task is None:
            task = self._fetching[origin] = asyncio.ensure_future(self._learn(origin, request))
            task.add_done_callback(lambda _: self._fetching.pop(origin, None))
        return await asyncio.shield(task)

    async def _learn(self, origin: str, request: Request) -> Rules:
        stats = self._crawler.stats
        stats.inc_value("robotstxt/request_count")
        try:
            response = await self._fetch(f"{origin}/robots.txt")
        except IgnoreRequest:
            return self._cache.answered(origin, None)  # a middleware of the project refused it, as with Scrapy's
        except Exception as error:
            stats.inc_value(f"robotstxt/exception_count/{type(error)}")
            return self._failed(origin, f"{type(error).__name__}: {error}")
        stats.inc_value("robotstxt/response_count")
        stats.inc_value(f"robotstxt/response_status_count/{response.status}")
        if response.status == 429 or response.status >= 500:
            return self._failed(origin, f"status {response.status}")
        if not 200 <= response.status < 300:
            return self._cache.answered(origin, None)
        parser = build_from_crawler(self._parser_class, self._crawler, _readable(response.body))
        await self._crawler.signals.send_catch_log_async(
            signal=signals.robots_parsed, robotparser=parser, request=request
        )
        return self._cache.answered(origin, parser)

    def _failed(self, origin: str, trouble: str) -> Rules:
        logger.warning("%s/robots.txt is not reachable (%s)", origin, trouble)
        return self._cache.failed(origin, trouble)

    async def _fetch(self, url: str) -> Response:
        """The final answer. Redirects are followed here, so that no setting and no offsite rule hinders them."""
        for _ in range(MAX_REDIRECTS + 1):
            meta = dict.fromkeys(("dont_obey_robotstxt", "dont_redirect", "dont_retry", "allow_offsite"), True)
            fetch = Request(url, callback=NO_CALLBACK, priority=FETCH_PRIORITY, meta=meta, dont_filter=True)
            response = await self._crawler.engine.download_async(fetch)
            location = response.headers.get(b"Location")
            if response.status not in (301, 302, 303, 307, 308) or location is None:
                break
            url = urljoin(url, location.decode("latin-1"))
            if not url.startswith(("http://", "https://")):
                break
        return response


def _origin(request: Request) -> str | None:
    """Scheme, host and port of a URL, with the port only where it is not the usual one."""
    parts = urlparse_cached(request)
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    if usual is None or not parts.hostname:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = "" if parts.port in (None, usual) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


def _readable(body: bytes) -> bytes:
    """As much as is parsed; a line that was cut through would mean something else, so it is left out."""
    if len(body) <= MAX_PARSED_BYTES:
        return body
    return body[: body.rfind(b"\n", 0, MAX_PARSED_BYTES) + 1]
