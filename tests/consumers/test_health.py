"""What a consumer answers by HTTP: whether it lives, whether it is ready, and its figures."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from bus.errors import Misconfigured
from bus.message import Position
from bus.transport import Lag
from consumers.sink import Batch, Gap, Progress, Written
from consumers.watch.figures import Figures, Stage
from consumers.watch.health import MAX_CLIENTS, STUCK_S, HealthServer, _Handler, not_alive, not_ready
from consumers.watch.metrics import Metrics
from tests.consumers.scene import TOPIC

ANY_PORT = "127.0.0.1:0"


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def figures_of(*partitions: int) -> Figures:
    """They hold nothing yet."""
    figures = Figures("default", TOPIC, clock=Clock())
    look(figures, **{f"p{partition}": (0, 0) for partition in partitions})
    return figures


def look(figures: Figures, **shares: tuple[int | None, int]) -> None:
    """`p3=(4, 7)`: partition 3 is ours, stored up to offset 4 (None: not at all), and ends at 7; it begins at 0."""
    held = {int(name[1:]): share for name, share in shares.items()}
    firsts, log_ends = dict.fromkeys(held, 0), {partition: end for partition, (_, end) in held.items()}
    figures.saw(Lag(None, None, 0, exact=True, first=firsts, end=log_ends))
    figures.hold({
        partition: None if at is None else Progress(Position(partition, at), "")
        for partition, (at, _) in held.items()
    })  # fmt: skip


def wait_s(figures: Figures, seconds: float) -> None:
    assert isinstance(figures.clock, Clock)
    figures.clock.now_s += seconds


def stored(figures: Figures, partition: int, offset: int, *, items: int = 1, seconds: float = 0.02) -> None:
    batch = Batch(progress={partition: Progress(Position(partition, offset), "m")})
    figures.wrote(batch, Written(items, 0), seconds)


def get(url: str, path: str, accept: str = "") -> tuple[int, str, str]:
    """Status, content type, body."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        connection.request("GET", path, headers={"Accept": accept})
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def ask(url: str, path: str) -> tuple[int, dict[str, Any]]:
    status, content_type, body = get(url, path)
    assert content_type == "application/json"
    return status, json.loads(body)


@pytest.mark.parametrize("first", [0, None], ids=["begun", "nothing stored yet"])
def test_a_partition_that_stands_still_with_work_to_do_is_not_alive(first: int | None) -> None:
    """Also where the others move on."""
    figures = figures_of()
    look(figures, p0=(first, 10), p1=(0, 10))
    wait_s(figures, STUCK_S - 1)
    stored(figures, 1, 5)
    look(figures, p0=(first, 11), p1=(5, 10))
    assert not_alive(figures) is None
    wait_s(figures, 1)
    assert not_alive(figures) == "partition 0 has 11 messages to store, and none was stored for 120 s"
    stored(figures, 0, 1)
    assert not_alive(figures) is None


def test_what_was_seen_of_the_log_counts_for_a_partition_that_is_taken_over_later() -> None:
    figures = figures_of()
    look(figures, p0=(3, 10), p1=(None, 5))
    figures.hold({1: None})
    assert figures.lag == 5
    figures.hold({0: Progress(Position(0, 7), ""), 1: None})
    assert figures.lag == 8
    wait_s(figures, STUCK_S)
    figures.hold({0: Progress(Position(0, 8), ""), 1: Progress(Position(1, 1), "")})
    assert (figures.lag, not_alive(figures)) == (6, None)


def test_one_message_of_many_items_is_progress() -> None:
    figures = figures_of()
    for index in range(3):
        look(figures, p0=(0, 1))
        wait_s(figures, STUCK_S - 1)
        assert not_alive(figures) is None
        figures.wrote(Batch(progress={0: Progress(Position(0, 0, index + 1), "m")}), Written(1, 0), 0.1)


def test_who_had_nothing_to_do_gets_the_whole_time_from_the_first_message_on() -> None:
    figures = figures_of(0)
    for _ in range(3):
        wait_s(figures, STUCK_S - 1)
        look(figures, p0=(0, 0))
        assert not_alive(figures) is None
    wait_s(figures, 3600)  # it slept meanwhile
    look(figures, p0=(0, 4))
    assert not_alive(figures) is None
    wait_s(figures, STUCK_S)
    look(figures, p0=(0, 5))
    assert not_alive(figures) is not None


@pytest.mark.parametrize("system", ["bus", "sink"])
def test_an_outage_is_not_ready_but_alive(system: Any) -> None:
    figures = figures_of()
    look(figures, p0=(0, 10))
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
    figures = figures_of()
    look(figures, p0=(0, 10))
    look(figures)
    wait_s(figures, 10 * STUCK_S)
    assert (figures.stage, not_alive(figures), not_ready(figures)) == (Stage.STANDBY, None, None)
    look(figures, p0=(None, 10))
    assert (figures.stage, not_alive(figures), figures.lag) == (Stage.ACTIVE, None, 10)


def test_who_starts_or_stops_is_alive_and_not_ready() -> None:
    figures = Figures("default", TOPIC)
    assert (not_alive(figures), not_ready(figures)) == (None, "the consumer is starting")
    look(figures, p0=(0, 1))
    assert not_ready(figures) is None
    figures.stage = Stage.STOPPING
    look(figures, p0=(0, 1))
    assert (not_alive(figures), not_ready(figures)) == (None, "the consumer is stopping")


def test_a_loop_that_is_stuck_is_not_alive_though_nothing_is_known_to_wait() -> None:
    figures = figures_of(0)
    wait_s(figures, STUCK_S - 1)
    assert not_alive(figures) is None
    wait_s(figures, 1)
    assert not_alive(figures) == "it has done nothing for 120 s, not even looked how far the log reaches"


@pytest.mark.parametrize("bound", [None, {}], ids=["cannot tell", "knows no such partition"])
def test_a_lag_that_is_not_known_is_no_reason_to_fail(bound: dict[int, int] | None) -> None:
    figures = figures_of()
    for _ in range(3):
        lag = Lag(None, None, None, exact=False, first=bound, end=bound)
        figures.hold({0: None, 1: Progress(Position(1, 5), "")})
        figures.saw(lag)
        wait_s(figures, STUCK_S - 1)
        assert (figures.lag, not_alive(figures), not_ready(figures)) == (None, None, None)


def test_the_answers_are_json_with_a_status() -> None:
    figures = Figures("default", TOPIC, clock=Clock())
    with HealthServer(ANY_PORT, figures) as server:
        assert ask(server.url, "/healthz") == (200, {"state": "starting", "lag": None, "outage": None})
        look(figures, p0=(0, 3), p1=(0, 4))
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
        with silent_clients(server.url, 1) as (client,), client.makefile("rb") as answer:
            client.sendall(b"HEAD /healthz HTTP/1.0\r\n\r\n")
            head = answer.read()
        assert head.startswith(b"HTTP/1.0 503 ") and head.endswith(b"\r\n\r\n")
        status, _, body = get(server.url, "/")
        assert (status, body) == (404, "there are /healthz, /readyz and /metrics\n")


def busy() -> Figures:
    figures = figures_of()
    look(figures, p0=(0, 30), p1=(0, 5))
    figures.hold(dict.fromkeys((0, 1, 2)))
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
    with HealthServer(ANY_PORT, busy()) as server:
        status, content_type, body = get(server.url, "/metrics", accept)
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


def test_the_page_of_metrics_names_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^\| `(\w+)` \|", page.partition("\n## Metrics\n")[2], re.MULTILINE))
    body = Metrics(busy()).render("")[0].decode()
    exported = set(re.findall(r"^# TYPE crawlbus_consumer_(\w+) ", body, re.MULTILINE))
    assert described == exported


def test_whoever_asks_while_the_figures_change_gets_an_answer() -> None:
    figures, ended = busy(), threading.Event()

    def change() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            look(figures, **{f"p{partition}": (number, number + 5) for partition in range(number % 50)})
            stored(figures, 0, number)
            figures.away("sink", "locked")
            figures.back("sink")

    changing = threading.Thread(target=change)
    changing.start()
    try:
        with HealthServer(ANY_PORT, figures) as server:
            for _ in range(15):
                assert get(server.url, "/metrics")[0] == 200
                assert ask(server.url, "/healthz")[0] == 200
    finally:
        ended.set()
        changing.join()


def _others(labels: dict[str, str]) -> list[str]:
    """The labels beside the consumer's name."""
    return [value for name, value in sorted(labels.items()) if name != "consumer"]


def test_without_the_extra_only_the_metrics_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "consumers.watch.metrics", raising=False)
    with HealthServer(ANY_PORT, figures_of(0)) as server:
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
    with HealthServer(ANY_PORT, figures_of()) as server:
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


def test_clients_that_say_nothing_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Handler, "timeout", 3600)
    with HealthServer(ANY_PORT, figures_of(0)) as server:
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
