"""`kill -9` of workers and the consumer, again and again: nothing missing, nothing twice, few extra fetches."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.spiders.kills import killed_crawl


@pytest.mark.parametrize(("workers", "kills"), [(1, 5), (2, 20)])
def test_random_kills_of_workers_and_consumer(tmp_path: Path, workers: int, kills: int) -> None:
    verdict = killed_crawl(tmp_path, workers=workers, kills=kills, seed=7)
    print(verdict)
    assert verdict.kills == kills
    assert (verdict.lost, verdict.duplicated, verdict.unexpected) == (0, 0, 0)
    assert verdict.extra_fetches <= verdict.bound
