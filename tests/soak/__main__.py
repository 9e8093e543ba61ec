"""Crawls of a known graph whose workers and consumer are killed 20 times each, with 1, 2 and 4 workers."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.spiders.kills import Verdict, killed_crawl

__all__: list[str] = []

ROW = "| {0:>7} | {1:>5} | {2:>4} | {3:>10} | {4:>10} | {5:>13} | {6:>5} | {7:>6.0f} |"


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.soak", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=20)
    arguments = parser.parse_args()
    print("| workers | kills | lost | duplicated | unexpected | extra fetches | bound | s      |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    bad = 0
    for round_ in range(arguments.rounds):
        for workers in (1, 2, 4):
            with tempfile.TemporaryDirectory() as directory:
                verdict = killed_crawl(
                    Path(directory), workers=workers, kills=arguments.kills, seed=round_ * 10 + workers
                )
            print(_row(verdict), flush=True)
            bad += verdict.lost + verdict.duplicated + verdict.unexpected
    return 1 if bad else 0


def _row(verdict: Verdict) -> str:
    return ROW.format(*verdict[:6], verdict.bound, verdict.elapsed_s)


if __name__ == "__main__":
    sys.exit(main())
