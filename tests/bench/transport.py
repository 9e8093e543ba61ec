"""What a message costs on each transport, beside the bare driver doing the same."""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from bus.message import Delivery, Headers, Message, new_id
from bus.registry import connect_transport
from bus.topic import Kind, Topic
from bus.url import bus_options, scheme
from tests.bench.bare import BARE, Side
from tests.bench.buses import place

__all__ = ["BATCH", "CALLS", "Cost", "exchange", "rows"]

CALLS, BATCH = 2, 32  # calls under way at once, and messages in each: 64 in flight
PHASES = {"publish": "publish + confirm", "receive": "receive + ack"}
BODY_BYTES = 300
WARM_UP = 640


class Cost(NamedTuple):
    """Of one phase of one run, in the client's process."""

    bus: str
    side: str  # crawlbus, bare
    phase: str  # publish, receive
    run: int
    messages: int
    wall_s: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        return self.messages / self.wall_s

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.messages * 1e6


class Crawlbus:
    """Ours, by the way that production goes."""

    async def open(self, url: str, queue: str, in_flight: int) -> None:
        self._transport = await connect_transport(url)
        self._queue, self._in_flight = queue, in_flight
        await self._transport.declare(Topic(queue, Kind.QUEUE))

    async def publish(self, batch: Sequence[Message]) -> None:
        await self._transport.publish(self._queue, batch)

    async def read(self) -> None:
        self._reader = await self._transport.subscribe(self._queue, prefetch=self._in_flight)

    async def receive(self, at_most: int) -> Sequence[Delivery]:
        return await self._reader.receive(max_messages=at_most, timeout_s=1.0)

    async def ack(self, batch: Sequence[Delivery]) -> None:
        await self._reader.ack(batch)

    async def aclose(self) -> None:
        await self._transport.aclose()


def exchange(name: str, *, messages: int, runs: int, folder: Path) -> Iterator[Cost]:
    """Alternating runs of ours and the bare driver, where there is one. Raises `Unavailable`."""
    for run in range(runs):
        with place(name, folder) as where:
            kind = scheme(where.bus)
            sides: list[tuple[str, Side]] = [("crawlbus", Crawlbus())]
            if kind in BARE:
                sides.append(("bare", BARE[kind]()))
            for side, one in sides if run % 2 else sides[::-1]:
                url = where.bus if side == "crawlbus" else where.bus.partition("?")[0]
                queue = f"{bus_options(where.bus).prefix}{where.job}.requests" + (".bare" if side == "bare" else "")
                gc.collect()
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    for phase, wall_s, cpu_s in runner.run(_run(one, url, queue, messages)):
                        yield Cost(name, side, phase, run, messages, wall_s, cpu_s)


async def _run(side: Side, url: str, queue: str, count: int) -> list[tuple[str, float, float]]:
    """(phase, seconds, CPU seconds), of what comes after a warm-up."""
    sent = [_message(number) for number in range(WARM_UP + count)]
    await side.open(url, queue, CALLS * BATCH)
    try:
        await _publish(side, sent[:WARM_UP])
        begun = time.perf_counter(), time.process_time()
        await _publish(side, sent[WARM_UP:])
        published = time.perf_counter() - begun[0], time.process_time() - begun[1]
        await side.read()
        await _receive(side, WARM_UP)
        begun = time.perf_counter(), time.process_time()
        await _receive(side, count)
        received = time.perf_counter() - begun[0], time.process_time() - begun[1]
    finally:
        await side.aclose()
    return [("publish", *published), ("receive", *received)]


def _message(number: int) -> Message:
    """As a worker publishes a link."""
    page = os.urandom(16)
    headers: Headers = {
        "content-type": "crawlbus/request", "schema": 1, "job": "bench", "spider": "bench", "run": 1, "page": page,
        "first-seen": time.time(), "source": f"http://127.0.0.1:8000/{number}",
    }  # fmt: skip
    return Message(new_id(), os.urandom(BODY_BYTES), headers, page)


async def _publish(side: Side, messages: Sequence[Message]) -> None:
    batches = iter([messages[start : start + BATCH] for start in range(0, len(messages), BATCH)])

    async def caller() -> None:
        for batch in batches:
            await side.publish(batch)

    await asyncio.gather(*(caller() for _ in range(CALLS)))


async def _receive(side: Side, count: int) -> None:
    """One is acknowledged while the next one is received."""
    acks: deque[asyncio.Task[None]] = deque()
    while count:
        batch: Sequence[Any] = await side.receive(min(BATCH, count))
        count -= len(batch)
        if batch:
            acks.append(asyncio.ensure_future(side.ack(batch)))
        if len(acks) == CALLS:
            await acks.popleft()
    await asyncio.gather(*acks)


def rows(costs: Sequence[Cost]) -> list[list[str]]:
    """The rows of the table: medians; the ratio of rates and the difference of CPU are taken run by run."""
    found = []
    for bus, phase in dict.fromkeys((each.bus, each.phase) for each in costs):
        runs = {(each.side, each.run): each for each in costs if (each.bus, each.phase) == (bus, phase)}
        row = [bus, PHASES[phase]]
        for side in ("crawlbus", "bare"):
            mine = [each for (name, _), each in runs.items() if name == side]
            row.append(_median((each.per_s for each in mine), "{:,.0f}"))
            row.append(_median((each.cpu_us for each in mine), "{:.1f}"))
        pairs = [(runs["crawlbus", run], bare) for (side, run), bare in runs.items() if side == "bare"]
        row.append(_median((ours.per_s / bare.per_s for ours, bare in pairs), "{:.2f}"))
        row.append(_median((ours.cpu_us - bare.cpu_us for ours, bare in pairs), "{:+.1f}"))
        found.append(row)
    return found


def _median(values: Iterable[float], shown: str) -> str:
    found = list(values)
    return shown.format(statistics.median(found)) if found else ""
