"""`kill -9` of workers and the consumer, again and again: nothing missing, nothing twice, few extra fetches."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.spiders.scene import Site, environment, left, links, project, stored

SPIDER = """
class Shop(scrapy.Spider):
    name = "shop"

    def __init__(self, url):
        super().__init__()
        self.start_urls = [url + "/p/0"]

    def parse(self, response):
        yield {"url": response.url}
        yield from response.follow_all(css="a", callback=self.parse)
"""
PAGES = 600
IN_FLIGHT = 16 + 64  # handed to the downloader and not yet acknowledged, per worker


def graph(seed: int) -> tuple[Site, set[str]]:
    """A site with a known graph: some pages slow, some failing once, some not reachable; and those that are."""
    rng = random.Random(seed)
    out = {n: [rng.randrange(PAGES) for _ in range(4)] + [(n + 1) % PAGES] for n in range(PAGES)}

    def page(n: int):  # type: ignore[no-untyped-def]
        text = links(*(f"/p/{other}" for other in out[n]))

        def answer(hit: int) -> object:
            time.sleep(rng.choice((0, 0, 0.01, 0.03)))
            return (503, {}, b"") if n % 50 == 7 and hit == 1 else text

        return answer

    site = Site({f"/p/{n}": page(n) for n in range(PAGES)} | {"/never": links()})
    return site, {f"/p/{n}" for n in range(PAGES)}


def pids_of(marker: str) -> list[int]:
    """Processes whose environment names this crawl."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@pytest.mark.parametrize("kills", [int(os.environ.get("CRAWLBUS_TEST_KILLS", "20"))])
def test_random_kills_of_workers_and_consumer(tmp_path: Path, kills: int) -> None:
    rng = random.Random(7)
    site, reachable = graph(3)
    marker = f"KILL_TEST={tmp_path}"
    project(tmp_path, SPIDER, "RETRY_TIMES = 5\nCONCURRENT_REQUESTS = 16\nCONCURRENT_REQUESTS_PER_DOMAIN = 16")
    with site.open() as url:
        crawl = subprocess.Popen(
            [sys.executable, "-P", "-m", "bus.cli", "crawl", "shop", "-a", f"url={url}", "--bus", "sqlite:///bus.db",
             "--sink", "sqlite:///items.db", "--workers", "2"],
            cwd=tmp_path, env=environment({"KILL_TEST": str(tmp_path)}), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        killed = finished = 0
        try:
            while crawl.poll() is None and killed < kills:
                time.sleep(rng.uniform(0.05, 0.4))
                _, status = asyncio.run(left_or_none(tmp_path))
                if status is None or status.counters.get("pages", 0) <= finished:
                    continue  # a kill counts only if a page was finished since the last one
                finished = status.counters["pages"]
                children = [pid for pid in pids_of(marker) if pid != crawl.pid and "bus.cli" in command_of(pid)]
                if children:
                    os.kill(rng.choice(children), signal.SIGKILL)
                    killed += 1
            out, _ = crawl.communicate(timeout=90)
        finally:
            crawl.kill()
            crawl.wait()
    assert crawl.returncode == 0, out
    rows = stored(tmp_path)[1]
    letters, status = asyncio.run(left(tmp_path))
    fetched = sum(count for path, count in site.hits.items() if path in reachable)
    expected = PAGES + PAGES // 50  # each that failed once was fetched twice
    print(f"kills {killed}, lost {PAGES - len(rows)}, extra fetches {fetched - expected}")
    assert killed == kills
    assert {"/" + row["url"].split("/", 3)[3] for row in rows} == reachable
    assert len(rows) == PAGES
    assert not letters and status.open == 0 and status.state.value == "finished" and not status.unaccounted
    assert fetched - expected <= killed * IN_FLIGHT


async def left_or_none(directory: Path):  # type: ignore[no-untyped-def]
    if not (directory / "bus.db").exists():
        return [], None
    try:
        return await left(directory)
    except AssertionError:
        return [], None
