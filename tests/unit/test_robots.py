"""RFC 9309, rule by rule: the cache alone, then real crawls by plain Scrapy with our middleware in Scrapy's place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Self, TypeAlias

import pytest
import scrapy
from scrapy import signals
from scrapy.crawler import Crawler

from spiders.demo.server import ServerProcess
from spiders.robots import MAX_PARSED_BYTES, RobotsCache
from tests.unit.crawls import Crawl, plain_crawl

PRIVATE = "User-agent: *\nDisallow: /private\n"
HOUR_S = 3600.0
Answer: TypeAlias = tuple[int, dict[str, str], str]


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class _Rules:
    """Stands for a parser; the cache never looks into it."""


def test_rules_are_kept_for_a_day_at_most() -> None:
    clock = _Clock()
    cache = RobotsCache(clock=clock)
    parser: Any = _Rules()
    cache.answered("http://a", parser)
    clock.now += 24 * HOUR_S - 1
    assert (rules := cache.get("http://a")) is not None and rules.parser is parser
    clock.now += 1
    assert cache.get("http://a") is None


def test_trouble_is_looked_at_again_soon_and_then_seldom() -> None:
    clock = _Clock()
    cache = RobotsCache(clock=clock)
    pauses = []
    for _ in range(9):
        assert cache.failed("http://a", "status 503").trouble == "status 503"
        before = clock.now
        while cache.get("http://a") is not None:
            clock.now += 1
        pauses.append(clock.now - before)
    assert pauses == [1, 2, 300, 600, 1200, 2400, 3600, 3600, 3600]
    cache.answered("http://a", None)
    assert cache.failed("http://a", "status 503").failures == 1


def test_old_rules_stand_while_the_host_is_in_trouble() -> None:
    clock = _Clock()
    cache = RobotsCache(clock=clock)
    parser: Any = _Rules()
    cache.answered("http://a", parser)
    clock.now += 25 * HOUR_S
    for _ in range(5):
        rules = cache.failed("http://a", "status 503")
        assert rules.parser is parser and rules.trouble is None
    assert cache.get("http://a") == rules


def test_the_cache_is_bounded_and_drops_what_was_used_least_recently() -> None:
    cache = RobotsCache(size=2)
    for origin in ("http://a", "http://b"):
        cache.answered(origin, None)
    assert cache.get("http://a")
    cache.answered("http://c", None)
    assert [bool(cache.get(origin)) for origin in ("http://a", "http://b", "http://c")] == [True, False, True]


MIDDLEWARES = {
    "scrapy.downloadermiddlewares.robotstxt.RobotsTxtMiddleware": None,
    "spiders.robots.RobotsMiddleware": 100,
}


class TableSpider(scrapy.Spider):
    """Fetches the paths of each host, all in one burst, and yields what it got."""

    name = "table"
    custom_settings = {
        "ROBOTSTXT_OBEY": True,
        "RETRY_TIMES": 1,
        "CONCURRENT_REQUESTS_PER_DOMAIN": 16,
        "DOWNLOADER_MIDDLEWARES": MIDDLEWARES,
    }

    def __init__(self, urls: str = "", allowed: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.urls = urls.split(" ")
        if allowed:
            self.allowed_domains = [allowed]

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **kwargs: Any) -> TableSpider:
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.robots_parsed, signals.robots_parsed)
        return spider

    def robots_parsed(self, robotparser: Any, request: scrapy.Request) -> None:
        assert self.crawler.stats is not None
        self.crawler.stats.inc_value("test/robots_parsed")

    async def start(self) -> AsyncIterator[Any]:
        for url in self.urls:
            yield scrapy.Request(
                url.removeprefix("free:"), errback=self.failed, dont_filter=True,
                meta={"dont_obey_robotstxt": url.startswith("free:")},
            )  # fmt: skip

    def parse(self, response: Any) -> Any:
        yield {"url": response.url, "got": response.status}

    def failed(self, failure: Any) -> Any:
        yield {"url": failure.request.url, "got": failure.type.__name__}


class _Host(ServerProcess):
    """A server whose robots.txt answers so, one after the other, the last for ever."""

    def __init__(self, *answers: Answer, slow_s: float = 0.0) -> None:
        with NamedTemporaryFile("w", delete=False) as file:
            json.dump(answers, file)
        self._file = Path(file.name)
        super().__init__("tests.unit.robots_sites", file.name, str(slow_s))

    def __enter__(self) -> Self:
        try:
            return super().__enter__()
        finally:
            self._file.unlink()

    def asked(self) -> dict[str, int]:
        connection = HTTPConnection(self.url.removeprefix("http://"), timeout=10)
        connection.request("GET", "/-/asked")
        asked: dict[str, int] = json.loads(connection.getresponse().read())
        connection.close()
        return asked


def _crawl(folder: Path, urls: list[str], settings: dict[str, Any] | None = None, **arguments: str) -> Crawl:
    return plain_crawl(folder, "tests.unit.test_robots:TableSpider", settings, urls=" ".join(urls), **arguments)


def _got(crawl: Crawl, host: ServerProcess) -> dict[str, Any]:
    return {
        item["url"].removeprefix(host.url): item["got"]
        for item in crawl.items
        if item["url"].startswith((host.url + "/", "data:"))
    }


BIG = "#" + "x" * (MAX_PARSED_BYTES - 200)
PADDED = f"User-agent: *\n{BIG}\nDisallow: /private\n" + "#" * 1000
CUT = f"User-agent: *\nDisallow: /private\n#{'x' * (MAX_PARSED_BYTES - 45)}\nDisallow: /public/very-long-name\n"


FORBIDDEN, TROUBLE = "IgnoreRequest", "RobotsUnreachable"
TABLE: dict[str, tuple[Answer, Any, Any]] = {
    "what is disallowed": ((200, {}, PRIVATE), FORBIDDEN, 200),
    "empty": ((200, {}, ""), 200, 200),
    "for others": ((200, {}, "User-agent: other\nDisallow: /\n"), 200, 200),
    "own group": ((200, {}, f"User-agent: *\nDisallow: /\n\n{PRIVATE.replace('*', 'crawlbus')}"), FORBIDDEN, 200),
    "longest match": ((200, {}, "User-agent: *\nDisallow: /\nAllow: /public\n"), FORBIDDEN, 200),
    "allow wins a tie": ((200, {}, "User-agent: *\nDisallow: /pu\nDisallow: /pr\nAllow: /pu\n"), FORBIDDEN, 200),
    "a rule near 500 KiB": ((200, {}, PADDED), FORBIDDEN, 200),
    "a rule cut through": ((200, {}, CUT), FORBIDDEN, 200),
    "an error page is no rule": ((404, {}, PRIVATE), 200, 200),
    "401": ((401, {}, PRIVATE), 200, 200),
    "403": ((403, {}, PRIVATE), 200, 200),
    "429": ((429, {}, ""), TROUBLE, TROUBLE),
    "500": ((500, {}, ""), TROUBLE, TROUBLE),
    "503 with rules": ((503, {}, PRIVATE), TROUBLE, TROUBLE),
    "six redirects": ((301, {"Location": "/hop/5"}, ""), FORBIDDEN, 200),
    "ten redirects": ((308, {"Location": "/hop/9"}, ""), FORBIDDEN, 200),
    "a circle": ((307, {"Location": "/robots.txt"}, ""), 200, 200),
    "another scheme": ((301, {"Location": "ftp://127.0.0.1/robots.txt"}, ""), 200, 200),
    "a redirect to nowhere": ((301, {}, ""), 200, 200),
}  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One crawl of a host for each row."""
    with ExitStack() as stack:
        hosts = {name: stack.enter_context(_Host(answer)) for name, (answer, _, _) in TABLE.items()}
        urls = [host.url + path for host in hosts.values() for path in ("/private/x", "/public/x")]
        settings = {"ROBOTSTXT_USER_AGENT": "crawlbus", "RETRY_TIMES": 0}
        crawl = _crawl(tmp_path_factory.mktemp("table"), urls, settings)
    parsed = sum(answer[0] == 200 for answer, _, _ in TABLE.values())
    assert crawl.stats["test/robots_parsed"] == parsed + 2  # and the two behind redirects
    assert crawl.stats["robotstxt/request_count"] == len(TABLE)
    assert crawl.stats["robotstxt/forbidden"] == sum(private == FORBIDDEN for _, private, _ in TABLE.values())
    return {name: _got(crawl, host) for name, host in hosts.items()}


@pytest.mark.parametrize("name", TABLE)
def test_the_table(table: dict[str, dict[str, Any]], name: str) -> None:
    _, private, public = TABLE[name]
    assert table[name] == {"/private/x": private, "/public/x": public}


def test_the_burst_at_the_start_lets_nothing_through_and_asks_once(tmp_path: Path) -> None:
    with _Host((200, {}, PRIVATE), slow_s=0.3) as host:
        urls = [f"{host.url}/{area}/{number}" for number in range(10) for area in ("private", "public")]
        crawl = _crawl(tmp_path, urls)
        asked = host.asked()
    assert asked == {"/robots.txt": 1, **{f"/public/{number}": 1 for number in range(10)}}
    assert crawl.stats["robotstxt/forbidden"] == 10


def test_a_redirect_to_another_host_is_followed_though_that_host_is_offsite(tmp_path: Path) -> None:
    with _Host((200, {}, PRIVATE)) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost") + "/robots.txt"
        with _Host((301, {"Location": elsewhere}, "")) as host:
            settings = {"REDIRECT_ENABLED": False}
            crawl = _crawl(tmp_path, [f"{host.url}/private/x", f"{host.url}/x"], settings, allowed="127.0.0.1")
        assert other.asked() == {"/robots.txt": 1}
    assert _got(crawl, host) == {"/private/x": "IgnoreRequest", "/x": 200}


def test_a_host_that_recovers_is_crawled_by_its_rules(tmp_path: Path) -> None:
    with _Host((503, {}, ""), (200, {}, PRIVATE)) as host:
        slower = {"DOWNLOADER_MIDDLEWARES": {**MIDDLEWARES, "tests.unit.test_robots.SecondBetween": 90}}
        crawl = _crawl(tmp_path, [f"{host.url}/private/x", f"{host.url}/public/x"], slower)
    assert _got(crawl, host) == {"/private/x": "IgnoreRequest", "/public/x": 200}


class SecondBetween:
    """Holds a retry back for a second, as `BusRetryMiddleware` does."""

    async def process_request(self, request: scrapy.Request) -> None:
        if request.meta.get("retry_times"):
            await asyncio.sleep(1.05)


def test_a_host_that_is_gone_is_retried_and_then_given_up(tmp_path: Path) -> None:
    with _Host((200, {}, "")) as host:
        pass
    crawl = _crawl(tmp_path, [f"{host.url}/x"])
    assert _got(crawl, host) == {"/x": "RobotsUnreachable"}
    assert crawl.stats["retry/count"] == 1 and crawl.stats["retry/max_reached"] == 1
    assert "/robots.txt is not reachable (" in crawl.log


def test_what_need_not_obey(tmp_path: Path) -> None:
    with _Host((200, {}, "User-agent: *\nDisallow: /\n")) as host:
        crawl = _crawl(tmp_path, [f"free:{host.url}/private/x", "data:,x", f"{host.url}/private/y"])
        assert host.asked() == {"/robots.txt": 1, "/private/x": 1}
        assert _got(crawl, host) == {"/private/x": 200, "data:,x": 200, "/private/y": "IgnoreRequest"}
        crawl = _crawl(tmp_path, [f"{host.url}/private/z"], {"ROBOTSTXT_OBEY": False})
        assert host.asked()["/robots.txt"] == 1
        assert _got(crawl, host)["/private/z"] == 200


def test_the_user_agent_is_that_of_the_request_or_the_setting(tmp_path: Path) -> None:
    with _Host((200, {}, "User-agent: shopbot\nDisallow: /\n")) as host:
        for settings, expected in (
            ({"USER_AGENT": "Shopbot/1.0 (+x)"}, "IgnoreRequest"),
            ({"USER_AGENT": "other"}, 200),
        ):
            crawl = _crawl(tmp_path, [f"{host.url}/x"], settings)
            assert _got(crawl, host)["/x"] == expected


def test_hosts_ports_and_schemes_have_rules_of_their_own(tmp_path: Path) -> None:
    with _Host((200, {}, PRIVATE)) as closed, _Host((404, {}, "")) as free:
        crawl = _crawl(tmp_path, [f"{site.url}/private/x" for site in (closed, free)])
    assert _got(crawl, closed)["/private/x"] == "IgnoreRequest"
    assert _got(crawl, free)["/private/x"] == 200
