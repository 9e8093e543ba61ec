"""An ordinary Scrapy project, made by `scrapy startproject`: by two settings on the bus, and the same items."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.spiders.scene import Ran, Site, crawlbus, environment, links

Make = Callable[..., Path]
BUS = 'ADDONS = {"spiders.BusAddon": 500}\nBUS_URL = "sqlite:///bus.db"\n'
OWN_PARTS = """
DOWNLOAD_DELAY = 0
CONCURRENT_REQUESTS_PER_DOMAIN = 8
RETRY_TIMES = 1
SPIDER_MIDDLEWARES = {"shop.middlewares.Trail": 543}
DOWNLOADER_MIDDLEWARES = {"shop.middlewares.Badge": 400, "shop.middlewares.ShopDownloaderMiddleware": 543}
ITEM_PIPELINES = {"shop.pipelines.Price": 100, "shop.pipelines.Slow": 200, "shop.pipelines.ShopPipeline": 300}
"""
MIDDLEWARES = """

class Trail:
    async def process_spider_output(self, response, result):
        async for output in result:
            if hasattr(output, "meta"):
                output.meta["trail"] = [*response.meta.get("trail", []), response.url.rsplit("/", 1)[1]]
            yield output


class Badge:
    def process_request(self, request):
        request.headers["X-Badge"] = "blue"
"""
PIPELINES = """
import asyncio
from scrapy.exceptions import DropItem


class Price:
    def process_item(self, item):
        adapter = ItemAdapter(item)
        if adapter["price"] is None:
            raise DropItem("no price")
        adapter["price"] = round(float(adapter["price"]) * 1.2, 2)
        return item


class Slow:
    async def process_item(self, item):
        await asyncio.sleep(0.01)
        ItemAdapter(item)["seen"] = True
        return item
"""
ITEMS = """
import scrapy


class Product(scrapy.Item):
    url = scrapy.Field()
    name = scrapy.Field()
    price = scrapy.Field()
    trail = scrapy.Field()
    badge = scrapy.Field()
    seen = scrapy.Field()
    number = scrapy.Field()
"""
PRODUCTS = """
import scrapy
from shop.items import Product


class Products(scrapy.Spider):
    name = "products"
    allowed_domains = ["127.0.0.1"]
    custom_settings = {"DEPTH_LIMIT": 6}

    async def start(self):
        yield scrapy.Request(self.url, cb_kwargs={"number": 0})

    def parse(self, response, number):
        for offer in response.css("p"):
            yield Product(
                url=response.url, name=offer.css("b::text").get(), price=offer.css("i::text").get(),
                trail=response.meta.get("trail"), badge=response.request.headers[b"X-Badge"].decode(), number=number,
            )
        for link in response.css("a"):
            yield response.follow(link, self.parse, cb_kwargs={"number": number + 1})
"""


def offers(*offers: tuple[str, str], to: tuple[str, ...] = ()) -> str:
    shown = "".join(f"<p><b>{name}</b>{f'<i>{price}</i>' if price else ''}</p>" for name, price in offers)
    return shown + links(*to)


def shop() -> Site:
    """A tree, so that each page can be reached in one way only and the trail is always the same."""
    return Site(
        {
            "/": offers(("front", "1.00"), to=("a", "b", "http://localhost/off", "moved", "private", "gone")),
            "/a": offers(("apple", "2.50"), ("air", ""), to=("a1", "a2")),
            "/a1": offers(("ant", "10"), ("axe", "9.99")),
            "/a2": lambda hit: (503, {}, b"") if hit == 1 else offers(("ash", "3")),
            "/b": offers(("bee", ""), to=("b1", "/", "b1")),
            "/b1": offers(("bun", "0.5"), to=("b",)),
            "/moved": (302, {"Location": "/new"}, b""),
            "/new": offers(("nut", "4")),
            "/private": offers(("secret", "99")),
            "/robots.txt": (200, {"Content-Type": "text/plain"}, b"User-agent: *\nDisallow: /private\n"),
        }
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `scrapy startproject` makes, with parts of a user's own."""
    directory = tmp_path_factory.mktemp("project")
    assert scrapy("startproject", "shop", ".", cwd=directory).code == 0
    package = directory / "shop"
    for name, more in {"settings": OWN_PARTS, "middlewares": MIDDLEWARES, "pipelines": PIPELINES}.items():
        with (package / f"{name}.py").open("a") as file:
            file.write(more)
    (package / "items.py").write_text(ITEMS)
    (package / "spiders" / "products.py").write_text(PRODUCTS)
    return directory


@pytest.fixture
def make(template: Path, tmp_path: Path) -> Make:
    """A copy of the project: `settings` are added, `spider` replaces its own."""

    def made(settings: str = BUS, *, spider: str | None = None, name: str = "p") -> Path:
        directory = tmp_path / name
        shutil.copytree(template, directory)
        with (directory / "shop" / "settings.py").open("a") as file:
            file.write("\n" + settings)
        if spider is not None:
            (directory / "shop" / "spiders" / "products.py").write_text(dedent(spider))
        return directory

    return made


def scrapy(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> Ran:
    """Scrapy's own command."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "scrapy", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60,
        env=environment(env), check=False,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def consumed(directory: Path, *arguments: str) -> list[dict[str, Any]]:
    ran = crawlbus(
        "consume", "--sink", "jsonl:///bus.jsonl", "--until-drained", "--wait", "0", *arguments, cwd=directory
    )
    assert ran.code == 0, ran.err
    return [line["data"] for line in lines(directory / "bus.jsonl")]


def in_order(items: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(item, sort_keys=True) for item in items)


def refused(ran: Ran) -> str:
    """The one line of a refusal."""
    assert ran.code == 2, ran
    told = [line for line in ran.err.splitlines() if line.startswith("crawlbus: ")]
    assert len(told) == 1 and "Traceback" not in ran.err, ran.err
    return told[0]


def test_the_same_items_with_two_settings_more(make: Make) -> None:
    with shop().open() as url:
        plain = make("", name="plain")
        ran = scrapy("crawl", "products", "-a", f"url={url}/", "-O", "plain.jsonl", cwd=plain)
        assert ran.code == 0, ran.err
    expected = lines(plain / "plain.jsonl")
    assert sorted(item["name"] for item in expected) == ["ant", "apple", "ash", "axe", "bun", "front", "nut"]
    site = shop()
    with site.open() as other:
        bus = make(BUS)
        ran = scrapy("crawl", "products", "-a", f"url={other}/", cwd=bus)
        assert ran.code == 0 and "Traceback" not in ran.err, ran.err
    assert "ERROR" not in ran.err, ran.err
    found = consumed(bus)
    for item in found:
        item["url"] = item["url"].replace(other, url)
    assert in_order(found) == in_order(expected)
    pages = dict.fromkeys(("/", "/a", "/a1", "/b", "/b1", "/moved", "/new", "/gone", "/robots.txt"), 1) | {"/a2": 2}
    assert site.hits == pages
    assert {headers.get("X-Badge") for _, path, _, headers in site.requests if path != "/robots.txt"} == {"blue"}


@pytest.mark.parametrize("command", [scrapy, crawlbus])
@pytest.mark.parametrize(
    "line",
    [
        'SCHEDULER = "scrapy.core.scheduler.Scheduler"',
        'ITEM_PROCESSOR = "scrapy.pipelines.ItemPipelineManager"',
        'DUPEFILTER_CLASS = "shop.filters.Own"',
    ],
)
def test_what_cannot_be_replaced_is_refused_with_the_line_to_delete(make: Make, line: str, command: Any) -> None:
    directory = make(BUS + line + "\n")
    filters = "from scrapy.dupefilters import RFPDupeFilter\n\nclass Own(RFPDupeFilter): ...\n"
    (directory / "shop" / "filters.py").write_text(filters)
    told = refused(command("crawl", "products", "-a", "url=http://127.0.0.1:9/", cwd=directory))
    assert f"delete the line {line.replace(chr(34), chr(39))} of your settings" in told


def test_base_dupe_filter_turns_deduplication_off(make: Make) -> None:
    more = 'DUPEFILTER_CLASS = "scrapy.dupefilters.BaseDupeFilter"\nDEPTH_LIMIT = 2\n'
    site = Site({"/": links("a", "a"), "/a": links("/")})
    with site.open() as url:
        spider = PRODUCTS.replace('custom_settings = {"DEPTH_LIMIT": 6}', "")
        ran = scrapy("crawl", "products", "-a", f"url={url}/", cwd=make(BUS + more, spider=spider))
    assert ran.code == 0, ran.err
    assert site.hits == {"/robots.txt": 1, "/": 1 + 2, "/a": 2}


def test_feeds_to_one_file_are_for_one_worker(make: Make) -> None:
    directory = make(BUS + 'FEEDS = {"out.jsonl": {"format": "jsonlines"}}\n')
    with shop().open() as url:
        ran = crawlbus("crawl", "products", "-a", f"url={url}/", "--workers", "2", cwd=directory)
        told = refused(ran)
        assert "FEEDS" in told and "out.jsonl" in told and "--sink" in told
        ran = crawlbus("crawl", "products", "-a", f"url={url}/", cwd=directory)
    assert ran.code == 0, ran.err
    found, stored = lines(directory / "out.jsonl"), consumed(directory)
    assert len(stored) == 7 and {item["name"] for item in found} <= {item["name"] for item in stored}


SETTINGS_SPIDER = """
import scrapy


class Shown(scrapy.Spider):
    name = "products"

    async def start(self):
        settings = self.crawler.settings
        yield {"items": settings["CONCURRENT_ITEMS"], "loop": settings["ASYNCIO_EVENT_LOOP"], "url": None, "price": 1}
"""


@pytest.mark.parametrize(
    ("more", "items", "loop"),
    [
        ('ITEM_PIPELINES = {"shop.pipelines.ShopPipeline": 300}', 2, "uvloop.Loop"),
        ('ITEM_PIPELINES = {"shop.pipelines.Slow": 300}', 100, "uvloop.Loop"),
        ("ITEM_PIPELINES = {}\nCONCURRENT_ITEMS = 7\nASYNCIO_EVENT_LOOP = None", 7, None),
        ("ITEM_PIPELINES = {}\nASYNCIO_EVENT_LOOP = 'asyncio.SelectorEventLoop'", 2, "asyncio.SelectorEventLoop"),
    ],
    ids=["cheap", "async-pipeline", "own", "own-loop"],
)
def test_cheap_settings_where_the_project_has_none(make: Make, more: str, items: int, loop: str | None) -> None:
    directory = make(BUS + more + "\n", spider=SETTINGS_SPIDER)
    assert scrapy("crawl", "products", cwd=directory).code == 0
    (item,) = consumed(directory)
    assert (item["items"], item["loop"]) == (items, loop)


@pytest.mark.parametrize("command", [scrapy, crawlbus])
@pytest.mark.parametrize("name", ["spiders", "bus"])
def test_a_package_with_a_name_of_ours_is_refused(make: Make, name: str, command: Any) -> None:
    directory = make(BUS.replace("sqlite:///bus.db", "sqlite:///b.db") + f'SPIDER_MODULES = ["{name}"]\n')
    (directory / "shop" / "spiders").rename(directory / name)
    told = refused(command("crawl", "products", "-a", "url=http://127.0.0.1:9/", cwd=directory))
    assert f"rename your package '{name}'" in told


def test_a_crawl_spider_with_rules(make: Make) -> None:
    spider = """
    from scrapy.linkextractors import LinkExtractor
    from scrapy.spiders import CrawlSpider, Rule

    class Rules(CrawlSpider):
        name = "products"
        rules = [
            Rule(LinkExtractor(allow="/item/"), callback="item", cb_kwargs={"kind": "item"}, errback="failed"),
            Rule(LinkExtractor(deny="/no"), process_links="some", process_request="mark"),
        ]

        def __init__(self, url, **kwargs):
            super().__init__(**kwargs)
            self.start_urls = [url]

        def some(self, links):
            return [link for link in links if "skip" not in link.url]

        def mark(self, request, response):
            return request.replace(meta={**request.meta, "from": response.url.rpartition("/")[2]})

        def parse_start_url(self, response):
            yield {"path": "start", "price": 1, "text": None}

        def item(self, response, kind):
            yield {"path": response.url.rpartition("/")[2], "price": 1, "text": response.meta["link_text"]}

        def failed(self, failure):
            yield {"path": "failed", "price": 1, "text": failure.value.response.status}
    """
    site = Site(
        {
            "/": links("/item/1", "/list", "/no/1", "/skip"),
            "/list": links("/item/2", "/item/gone", "/item/1"),
            "/item/1": links("/item/2"),
            "/item/2": links("/late"),
            "/late": links("/item/3"),
            "/item/3": "",
        }
    )
    with site.open() as url:
        directory = make(spider=spider)
        ran = scrapy("crawl", "products", "-a", f"url={url}/", cwd=directory)
        assert ran.code == 0 and "Traceback" not in ran.err, ran.err
    assert sorted(item["path"] for item in consumed(directory)) == ["1", "2", "failed", "start"]
    assert site.hits == dict.fromkeys(("/robots.txt", "/", "/list", "/item/1", "/item/2", "/item/gone"), 1)


IDLE = """
import asyncio
import scrapy
from scrapy import signals
from scrapy.exceptions import DontCloseSpider


class Idle(scrapy.Spider):
    name = "products"
    rounds = waiting = 0

    @classmethod
    def from_crawler(cls, crawler, *args, **kwargs):
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.idle, signals.spider_idle)
        return spider

    async def start(self):
        yield scrapy.Request(self.url)

    def idle(self):
        if self.rounds < 3 and not self.waiting:
            self.rounds, self.waiting = self.rounds + 1, self.waiting + 1
            later_s = 1.5 if self.rounds == 2 else 0  # as one who asks elsewhere; until then the job is finished
            asyncio.get_running_loop().call_later(later_s, self.more, f"{self.url}round/{self.rounds}")
        if self.waiting:
            raise DontCloseSpider

    def more(self, url):
        self.waiting -= 1
        self.crawler.engine.crawl(scrapy.Request(url))

    def parse(self, response):
        yield {"url": response.url, "price": 1}

    def closed(self, reason):
        with open("closed.txt", "a") as file:
            file.write(reason)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_requests_of_an_idle_spider_and_its_last_word(make: Make, workers: int) -> None:
    site = Site({"/": "x", **{f"/round/{n}": "x" for n in (1, 2, 3)}})
    directory = make(spider=IDLE)
    with site.open() as url:
        ran = crawlbus("crawl", "products", "-a", f"url={url}/", "--sink", "jsonl:///bus.jsonl",
                       "--workers", str(workers), cwd=directory)  # fmt: skip
        assert ran.code == 0 and "Traceback" not in ran.err, ran.err
    del site.hits["/robots.txt"]  # once for each worker that fetched anything
    assert site.hits == dict.fromkeys(("/", "/round/1", "/round/2", "/round/3"), 1)
    assert (directory / "closed.txt").read_text() == "finished" * workers
    assert len(lines(directory / "bus.jsonl")) == 4, ran.err


def test_the_command_line_wins_over_the_project(make: Make) -> None:
    directory = make()
    with shop().open() as url:
        arguments = ("crawl", "products", "-a", f"url={url}/")
        ran = scrapy(*arguments, "-s", "BUS_URL=sqlite:///other.db", "-s", "BUS_JOB=mine", cwd=directory)
        assert ran.code == 0, ran.err
        assert (directory / "other.db").exists() and not (directory / "bus.db").exists()
        ran = crawlbus("status", "--bus", "sqlite:///other.db", "--json", cwd=directory)
        assert [job["job"] for job in json.loads(ran.out)["jobs"]] == ["mine"]
        ran = scrapy(*arguments, cwd=directory, env={"CRAWLBUS_BUS": "sqlite:///env.db"})
        assert ran.code == 0 and (directory / "env.db").exists() and not (directory / "bus.db").exists()
