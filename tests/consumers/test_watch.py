"""What a running consumer tells of itself, from outside: a service of systemd, asked by HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from bus.registry import connect_transport
from bus.topic import item_log
from tests.consumers.scene import TOPIC, messages


class Service:
    """`crawlbus consume`, started as systemd starts it."""

    def __init__(self, directory: Path, name: str) -> None:
        self._heard: list[str] = []
        self._systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._systemd.bind(str(directory / name))
        self._systemd.setblocking(False)
        with closing(socket.create_server(("127.0.0.1", 0))) as probe:
            self._port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bus.cli", "consume", "--sink", "sqlite:///items.sqlite"], cwd=directory,
            env={
                **os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "CRAWLBUS_BUS": "sqlite:///bus.db",
                "CRAWLBUS_HEALTH": str(self._port), "NOTIFY_SOCKET": str(directory / name), "WATCHDOG_USEC": "600000",
            },
        )  # fmt: skip

    def heard(self) -> list[str]:
        """All that systemd has heard so far."""
        while True:
            try:
                self._heard += self._systemd.recv(4096).decode().splitlines()
            except BlockingIOError:
                return self._heard

    def ask(self, path: str) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        with closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read().decode()
            return answer.status, json.loads(body) if path != "/metrics" else body

    def stored(self) -> float:
        name = 'crawlbus_consumer_items_stored_total{consumer="default"} '
        return float(self.ask("/metrics")[1].partition(f"\n{name}")[2].split()[0])

    def end(self) -> int:
        self.heard()  # the queue of a socket is short
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._systemd.close()


@contextmanager
def service(directory: Path, name: str) -> Iterator[Service]:
    with closing(Service(directory, name)) as running:
        until(lambda: "READY=1" in running.heard())
        yield running


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def publish(directory: Path, count: int) -> None:
    async def main() -> None:
        transport = await connect_transport(f"sqlite:///{directory / 'bus.db'}")
        try:
            await transport.declare(item_log("crawlbus."))
            await transport.publish(TOPIC, messages(range(count)))
        finally:
            await transport.aclose()

    asyncio.run(main())


def test_a_service_tells_that_it_is_ready_stores_and_stops(tmp_path: Path) -> None:
    publish(tmp_path, 30)
    with service(tmp_path, "first") as first:
        until(lambda: first.stored() == 30)
        until(lambda: first.ask("/healthz") == (200, {"state": "active", "lag": 0, "outage": None}))
        assert first.ask("/readyz")[0] == 200
        fed = first.heard().count("WATCHDOG=1")
        until(lambda: first.heard().count("WATCHDOG=1") >= fed + 3)
        assert first.heard().count("READY=1") == 1
        assert first.heard()[-2].startswith("STATUS=30 items stored · 0 messages behind")
        with service(tmp_path, "second") as second:
            assert second.ask("/readyz") == (200, {"state": "standby", "lag": None, "outage": None})
            fed = second.heard().count("WATCHDOG=1")
            until(lambda: second.heard().count("WATCHDOG=1") >= fed + 3)
            assert second.end() == 0
        assert first.end() == 0
        assert first.heard().count("STOPPING=1") == 1


def test_a_sink_that_is_away_is_not_ready_and_is_well(tmp_path: Path) -> None:
    with service(tmp_path, "only") as only:
        until(lambda: only.ask("/readyz") == (200, {"state": "active", "lag": 0, "outage": None}))
        with closing(sqlite3.connect(tmp_path / "items.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            publish(tmp_path, 5)
            until(lambda: only.ask("/readyz")[0] == 503)
            facts = only.ask("/readyz")[1]
            assert list(facts["outage"]) == ["sink"] and facts["reason"].startswith("the sink is away for ")
            assert only.ask("/healthz")[0] == 200
        until(lambda: only.stored() == 5)
        assert only.ask("/readyz")[0] == 200
        assert only.end() == 0
