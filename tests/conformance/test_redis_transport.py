"""The Redis transport keeps the contract."""

from __future__ import annotations

from contextlib import closing

import pytest
import redis

from adapters.redis.transport import RedisTransport
from bus.testing.transport import Hostile, SharedTransportConformance
from bus.transport import Subscription, Transport
from tests.servers import kinds


class OnRedis(SharedTransportConformance):
    blocked_leases = 4.0

    @pytest.fixture(autouse=True)
    def _bus(self, server_url: str) -> None:
        self.url = server_url

    async def connect(self) -> RedisTransport:
        return await RedisTransport.connect(self.url, lease_s=self.lease_s)

    async def expel(self, subscription: Subscription) -> None:
        with closing(redis.Redis.from_url(self.url)) as server:
            for owner in server.scan_iter(f"crawlbus:bus:{{{subscription._name}}}:owner:*"):  # type: ignore[attr-defined]
                server.delete(owner)

    async def cut(self, transport: Transport) -> None:
        assert isinstance(transport, RedisTransport)
        with closing(redis.Redis.from_url(self.url)) as server:
            for line in transport._server._lines:
                if line._connection is not None and line._connection._writer is not None:
                    host, port = line._connection._writer.get_extra_info("sockname")[:2]
                    server.execute_command("CLIENT", "KILL", "ADDR", f"{host}:{port}")


@pytest.mark.parametrize("server_url", kinds("redis"), indirect=True)
class TestRedisTransport(OnRedis):
    pass


@pytest.mark.parametrize("server_url", kinds("redis")[:1], indirect=True)
class TestHostileRedisTransport(Hostile, OnRedis):
    pass
