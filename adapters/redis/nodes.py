"""Where the keys of a job are: one server, the master that Sentinels name, or one node of a Cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from adapters.redis.address import parse
from adapters.redis.connection import Script, Server

__all__ = ["Nodes", "connect"]

Argument = str | bytes | int


class Nodes(Protocol):
    """Runs a script where its key is."""

    @property
    def intset_entries(self) -> int: ...

    async def run(self, script: Script, key: str, arguments: Sequence[Argument]) -> Any: ...

    async def aclose(self) -> None: ...


class OneServer:
    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def intset_entries(self) -> int:
        return self._server.intset_entries

    async def run(self, script: Script, key: str, arguments: Sequence[Argument]) -> Any:
        return await self._server.run(script, (key,), arguments)

    async def aclose(self) -> None:
        await self._server.aclose()


def connect(url: str) -> Nodes:
    """Nothing is asked of the servers before the first call."""
    return OneServer(Server(parse(url, "state")))
