"""The benchmarks measure what they say, and give no figure for a wrong crawl. Nothing here is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.buses import BUSES
from tests.bench.dedup import memory_of_seen
from tests.bench.idle import idle_pickups, percentile
from tests.bench.transport import Cost, exchange, rows
from tests.bench.worker import SITES, Contestant, Measured, WrongCrawl, contestants, measure, ratios, summary
from tests.sites.graph import Graph

BROKERS = ("redis-7", "rabbitmq-3.10", "kafka-4.1")


def test_every_contestant_fetches_and_stores_the_same_pages(tmp_path: Path) -> None:
    ordered = contestants(["tuned", "single", "links"], ["sqlite"])
    measured = list(measure(ordered, ["95", "50"], pages=40, runs=1, folder=tmp_path))
    assert [(each.site, each.contestant, each.pages) for each in measured] == [
        (site, one, 40) for site in ("95", "50") for one in ordered
    ]
    assert all(each.cpu_s > 0 and each.fetching_s > 0 and 10 < each.memory_mb < 1000 for each in measured)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bus", BROKERS)
def test_so_they_do_on_brokers(bus: str, tmp_path: Path) -> None:
    ordered = contestants(["single", "links"], [bus])
    assert [each.pages for each in measure(ordered, ["95"], pages=40, runs=1, folder=tmp_path)] == [40, 40]


def test_scrapy_redis_crawls_the_same(tmp_path: Path) -> None:
    peers = contestants(["scrapy-redis", "scrapy-redis-tuned"], [])
    assert [each.pages for each in measure(peers, ["95"], pages=40, runs=1, folder=tmp_path)] == [40, 40]


def test_a_wrong_crawl_has_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SITES, "95", lambda pages: Graph(pages=5))
    with pytest.raises(WrongCrawl, match="Scrapy on the site of 95: 6 fetches of 6 pages and 6 items, not 40"):
        list(measure([Contestant("scrapy")], ["95"], pages=40, runs=1, folder=tmp_path))


def test_contestants_take_turns_at_the_start(tmp_path: Path) -> None:
    measured = measure(contestants(["scrapy", "tuned"], []), ["50"], pages=2, runs=2, folder=tmp_path)
    assert [(each.run, each.contestant.kind) for each in measured] == [
        (0, "scrapy"),
        (0, "tuned"),
        (1, "tuned"),
        (1, "scrapy"),
    ]


def test_ratios_are_taken_run_by_run() -> None:
    links = Contestant("links", "redis-7")
    cpu = {
        Contestant("tuned"): [4.0, 8.0, 5.0],
        Contestant("scrapy-redis"): [6.0, 6.0, 7.0],
        links: [2.0, 2.0, 2.0],
    }
    measured = [
        Measured(name, "95", run, 1000, cpu_s, 2.0, 90.0)
        for name, each in cpu.items()
        for run, cpu_s in enumerate(each)
    ]
    assert ratios(measured, links, "95") == [2.0, 4.0, 2.5]
    assert summary(measured) == [
        ["95 %", "Scrapy, tuned", "5.00", "4.00 - 8.00", "1.00", "1.40", "500", "90"],
        ["95 %", "scrapy-redis", "6.00", "6.00 - 7.00", "0.71", "1.00", "500", "90"],
        ["95 %", "crawlbus on redis-7, Links", "2.00", "2.00 - 2.00", "2.50", "3.00", "500", "90"],
    ]


@pytest.mark.parametrize("bus", BUSES)
def test_every_transport_is_measured_beside_its_driver(bus: str, tmp_path: Path) -> None:
    costs = list(exchange(bus, messages=200, runs=1, folder=tmp_path))
    sides = ["crawlbus"] if bus in ("memory", "sqlite") else ["bare", "crawlbus"]
    assert [(each.side, each.phase) for each in costs] == [
        (side, phase) for side in sides for phase in ("publish", "receive")
    ]
    assert all(each.messages == 200 and each.wall_s > 0 and each.cpu_s > 0 for each in costs)


def test_transports_are_compared_run_by_run() -> None:
    walls = {"crawlbus": [2.0, 4.0, 5.0], "bare": [1.0, 3.0, 5.0]}
    costs = [
        Cost("redis-7", side, "publish", run, 1000, wall_s, wall_s / 100)
        for side, each in walls.items()
        for run, wall_s in enumerate(each)
    ]
    assert rows(costs) == [["redis-7", "publish + confirm", "250", "40.0", "333", "30.0", "0.75", "+10.0"]]


def test_percentiles() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (50, 99, 100)] == [50, 99, 100]
    assert percentile([7.0], 50) == 7


@pytest.mark.parametrize("bus", ["sqlite", *BROKERS])
def test_an_idle_worker_picks_up_every_seed(bus: str, tmp_path: Path) -> None:
    found = idle_pickups(bus, 3, tmp_path)
    assert len(found) == 3 and all(-1 < each < 30 for each in found)


def test_a_known_url_takes_a_few_bytes(tmp_path: Path) -> None:
    ours, theirs = memory_of_seen("redis-7", 20_000, tmp_path)
    assert (ours.urls, theirs.urls) == (20_000, 20_000)
    assert 8 <= ours.bytes_per_url < theirs.bytes_per_url
