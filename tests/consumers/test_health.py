"""What a consumer answers by HTTP: whether it lives, whether it is ready, and its figures."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from bus.errors import Misconfigured
from bus.message import Position
from bus.registry import connect_transport
from bus.topic import item_log
from bus.transport import Lag
from consumers.figures import Figures, Stage
from consumers.health import MAX_CLIENTS, STUCK_S, HealthServer, not_alive, not_ready
from consumers.lag import watch_lag
from consumers.sink import Batch, Gap, Progress, Written
from tests.consumers.scene import TOPIC, messages

HOLDS = "127.0.0.1:0"


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def figures_of(*partitions: int, clock: Callable[[], float] | None = None) -> Figures:
    figures = Figures("default", TOPIC, clock=clock or Clock())
    figures.hold({partition: Progress(Position(partition, 0), "") for partition in partitions})
    return figures


def wait_s(figures: Figures, seconds: float) -> None:
    assert isinstance(figures.clock, Clock)
    figures.clock.now_s += seconds


def ends(**end: int) -> Lag:
    """`ends(p0=7)`: partition 0 holds 0 to 7."""
    numbers = {int(name[1:]): value for name, value in end.items()}
    return Lag(None, None, 0, exact=True, first=dict.fromkeys(numbers, 0), end=numbers)


def stored(figures: Figures, partition: int, offset: int, *, items: int = 1, seconds: float = 0.02) -> None:
    batch = Batch(progress={partition: Progress(Position(partition, offset), "m")})
    figures.wrote(batch, Written(items, 0), seconds)


def get(url: str, path: str, *, method: str = "GET", accept: str = "") -> tuple[int, str, str]:
    """Status, content type, body."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        connection.request(method, path, headers={"Accept": accept})
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def ask(url: str, path: str) -> tuple[int, dict[str, Any]]:
    status, content_type, body = get(url, path)
    assert content_type == "application/json"
    return status, json.loads(body)


def test_a_partition_that_stands_still_with_work_to_do_is_not_alive() -> None:
    """Also where the others move on."""
    figures = figures_of(0, 1)
    figures.saw(ends(p0=10, p1=10))
    wait_s(figures, STUCK_S - 1)
    stored(figures, 1, 5)
    assert not_alive(figures) is None
    wait_s(figures, 1)
    assert not_alive(figures) == "partition 0 has 10 messages to store, and none was stored for 120 s"
    stored(figures, 0, 1)
    assert not_alive(figures) is None


def test_who_had_nothing_to_do_gets_the_whole_time_from_the_first_message_on() -> None:
    figures = figures_of(0)
    for _ in range(3):
        wait_s(figures, 3600)
        figures.saw(ends(p0=0))
        assert not_alive(figures) is None
    wait_s(figures, 3600)  # the bus did not answer meanwhile
    figures.saw(ends(p0=4))
    assert not_alive(figures) is None
    wait_s(figures, STUCK_S)
    figures.saw(ends(p0=5))
    assert not_alive(figures) is not None


@pytest.mark.parametrize("system", ["bus", "sink"])
def test_an_outage_is_not_ready_but_alive(system: Any) -> None:
    figures = figures_of(0)
    figures.saw(ends(p0=10))
    wait_s(figures, STUCK_S - 1)
    figures.away(system, "cannot connect to\npostgresql://shop:secret@db/items")
    wait_s(figures, 600)
    figures.away(system, "cannot connect to postgresql://shop:secret@db/items")
    assert not_alive(figures) is None
    assert not_ready(figures) == f"the {system} is away for 600 s: cannot connect to postgresql://shop:***@db/items"
    figures.back(system)
    assert not_ready(figures) is None
    wait_s(figures, STUCK_S - 1)
    assert not_alive(figures) is None, "the time begins anew with the end of the outage"
    wait_s(figures, 1)
    assert not_alive(figures) is not None


def test_standby_is_ready_and_never_stuck() -> None:
    figures = figures_of(0)
    figures.saw(ends(p0=10))
    figures.hold({})
    wait_s(figures, 10 * STUCK_S)
    assert (figures.stage, not_alive(figures), not_ready(figures)) == (Stage.STANDBY, None, None)
    figures.hold({0: None})
    figures.saw(ends(p0=10))
    assert (figures.stage, not_alive(figures), figures.lag) == (Stage.ACTIVE, None, 10)


def test_who_starts_or_stops_is_alive_and_not_ready() -> None:
    figures = Figures("default", TOPIC)
    assert (not_alive(figures), not_ready(figures)) == (None, "the consumer is starting")
    figures.hold({0: None})
    assert not_ready(figures) is None
    figures.stage = Stage.STOPPING
    figures.hold({0: None})
    assert (not_alive(figures), not_ready(figures)) == (None, "the consumer is stopping")


def test_a_partition_that_stays_keeps_its_time() -> None:
    figures = figures_of(0)
    figures.saw(ends(p0=10))
    for _ in range(3):
        wait_s(figures, STUCK_S / 3)
        figures.hold({0: None, 1: None})
    assert not_alive(figures) is not None


def test_a_loop_that_is_stuck_is_not_alive_though_nothing_is_known_to_wait() -> None:
    figures = figures_of(0)
    figures.looked_s = figures.clock()
    wait_s(figures, STUCK_S)
    assert not_alive(figures) == "it has done nothing for 120 s, not even looked how far it is behind"


def test_the_answers_are_json_with_a_status() -> None:
    figures = figures_of(0, 1)
    with HealthServer(HOLDS, figures) as server:
        assert ask(server.url, "/healthz") == (200, {"state": "active", "lag": None, "outage": None})
        figures.saw(ends(p0=3, p1=4))
        stored(figures, 0, 2)
        assert ask(server.url, "/readyz?verbose") == (200, {"state": "active", "lag": 5, "outage": None})
        figures.away("sink", "the database is locked")
        wait_s(figures, 12.34)
        facts = {"state": "active", "lag": 5, "outage": {"sink": 12.3}}
        assert ask(server.url, "/healthz") == (200, facts)
        reason = "the sink is away for 12 s: the database is locked"
        assert ask(server.url, "/readyz") == (503, {**facts, "reason": reason})
        figures.back("sink")
        wait_s(figures, STUCK_S)
        assert ask(server.url, "/healthz")[0] == 503
        status, _, body = get(server.url, "/healthz", method="HEAD")
        assert (status, body) == (503, "")
        status, _, body = get(server.url, "/")
        assert (status, body) == (404, "there are /healthz, /readyz and /metrics\n")


def busy() -> Figures:
    figures = figures_of(0, 1, 2)
    figures.saw(ends(p0=30, p1=5))
    gap = Gap(Position(0, 0), Position(0, 4), Position(0, 30))
    batch = Batch(gaps=[gap], progress={0: Progress(Position(0, 20, 3), "m"), 2: Progress(Position(2, 7), "m")})
    figures.wrote(batch, Written(1000, 2, 3), 0.3)
    figures.wrote(Batch(), Written(5, 0), 100.0)
    figures.bytes_read += 4096
    figures.away("bus", "no answer")
    wait_s(figures, 7)
    return figures


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_the_metrics_are_what_prometheus_reads(accept: str) -> None:
    with HealthServer(HOLDS, busy()) as server:
        status, content_type, body = get(server.url, "/metrics", accept=accept)
    assert status == 200
    assert content_type.startswith(accept.partition(";")[0] or "text/plain")
    read = read_openmetrics if accept else read_text
    samples = [sample for family in read(body) for sample in family.samples]
    own = [sample for sample in samples if sample.name.startswith("crawlbus_")]
    assert {sample.labels["consumer"] for sample in own} == {"default"}
    found = {
        (sample.name.removeprefix("crawlbus_consumer_"), *_others(sample.labels)): sample.value for sample in own
    }
    buckets = {key[1]: value for key, value in found.items() if key[0] == "batch_write_seconds_bucket"}
    assert (buckets["0.25"], buckets["0.5"], buckets["60.0"], buckets["+Inf"]) == (0, 1, 1, 2)
    assert {key: value for key, value in found.items() if key[0] != "batch_write_seconds_bucket"} == {
        ("items_stored_total",): 1005, ("quarantined_total",): 2, ("sanitized_total",): 3, ("gaps_total",): 1,
        ("read_bytes_total",): 4096, ("batch_write_seconds_count",): 2, ("batch_write_seconds_sum",): 100.3,
        ("active",): 1, ("partitions_held",): 3,
        ("lag_messages", "0", TOPIC): 10, ("lag_messages", "1", TOPIC): 5,
        ("stored_offset", "0", TOPIC): 20, ("stored_offset", "1", TOPIC): 0, ("stored_offset", "2", TOPIC): 7,
        ("outage_seconds", "bus"): 7, ("outage_seconds", "sink"): 0,
    }  # fmt: skip
    if Path("/proc/self/stat").exists():
        assert "process_resident_memory_bytes" in body


def _others(labels: dict[str, str]) -> list[str]:
    """The labels beside the consumer's name."""
    return [value for name, value in sorted(labels.items()) if name != "consumer"]


def test_without_the_extra_only_the_metrics_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "consumers.metrics", raising=False)
    with HealthServer(HOLDS, figures_of(0)) as server:
        status, content_type, body = get(server.url, "/metrics")
        assert (status, content_type) == (501, "text/plain")
        assert body == "metrics need an extra: pip install 'crawlbus[metrics]'\n"
        assert ask(server.url, "/healthz")[0] == 200
        assert ask(server.url, "/readyz")[0] == 200


def test_a_port_alone_is_of_the_loopback_interface() -> None:
    for address in ("0", ":0", "localhost:0"):
        with HealthServer(address, figures_of()) as server:
            assert urlsplit(server.url).hostname in {"127.0.0.1", "::1"}
            assert ask(server.url, "/healthz")[0] == 200


def test_a_port_in_use_is_said_in_one_sentence() -> None:
    with HealthServer(HOLDS, figures_of()) as server:
        taken = urlsplit(server.url).netloc
        with pytest.raises(Misconfigured) as caught:
            HealthServer(taken, figures_of())
    assert str(caught.value) == (
        f"--health (CRAWLBUS_HEALTH): cannot listen at {taken}: another process uses it; choose another"
    )
    with HealthServer(taken, figures_of()) as server:  # and is free at once after the end
        assert ask(server.url, "/healthz")[0] == 200


@pytest.mark.parametrize("address", ["", "health", "localhost", "127.0.0.1:", "127.0.0.1:65536", "::1:80", "http://a:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(Misconfigured, match=r"^--health .* is no address: write a port like 9100, or "):
        HealthServer(address, figures_of())


@contextmanager
def silent_clients(url: str, count: int) -> Iterator[list[socket.socket]]:
    parts = urlsplit(url)
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=60))
            for _ in range(count)
        ]


def test_clients_that_say_nothing_hold_up_nobody() -> None:
    with HealthServer(HOLDS, figures_of(0)) as server:
        with silent_clients(server.url, MAX_CLIENTS - 1):
            assert ask(server.url, "/healthz")[0] == 200
        with silent_clients(server.url, 3 * MAX_CLIENTS) as clients:
            assert clients[-1].recv(1) == b"", "those over the limit are sent away"
        answered(server.url)


def answered(url: str) -> None:
    """As soon as the places of the others are free."""
    deadline = time.monotonic() + 60
    while True:
        try:
            assert ask(url, "/healthz")[0] == 200
            return
        except ConnectionError:
            assert time.monotonic() < deadline


def test_the_lag_is_looked_at_while_the_bus_answers_and_kept_while_it_does_not(tmp_path: Path) -> None:
    async def main() -> None:
        figures = Figures("default", TOPIC)
        figures.hold({0: None})
        async with aclosing(await connect_transport(f"sqlite:///{tmp_path / 'bus.db'}")) as transport:
            await transport.declare(item_log("crawlbus."))
            watching = asyncio.create_task(watch_lag(transport, figures, each_s=0.01))
            await until(lambda: figures.lag == 0)
            await transport.publish(TOPIC, messages(range(5)))
            await until(lambda: figures.lag)
        looked_s = figures.looked_s
        await until(lambda: figures.looked_s != looked_s)
        assert figures.lag and not watching.done()
        stored(figures, 0, 1)
        assert figures.shares[0].stored == 1
        watching.cancel()

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(40):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
