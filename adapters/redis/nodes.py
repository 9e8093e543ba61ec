"""Where the keys of a job are: one server, the master that Sentinels name, or a node of a Cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from redis.crc import key_slot

from adapters.redis.address import Address, Host, parse
from adapters.redis.connection import Script, Server
from adapters.redis.errors import Moved
from adapters.redis.examine import TRIED, examine
from adapters.redis.guides import Shard, master, shards
from bus.errors import Closed, ConnectionLost
from bus.findings import Finding

__all__ = ["Argument", "Nodes", "nodes_of"]

Argument = str | bytes | int
MOVES = 5


class Nodes(Protocol):
    """Runs a script where its key is. Nothing is asked of any server before the first call."""

    @property
    def intset_entries(self) -> int:
        """`set-max-intset-entries` of the servers."""
        ...

    async def run(self, script: Script, key: str, arguments: Sequence[Argument]) -> Any: ...

    async def examine(self) -> list[Finding]: ...

    async def aclose(self) -> None: ...


def nodes_of(url: str) -> Nodes:
    address = parse(url, "state")
    if address.scheme == "redis+cluster":
        return Cluster(address)

    async def locate() -> Host:
        return await master(address)

    return OneServer(Server(address, locate if address.service else None))


class OneServer:
    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def intset_entries(self) -> int:
        return self._server.intset_entries

    async def run(self, script: Script, key: str, arguments: Sequence[Argument]) -> Any:
        return await self._server.run(script, (key,), arguments)

    async def examine(self) -> list[Finding]:
        return await examine(self._server, "state")

    async def aclose(self) -> None:
        await self._server.aclose()


class Cluster:
    """A Redis Cluster: one job is on one node.

    Each call names a key that never exists beside its own: Redis refuses such a pair while the slot is being moved to
    another node, and would otherwise run the script on the part of the job that is still, or already, there.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._servers: dict[Host, Server] = {}
        self._shards: list[Shard] = []
        self._closed = False

    @property
    def intset_entries(self) -> int:
        return min((server.intset_entries for server in self._servers.values()), default=512)

    async def run(self, script: Script, key: str, arguments: Sequence[Argument]) -> Any:
        for _ in range(MOVES):
            server = await self._server_of(key)
            try:
                return await server.run(script, (key, f"{key}:none"), arguments)
            except Moved:
                self._shards = []
            except ConnectionLost:
                self._shards = []  # a replica may have been promoted; the call itself may have been done
                raise
        raise ConnectionLost(f"{self._address.named}: waiting until the cluster has settled")

    async def examine(self) -> list[Finding]:
        """Of the node that has the key which is tried."""
        return await examine(await self._server_of(TRIED), "state")

    async def aclose(self) -> None:
        self._closed = True
        for server in self._servers.values():
            await server.aclose()

    async def _server_of(self, key: str) -> Server:
        if self._closed:
            raise Closed(f"this connection to {self._address} is closed")
        if not self._shards:
            self._shards = await shards(self._address)
        slot = key_slot(key.encode())
        host = next((shard.host for shard in self._shards if shard.first <= slot <= shard.last), None)
        if host is None:
            self._shards = []
            raise ConnectionLost(f"{self._address.named}: no node has slot {slot}")
        if host not in self._servers:
            self._servers[host] = Server(replace(self._address, hosts=(host,)))
        return self._servers[host]
