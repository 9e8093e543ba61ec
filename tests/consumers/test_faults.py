"""Consumers that fall asleep and wake up, and a database that is killed: nothing is lost, nothing is stored twice."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.consumers.failpoints import Fate
from tests.consumers.lives import consuming, publishing
from tests.consumers.places import Place, new_place
from tests.consumers.verdict import stored_numbers, watch
from tests.servers import server

# One that sleeps is waited for so long: where it holds partitions, where it holds locks.
HURRY = {"LEASE_S": 2.0, "IDLE_TIMEOUT_S": 2.0}


def until(condition: Callable[[], bool], place: Place) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, place.log[-5000:]
        time.sleep(0.02)


def until_stored(place: Place) -> None:
    """All that is published by now, and some more."""
    more = len(place.journal.numbers("=")) + 50
    until(lambda: len(place.journal.numbers("=")) > more, place)
    confirmed = place.journal.numbers("=")
    until(lambda: confirmed <= set(stored_numbers(place.sink)), place)


SLEEPS = {
    "redis-8": ("reading", "before rows", "after commit"),
    "kafka-4.1": ("before commit", "before ack"),
}
WOKEN = {
    "redis-8": "another consumer named 'default' stores all of the log: standing by",
    "kafka-4.1": "storing 2 of 4 partitions of the log",
}


@pytest.mark.parametrize("bus", SLEEPS)
def test_one_that_slept_at_any_point_changes_nothing(bus: str, tmp_path: Path) -> None:
    """Where it slept in a transaction, PostgreSQL gives its locks to others after a while. Woken, it stands by, or gets
    a share again."""
    with new_place(bus, "postgres-17", tmp_path) as place:
        watch(place.sink)
        with publishing(place) as publisher:
            for point in SLEEPS[bus]:
                with consuming(place, Fate(point, 4, signal.SIGSTOP), constants=HURRY) as sleeper:
                    until(sleeper.stands, place)
                    with consuming(place, constants=HURRY) as successor:
                        until_stored(place)
                        woken = f"{sleeper.pid} consumers.daemon: {WOKEN[bus]}"
                        assert woken not in place.log
                        sleeper.send(signal.SIGCONT)
                        until(lambda: woken in place.log, place)  # noqa: B023
                        until_stored(place)
                        sleeper.end()
                        successor.end()
            publisher.end()
        assert_well(place)


@pytest.mark.parametrize(
    ("bus", "sink"),
    [
        ("sqlite", "postgres-17"),
        ("redis-8", "postgres-15"),
        ("rabbitmq-4.3", "postgres-17"),
        ("kafka-4.1", "postgres-15"),
    ],
)
def test_postgres_is_killed_and_started_again(bus: str, sink: str, tmp_path: Path) -> None:
    """While rows are written: one line at each end of the outage."""
    with server(sink) as victim, new_place(bus, "sqlite", tmp_path) as where:
        place = Place(tmp_path, where.bus, victim.url)
        watch(place.sink)
        with publishing(place) as publisher, consuming(place) as consumer:
            for outage in range(3):
                until_stored(place)
                victim.kill()
                until(lambda: place.log.count("waiting, and going on when it is back") > outage, place)  # noqa: B023
                assert place.log.count("going on after") == outage
                victim.start()
                until(lambda: place.log.count("going on after") > outage, place)  # noqa: B023
            until_stored(place)
            publisher.end()
            consumer.end()
        assert place.log.count("waiting, and going on when it is back") == place.log.count("going on after") == 3
        assert_well(place)


def assert_well(place: Place) -> None:
    """Once the rest is stored."""
    place.end_job()
    with consuming(place, until_drained=True) as last:
        last.ends_well()
    found = place.verdict()
    print(found, place.log, sep="\n")
    assert found.well and found.published > 100
