"""Consumers that are killed at each point at which it could matter: nothing is lost, and nothing is stored twice.

Each bus once and each sink once; `python -m tests.soak.consumers` has all of them, with twenty kills at each point.
"""

from __future__ import annotations

import asyncio
from itertools import cycle, islice
from pathlib import Path

import pytest

from consumers.sink import sink_of
from consumers.testing import TOPIC, batch_of, record
from tests.consumers.failpoints import points_of
from tests.consumers.lives import killed
from tests.consumers.places import new_place
from tests.consumers.verdict import Verdict, stored_numbers, verdict, watch

KILLS = 20
PAIRS = [
    ("sqlite", "sqlite"),
    ("rabbitmq-3.10", "jsonl"),
    ("rabbitmq-4.3", "postgres-15"),
    ("kafka-4.1", "postgres-17"),
    ("redis-7", "parquet"),
    ("redis-8", "sqlite"),
]


@pytest.mark.parametrize(("bus", "sink"), PAIRS)
def test_twenty_kills(bus: str, sink: str, tmp_path: Path) -> None:
    """On Kafka beside another consumer, which is not killed."""
    with new_place(bus, sink, tmp_path) as place:
        points = list(islice(cycle(points_of(place.sink)), KILLS))
        found = killed(place, points, peers=1 if bus.startswith("kafka") else 0)
        print(f"{bus} to {sink}: {found}")
        assert found.well and found.published > 100


def test_the_verdict_over_numbers() -> None:
    assert verdict({1, 2, 3}, {1, 2, 3, 4}, [1, 2, 3]) == Verdict(3, 0, 0, 0, 0)
    assert verdict({1, 2, 3}, {1, 2, 3, 4, 5}, [1, 1, 1, 4, 9]) == Verdict(3, 2, 2, 1, 1)


@pytest.mark.parametrize("sink", ["sqlite", "jsonl", "postgres-17"])
def test_an_item_that_is_stored_twice_shows(sink: str, tmp_path: Path) -> None:
    """Also in a table, where it stands once."""

    async def store() -> None:
        target = sink_of(place.sink)
        await target.open("default", TOPIC)
        await target.hold({0})
        await target.write(batch_of(map(record, range(3))))
        await target.write(batch_of(map(record, range(2, 5)), start=3))
        await target.aclose()

    with new_place("sqlite", sink, tmp_path) as place:
        watch(place.sink)
        asyncio.run(store())
        assert sorted(stored_numbers(place.sink)) == [0, 1, 2, 2, 3, 4]
