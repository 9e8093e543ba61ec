"""The protocol loses nothing in any interleaving of the small settings, and each of its rules is needed for that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.stores import MemoryDriver, RedisDriver, SqliteDriver, Store
from tests.model.table import MUTANTS, PROTOCOL, Row
from tests.servers import shared_url

ON_SQLITE = [row for row in PROTOCOL if row.sqlite]
ON_REDIS = [row for row in PROTOCOL if row.redis]


@pytest.fixture(scope="module")
def memory() -> Iterator[Store]:
    driver = MemoryDriver()
    yield Store(driver)
    driver.close()


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    driver = SqliteDriver(Path(tmp_path_factory.mktemp("model"), "model.db"))
    yield Store(driver)
    driver.close()


@pytest.fixture(scope="module")
def redis() -> Iterator[Store]:
    driver = RedisDriver(shared_url("redis-7").rpartition("/")[0] + "/10")
    yield Store(driver)
    driver.close()


@pytest.fixture(scope="module")
def states() -> dict[str, int]:
    """How many states a setting has with the memory state."""
    return {}


@pytest.mark.parametrize("row", PROTOCOL, ids=lambda row: row.text)
def test_the_protocol_holds(memory: Store, states: dict[str, int], row: Row) -> None:
    finding = row.run(memory)
    assert finding.broken == {}
    states[row.text] = finding.states


@pytest.mark.parametrize("row", ON_SQLITE, ids=lambda row: row.text)
def test_sqlite_does_what_memory_does(memory: Store, sqlite: Store, states: dict[str, int], row: Row) -> None:
    finding = row.run(sqlite)
    assert finding.broken == {}
    assert finding.states == (states.get(row.text) or row.run(memory).states)


@pytest.mark.parametrize("row", ON_REDIS, ids=lambda row: row.text)
def test_redis_does_what_memory_does(memory: Store, redis: Store, states: dict[str, int], row: Row) -> None:
    finding = row.run(redis)
    assert finding.broken == {}
    assert finding.states == (states.get(row.text) or row.run(memory).states)


@pytest.mark.parametrize("row", MUTANTS, ids=lambda row: row.text)
def test_each_rule_is_needed(memory: Store, row: Row) -> None:
    assert set(row.run(memory).broken) >= set(row.verdict)
