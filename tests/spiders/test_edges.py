"""Corners in which a crawl once stopped, hung, or lost something."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.spiders.scene import Answer, Crawled, Site, crawl, links, project

SPIDER = """
class Shop(scrapy.Spider):
    name = "shop"

    def __init__(self, url):
        super().__init__()
        self.start_urls = [url]

    def parse(self, response):
        yield {"url": response.url}
        yield from response.follow_all(css="a")
"""


def run(tmp_path: Path, site: Site, spider: str = SPIDER, *arguments: str, settings: str = "", **kw: Any) -> Crawled:
    with site.open() as url:
        return crawl(project(tmp_path, spider, settings), "-a", f"url={url}/", *arguments, **kw)


def test_a_cookie_wall_is_passed(tmp_path: Path) -> None:
    """A start URL that redirects to itself until it gets its cookie back."""

    def wall(hit: int) -> Answer | str:
        return (302, {"Location": "/", "Set-Cookie": "seen=1"}, b"") if hit == 1 else links("/a")

    done = run(tmp_path, Site({"/": wall, "/a": "x"}))
    assert sorted(item["url"].rpartition("/")[2] for item in done.items) == ["", "a"]


def test_a_start_url_that_redirects_for_ever_ends(tmp_path: Path) -> None:
    done = run(tmp_path, Site({"/": (302, {"Location": "/b"}, b""), "/b": (302, {"Location": "/"}, b"")}))
    assert done.ran.code == 0 and done.status.open == 0 and not done.items


def test_a_start_that_raises_is_told(tmp_path: Path) -> None:
    spider = SPIDER + dedent("""
        async def start(self):
            yield Request(self.start_urls[0])
            raise RuntimeError("the list of categories is gone")
    """).replace("\n", "\n    ")
    done = run(tmp_path, Site({"/": "x"}), spider)
    assert done.ran.code == 1 and "start() failed" in done.ran.out
    assert (done.status.state.value, len(done.items)) == ("finished", 1)


def test_items_without_the_key_keep_ids_of_their_own(tmp_path: Path) -> None:
    spider = SPIDER.replace(
        'yield {"url": response.url}', 'yield {"n": 1}\n        yield {"n": 2}\n        yield {"sku": 5}'
    )
    spider = spider.replace('name = "shop"', 'name = "shop"\n    item_key = ("sku",)')
    done = run(tmp_path, Site({"/": links("/a"), "/a": "x"}), spider)
    assert sorted(map(str, done.items)) == ["{'n': 1}", "{'n': 1}", "{'n': 2}", "{'n': 2}", "{'sku': 5}"]


def test_a_log_line_longer_than_any_buffer(tmp_path: Path) -> None:
    spider = SPIDER.replace('{"url": response.url}', '{"url": response.url, "text": "x" * 300_000}')
    pipeline = 'class Pipeline:\n    def process_item(self, item):\n        raise RuntimeError("no")\n'
    (tmp_path / "pipelines.py").write_text(pipeline)
    settings = 'ITEM_PIPELINES = {"pipelines.Pipeline": 300}'
    done = run(tmp_path, Site({"/": links("/a"), "/a": "x"}), spider, "--workers", "2", settings=settings)
    assert done.ran.code == 0 and len(done.dead) == 2, done.ran.err[-500:]


def test_a_connection_lost_between_receive_and_arrive(tmp_path: Path) -> None:
    """What was received is not forgotten while its lease is still renewed."""
    broken = """
    from adapters.sqlite.state import SqliteState
    from bus.errors import ConnectionLost

    arrive, calls = SqliteState.arrive, []

    async def unlucky(self, job, arrivals):
        calls.append(1)
        if len(calls) in (2, 3):
            raise ConnectionLost("the state is away")
        return await arrive(self, job, arrivals)

    SqliteState.arrive = unlucky
    """
    site = Site({"/": links("/a", "/b"), "/a": links("/c"), "/b": "x", "/c": "x"})
    done = run(tmp_path, site, dedent(broken) + SPIDER)
    assert done.ran.code == 0 and done.status.state.value == "finished" and done.status.open == 0
    assert len(done.items) == 4 and "the state is away" in done.ran.err


def test_a_callback_that_yields_more_than_memory_should_hold(tmp_path: Path) -> None:
    """The outbox is bounded by bytes, too; the callback waits."""
    spider = SPIDER.replace(
        'yield {"url": response.url}',
        'for n in range(300):\n            yield {"n": n, "text": "x" * 1_000_000}\n'
        '        status = open("/proc/self/status").read()\n'  # ru_maxrss would count what the process was forked from
        '        yield {"kb": int(status.partition("VmHWM:")[2].split()[0])}',
    )
    done = run(tmp_path, Site({"/": "x"}), spider)
    assert len(done.items) == 301
    assert next(item["kb"] for item in done.items if "kb" in item) < 300_000


def test_a_dead_sink_ends_the_crawl_of_a_single_worker(tmp_path: Path) -> None:
    site = Site({f"/{n or ''}": links(f"/{n + 1}") for n in range(10_000)})
    with site.open() as url:
        directory = project(tmp_path, SPIDER)
        (directory / "nofolder").write_text("")
        from tests.spiders.scene import crawlbus

        ran = crawlbus(
            "crawl",
            "shop",
            "-a",
            f"url={url}/",
            "--bus",
            "sqlite:///bus.db",
            "--sink",
            "sqlite:///nofolder/x.db",
            cwd=directory,
        )
    assert ran.code == 3 and "nofolder" in ran.err and "Traceback" not in ran.err, ran.err
    assert site.hits.total() < 10_000
