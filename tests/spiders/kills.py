"""A crawl whose workers and consumer are killed again and again, and the verdict over what it stored."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from bus.registry import connect_state
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


def graph(seed: int) -> tuple[PacedSite, set[str]]:
    """A site with a known graph: some pages slow, some failing once, some not reachable; and those that are."""
    rng = random.Random(seed)
    out = {n: [rng.randrange(PAGES) for _ in range(4)] + [(n + 1) % PAGES] for n in range(PAGES)}

    def page(n: int):  # type: ignore[no-untyped-def]
        text = links(*(f"/p/{other}" for other in out[n]))

        def answer(hit: int) -> object:
            site.pace()
            time.sleep(rng.choice((0, 0, 0.01, 0.03)))
            return (503, {}, b"") if n % 50 == 7 and hit == 1 else text

        return answer

    site = PacedSite({f"/p/{n}": page(n) for n in range(PAGES)} | {"/never": links()})
    return site, {f"/p/{n}" for n in range(PAGES)}


class PacedSite(Site):
    """Answers no faster than the kills come, so that there is a crawl left for each of them."""

    share = 1.0  # of the pages may have been asked for

    def pace(self) -> None:
        for _ in range(100):
            if self.hits.total() <= self.share * PAGES:
                return
            time.sleep(0.01)


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


class Verdict(NamedTuple):
    """What became of the pages. A kill counts only if a page was finished since the last one."""

    workers: int
    kills: int
    lost: int
    duplicated: int
    unexpected: int  # rows for pages that are not reachable
    extra_fetches: int
    elapsed_s: float

    @property
    def bound(self) -> int:
        """How many fetches the kills excuse."""
        return self.kills * IN_FLIGHT


def killed_crawl(directory: Path, *, workers: int, kills: int, seed: int, timeout_s: float = 120) -> Verdict:
    """Crawl a known graph into SQLite with so many random kills. Raises `AssertionError` where it did not end well."""
    rng = random.Random(seed)
    site, reachable = graph(seed)
    project(directory, SPIDER, "RETRY_TIMES = 5\nCONCURRENT_REQUESTS = 16\nCONCURRENT_REQUESTS_PER_DOMAIN = 16")
    began_s = time.monotonic()
    with site.open() as url:
        fleet = Fleet(directory, url, workers)
        try:
            killed = asyncio.run(fleet.kill(site, kills, rng, timeout_s))
            code, out = fleet.wait(timeout_s)
        finally:
            fleet.close()
    assert code == 0, out[-3000:]
    letters, status = asyncio.run(left(directory))
    assert not letters and status.open == 0 and status.state.value == "finished" and not status.unaccounted, out[-3000:]
    paths = ["/" + row["url"].split("/", 3)[3] for row in stored(directory)[1]]
    fetched = sum(count for path, count in site.hits.items() if path in reachable)
    return Verdict(
        workers, killed, len(reachable - set(paths)), len(paths) - len(set(paths)), len(set(paths) - reachable),
        fetched - len(reachable) - sum(1 for n in range(PAGES) if n % 50 == 7), time.monotonic() - began_s,
    )  # fmt: skip


class Fleet:
    """`crawlbus crawl`, started again where it is itself what was killed."""

    def __init__(self, directory: Path, url: str, workers: int) -> None:
        self._directory, self._workers = directory, workers
        self._command = [sys.executable, "-P", "-m", "bus.cli", "crawl", "shop", "-a", f"url={url}", "--bus",
                         "sqlite:///bus.db", "--sink", "sqlite:///items.db", "--workers", str(workers)]  # fmt: skip
        self._log = (directory / "log").open("ab")
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        env = environment({"KILL_TEST": str(self._directory)})
        return subprocess.Popen(self._command, cwd=self._directory, env=env, stdout=self._log, stderr=self._log)

    async def kill(self, site: PacedSite, kills: int, rng: random.Random, timeout_s: float) -> int:
        """Kill one process after another; returns how many."""
        killed, finished, deadline = 0, 0, time.monotonic() + timeout_s
        while self._process.poll() is None and killed < kills and time.monotonic() < deadline:
            site.share = (killed + 1) / (kills + 1)
            await asyncio.sleep(rng.uniform(0.05, 0.3))
            now = await _pages(self._directory)
            victims = self._victims()
            if now > finished and victims:
                finished, victim = now, rng.choice(victims)
                os.kill(victim, signal.SIGKILL)
                killed += 1
                if victim == self._process.pid:
                    self._process.wait()
                    self._process = self._start()
        site.share = float("inf")
        return killed

    def _victims(self) -> list[int]:
        """The children; of a single worker the command itself, too."""
        found = [pid for pid in pids_of(f"KILL_TEST={self._directory}") if "bus.cli" in command_of(pid)]
        return [pid for pid in found if pid != self._process.pid or self._workers == 1]

    def wait(self, timeout_s: float) -> tuple[int, str]:
        """Its exit code, and all it has logged."""
        code = self._process.wait(timeout_s)
        return code, (self._directory / "log").read_text(errors="replace")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


async def _pages(directory: Path) -> int:
    """Finished so far; 0 while there is no job."""
    if not (directory / "bus.db").exists():
        return 0
    state = await connect_state(f"sqlite:///{directory / 'bus.db'}")
    try:
        status = await state.status("shop")
    finally:
        await state.aclose()
    return status.counters.get("pages", 0) if status is not None else 0
