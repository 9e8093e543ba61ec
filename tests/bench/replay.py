"""How soon a replay of a large log stores its first row, how fast it goes on, and that it can be interrupted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import aclosing, closing
from pathlib import Path
from typing import NamedTuple

from bus.items import ItemRecord, item_id, item_messages, pack_item
from bus.message import Message
from bus.registry import connect_transport
from bus.topic import item_log
from bus.url import bus_options
from tests.bench.buses import place

__all__ = ["Replayed", "replay_of"]

PROGRAM = [sys.executable, "-P", "-m", "bus.cli", "replay"]
AT_ONCE = 200  # messages of one publish


class Replayed(NamedTuple):
    """Of one log. `first_row_s` counts from the start of the process, the imports included; `again_s` likewise, to the
    first row after it was interrupted in the middle. `items_per_s` is that of both runs, from their first rows on."""

    bus: str
    items: int
    first_row_s: float
    again_s: float
    items_per_s: float
    cpu_us_per_item: float


def replay_of(bus: str, items: int, folder: Path, *, pack: int = 10) -> Replayed:
    """A log of so many items on one of `BUSES` but memory, `pack` in each message, into a table of SQLite. It is
    interrupted once half is stored, and given again. Raises `AssertionError` where not each is stored, `Unavailable`.
    """
    with place(bus, folder) as here:
        asyncio.run(_fill(here.bus, items, pack))
        sink = here.folder / "items.db"
        words = ["--bus", here.bus, "--from", "earliest", "--sink", f"sqlite:///{sink}", "--json"]
        cpu_before = _cpu_s()
        first, second = _run(words, sink, items // 2), _run(words, sink, None)
        cpu_s = _cpu_s() - cpu_before
        with closing(sqlite3.connect(sink)) as db:
            assert db.execute("SELECT count(*) FROM items").fetchone() == (items,)
    stored = first.stored + second.stored
    assert stored == items, f"{stored:,} rows were written for {items:,} items"
    seconds = first.rest_s + second.rest_s
    return Replayed(bus, items, first.first_row_s, second.first_row_s, items / seconds, cpu_s / items * 1e6)


class _Run(NamedTuple):
    first_row_s: float
    rest_s: float
    stored: int


def _run(words: list[str], sink: Path, until: int | None) -> _Run:
    """One process; told to end when the sink has `until` rows."""
    rows, began = _rows(sink), time.perf_counter()
    with subprocess.Popen([*PROGRAM, *words], stdout=subprocess.PIPE, text=True) as process:
        while _rows(sink) <= rows and process.poll() is None:
            time.sleep(0.01)
        first_row = time.perf_counter()
        while until is not None and _rows(sink) < until and process.poll() is None:
            time.sleep(0.05)
        if until is not None:
            process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=3600)
        ended = time.perf_counter()
    assert process.returncode == 0
    return _Run(first_row - began, ended - first_row, json.loads(out)["stored"])


def _rows(sink: Path) -> int:
    """By the rowid of the last one: to count them would take as long as to store them."""
    try:
        with closing(sqlite3.connect(f"file:{sink}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT coalesce(max(rowid), 0) FROM items").fetchone()[0])
    except sqlite3.OperationalError:  # it is not there yet
        return 0


async def _fill(url: str, items: int, pack: int) -> None:
    topic = item_log(bus_options(url).prefix)
    async with aclosing(await connect_transport(url)) as transport:
        await transport.declare(topic)
        for start in range(0, items, pack * AT_ONCE):
            numbers = range(start, min(items, start + pack * AT_ONCE))
            batch: list[Message] = []
            for first in range(numbers.start, numbers.stop, pack):
                few = [_item(number) for number in range(first, min(first + pack, numbers.stop))]
                bodies = [pack_item(item.id, item.url, item.scraped_at, item.data) for item in few]
                made = item_messages("bench", "bench", 1, bodies)
                batch += [message._replace(key=message.id.encode()) for message in made]
            await transport.publish(topic.name, batch)


def _item(number: int) -> ItemRecord:
    """About 300 bytes."""
    url = f"https://shop.example/products/{number}"
    data = {
        "number": number, "url": url, "title": f"Product {number}", "price": f"{number % 1000}.99", "currency": "EUR",
        "stock": number % 17, "tags": ["lamp", "table", "new"], "text": "A lamp that lights the whole table. " * 3,
    }  # fmt: skip
    return ItemRecord(item_id("bench", b"page", number), "bench", "bench", 1, url, time.time(), data)


def _cpu_s() -> float:
    """Of the processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system
