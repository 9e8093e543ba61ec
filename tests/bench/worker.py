"""CPU seconds per page of a worker, side by side with Scrapy and scrapy-redis."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import redis

from bus.items import read_items
from bus.registry import connect_transport
from bus.topic import item_log
from bus.url import bus_options
from tests.bench.buses import STATE, Place, place
from tests.sites.graph import EndlessGraph, Graph, GraphSite

__all__ = ["KINDS", "SITES", "Contestant", "Measured", "WrongCrawl", "contestants", "measure", "ratios", "summary"]

KINDS = {
    "scrapy": "Scrapy",
    "tuned": "Scrapy, tuned",
    "scrapy-redis": "scrapy-redis",
    "scrapy-redis-tuned": "scrapy-redis, tuned",
    "single": "Requests",
    "links": "Links",
}
ON_BUS = ("single", "links")
SITES: dict[str, Callable[[int], Graph | EndlessGraph]] = {
    "95": lambda pages: Graph(pages=pages - 1),
    "50": lambda pages: EndlessGraph(),
}


class WrongCrawl(Exception):
    """A contestant did not fetch and store what it should: it has no figure."""


class Contestant(NamedTuple):
    """`bus` only where crawlbus is meant."""

    kind: str
    bus: str = ""

    def __str__(self) -> str:
        return f"crawlbus on {self.bus}, {KINDS[self.kind]}" if self.bus else KINDS[self.kind]


class Measured(NamedTuple):
    """One run."""

    contestant: Contestant
    site: str
    run: int
    pages: int
    cpu_s: float  # of the worker process, all threads, user and system, from its start to its end
    fetching_s: float  # from the first request at the server to the last
    memory_mb: float  # the most it held

    @property
    def cpu_ms_per_page(self) -> float:
        return self.cpu_s * 1000 / self.pages

    @property
    def pages_per_s(self) -> float:
        return self.pages / self.fetching_s


def contestants(kinds: Iterable[str], buses: Sequence[str]) -> list[Contestant]:
    """Those of crawlbus once for each bus."""
    return [Contestant(kind, bus) for kind in kinds for bus in (buses if kind in ON_BUS else ("",))]


def measure(
    ordered: Sequence[Contestant], sites: Sequence[str], *, pages: int, runs: int, folder: Path
) -> Iterator[Measured]:
    """Alternating runs, each beginning with the next contestant; first a short run of each that does not count.

    Raises `WrongCrawl`, `Unavailable`.
    """
    with ExitStack() as stack:
        servers = {site: stack.enter_context(GraphSite(SITES[site](pages))) for site in sites}
        warm = stack.enter_context(GraphSite(EndlessGraph()))
        for contestant in ordered:
            _run(contestant, "warm-up", 0, warm, 20, folder)
        for run in range(runs):
            for site, server in servers.items():
                for index in range(len(ordered)):
                    contestant = ordered[(run + index) % len(ordered)]
                    yield _run(contestant, site, run, server, pages, folder)


def ratios(measured: Sequence[Measured], contestant: Contestant, site: str, to: str = "tuned") -> list[float]:
    """How many times less CPU than `to`, run by run."""
    cpu = {(each.contestant, each.run): each.cpu_s for each in measured if each.site == site}
    base = {run: value for (other, run), value in cpu.items() if other.kind == to}
    return [base[run] / value for (other, run), value in cpu.items() if other == contestant and run in base]


def summary(measured: Sequence[Measured]) -> list[list[str]]:
    """The rows of the table: medians, the spread of CPU, and the ratios to tuned Scrapy and to scrapy-redis."""
    rows = []
    order = contestants(KINDS, [*dict.fromkeys(each.contestant.bus for each in measured if each.contestant.bus)])
    for site in dict.fromkeys(each.site for each in measured):
        for contestant in order:
            found = [each for each in measured if (each.contestant, each.site) == (contestant, site)]
            if not found:
                continue
            cpu = sorted(each.cpu_ms_per_page for each in found)
            against = [ratios(measured, contestant, site, to) for to in ("tuned", "scrapy-redis")]
            speed, memory = _median(each.pages_per_s for each in found), _median(each.memory_mb for each in found)
            rows.append([
                f"{site} %", str(contestant), f"{statistics.median(cpu):.2f}", f"{cpu[0]:.2f} - {cpu[-1]:.2f}",
                *(f"{statistics.median(ratio):.2f}" if ratio else "" for ratio in against),
                f"{speed:.0f}", f"{memory:.0f}",
            ])  # fmt: skip
    return rows


def _median(values: Iterator[float]) -> float:
    return statistics.median(list(values))


def _run(contestant: Contestant, site: str, run: int, server: GraphSite, pages: int, folder: Path) -> Measured:
    server.reset()
    scrapy_redis = contestant.kind.startswith("scrapy-redis")
    with place(contestant.bus or (STATE if scrapy_redis else "memory"), folder) as where:
        order = {"contestant": contestant.kind, "url": server.url + "/", "pages": pages, **where._asdict()}
        items, usage = _child(order, where.folder)
        if contestant.bus:
            items = asyncio.run(_published(where))
        elif scrapy_redis:
            items = _pushed(where)
    arrivals = server.arrivals()
    fetched, distinct = len(arrivals), len({arrival.path for arrival in arrivals})
    if not fetched == distinct == items == pages:
        raise WrongCrawl(
            f"{contestant} on the site of {site}: {fetched} fetches of {distinct} pages and {items} items, not {pages}"
        )
    memory_mb = usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024 * 1024)
    fetching_s = arrivals[-1].at - arrivals[0].at
    return Measured(contestant, site, run, pages, usage.ru_utime + usage.ru_stime, fetching_s, memory_mb)


def _child(order: dict[str, object], folder: Path) -> tuple[int, resource.struct_rusage]:
    """Run a contestant to its end: the items it counted, and what the kernel says it used."""
    out, log = folder / "out", folder / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRAWLBUS_")}
    with out.open("w") as stdout, log.open("w") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.bench.contestant", json.dumps(order, default=str)],
            cwd=folder, stdout=stdout, stderr=stderr,
            env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise WrongCrawl(f"{order['contestant']} ended with exit code {child.returncode}:\n{log.read_text()[-3000:]}")
    return json.loads(out.read_text().splitlines()[-1])["items"], usage


async def _published(where: Place) -> int:
    """The items in the item log."""
    transport = await connect_transport(where.bus)
    try:
        topic = item_log(bus_options(where.bus).prefix)
        await transport.declare(topic)
        subscription = await transport.subscribe(topic.name, start="earliest", prefetch=1000)
        count = 0
        while deliveries := await subscription.receive(max_messages=1000, timeout_s=1.0):
            count += sum(len(read_items(delivery.message)) for delivery in deliveries)
        return count
    finally:
        await transport.aclose()


def _pushed(where: Place) -> int:
    """The items in the list of scrapy-redis."""
    with redis.Redis.from_url(where.state) as client:
        count = client.llen(f"{where.job}:items")
        assert isinstance(count, int)
        return count
