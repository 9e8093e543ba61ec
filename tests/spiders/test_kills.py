"""`kill -9` of workers and the consumer, again and again: nothing missing, nothing twice, few extra fetches."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.spiders.kills import graph, killed_crawl
from tests.spiders.scene import in_file


@pytest.mark.parametrize(("workers", "kills"), [(1, 5), (2, 5)])
def test_random_kills_of_workers_and_consumer(tmp_path: Path, workers: int, kills: int) -> None:
    verdict = killed_crawl(tmp_path, in_file(tmp_path), graph(7), workers=workers, kills=kills, seed=7)
    print(verdict)
    assert verdict.kills == kills and verdict.well, verdict
