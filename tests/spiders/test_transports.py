"""A known graph is crawled on every bus, while workers and the consumer are killed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.spiders.kills import Fleet, compare, graph, killed_crawl
from tests.spiders.places import SERVERS, new_place
from tests.spiders.scene import wait_until

pytestmark = pytest.mark.timeout(240)
STALE = "deliveries were no longer ours"


@pytest.mark.parametrize("bus", SERVERS)
def test_two_workers_with_kills(tmp_path: Path, bus: str) -> None:
    verdict = killed_crawl(tmp_path, new_place(bus, tmp_path), graph(5), workers=2, kills=5, seed=5)
    print(verdict)
    assert verdict.kills == 5 and verdict.well, verdict


def test_the_successor_of_a_killed_worker_takes_its_place_in_the_group(tmp_path: Path) -> None:
    """Kafka shares a queue out among numbered members: one that comes back in time moves nobody's partitions, so what
    the other worker has in flight stays its own."""
    site = graph(1, pages=300)
    site.share, site.hold_s = 0, 60
    with site.open() as url:
        fleet = Fleet(tmp_path, new_place("kafka-4.1", tmp_path), ["shop", "-a", f"url={url}"], workers=2)
        try:
            fleet.are_up(2)
            site.share = 0.3
            wait_until(lambda: asyncio.run(fleet.pages()) > 0.2 * len(site.expected))
            said = fleet.log.count(STALE)
            fleet.kill_one(fleet.victims("--as-worker")[0])
            killed_s = time.monotonic()
            fleet.are_up(3)
            came_after_s = time.monotonic() - killed_s
            site.share = 1
            wait_until(lambda: len(site.hits) == len(site.expected))
            assert time.monotonic() - killed_s < 20, "less than it takes to find a member dead"
            fleet.ends_well(60)
        finally:
            fleet.close()
    assert compare(tmp_path, site) == (0, 0, 0)
    if came_after_s < 5:  # on a machine too busy for that, the group gives the dead one up, as it should
        assert fleet.log.count(STALE) == said, "the other one's deliveries are not its own any more"
