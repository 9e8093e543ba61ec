"""A site whose graph is known: exactly the reachable pages are stored, once each, whatever carries the crawl."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.sites.graph import Graph, GraphSite
from tests.spiders.scene import Ran, crawlbus, left, project, stored

GRAPH = Graph(pages=300, links=10, redirects=8, missing=3, broken=2, failing=3, failures=1, slow=4, slow_s=0.2)
SPIDER = """
    from spiders import BusSpider

    class Shop(BusSpider):
        name = "shop"

        def __init__(self, url):
            super().__init__()
            self.start_urls = [url]

        def parse(self, response):
            yield {"url": response.url, "title": response.css("title::text").get()}
"""
FOLLOW = {
    "requests": "for href in response.css('a::attr(href)').getall(): yield response.follow(href, self.parse)",
    "links": "yield self.follow_all(response, response.css('a::attr(href)'), self.parse)",
}
SETTINGS = "RETRY_TIMES = 1\nCONCURRENT_REQUESTS_PER_DOMAIN = 16\n"
SQLITE_BUS, SQLITE_SINK = ("--bus", "sqlite:///bus.db"), ("--sink", "sqlite:///items.db")


@pytest.fixture(scope="module")
def shared_site() -> Iterator[GraphSite]:
    with GraphSite(GRAPH) as site:
        yield site


@pytest.fixture
def site(shared_site: GraphSite) -> GraphSite:
    shared_site.reset()
    return shared_site


def spider(tmp_path: Path, follow: str) -> Path:
    return project(tmp_path, dedent(SPIDER) + " " * 8 + FOLLOW[follow] + "\n", SETTINGS)


def crawl(directory: Path, site: GraphSite, *arguments: str) -> Ran:
    ran = crawlbus("crawl", "shop", "-a", f"url={site.url}/", *arguments, cwd=directory)
    assert ran.code == 0, ran.out + ran.err
    assert "Traceback" not in ran.err
    return ran


def paths(site: GraphSite, urls: list[str]) -> list[str]:
    assert all(url.startswith(site.url + "/") for url in urls)
    return sorted(url.removeprefix(site.url) for url in urls)


def is_fetched_once_each(site: GraphSite) -> None:
    """Whoever found it, and by how many links and redirects; but for the retries."""
    assert site.hits() == dict.fromkeys(GRAPH.reachable, 1) | dict.fromkeys(GRAPH.broken_paths | GRAPH.flaky, 2)


@pytest.mark.parametrize(
    ("workers", "follow"), [(1, "requests"), (1, "links"), (2, "requests"), (2, "links"), (4, "links")]
)
def test_through_sqlite(tmp_path: Path, site: GraphSite, workers: int, follow: str) -> None:
    crawl(spider(tmp_path, follow), site, *SQLITE_BUS, *SQLITE_SINK, "--workers", str(workers))
    data, rows = stored(tmp_path)
    assert paths(site, [row["url"] for row in rows]) == sorted(GRAPH.page_paths)
    assert all(item["title"] == f"Page {item['url'].removeprefix(site.url)}" for item in data)
    is_fetched_once_each(site)
    letters, status = asyncio.run(left(tmp_path))
    assert paths(site, [str(letter.url) for letter in letters]) == sorted(GRAPH.broken_paths)
    assert {letter.reason for letter in letters} == {"status"}
    counts = status.counters
    assert (status.state.value, status.open, status.begun, status.unaccounted) == ("finished", 0, 0, 0)
    assert counts["pages"] == status.seen == len(GRAPH.reachable)
    assert counts["items"] == len(GRAPH.page_paths) and counts["retries"] == len(GRAPH.broken_paths | GRAPH.flaky)


@pytest.mark.parametrize("follow", FOLLOW)
def test_through_memory(tmp_path: Path, site: GraphSite, follow: str) -> None:
    crawl(spider(tmp_path, follow), site, "--bus", "memory://", *SQLITE_SINK)
    assert paths(site, [row["url"] for row in stored(tmp_path)[1]]) == sorted(GRAPH.page_paths)
    is_fetched_once_each(site)
    assert not list(tmp_path.glob("*bus*.db")), "a bus in memory writes no file"


def test_memory_is_for_one_worker(tmp_path: Path) -> None:
    ran = crawlbus("crawl", "shop", "--bus", "memory://", "--workers", "2", cwd=spider(tmp_path, "links"))
    assert ran.code == 2 and ran.err.count("\n") == 1 and "--workers 1" in ran.err


@pytest.mark.parametrize("bus", ["sqlite:///bus.db", "memory://"])
def test_into_a_file_of_lines(tmp_path: Path, site: GraphSite, bus: str) -> None:
    crawl(spider(tmp_path, "links"), site, "--bus", bus, "--sink", "jsonl:///items.jsonl")
    lines: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert paths(site, [line["url"] for line in lines]) == sorted(GRAPH.page_paths)
    assert len({line["id"] for line in lines}) == len(lines)
    assert {(line["job"], line["spider"]) for line in lines} == {("shop", "shop")}
    assert set(lines[0]) == {"id", "job", "spider", "url", "scraped_at", "data"}


def test_bus_and_sink_in_one_file(tmp_path: Path, site: GraphSite) -> None:
    crawl(spider(tmp_path, "links"), site, "--bus", "sqlite:///items.db", *SQLITE_SINK, "--workers", "2")
    assert paths(site, [row["url"] for row in stored(tmp_path)[1]]) == sorted(GRAPH.page_paths)
