"""What the tests of the PostgreSQL sink share: how to fill it, and how to look into it."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import Any

import psycopg

from consumers.sink import Batch, Written
from consumers.sinks.postgres import PostgresSink
from consumers.testing import TOPIC

__all__ = ["KIND", "ask", "fill", "items", "member"]

KIND = "postgres-15"
SCRAPED_AT = """to_char(scraped_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


def ask(url: str, question: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """The rows of an answer; none of a statement that has none."""
    with psycopg.connect(url, autocommit=True) as db:
        cursor = db.execute(question.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []


def items(url: str, table: str = "items") -> list[dict[str, Any]]:
    found = ask(url, f"SELECT id, job, spider, url, {SCRAPED_AT}, data::text FROM {table} ORDER BY scraped_at, id")
    names = ("id", "job", "spider", "url", "scraped_at")
    return [{**dict(zip(names, row, strict=False)), "data": json.loads(row[5])} for row in found]


async def member(stack: AsyncExitStack, url: str, consumer: str = "default") -> PostgresSink:
    """One that has asked for partition 0."""
    sink = PostgresSink.from_url(url)
    stack.push_async_callback(sink.aclose)
    await sink.open(consumer, TOPIC)
    await sink.hold({0})
    return sink


async def fill(url: str, *batches: Batch) -> list[Written]:
    """Open, write, close."""
    async with AsyncExitStack() as stack:
        sink = await member(stack, url)
        return [await sink.write(batch) for batch in batches]
