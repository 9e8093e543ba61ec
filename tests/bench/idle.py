"""How soon an idle worker begins a new seed."""

from __future__ import annotations

import asyncio
import math
import os
import random
import subprocess
import sys
import tempfile
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
from bus.transport import Transport
from spiders.pages import PageIds
from spiders.seed import seed
from tests.sites.graph import Graph, GraphSite

__all__ = ["idle_pickups", "percentile"]

JOB = "idle"
PATIENCE_S = 30.0


def idle_pickups(samples: int, folder: Path) -> list[float]:
    """Seconds from the confirmed publish of a seed to its request at the server, for so many seeds.

    A live `crawlbus crawl --forever` on sqlite://, idle before each seed; the seeds go the way of `crawlbus seed`.
    """
    graph = Graph(pages=1, unlinked=samples)
    with GraphSite(graph) as site, tempfile.TemporaryDirectory(dir=folder) as name:
        bus = f"sqlite:///{name}/bus.db"
        with _live_worker(site, bus, Path(name)):
            return asyncio.run(_sample(site, bus, samples))


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


@contextmanager
def _live_worker(site: GraphSite, bus: str, folder: Path) -> Iterator[None]:
    words = ["crawl", site.url, "--bus", bus, "--job", JOB, "--forever"]
    with (folder / "log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "bus.cli", *words], cwd=folder, stdout=log, stderr=log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        try:
            yield
        finally:
            worker.terminate()
            worker.wait(PATIENCE_S)


async def _sample(site: GraphSite, bus: str, samples: int) -> list[float]:
    transport, state = await connect_transport(bus), await connect_state(bus)
    timed = _Timed(transport)
    found = []
    try:
        await _until_idle(site, state, fetched=3)  # robots.txt and the two pages of the site
        for number in range(1, samples + 1):
            status = await state.status(JOB)
            assert status is not None
            await asyncio.sleep(random.uniform(0.0, 0.05))  # not in step with any timer of the worker
            pages = PageIds(RequestFingerprinter())
            url = f"{site.url}/unlinked/{number}"
            await seed(cast(Transport, timed), state, bus, status.job, Spider(JOB), pages, [url])
            await _until_idle(site, state, fetched=3 + number)
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


async def _until_idle(site: GraphSite, state: State, *, fetched: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        status = await state.status(JOB)
        if status is not None and status.start_ended and not status.open and len(site.arrivals()) >= fetched:
            return
        await asyncio.sleep(0.02)
    raise TimeoutError(f"the worker has not fetched {fetched} pages within {PATIENCE_S:.0f} s")
