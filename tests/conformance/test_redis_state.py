"""The Redis state keeps the contract."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from adapters.redis.state import RedisState
from bus.clock import Clock
from bus.testing.state import SharedStateConformance

URLS = os.environ.get("CRAWLBUS_TEST_REDIS_URL", "redis://127.0.0.1:17079/5 redis://127.0.0.1:17080/5").split()


@pytest.mark.parametrize("url", URLS)
class TestRedisState(SharedStateConformance):
    @pytest.fixture(autouse=True)
    def _store(self, url: str) -> Iterator[None]:
        self.url = url
        import redis
        with redis.Redis.from_url(url) as r:
            r.flushdb()
        yield

    async def connect(self, clock: Clock | None = None) -> RedisState:
        return await RedisState.connect(self.url, clock=clock)

    def url_of_store(self) -> tuple[str, str]:
        return "adapters.redis.state:RedisState", self.url
