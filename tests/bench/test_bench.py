"""The benchmark measures what it says, and gives no figure for a wrong crawl. Nothing here is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.idle import idle_pickups, percentile
from tests.bench.worker import SITES, Measured, WrongCrawl, measure, ratios, summary
from tests.sites.graph import Graph


def test_every_contestant_fetches_and_stores_the_same_pages(tmp_path: Path) -> None:
    names = ["tuned", "single", "links"]
    measured = list(measure(names, ["95", "50"], pages=40, runs=1, folder=tmp_path))
    assert [(each.site, each.contestant, each.pages) for each in measured] == [
        (site, name, 40) for site in ("95", "50") for name in names
    ]
    assert all(each.cpu_s > 0 and each.fetching_s > 0 and 10 < each.memory_mb < 1000 for each in measured)
    assert not list(tmp_path.iterdir())


def test_a_wrong_crawl_has_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SITES, "95", lambda pages: Graph(pages=5))
    with pytest.raises(WrongCrawl, match="scrapy on the site of 95: 6 fetches of 6 pages and 6 items, not 40"):
        list(measure(["scrapy"], ["95"], pages=40, runs=1, folder=tmp_path))


def test_contestants_take_turns_at_the_start(tmp_path: Path) -> None:
    measured = measure(["scrapy", "tuned"], ["50"], pages=2, runs=2, folder=tmp_path)
    assert [(each.run, each.contestant) for each in measured] == [
        (0, "scrapy"),
        (0, "tuned"),
        (1, "tuned"),
        (1, "scrapy"),
    ]


def test_ratios_are_taken_run_by_run() -> None:
    cpu = {"tuned": [4.0, 8.0, 5.0], "links": [2.0, 2.0, 2.0]}
    measured = [
        Measured(name, "95", run, 1000, cpu_s, 2.0, 90.0)
        for name, each in cpu.items()
        for run, cpu_s in enumerate(each)
    ]
    assert ratios(measured, "links", "95") == [2.0, 4.0, 2.5]
    assert summary(measured) == [
        ["95 %", "Scrapy, tuned", "5.00", "4.00 - 8.00", "1.00", "500", "90"],
        ["95 %", "crawlbus, Links", "2.00", "2.00 - 2.00", "2.50", "500", "90"],
    ]


def test_percentiles() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (50, 99, 100)] == [50, 99, 100]
    assert percentile([7.0], 50) == 7


def test_an_idle_worker_picks_up_every_seed(tmp_path: Path) -> None:
    found = idle_pickups(3, tmp_path)
    assert len(found) == 3 and all(-1 < each < 30 for each in found)
