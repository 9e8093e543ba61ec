"""What an item costs from the log into storage, beside the two raw limits: reading it with the bare driver, and storing
it with the bare driver from the same Python dicts."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import uvloop

from bus.items import ItemRecord, item_messages, pack_item
from bus.registry import connect_transport
from bus.settings import Settings
from bus.topic import item_log
from bus.url import bus_options
from consumers.options import ConsumeOptions
from consumers.run import consume_process
from tests.bench.bare_drain import READ, STORE
from tests.bench.buses import place
from tests.bench.connect import sample
from tests.servers import shared_url
from tests.servers.postgres import new_database

__all__ = ["PACK", "PATHS", "Drained", "drain", "rows"]

PACK = 10  # items in a message
FILL = 64  # messages of one publish
SIDES = ("crawlbus", "driver reads", "driver stores")
PATHS = {
    "kafka-postgres": ("kafka-4.1", "postgres-15"),
    "rabbitmq-postgres": ("rabbitmq-4.3", "postgres-15"),
    "sqlite-sqlite": ("sqlite", "sqlite"),
    "sqlite-parquet": ("sqlite", "parquet"),
    "kafka-parquet": ("kafka-4.1", "parquet"),
}


class Drained(NamedTuple):
    """One side of one run, in one process."""

    path: str
    side: str
    run: int
    items: int
    wall_s: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        return self.items / self.wall_s

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.items * 1e6


def drain(path: str, *, items: int, runs: int, folder: Path) -> Iterator[Drained]:
    """Alternating runs over one log that is filled before. Raises `Unavailable`."""
    bus, sink = PATHS[path]
    with ExitStack() as stack:
        where = stack.enter_context(place(bus, folder))
        _run(lambda: _fill(where.bus, items))
        for run in range(runs):
            for side in SIDES if run % 2 else SIDES[::-1]:
                with ExitStack() as own:
                    target = _target(sink, where.folder / f"{run}-{side.replace(' ', '-')}", own)
                    yield Drained(path, side, run, items, *_measure(side, where.bus, target, items))


def _target(sink: str, folder: Path, stack: ExitStack) -> str:
    """The URL of an empty sink."""
    if sink.startswith("postgres"):
        return stack.enter_context(new_database(shared_url(sink)))
    folder.mkdir()
    return f"parquet:///{folder}" if sink == "parquet" else f"sqlite:///{folder}/items.db"


async def _fill(bus: str, items: int) -> None:
    transport = await connect_transport(bus)
    topic = item_log(bus_options(bus).prefix)
    await transport.declare(topic)
    records = list(sample(items))
    messages = []
    for start in range(0, items, PACK):
        packed = [pack_item(each.id, each.url, each.scraped_at, each.data) for each in records[start : start + PACK]]
        messages += item_messages("bench", "shop", 1, packed)
    for start in range(0, len(messages), FILL):
        await transport.publish(topic.name, messages[start : start + FILL])
    await transport.aclose()


def _measure(side: str, bus: str, target: str, items: int) -> tuple[float, float]:
    """Seconds and CPU seconds of this process."""
    if side == "driver stores":
        records: Sequence[ItemRecord] = list(sample(items))
        return _timed(lambda: STORE[target.partition(":")[0]](target, records))
    if side == "driver reads":
        read = READ[bus.partition(":")[0]]
        return _timed(lambda: _run(lambda: read(bus, items // PACK)))
    return _timed(lambda: _run(lambda: _consume(bus, target, items)))


async def _consume(bus: str, sink: str, items: int) -> None:
    settings = Settings(bus=bus, sink=sink)
    result = await consume_process(settings, ConsumeOptions(limit=items), quiet=True)
    assert result.stored == items, result


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    gc.collect()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def _run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def rows(found: Sequence[Drained]) -> list[list[str]]:
    """Of each path: medians of the three, and the median ratio of ours to the slower of the two limits, run by run."""
    lines = []
    for path in dict.fromkeys(each.path for each in found):
        row = [path]
        for side in SIDES:
            mine = [each for each in found if (each.path, each.side) == (path, side)]
            row.append(f"{statistics.median(each.per_s for each in mine):,.0f}")
            row.append(f"{statistics.median(each.cpu_us for each in mine):.1f}")
        by_run: dict[int, dict[str, float]] = {}
        for each in found:
            if each.path == path:
                by_run.setdefault(each.run, {})[each.side] = each.per_s
        ratios = [run["crawlbus"] / min(run["driver reads"], run["driver stores"]) for run in by_run.values()]
        lines.append([*row, f"{statistics.median(ratios):.2f}"])
    return lines
