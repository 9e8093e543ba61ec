"""Whatever becomes of a request, it ends exactly once: finished, dead with a reason, or tried again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.spiders.scene import Crawled, Site, crawl, links, project

SPIDER = """
class Shop(scrapy.Spider):
    name = "shop"

    def __init__(self, url):
        super().__init__()
        self.start_urls = [url]

    def parse(self, response):
        yield {"url": response.url, "depth": response.meta.get("depth", 0)}
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href, self.parse)
"""


def run(tmp_path: Path, site: Site, spider: str = SPIDER, settings: str = "", start: str = "/") -> Crawled:
    with site.open() as url:
        return crawl(project(tmp_path, spider, settings), "-a", f"url={url}{start}")


def ends(done: Crawled, *, pages: int, dead: int = 0) -> None:
    """The job ended by itself, with so many pages, and nothing is left."""
    assert done.ran.code == 0, done.ran.out + done.ran.err
    assert "Traceback" not in done.ran.err or dead
    counts = done.status.counters
    assert (done.status.state.value, done.status.open, done.status.begun) == ("finished", 0, 0)
    assert counts.get("pages", 0) == pages
    assert len(done.dead) == dead == counts.get("dead", 0)


def paths(done: Crawled) -> list[str]:
    return sorted("/" + item["url"].split("/", 3)[3] for item in done.items)


def test_every_reachable_page_once(tmp_path: Path) -> None:
    site = Site({"/": links("/a", "/b", "/a"), "/a": links("/b", "/c"), "/b": links("/"), "/c": links("/c", "/gone")})
    done = run(tmp_path, site)
    ends(done, pages=5)
    assert paths(done) == ["/", "/a", "/b", "/c"]
    assert site.hits == {"/": 1, "/a": 1, "/b": 1, "/c": 1, "/gone": 1}
    assert [item["depth"] for item in sorted(done.items, key=lambda item: item["url"])] == [0, 1, 1, 2]


def test_a_redirect_is_a_link(tmp_path: Path) -> None:
    site = Site(
        {
            "/": links("/old", "/new", "/loop"),
            "/old": (301, {"Location": "/new"}, b""),
            "/new": links("/"),
            "/loop": (302, {"Location": "/loop"}, b""),
        }
    )
    done = run(tmp_path, site)
    ends(done, pages=4)
    assert paths(done) == ["/", "/new"]
    assert site.hits["/new"] == 1 and site.hits["/loop"] == 1


def test_redirects_of_start_requests_count_as_start_requests(tmp_path: Path) -> None:
    site = Site({"/": (301, {"Location": "/home"}, b""), "/home": links("/", "/a"), "/a": links("/home")})
    done = run(tmp_path, site)
    ends(done, pages=3)
    assert paths(done) == ["/a", "/home"]


def test_retries_come_back_with_their_attempt_and_end(tmp_path: Path) -> None:
    site = Site(
        {
            "/": links("/flaky", "/broken"),
            "/flaky": lambda hit: (503, {}, b"") if hit < 3 else links(),
            "/broken": (500, {}, b""),
        }
    )
    done = run(tmp_path, site, settings="RETRY_TIMES = 2")
    ends(done, pages=3, dead=1)
    assert site.hits == {"/": 1, "/flaky": 3, "/broken": 3}
    assert paths(done) == ["/", "/flaky"]
    (letter,) = done.dead
    assert (letter.reason, letter.attempt) == ("status", 2)
    assert letter.detail == "500 Internal Server Error (3 attempts)"
    assert done.status.counters["retries"] == 4


def test_a_download_that_fails(tmp_path: Path) -> None:
    site = Site({"/": links("http://127.0.0.1:9/refused")})
    done = run(tmp_path, site, settings="RETRY_TIMES = 0")
    ends(done, pages=2, dead=1)
    assert done.dead[0].reason in ("download", "status")
    assert done.dead[0].url == "http://127.0.0.1:9/refused"


def test_errbacks_take_failures_and_yield(tmp_path: Path) -> None:
    spider = """
    class Shop(scrapy.Spider):
        name = "shop"

        def __init__(self, url):
            super().__init__()
            self.url = url

        async def start(self):
            yield Request(self.url + "missing", errback=self.failed)
            yield Request(self.url + "broken", errback=self.failed)
            yield Request("http://127.0.0.1:9/refused", errback=self.failed)
            yield Request(self.url + "missing?worse", errback=self.worse)

        def failed(self, failure):
            yield {"failed": failure.type.__name__, "url": failure.request.url}
            yield Request(self.url + "after", callback=self.parse)

        def worse(self, failure):
            raise RuntimeError("the errback itself")

        def parse(self, response):
            yield {"url": response.url}
    """
    site = Site({"/broken": (500, {}, b""), "/after": "fine"})
    done = run(tmp_path, site, spider, "RETRY_TIMES = 0")
    ends(done, pages=5, dead=1)
    assert [letter.reason for letter in done.dead] == ["errback"]
    assert "the errback itself" in done.dead[0].detail
    failed = sorted(item["failed"] for item in done.items if "failed" in item)
    assert len(failed) == 3 and failed.count("HttpError") == 2, failed
    assert len(done.items) == 4 and site.hits["/after"] == 1


def test_a_callback_that_raises_keeps_what_it_yielded_before(tmp_path: Path) -> None:
    spider = SPIDER + "\n        raise RuntimeError('after all links')\n"
    site = Site({"/": links("/a"), "/a": links()})
    done = run(tmp_path, site, spider)
    ends(done, pages=2, dead=2)
    assert paths(done) == ["/", "/a"]
    assert {letter.reason for letter in done.dead} == {"callback"}
    assert "RuntimeError: after all links (in parse, shop.py:" in done.dead[0].detail


def test_pipelines_drop_raise_and_wait(tmp_path: Path) -> None:
    pipelines = """
    import asyncio
    from scrapy.exceptions import DropItem

    class Pipeline:
        async def process_item(self, item):
            await asyncio.sleep(0.3)
            if item["url"].endswith("/drop"):
                raise DropItem("not wanted")
            if item["url"].endswith("/raise"):
                raise RuntimeError("a pipeline's own mistake")
            return {**item, "seen": True}
    """
    from textwrap import dedent

    (tmp_path / "pipelines.py").write_text(dedent(pipelines))
    site = Site({"/": links("/drop", "/raise"), "/drop": links(), "/raise": links()})
    done = run(tmp_path, site, settings='ITEM_PIPELINES = {"pipelines.Pipeline": 300}')
    ends(done, pages=3, dead=1)
    assert [(item["url"].rpartition("/")[2], item["seen"]) for item in done.items] == [("", True)]
    assert done.dead[0].reason == "pipeline" and "a pipeline's own mistake" in done.dead[0].detail
    assert done.status.counters["dropped"] == 1


def test_close_spider_stops_the_job_for_the_whole_fleet(tmp_path: Path) -> None:
    spider = """
    from scrapy.exceptions import CloseSpider

    class Shop(scrapy.Spider):
        name = "shop"

        def __init__(self, url):
            super().__init__()
            self.start_urls = [url]

        def parse(self, response):
            yield {"url": response.url}
            if response.url.endswith("/5"):
                raise CloseSpider("enough")
            yield response.follow(str(int(response.url.rpartition("/")[2] or 0) + 1), self.parse)
    """
    site = Site({"/": "x", **{f"/{n}": "x" for n in range(1, 50)}})
    done = run(tmp_path, site, spider)
    assert done.ran.code == 0, done.ran.out + done.ran.err
    assert done.status.state.value == "stopped"
    assert not done.dead and site.hits["/5"] == 1 and "/7" not in site.hits
    assert len(done.items) == 6


def test_dont_filter_gives_pages_of_their_own_that_end(tmp_path: Path) -> None:
    spider = """
    class Shop(scrapy.Spider):
        name = "shop"

        def __init__(self, url):
            super().__init__()
            self.url = url

        async def start(self):
            yield Request(self.url, dont_filter=True)
            yield Request(self.url, dont_filter=True)
            yield Request(self.url)

        def parse(self, response):
            yield {"url": response.url}
            for _ in range(3):
                yield Request(response.url + "again", self.leaf, dont_filter=True)
                yield Request(response.url + "once", self.leaf)

        def leaf(self, response):
            yield {"url": response.url}
    """
    site = Site({"/": "x", "/again": "x", "/once": "x"})
    done = run(tmp_path, site, spider)
    ends(done, pages=2 + 6 + 1)
    assert site.hits == {"/": 2, "/again": 6, "/once": 1}
    assert len(done.items) == 9 == len({row["id"] for row in done.rows})


def test_requests_keep_all_they_carry(tmp_path: Path) -> None:
    spider = """
    from scrapy.http import JsonRequest
    from decimal import Decimal

    class Shop(scrapy.Spider):
        name = "shop"

        def __init__(self, url):
            super().__init__()
            self.url = url

        async def start(self):
            yield Request(self.url + "post", self.deep, method="POST", body=b"\\x00\\xff", headers={"X-A": "1"},
                          cookies={"c": "v"}, cb_kwargs={"price": Decimal("1.5"), "at": (1, {2})},
                          meta={"m": b"\\xff"}, priority=-3)
            yield JsonRequest(self.url + "json", data={"k": [1]}, callback=self.deep, cb_kwargs={"price": 0, "at": 0})

        def deep(self, response, price, at):
            kind = type(response.request).__name__
            yield {"class": kind, "price": price, "at": repr(at), "m": response.meta.get("m")}
    """
    site = Site({"/post": "x", "/json": "x"})
    done = run(tmp_path, site, spider)
    ends(done, pages=2)
    by_path = {path: (method, body, headers) for method, path, body, headers in site.requests}
    method, body, headers = by_path["/post"]
    assert (method, body, headers["X-A"], headers["Cookie"]) == ("POST", b"\x00\xff", "1", "c=v")
    assert by_path["/json"][:2] == ("POST", b'{"k": [1]}')
    assert {"class": "Request", "price": "1.5", "at": "(1, {2})", "m": "/w=="} in done.items
    assert {"class": "JsonRequest", "price": 0, "at": "0", "m": None} in done.items


def test_what_cannot_travel_is_a_dead_letter_that_names_it(tmp_path: Path) -> None:
    spider = """
    class Shop(scrapy.Spider):
        name = "shop"

        def __init__(self, url):
            super().__init__()
            self.start_urls = [url]

        def parse(self, response):
            yield {"n": 1}
            yield Request(response.url + "a", callback=lambda response: None)
            yield Request(response.url + "b", meta={"session": object()})
            yield Request(response.url + "c", meta={"big": "x" * 9_000_000})
            yield {"n": 2, "bad": object()}
            yield {"n": 3}
    """
    site = Site({"/": "x"})
    done = run(tmp_path, site, spider)
    assert done.ran.code == 0, done.ran.out + done.ran.err
    assert done.status.open == 0 and done.status.state.value == "finished"
    assert sorted(item["n"] for item in done.items) == [1, 3]
    assert sorted(letter.reason for letter in done.dead) == ["encode", "encode", "item", "limit"]
    details = "\n".join(letter.detail for letter in done.dead)
    assert "is not a method of spider shop" in details and "meta.session" in details and "bad" in details


def test_items_and_links_of_start(tmp_path: Path) -> None:
    spider = """
    from spiders import Links

    class Shop(scrapy.Spider):
        name = "shop"

        def __init__(self, url):
            super().__init__()
            self.url = url

        async def start(self):
            yield {"from": "start"}
            yield Links([self.url, self.url + "a", "mailto:x"], self.parse)

        def parse(self, response):
            yield {"from": response.url}
    """
    site = Site({"/": "x", "/a": "x"})
    done = run(tmp_path, site, spider)
    ends(done, pages=2)
    assert sorted(row["url"] is None for row in done.rows) == [False, False, True]


@pytest.mark.parametrize("bulk", [False, True], ids=["requests", "links"])
def test_links_and_single_requests_give_the_same_crawl(tmp_path: Path, bulk: bool) -> None:
    one = 'for url in response.css("a::attr(href)").getall():\n                yield response.follow(url, self.parse)'
    many = 'yield self.follow_all(response, response.css("a::attr(href)"), self.parse)'
    spider = f"""
    from spiders import BusSpider

    class Shop(BusSpider):
        name = "shop"
        allowed_domains = ["127.0.0.1"]
        custom_settings = {{"DEPTH_LIMIT": 2, "DEPTH_PRIORITY": 1, "URLLENGTH_LIMIT": 60}}

        def __init__(self, url):
            super().__init__()
            self.start_urls = [url]

        def parse(self, response):
            request = response.request
            yield {{"path": response.url.split("/", 3)[3], "depth": response.meta["depth"],
                   "referer": request.headers.get("Referer", b"").decode().split("/", 3)[-1],
                   "priority": request.priority}}
            {many if bulk else one}
    """
    site = Site(
        {
            "/": links("a", "/b?x=1&a=2", "b?a=2&x=1#f", "//localhost/off", "/" + "l" * 90, "é", "./c/../d", "/a#x"),
            "/a": links("/deep", "../a"),
            "/b": links("/"),
            "/%C3%A9": links(),
            "/d": links(),
            "/deep": links("/deeper"),
        }
    )
    done = run(tmp_path, site, spider)
    ends(done, pages=6)
    assert sorted((i["path"], i["depth"], i["referer"], i["priority"]) for i in done.items) == [
        ("", 0, "", 0),
        ("%C3%A9", 1, "", -1),
        ("a", 1, "", -1),
        ("b?x=1&a=2", 1, "", -1),
        ("d", 1, "", -1),
        ("deep", 2, "a", -2),
    ]
