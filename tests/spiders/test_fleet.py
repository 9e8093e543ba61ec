"""What a fleet makes of workers that die: one that is killed, one that a page kills, one that cannot even start."""

from __future__ import annotations

import asyncio
from pathlib import Path
from textwrap import dedent

from tests.spiders.scene import Site, crawl, crawlbus, left, links, project, stored

STARTS = """
    import os, pathlib

    class Shop(scrapy.Spider):
        name = "shop"

        def __init__(self, url):
            super().__init__()
            self.url = url

        async def start(self):
            with open("starts.txt", "a") as file:
                file.write("x")
            for number in range(30):
                if number == 20 and os.path.getsize("starts.txt") == 1:
                    await self.published()
                    os.kill(os.getpid(), 9)
                yield Request(self.url + str(number % 25), dont_filter=number < 5)

        async def published(self):
            import asyncio
            worker = self.crawler.engine._slot.scheduler._worker
            while (await worker.state.status("shop")).seen < 20:
                await asyncio.sleep(0.01)

        def parse(self, response):
            yield {"url": response.url}
"""


def test_start_is_run_again_from_the_beginning_when_its_worker_is_killed(tmp_path: Path) -> None:
    site = Site({f"/{number}": "x" for number in range(25)})
    project(tmp_path, STARTS)
    with site.open() as url:
        done = crawl(tmp_path, "-a", f"url={url}/", "--workers", "2")
    assert done.ran.code == 0, done.ran.out + done.ran.err
    assert (tmp_path / "starts.txt").read_text() == "xx"
    assert (done.status.state.value, done.status.open, done.status.seen) == ("finished", 0, 25)
    assert done.status.counters["pages"] == 25 == len(done.rows) and not done.dead
    assert set(site.hits) == set(site.pages)
    assert max(site.hits.values()) <= 2, "what the killed worker had in flight is fetched once more"


POISON = """
    import os, time

    class Shop(scrapy.Spider):
        name = "shop"
        custom_settings = {"CONCURRENT_REQUESTS_PER_DOMAIN": 16}

        def __init__(self, url):
            super().__init__()
            self.start_urls = [url]

        def parse(self, response):
            yield from response.follow_all(css="a", callback=self.leaf)

        def leaf(self, response):
            if response.url.endswith("/poison"):
                with open("deaths.txt", "a") as file:
                    file.write(f"{len(self.crawler.engine._slot.inprogress)}\\n")
                os.kill(os.getpid(), 9)
            yield {"url": response.url}
"""


def test_a_page_that_kills_its_worker_ends_as_poison_and_alone(tmp_path: Path) -> None:
    healthy = [f"/{number}" for number in range(40)]
    site = Site({"/": links("/poison", *healthy), "/poison": "x", **dict.fromkeys(healthy, "x")})
    project(tmp_path, POISON)
    with site.open() as url:
        done = crawl(tmp_path, "-a", f"url={url}/", "--workers", "2")
    assert done.ran.code == 0, done.ran.out + done.ran.err
    assert done.status.state.value == "finished" and done.status.open == 0 == done.status.unaccounted
    (letter,) = done.dead
    assert (letter.reason, letter.url, letter.whole) == ("poison", f"{url}/poison", True)
    assert len(done.rows) == 40
    in_progress = (tmp_path / "deaths.txt").read_text().split()
    assert len(in_progress) == 6 == site.hits["/poison"], "five starts, and one alone"
    assert in_progress[-1] == "1"


def one_line(directory: Path, *arguments: str, code: int) -> str:
    """A command that ends with one line of error, and no traceback unless it is our own log's."""
    ran = crawlbus("crawl", "shop", "-a", "url=http://127.0.0.1:9/", "--bus", "sqlite:///bus.db", *arguments,
                   cwd=directory)  # fmt: skip
    told = [line for line in ran.err.splitlines() if line.startswith("crawlbus: ")]
    assert ran.code == code and len(told) == 1, ran.out + ran.err
    assert "Traceback" not in ran.err, ran.err
    return told[0]


def test_a_worker_that_cannot_start_ends_the_command(tmp_path: Path) -> None:
    project(tmp_path, STARTS, 'ITEM_PIPELINES = {"nowhere.Pipeline": 1}')
    for workers in ("1", "2"):
        told = one_line(tmp_path, "--workers", workers, "--sink", "sqlite:///items.db", code=1)
        assert "nowhere" in told


def test_a_spider_that_cannot_be_imported_ends_the_command(tmp_path: Path) -> None:
    for line, wrong in (("import nowhere_at_all", "nowhere_at_all"), ("x = = 1", "shop.py"), ("1 / 0", "division")):
        project(tmp_path, dedent(STARTS) + line + "\n")
        told = one_line(tmp_path, "--workers", "2", code=2)
        assert "the spiders of this Scrapy project cannot be imported" in told and wrong in told
    project(tmp_path, STARTS, "import nowhere_at_all")
    told = one_line(tmp_path, code=2)
    assert "the settings of this Scrapy project cannot be imported" in told and "nowhere_at_all" in told


def test_an_argument_that_the_spider_does_not_take_ends_the_command(tmp_path: Path) -> None:
    project(tmp_path, STARTS)
    for workers in ("1", "2"):
        assert "colour" in one_line(tmp_path, "--workers", workers, "-a", "colour=red", code=1)
    assert asyncio.run(left(tmp_path))[1].state.value == "running"
    site = Site({f"/{number}": "x" for number in range(25)})
    (tmp_path / "starts.txt").write_text("x")
    with site.open() as url:
        done = crawl(tmp_path, "-a", f"url={url}/")
    assert done.ran.code == 0 and len(stored(tmp_path)[1]) == 25
