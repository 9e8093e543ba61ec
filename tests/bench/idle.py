"""How soon an idle worker begins a new seed."""

from __future__ import annotations

import asyncio
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from scrapy import Spider
from scrapy.utils.request import RequestFingerprinter

from bus.message import Message
from bus.registry import connect_state, connect_transport
from bus.state import State
from bus.topic import LANES, request_queue
from bus.transport import Transport
from bus.url import bus_options
from spiders.pages import PageIds
from spiders.seed import seed
from tests.bench.buses import Place, place
from tests.sites.graph import Graph, GraphSite

__all__ = ["idle_pickups", "percentile"]

PATIENCE_S = 30.0


def idle_pickups(name: str, samples: int, folder: Path) -> list[float]:
    """Seconds from the confirmed publish of a seed to its request at the server, for so many seeds.

    A live `crawlbus crawl --forever` on the bus of that name, idle before each seed; the seeds go the way of
    `crawlbus seed`. Raises `Unavailable`.
    """
    graph = Graph(pages=1, unlinked=samples)
    with GraphSite(graph) as site, place(name, folder) as where, _live_worker(site, where):
        return asyncio.run(_sample(site, where, samples))


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


@contextmanager
def _live_worker(site: GraphSite, where: Place) -> Iterator[None]:
    words = ["crawl", site.url, "--bus", where.bus, "--state", where.state, "--job", where.job, "--forever"]
    with (where.folder / "log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "bus.cli", *words], cwd=where.folder, stdout=log, stderr=log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        try:
            yield
        finally:
            worker.terminate()
            worker.wait(PATIENCE_S)


async def _sample(site: GraphSite, where: Place, samples: int) -> list[float]:
    transport, state = await connect_transport(where.bus), await connect_state(where.state)
    timed = _Timed(transport)
    found = []
    try:
        queues = [request_queue(bus_options(where.bus).prefix, where.job, lane) for lane in LANES]
        await transport.declare(*queues)
        await _until_idle(site, state, where.job, fetched=3)  # robots.txt and the two pages of the site
        for number in range(1, samples + 1):
            status = await state.status(where.job)
            assert status is not None
            await asyncio.sleep(random.uniform(0.0, 0.05))  # not in step with any timer of the worker
            pages = PageIds(RequestFingerprinter())
            url = f"{site.url}/unlinked/{number}"
            await seed(cast(Transport, timed), state, where.bus, status.job, Spider(status.spider), pages, [url])
            await _until_idle(site, state, where.job, fetched=3 + number)
            found.append(site.arrivals(since=2 + number)[0].at - timed.confirmed_at)
    finally:
        await transport.aclose()
        await state.aclose()
    return found


class _Timed:
    """A transport that notes when its last publish was confirmed."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.confirmed_at = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        await self._transport.publish(topic, messages)
        self.confirmed_at = time.time()


async def _until_idle(site: GraphSite, state: State, job: str, *, fetched: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        status = await state.status(job)
        if status is not None and status.start_ended and not status.open and len(site.arrivals()) >= fetched:
            return
        await asyncio.sleep(0.02)
    raise TimeoutError(f"the worker has not fetched {fetched} pages within {PATIENCE_S:.0f} s")
