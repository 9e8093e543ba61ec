"""A crawl whose workers and consumer are killed again and again, and the verdict over what it stored."""

from __future__ import annotations

import asyncio
import mimetypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from bus.registry import connect_state
from tests.sites.static import PYTHON_DOCS, reachable
from tests.spiders.scene import Answer, Place, Site, environment, links, project, stored, wait_until

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
SETTINGS = "RETRY_TIMES = 5\nCONCURRENT_REQUESTS = 16\nCONCURRENT_REQUESTS_PER_DOMAIN = 16\n"
IN_FLIGHT = 16 + 64  # handed to the downloader and not yet acknowledged, per worker


class PacedSite(Site):
    """A site that is known: `expected` are the paths that can be reached, `failing` of them answer 503 once.

    It shows new pages no faster than the kills come, so that there is a crawl left for each of them.
    """

    share = 1.0  # of the pages may have been asked for
    hold_s = 1.0  # at most

    def __init__(self, pages: Mapping[str, Any], expected: set[str], failing: int = 0) -> None:
        super().__init__(dict(pages))
        self.expected, self.failing = expected, failing

    def answer(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        until_s = time.monotonic() + self.hold_s
        while path not in self.hits and len(self.hits) > self.share * len(self.expected):
            if time.monotonic() > until_s:
                break
            time.sleep(0.01)
        return super().answer(method, path, body, headers)

    @property
    def extra_fetches(self) -> int:
        """What was asked for more often than a crawl without kills does."""
        fetched = sum(count for path, count in self.hits.items() if path in self.expected)
        return fetched - len(self.expected) - self.failing


def graph(seed: int, pages: int = 600, *, fail: bool = True) -> PacedSite:
    """A known graph: some pages slow, some failing once if so told, one not reachable."""
    rng = random.Random(seed)
    failing = {n for n in range(pages) if fail and n % 50 == 7}
    out = {n: [rng.randrange(pages) for _ in range(4)] + [(n + 1) % pages] for n in range(pages)}

    def page(n: int) -> Callable[[int], object]:
        text = links(*(f"/p/{other}" for other in out[n]))

        def answer(hit: int) -> object:
            time.sleep(rng.choice((0, 0, 0.01, 0.03)))
            return (503, {}, b"") if n in failing and hit == 1 else text

        return answer

    expected = {f"/p/{n}" for n in range(pages)}
    return PacedSite({f"/p/{n}": page(n) for n in range(pages)} | {"/never": links()}, expected, len(failing))


def python_docs() -> PacedSite:
    """Python's documentation as Debian ships it. A link to what is not there can be followed, too."""
    found = reachable(PYTHON_DOCS)
    pages = {path: _file(path) for path in (file.partition("?")[0] for file in found.files)}
    return PacedSite(pages, set(found.files | found.missing))


def _file(path: str) -> Callable[[int], Answer]:
    file = PYTHON_DOCS / unquote(path).lstrip("/")
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return lambda hit: (200, {"Content-Type": kind}, file.read_bytes())


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
    """What became of the pages. Pages were finished between any two kills."""

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

    @property
    def well(self) -> bool:
        """Nothing missing, nothing twice, few extra fetches."""
        return not (self.lost or self.duplicated or self.unexpected) and self.extra_fetches <= self.bound


def killed_crawl(
    directory: Path,
    place: Place,
    site: PacedSite,
    *,
    workers: int,
    kills: int,
    seed: int,
    start: str | None = None,
    timeout_s: float = 300,
) -> Verdict:
    """Crawl a known site into SQLite with so many random kills: by a spider, or by the URL of its page `start`.
    Raises `AssertionError` where it did not end well."""
    began_s = time.monotonic()
    with site.open() as url:
        target = ["shop", "-a", f"url={url}"] if start is None else [url + start]
        fleet = Fleet(directory, place, target, workers)
        try:
            killed = asyncio.run(fleet.kill(site, kills, random.Random(seed), timeout_s))
            fleet.ends_well(timeout_s)
        finally:
            fleet.close()
    missing, duplicated, unexpected = compare(directory, site)
    elapsed_s = time.monotonic() - began_s
    return Verdict(workers, killed, missing, duplicated, unexpected, site.extra_fetches, elapsed_s)


def compare(directory: Path, site: PacedSite) -> tuple[int, int, int]:
    """How many pages are missing in the sink, are there twice, and should not be there."""
    paths = ["/" + row["url"].split("/", 3)[3] for row in stored(directory)[1]]
    found = set(paths)
    return len(site.expected - found), len(paths) - len(found), len(found - site.expected)


class Fleet:
    """`crawlbus crawl` into `items.db`, started again where it is itself what was killed."""

    def __init__(self, directory: Path, place: Place, target: list[str], workers: int) -> None:
        project(directory, SPIDER, SETTINGS)
        self.directory, self.place, self._workers = directory, place, workers
        self._command = [
            sys.executable, "-P", "-m", "bus.cli", "crawl", *target, *place.arguments,
            "--sink", "sqlite:///items.db", "--workers", str(workers),
        ]  # fmt: skip
        self._log = (directory / "log").open("ab")
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        env = environment({"KILL_TEST": str(self.directory)})
        return subprocess.Popen(self._command, cwd=self.directory, env=env, stdout=self._log, stderr=self._log)

    async def kill(self, site: PacedSite, kills: int, rng: random.Random, timeout_s: float) -> int:
        """Kill one process after another, evenly over the crawl; returns how many."""
        killed, finished, deadline = 0, 0, time.monotonic() + timeout_s
        step = len(site.expected) // (kills + 1)
        while self._process.poll() is None and killed < kills and time.monotonic() < deadline:
            site.share = (killed + 1) / (kills + 1)
            await asyncio.sleep(rng.uniform(0.05, 0.3))
            now = await self.pages()
            if now - finished > 0.7 * step and (victims := self.victims()):
                finished = now
                self.kill_one(rng.choice(victims))
                killed += 1
        site.share = float("inf")
        return killed

    async def pages(self) -> int:
        """How many are finished."""
        async with aclosing(await connect_state(self.place.state)) as state:
            status = await state.status(self.place.job)
        return status.counters.get("pages", 0) if status is not None else 0

    def kill_one(self, victim: int) -> None:
        """`kill -9`."""
        os.kill(victim, signal.SIGKILL)
        if victim == self._process.pid:
            self._process.wait()
            self._process = self._start()

    def victims(self, word: str = "bus.cli") -> list[int]:
        """The children whose command has this word; of a single worker the command itself, too."""
        found = [pid for pid in pids_of(f"KILL_TEST={self.directory}") if word in command_of(pid)]
        return [pid for pid in found if pid != self._process.pid or self._workers == 1]

    def are_up(self, workers: int) -> None:
        """So many workers have been connected to all since the beginning."""
        wait_until(lambda: self.log.count("Crawled 0 pages") >= workers, timeout_s=90)

    @property
    def log(self) -> str:
        """All it has said so far."""
        return (self.directory / "log").read_text(errors="replace")

    def ends_well(self, timeout_s: float) -> None:
        """It ends by itself; the job is finished, and nothing of it is dead or unaccounted."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        how = "" if self._process.returncode is not None else f"not ended: {asyncio.run(self.place.left())}\n"
        assert self._process.returncode == 0, how + self.log[-5000:]
        letters, status = asyncio.run(self.place.left())
        assert not letters and status.open == 0 and status.state.value == "finished", (letters, status)
        assert not status.unaccounted, status

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pid in self.victims():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._log.close()
