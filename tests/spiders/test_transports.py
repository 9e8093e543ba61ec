"""A known graph is crawled on every bus, while workers and the consumer are killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.spiders.kills import graph, killed_crawl
from tests.spiders.places import SERVERS, new_place


@pytest.mark.parametrize("bus", SERVERS)
def test_two_workers_with_kills(tmp_path: Path, bus: str) -> None:
    verdict = killed_crawl(tmp_path, new_place(bus, tmp_path), graph(5), workers=2, kills=5, seed=5)
    print(verdict)
    assert verdict.kills == 5 and verdict.well, verdict
