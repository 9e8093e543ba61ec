"""The Redis state keeps the contract."""

from __future__ import annotations

import pytest
import redis

from adapters.redis.state import RedisState
from bus.clock import Clock
from bus.testing.state import SharedStateConformance
from tests.servers import kinds


@pytest.mark.parametrize("server_url", kinds("redis"), indirect=True)
class TestRedisState(SharedStateConformance):
    @pytest.fixture(autouse=True)
    def _store(self, server_url: str) -> None:
        self.url = server_url.rpartition("/")[0] + "/9"
        with redis.Redis.from_url(self.url) as client:
            client.flushdb()

    async def connect(self, clock: Clock | None = None) -> RedisState:
        return await RedisState.connect(self.url, clock=clock)

    def url_of_store(self) -> tuple[str, str]:
        return "adapters.redis.state:RedisState", self.url
