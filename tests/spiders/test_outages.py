"""A broker, or the Redis that is the state, dies in the middle of a crawl and comes back: same data, same port.

All of these crawls run side by side, because a job whose state was lost from sight ends only after two leases.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from spiders.children import FAILURES
from tests.servers import Server, server
from tests.spiders.kills import IN_FLIGHT, Fleet, PacedSite, compare, graph
from tests.spiders.scene import Place, crawlbus, wait_until

WORKERS = 2
WAIT_S = 90  # for what takes seconds on a machine that does nothing else
END_S = 420  # RabbitMQ may hide a retry for three minutes when it is killed while it moves it


class Outage(NamedTuple):
    """What dies: the bus, or the state. The same kind for both is one server."""

    bus: str
    state: str
    dies: str = "bus"
    worker_dies: bool = False  # one of them, while the bus is away
    soak: bool = False


OUTAGES = {
    "rabbitmq-3.10": Outage("rabbitmq-3.10", "redis-7", worker_dies=True),
    "rabbitmq-4.3": Outage("rabbitmq-4.3", "redis-7"),
    "kafka-4.1": Outage("kafka-4.1", "redis-7"),
    "redis-7": Outage("redis-7", "redis-7", soak=True),
    "redis-8": Outage("redis-8", "redis-8"),
    "the state of rabbitmq-3.10": Outage("rabbitmq-3.10", "redis-7", dies="state"),
    "the state of kafka-4.1": Outage("kafka-4.1", "redis-7", dies="state", soak=True),
}
HERE = [name for name, outage in OUTAGES.items() if not outage.soak or "CRAWLBUS_SOAK" in os.environ]
Running = dict[str, Future[None]]


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Those of the selected tests, all begun."""
    here = {item.callspec.params["name"] for item in request.session.items if item.fspath == request.fspath}  # type: ignore[attr-defined]
    with ThreadPoolExecutor(len(OUTAGES)) as pool:
        yield {name: pool.submit(survive, OUTAGES[name], tmp_path_factory.mktemp("outage")) for name in sorted(here)}


@pytest.mark.timeout(2 * WAIT_S + END_S)
@pytest.mark.parametrize("name", HERE)
def test_the_crawl_goes_on_where_it_was(running: Running, name: str) -> None:
    running[name].result()


def survive(outage: Outage, directory: Path) -> None:
    with ExitStack() as stack:
        bus = stack.enter_context(server(outage.bus))
        state = bus if outage.state == outage.bus else stack.enter_context(server(outage.state))
        # a job whose state was lost, and that has retried, takes four minutes to end on RabbitMQ
        site = graph(len(outage.bus), pages=300, fail=outage.dies == "bus")
        url = stack.enter_context(site.open())
        fleet = Fleet(directory, Place(bus.url, state.url), ["shop", "-a", f"url={url}"], WORKERS)
        stack.callback(fleet.close)
        with_outage(outage, fleet, site, bus if outage.dies == "bus" else state)
        fleet.ends_well(END_S)
    assert compare(directory, site) == (0, 0, 0)
    assert site.extra_fetches <= WORKERS * IN_FLIGHT
    away, back = fleet.log.count("waiting, and going on when"), fleet.log.count("going on after")
    assert 1 <= back <= away <= 2 * (WORKERS + 1), "one line says that a process waits, and one that it goes on"


def with_outage(outage: Outage, fleet: Fleet, site: PacedSite, victim: Server) -> None:
    """After a third of the pages; it comes back when every worker has noticed."""
    site.share, site.hold_s = 0.4, WAIT_S
    wait_until(lambda: len(site.hits) > 0.33 * len(site.expected), timeout_s=WAIT_S)
    fleet.are_up(WORKERS)
    processes = set(fleet.victims())
    victim.kill()
    site.share = float("inf")
    if outage.worker_dies:
        fleet.kill_one(fleet.victims("--as-worker")[0])
        # a successor that finds nobody is started again, more often than one that fails
        wait_until(lambda: fleet.log.count("Spider opened") > WORKERS + FAILURES, timeout_s=WAIT_S)
    if victim.url == fleet.place.state:
        time.sleep(2.0)
        assert crawlbus("status", *fleet.place.arguments, cwd=fleet.directory).code == 3
    else:
        wait_until(lambda: waiting(fleet) == WORKERS - outage.worker_dies, timeout_s=WAIT_S)
    if not outage.worker_dies:
        assert set(fleet.victims()) == processes, "they wait, and live"
    victim.start()


def waiting(fleet: Fleet) -> int:
    """How many workers say that they wait for the bus."""
    ran = crawlbus("status", "--json", *fleet.place.arguments, cwd=fleet.directory)
    assert ran.code == 0, ran.err
    (job,) = json.loads(ran.out)["jobs"]
    return int(job["waiting"])
