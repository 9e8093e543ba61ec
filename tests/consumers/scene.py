"""What the tests of this directory share: items, messages, sinks, and how to look into a sink."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from bus.items import item_messages, pack_item
from bus.message import Message
from consumers.sink import Sink
from consumers.sinks.jsonl import JsonlSink
from consumers.sinks.sqlite import SqliteSink
from consumers.testing import TOPIC, batch_of, record

__all__ = [
    "TOPIC", "batch_of", "jsonl_items", "messages", "new_sink", "query", "record", "sqlite_items", "stored_items",
]  # fmt: skip

def messages(numbers: Iterable[int], *, job: str = "shop") -> list[Message]:
    """Items of the log, packed as a worker packs them."""
    items = [record(number, job=job) for number in numbers]
    return item_messages(job, "shop", 1, [pack_item(i.id, i.url, i.scraped_at, i.data) for i in items])


def new_sink(kind: str, directory: Path) -> Sink:
    if kind == "sqlite":
        return SqliteSink(directory / "items.sqlite")
    return JsonlSink(directory / "items.jsonl")


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def sqlite_items(path: Path, table: str = "items") -> list[dict[str, Any]]:
    names = ("id", "job", "spider", "url", "scraped_at", "data")
    rows = query(path, f'SELECT {", ".join(names)} FROM "{table}" ORDER BY scraped_at')
    return [{**dict(zip(names, row, strict=True)), "data": json.loads(row[5])} for row in rows]


def jsonl_items(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stored_items(kind: str, directory: Path) -> list[dict[str, Any]]:
    if kind == "sqlite":
        return sqlite_items(directory / "items.sqlite")
    return jsonl_items(directory / "items.jsonl")
