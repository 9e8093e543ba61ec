"""Who tells where a master is: Sentinels, and the nodes of a Cluster. Each is asked on a connection of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from redis.exceptions import RedisError

from adapters.redis.address import Address, Host
from adapters.redis.connection import CONNECT_S, open_connection
from adapters.redis.errors import Refused, translate
from bus.errors import BusError, ConnectionLost, Misconfigured

__all__ = ["Shard", "master", "shards"]

T = TypeVar("T")


class Shard(NamedTuple):
    """Slots from `first` to `last` are at `host`."""

    first: int
    last: int
    host: Host


async def master(address: Address) -> Host:
    """The master of `address.service`, by the first Sentinel that knows it. Raises `Refused`.

    User and password are the master's: Sentinels are asked without.
    """

    def read(asked: Host, reply: Any) -> Host | None:
        return Host(reply[0].decode(), int(reply[1])) if reply else None

    try:
        found = await _ask(
            replace(address, username=None, password=None, db=0),
            ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service),
            read,
        )
    except BusError as error:
        raise Refused(error) from None
    if found is None:
        raise Refused(Misconfigured(f"{address.named}: no Sentinel there knows a master named {address.service!r}"))
    return found


async def shards(address: Address) -> list[Shard]:
    """The masters of a Cluster, by the first node that answers. Raises `ConnectionLost` and `Misconfigured`."""

    def read(asked: Host, reply: Any) -> list[Shard]:
        return [Shard(first, last, Host(ip.decode() or asked.name, port)) for first, last, (ip, port, *_), *_ in reply]

    return await _ask(address, ("CLUSTER", "SLOTS"), read) or []


async def _ask(address: Address, command: tuple[str, ...], read: Callable[[Host, Any], T | None]) -> T | None:
    """The first answer that says something; None where all who answer know nothing."""
    errors: list[BusError] = []
    for host in address.hosts:
        try:
            found = read(host, await _ask_one(address, host, command))
        except (RedisError, OSError, TimeoutError) as error:
            errors.append(translate(error, address))
        else:
            if found:
                return found
    if len(errors) == len(address.hosts):
        raise next((error for error in errors if not isinstance(error, ConnectionLost)), errors[0])
    return None


async def _ask_one(address: Address, host: Host, command: tuple[str, ...]) -> Any:
    async with asyncio.timeout(2 * CONNECT_S):
        connection = await open_connection(address, host)
        try:
            await connection.send_command(*command)
            return await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)
