"""Crawls of known sites whose workers and consumer are killed, with 1, 2 and 4 workers, on every bus."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.spiders.kills import Verdict, graph, killed_crawl, python_docs
from tests.spiders.places import BUSES, new_place

__all__: list[str] = []

# Fewer between two kills, and some page is begun and not finished by so many lives in a row that it counts as poison: a
# worker begins CONCURRENT_REQUESTS + 64 pages, in the order of the bus.
PAGES_PER_KILL = 75
HEAD = """\
| site  | bus           | workers | kills | lost | duplicated | unexpected | extra fetches | bound | s      |
|---|---|---|---|---|---|---|---|---|---|"""
ROW = "| {0:<5} | {1:<13} | {2:>7} | {3:>5} | {4:>4} | {5:>10} | {6:>10} | {7:>13} | {8:>5} | {9:>6.0f} |"


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.soak", description=__doc__)
    parser.add_argument(
        "--bus", nargs="+", default=BUSES, metavar="BUS", help=f"of {' '.join(BUSES)}, or how they begin"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=20)
    arguments = parser.parse_args()
    buses = [bus for bus in BUSES if bus.startswith(tuple(arguments.bus))]
    print(HEAD, flush=True)
    well = [
        _crawl(site, bus, workers, arguments.kills, seed=round_ * 10 + workers)
        for round_ in range(arguments.rounds)
        for bus in buses
        for site, workers in (("graph", 1), ("graph", 2), ("graph", 4), ("docs", 2))
    ]
    return 0 if all(well) else 1


def _crawl(site: str, bus: str, workers: int, kills: int, seed: int) -> bool:
    if site == "graph":
        pages, target = graph(seed, pages=PAGES_PER_KILL * kills), None
    else:
        pages, target = python_docs(), "/index.html"
        kills = min(kills, len(pages.expected) // PAGES_PER_KILL)
    with tempfile.TemporaryDirectory() as directory:
        place = new_place(bus, Path(directory))
        verdict = killed_crawl(Path(directory), place, pages, workers=workers, kills=kills, seed=seed, start=target)
    print(_row(site, bus, verdict), flush=True)
    return verdict.well


def _row(site: str, bus: str, verdict: Verdict) -> str:
    return ROW.format(site, bus, *verdict[:6], verdict.bound, verdict.elapsed_s)


if __name__ == "__main__":
    sys.exit(main())
