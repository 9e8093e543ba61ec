"""Kafka Connect with Debezium's JDBC sink, which does what our consumer does: items from Kafka into PostgreSQL.

As shipped, and tuned: with the settings in which it was fastest here, of UNNEST, rows, and rows with the driver's
`reWriteBatchedInserts`; batches of 1,000, 2,000, 3,000, 5,000, 10,000 and 20,000 with polls of the same size; the
serial, parallel and G1 collectors. The reduction buffer is on: without it an id that comes twice in a batch ends the
task, as it would with rewritten rows; it costs nothing that could be measured. In both, the schema stands in the
connector's settings (Kafka 4.2 and later), not in every message, which saves almost a third of the CPU. The table is
the one that our consumer has, and the items are those of `sample`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import psycopg
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError

from bus.items import ItemRecord, item_id
from tests.servers import Unavailable, free_port
from tests.servers.base import new_directory, reaper
from tests.servers.maven import jars

__all__ = ["ConnectSink", "Cost", "sample"]

POM = Path(__file__).with_name("connect.xml")
JAVA = ["-Xms1g", "-Xmx1g", "-XX:+UseParallelGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
PARTITIONS = 4  # as crawlbus gives its item log
WARM_UP_ITEMS = 400_000  # the JVM compiles what is hot: the CPU per row falls by a third and more
DEADLINE_S = 300.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

TABLE = """
CREATE TABLE {} (id text PRIMARY KEY, job text NOT NULL, spider text NOT NULL, url text,
                 scraped_at timestamptz NOT NULL, data jsonb NOT NULL)
"""
SCHEMA = {
    "type": "struct",
    "fields": [
        {"field": "id", "type": "string"},
        {"field": "job", "type": "string"},
        {"field": "spider", "type": "string"},
        {"field": "url", "type": "string", "optional": True},
        {"field": "scraped_at", "type": "string", "name": "io.debezium.time.ZonedTimestamp"},
        {"field": "data", "type": "string", "name": "io.debezium.data.Json"},
    ],
}
WORKER = {
    "key.converter": "org.apache.kafka.connect.storage.StringConverter",
    "value.converter": "org.apache.kafka.connect.json.JsonConverter",
    "plugin.discovery": "service_load",
    "connector.client.config.override.policy": "All",
}
CONNECTOR = {
    "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
    "value.converter": "org.apache.kafka.connect.json.JsonConverter",
    "value.converter.schema.content": json.dumps(SCHEMA),
    "insert.mode": "upsert",
    "primary.key.mode": "record_value",
    "primary.key.fields": "id",
    "schema.evolution": "none",
    "consumer.override.auto.offset.reset": "earliest",
}
TUNED = {
    "dialect.postgres.unnest.insert.enabled": "true",
    "use.reduction.buffer": "true",
    "batch.size": "2000",
    "consumer.override.max.poll.records": "2000",
    "consumer.override.max.partition.fetch.bytes": str(8 << 20),
}


class Cost(NamedTuple):
    """Of `rows` that came into the table in `wall_s`: from the first batch that was there to the last row."""

    rows: int
    wall_s: float
    cpu_s: float  # of the Connect process

    @property
    def per_s(self) -> float:
        return self.rows / self.wall_s

    @property
    def cpu_us(self) -> float:
        """Per row."""
        return self.cpu_s / self.rows * 1e6


def sample(count: int) -> Iterator[ItemRecord]:
    """Items as a shop's pages give them, each about 500 bytes of JSON."""
    for number in range(count):
        url = f"https://shop.example/catalogue/{number // 1000}/product-{number}.html"
        data = {
            "name": f"Product {number} of the café",
            "price": f"{number % 1000}.99",
            "currency": "EUR",
            "stock": number % 40,
            "rating": 1 + number % 50 / 10,
            "tags": ["books", "second hand", f"shelf {number % 300}"],
            "seller": {"name": f"Seller {number % 977}", "country": "FR", "since": 1990 + number % 30},
            "description": "A well kept copy, with the marks of the years that it has stood on a shelf. " * 3,
        }
        yield ItemRecord(item_id("bench", url.encode(), 0), "bench", "shop", 1, url, 1_760_000_000 + number / 100, data)


class ConnectSink:
    """A standalone worker of Kafka Connect, warmed up. Raises `Unavailable`; `RuntimeError` where Connect fails."""

    def __init__(self, kafka_url: str, postgres_url: str) -> None:
        self._kafka, self._postgres = kafka_url.removeprefix("kafka://"), postgres_url
        self._runs = 0

    def __enter__(self) -> Self:
        self._worker = _Worker(self._kafka)
        try:
            self.copy(WARM_UP_ITEMS, tasks=2, tuned=True)
        except BaseException:
            self._worker.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._worker.close()

    def copy(self, items: int, tasks: int, *, tuned: bool) -> Cost:
        """What it takes from a new topic with so many items into a new table."""
        self._runs += 1
        name = f"connect_{os.getpid()}_{self._runs}"
        with psycopg.connect(self._postgres, autocommit=True) as db:
            db.execute(TABLE.format(name))
            try:
                last = asyncio.run(self._ready(name, items, tasks, tuned))
                cost = self._measure(db, name, items, last)
                assert db.execute(f"SELECT count(*) FROM {name}").fetchone() == (items,)
                self._worker.call("DELETE", f"/connectors/{name}")
            finally:
                db.execute(f"DROP TABLE {name}")
                asyncio.run(self._forget(name))
        return cost

    async def _forget(self, topic: str) -> None:
        async with _admin(self._kafka) as admin:
            await admin.delete_topics([topic])

    async def _ready(self, topic: str, items: int, tasks: int, tuned: bool) -> list[str]:
        """The tasks have their partitions and pause, and the topic is full. The ids that come last."""
        async with _admin(self._kafka) as admin:
            await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
            config = self._config(topic, tasks) | (TUNED if tuned else {})
            self._worker.call("POST", "/connectors", {"name": topic, "config": config})
            deadline = time.monotonic() + DEADLINE_S
            while not await _is_assigned(admin, topic, tasks):
                self._worker.check(deadline)
                await asyncio.sleep(0.1)
        self._worker.call("PUT", f"/connectors/{topic}/pause")
        self._worker.until(lambda: self._states(topic) == {"PAUSED"})
        return await _fill(self._kafka, topic, items)

    def _config(self, topic: str, tasks: int) -> dict[str, str]:
        parts = urlsplit(self._postgres)
        return CONNECTOR | {
            "connection.url": f"jdbc:postgresql://{parts.hostname}:{parts.port}{parts.path}",
            "connection.username": parts.username or "",
            "connection.password": parts.password or "",
            "topics": topic,
            "collection.name.format": topic,
            "tasks.max": str(tasks),
        }

    def _states(self, name: str) -> set[str]:
        return {task["state"] for task in self._worker.call("GET", f"/connectors/{name}/status")["tasks"]}

    def _measure(self, db: psycopg.Connection, name: str, items: int, last: list[str]) -> Cost:
        def rows(condition: str = "true") -> int:
            found = db.execute(f"SELECT count(*) FROM {name} WHERE {condition}", [last] * (condition != "true"))
            return int((found.fetchone() or [0])[0])

        self._worker.call("PUT", f"/connectors/{name}/resume")
        self._worker.until(lambda: rows() > 0)
        before, began, cpu_s = rows(), time.monotonic(), self._worker.cpu_s()
        self._worker.until(lambda: rows("id = ANY(%s)") == len(last))
        return Cost(items - before, time.monotonic() - began, self._worker.cpu_s() - cpu_s)


class _Worker:
    """The process. Raises `Unavailable`."""

    def __init__(self, kafka: str) -> None:
        program = shutil.which("java")
        if program is None:
            raise Unavailable("java is not installed")
        command = [program, *JAVA, "-cp", f"{jars('connect-4.3.0-debezium-3.5.0', POM)}/*"]
        self._directory, self._port = new_directory(), free_port()
        config, self._log = self._directory / "worker.properties", self._directory / "log"
        lines = WORKER | {"bootstrap.servers": kafka, "listeners": f"http://127.0.0.1:{self._port}"}
        lines["offset.storage.file.filename"] = str(self._directory / "offsets")
        config.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
        command += ["org.apache.kafka.connect.cli.ConnectStandalone", str(config)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        reaper().add("group", self._process.pid)
        self.until(self._answers)

    def call(self, method: str, path: str, body: object = None) -> Any:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            connection.request(method, path, json.dumps(body) if body else None, {"content-type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"Kafka Connect refuses {method} {path}: {text.decode()}")
        return json.loads(text or b"null")

    def _answers(self) -> bool:
        with suppress(OSError, RuntimeError, http.client.HTTPException):
            self.call("GET", "/connectors")
            return True
        return False

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            self.check(deadline)
            time.sleep(0.02)

    def check(self, deadline: float) -> None:
        log = self._log.read_text(errors="replace")
        if self._process.poll() is not None or " ERROR " in log or time.monotonic() > deadline:
            raise RuntimeError(f"Kafka Connect does not work: {log[-3000:]}")

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        reaper().remove("group", self._process.pid)
        shutil.rmtree(self._directory, ignore_errors=True)
        reaper().remove("directory", self._directory)


@asynccontextmanager
async def _admin(servers: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=servers)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def _is_assigned(admin: AIOKafkaAdminClient, name: str, tasks: int) -> bool:
    """Whether the group of that connector has all its members, and no rebalance is left to come."""
    with suppress(GroupCoordinatorNotAvailableError):
        (answer,) = await admin.describe_consumer_groups([f"connect-{name}"])
        (_, _, state, _, _, members, *_) = answer.groups[0]
        return bool(state == "Stable" and len(members) == tasks)
    return False


async def _fill(servers: str, topic: str, items: int) -> list[str]:
    """The ids of the last item in each partition."""
    last = {}
    async with AIOKafkaProducer(bootstrap_servers=servers, linger_ms=20, max_batch_size=1 << 18) as producer:
        for number, record in enumerate(sample(items)):
            await producer.send(topic, _message(record), partition=number % PARTITIONS)
            last[number % PARTITIONS] = record.id
        await producer.flush()
    return list(last.values())


def _message(record: ItemRecord) -> bytes:
    at = datetime.fromtimestamp(record.scraped_at, UTC).isoformat().replace("+00:00", "Z")
    value = {"id": record.id, "job": record.job, "spider": record.spider, "url": record.url, "scraped_at": at}
    return json.dumps(value | {"data": json.dumps(record.data)}).encode()
