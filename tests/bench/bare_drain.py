"""The drivers by themselves: a log read to its end, and items stored in batches, as a program that does just this."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aio_pika
import psycopg
import pyarrow
import pyarrow.parquet
from aiokafka import AIOKafkaConsumer, TopicPartition

from bus.items import ItemRecord
from bus.topic import item_log
from bus.url import bus_options, file_path

__all__ = ["READ", "STORE"]

BATCH = 5000  # items of one transaction
PARQUET_BATCH = 100_000
COLUMNS = "id, job, spider, url, scraped_at, data"
PREFETCH = 1000


async def _kafka(url: str, messages: int) -> None:
    topic = item_log(bus_options(url).prefix).name
    servers = url.partition("?")[0].removeprefix("kafka://")
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        await consumer._client.force_metadata_update()
        consumer.assign([TopicPartition(topic, number) for number in range(4)])
        await consumer.seek_to_beginning()
        while messages > 0:
            found = await consumer.getmany(timeout_ms=1000, max_records=PREFETCH)
            messages -= sum(map(len, found.values()))
    finally:
        await consumer.stop()


async def _rabbitmq(url: str, messages: int) -> None:
    connection = await aio_pika.connect(url.partition("?")[0])
    async with connection, connection.channel() as channel:
        await channel.set_qos(PREFETCH)
        stream: Any = {"x-queue-type": "stream"}
        queue = await channel.declare_queue(item_log(bus_options(url).prefix).name, durable=True, passive=True)
        offset: Any = {"x-stream-offset": "first"}
        async with queue.iterator(arguments=offset | stream) as arriving:
            async for message in arriving:
                messages -= 1
                if messages % (PREFETCH // 2) == 0:
                    await message.ack(multiple=True)
                if messages == 0:
                    return


async def _sqlite(url: str, messages: int) -> None:
    with closing(sqlite3.connect(file_path(url.partition("?")[0]))) as db:
        rows = db.execute("SELECT id, key, headers, body FROM bus_log ORDER BY place")
        while found := rows.fetchmany(256):
            messages -= len(found)
    assert messages == 0


def _postgres(url: str, records: Sequence[ItemRecord]) -> None:
    with psycopg.connect(url) as db:
        db.execute(
            """CREATE TABLE items (id text PRIMARY KEY, job text NOT NULL, spider text NOT NULL, url text,
            scraped_at timestamptz NOT NULL, data jsonb NOT NULL)"""
        )
        db.execute("CREATE TEMPORARY TABLE staging (LIKE items) ON COMMIT DELETE ROWS")
        db.commit()
        for start in range(0, len(records), BATCH):
            with db.cursor() as cursor, cursor.copy(f"COPY staging ({COLUMNS}) FROM STDIN") as copy:
                for row in map(_row, records[start : start + BATCH]):
                    copy.write_row(row)
            db.execute(
                f"""INSERT INTO items SELECT {COLUMNS} FROM staging ON CONFLICT (id) DO UPDATE SET job = excluded.job,
                spider = excluded.spider, url = excluded.url, scraped_at = excluded.scraped_at, data = excluded.data"""
            )
            db.commit()


def _sqlite_store(url: str, records: Sequence[ItemRecord]) -> None:
    with closing(sqlite3.connect(file_path(url), isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(
            """CREATE TABLE items (id TEXT PRIMARY KEY, job TEXT NOT NULL, spider TEXT NOT NULL, url TEXT,
            scraped_at TEXT NOT NULL, data JSON NOT NULL)"""
        )
        for start in range(0, len(records), 1000):
            db.execute("BEGIN IMMEDIATE")
            db.executemany(
                f"""INSERT INTO items ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
                job = excluded.job, spider = excluded.spider, url = excluded.url, scraped_at = excluded.scraped_at,
                data = excluded.data""",
                map(_row, records[start : start + 1000]),
            )
            db.execute("COMMIT")


def _parquet(url: str, records: Sequence[ItemRecord]) -> None:
    for start in range(0, len(records), PARQUET_BATCH):
        columns = zip(*map(_row, records[start : start + PARQUET_BATCH]), strict=True)
        names = COLUMNS.split(", ")
        table = pyarrow.table(dict(zip(names, map(list, columns), strict=True)))
        pyarrow.parquet.write_table(table, Path(file_path(url)) / f"{start}.parquet", compression="zstd")


def _row(record: ItemRecord) -> tuple[Any, ...]:
    at = datetime.fromtimestamp(record.scraped_at, UTC).isoformat()
    return record.id, record.job, record.spider, record.url, at, json.dumps(record.data, ensure_ascii=False)


READ: dict[str, Callable[[str, int], Awaitable[None]]] = {"kafka": _kafka, "amqp": _rabbitmq, "sqlite": _sqlite}
STORE: dict[str, Callable[[str, Sequence[ItemRecord]], None]] = {
    "postgresql": _postgres, "sqlite": _sqlite_store, "parquet": _parquet,
}  # fmt: skip
