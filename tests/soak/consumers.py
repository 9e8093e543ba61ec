"""Consumers of known items that are killed at every point that matters, on every bus and into every sink."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.consumers.failpoints import points_of
from tests.consumers.lives import killed
from tests.consumers.places import BUSES, SINKS, new_place
from tests.consumers.verdict import Verdict

__all__: list[str] = []

HEAD = """\
| bus           | sink        | beside | kills | published | lost | duplicated | recovered | unexpected | s      |
|---|---|---|---|---|---|---|---|---|---|"""
ROW = "| {:<13} | {:<11} | {:>6} | {:>5} | {:>9,} | {:>4} | {:>10} | {:>9} | {:>10} | {:>6.0f} |"


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.soak.consumers", description=__doc__)
    for name, there in (("bus", BUSES), ("sink", SINKS)):
        say = f"of {' '.join(there)}, or how they begin"
        parser.add_argument(f"--{name}", nargs="+", default=there, metavar=name.upper(), help=say)
    parser.add_argument("--kills", type=int, default=20, help="at each point")
    arguments = parser.parse_args()
    print(HEAD, flush=True)
    well = [
        _rows(bus, sink, beside, arguments.kills)
        for bus in BUSES
        for sink in SINKS
        for beside in ((0, 1) if bus.startswith("kafka") else (0,))
        if bus.startswith(tuple(arguments.bus)) and sink.startswith(tuple(arguments.sink))
    ]
    return 0 if all(well) else 1


def _rows(bus: str, sink: str, beside: int, kills: int) -> bool:
    """Of all points together; one where it did not go well is told by itself."""
    began_s, found = time.monotonic(), list[Verdict]()
    with tempfile.TemporaryDirectory() as directory, new_place(bus, sink, Path(directory)) as place:
        points = points_of(place.sink)
    for seed, point in enumerate(points):
        with tempfile.TemporaryDirectory() as directory, new_place(bus, sink, Path(directory)) as place:
            try:
                verdict = killed(place, [point] * kills, seed=seed, peers=beside)
            except AssertionError as error:
                print(f"{bus} to {sink}, {point}: {error}", flush=True)
                return False
            if not verdict.well:
                print(f"{bus} to {sink}, {point}: {verdict}\n{place.log}", flush=True)
            found.append(verdict)
    total = _total(found)
    print(ROW.format(bus, sink, beside, kills * len(points), *total, time.monotonic() - began_s), flush=True)
    return total.well


def _total(verdicts: Sequence[Verdict]) -> Verdict:
    return Verdict(*map(sum, zip(*verdicts, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
