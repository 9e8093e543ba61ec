"""`Server`: a bounded pool of connections to one Redis server, and what we ask of it before the first call.

On redis-py's connections, without its clients: those repeat calls by themselves that must not be done twice unseen, and
cost several times what a call itself does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import sha1
from typing import Any, Self, TypeAlias

import hiredis
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from adapters.redis.address import Address, Host, Setting, parse
from adapters.redis.errors import Refused, translate
from bus.capabilities import Durability
from bus.errors import BusError, Closed, ConnectionLost, Misconfigured

__all__ = ["CONNECT_S", "Command", "Line", "Script", "Server", "info_fields", "open_connection"]

Command: TypeAlias = tuple[str | bytes | int | float, ...]
Locate: TypeAlias = Callable[[], Awaitable[Host]]
Greet: TypeAlias = Callable[[Connection], Awaitable[None]]

CONNECT_S = 2.0
CALL_S = 5.0
IDLE_S = 30.0  # a connection idle for longer is asked if it lives before it is used
LINES = 16
_pack: Callable[[Any], bytes] = hiredis.pack_command  # its stub forgets that a command has any length
VERSION = (6, 2)


class Script:
    """A Lua script, sent in full only where the server does not know it."""

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = sha1(source.encode()).hexdigest()

    def by_name(self, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Command:
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)

    def in_full(self, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Command:
        return ("EVAL", self.source, len(keys), *keys, *arguments)


class Line:
    """One connection, used by one task at a time. It connects again, when it is used, after it was lost.

    A call that was under way when the connection broke raises `ConnectionLost`, and is never repeated here.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection: Connection | None = None

    async def call(self, *command: str | bytes | int | float, timeout_s: float | None = CALL_S) -> Any:
        """The reply of one command: bytes, int, None or lists of them (RESP2)."""
        (reply,) = await self.pipeline((command,), timeout_s=timeout_s)
        return reply

    async def pipeline(self, commands: Sequence[Command], *, timeout_s: float | None = CALL_S) -> list[Any]:
        """The replies of many, in one round trip. Where some are refused the others are done all the same, and the
        first refusal is raised. `timeout_s=None` is for blocked reads: it waits as long as the server does."""
        replies = await self._exchange(commands, timeout_s)
        for reply in replies:
            await self._raise(reply)
        return replies

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[str | bytes | int] = ()) -> Any:
        """What a script returns."""
        (reply,) = await self._exchange((script.by_name(keys, arguments),), CALL_S)
        if isinstance(reply, NoScriptError):
            (reply,) = await self._exchange((script.in_full(keys, arguments),), CALL_S)
        await self._raise(reply)
        return reply

    async def aclose(self) -> None:
        """Close the connection; the next call would open another one."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            try:
                await connection.disconnect()
            except (RedisError, OSError):
                pass

    async def _raise(self, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            error = translate(reply, self._server.address)
            if isinstance(error, ConnectionLost):  # a master that has become a replica: the next one may be elsewhere
                await self.aclose()
            raise error

    async def _exchange(self, commands: Sequence[Command], timeout_s: float | None) -> list[Any]:
        """Replies; those that are errors as values. Whatever else happens, the connection is not used again."""
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connected()
                await connection.send_packed_command(b"".join(map(_pack, commands)))
                return [await _reply(connection) for _ in commands]
        except (RedisError, OSError) as error:
            await self.aclose()
            raise translate(error, self._server.address) from None
        except BaseException:
            await self.aclose()
            raise

    async def _connected(self) -> Connection:
        if self._connection is not None:
            if not await self._connection.can_read():
                return self._connection
            await self.aclose()  # nothing was asked: it has been closed from the other side
        self._connection = await self._server.connect_line()
        return self._connection


async def open_connection(address: Address, host: Host, greet: Greet | None = None) -> Connection:
    """Raises redis-py's errors. `greet` logs in, and may refuse the server."""
    options: dict[str, Any] = {
        "host": host.name,
        "port": host.port,
        "db": address.db,
        "username": address.username,
        "password": address.password,
        "protocol": 2,
        "socket_timeout": None,
        "socket_connect_timeout": CONNECT_S,
        "health_check_interval": IDLE_S,
        "retry": Retry(NoBackoff(), 0),
        "redis_connect_func": greet,
    }
    connection = Connection(**options) if address.tls is None else SSLConnection(**options, **address.tls)
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return connection


async def _reply(connection: Connection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


class Server:
    """Everything a process asks of one Redis server goes through here; whoever connects closes.

    Calls raise `ConnectionLost` within about five seconds while the server is away, `StorageFailed` and
    `Misconfigured` where it refuses, `Closed` after `aclose`. What is asked of a server (version, persistence,
    eviction, its role) is asked at each new connection: a server may come back as another one.
    """

    def __init__(self, address: Address, locate: Locate | None = None) -> None:
        self.address = address
        self.run_id = ""  # of the server process that the newest connection leads to
        self.version: tuple[int, ...] = ()
        self.durability = Durability.PROCESS
        self.intset_entries = 512  # `set-max-intset-entries`: a set with more members becomes a hash table
        self._locate = locate
        self._idle: list[Line] = []
        self._lines: set[Line] = set()
        self._room = asyncio.Semaphore(LINES)
        self._closed = False

    @classmethod
    async def connect(cls, url: str, *, setting: Setting) -> Self:
        """Connect to `redis://` or `rediss://`, and see whether the server will do."""
        server = cls(parse(url, setting))
        await server.open()
        return server

    async def open(self) -> None:
        try:
            await self.call("PING")
        except BaseException:
            await self.aclose()
            raise

    async def call(self, *command: str | bytes | int | float) -> Any:
        async with self.line() as line:
            return await line.call(*command)

    async def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        async with self.line() as line:
            return await line.pipeline(commands)

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[str | bytes | int] = ()) -> Any:
        async with self.line() as line:
            return await line.run(script, keys, arguments)

    @asynccontextmanager
    async def line(self) -> AsyncIterator[Line]:
        """One of the pool's connections; waits while all are in use, for as long as they may."""
        try:
            async with asyncio.timeout(CALL_S):
                await self._room.acquire()
        except TimeoutError:
            raise ConnectionLost(f"{self.address.named}: no answer in time on any of {LINES} connections") from None
        try:
            line = self._idle.pop() if self._idle else self.own_line()
            try:
                yield line
            finally:
                self._idle.append(line)
        finally:
            self._room.release()

    def own_line(self) -> Line:
        """A connection beside the pool, for blocked reads. It is closed with the server, or before."""
        if self._closed:
            raise Closed(f"this connection to {self.address} is closed")
        line = Line(self)
        self._lines.add(line)
        return line

    async def discard(self, line: Line) -> None:
        """Close an `own_line` for good."""
        self._lines.discard(line)
        await line.aclose()

    async def aclose(self) -> None:
        """Always closes, also if called twice. Calls under way end with `ConnectionLost`."""
        self._closed = True
        lines, self._lines = self._lines, set()
        self._idle.clear()
        for line in lines:
            await line.aclose()

    async def connect_line(self) -> Connection:
        """A new connection to a server that will do. Raises redis-py's errors, and `Refused`."""
        if self._closed:
            raise Refused(Closed(f"this connection to {self.address} is closed"))
        host = await self._locate() if self._locate else self.address.hosts[0]
        return await open_connection(self.address, host, self._greet)

    async def _greet(self, connection: Connection) -> None:
        """Log in, and look at the server before anything else is asked of it."""
        await connection.on_connect()
        await connection.send_command("INFO", check_health=False)
        info = info_fields(await connection.read_response())
        if refusal := _refusal(info, self.address, again=bool(self.run_id)):
            raise Refused(refusal)
        settings = [await _setting(connection, name) for name in ("appendfsync", "set-max-intset-entries")]
        self.version = _version(info)
        self.durability = _durability(info, settings[0])
        self.intset_entries = int(settings[1] or 512)
        self.run_id = info.get("run_id", "")


def info_fields(text: bytes) -> dict[str, str]:
    """What `INFO` answers."""
    lines = text.decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def _version(info: Mapping[str, str]) -> tuple[int, ...]:
    return tuple(int(part) for part in info.get("redis_version", "0").split(".") if part.isdigit())


def _refusal(info: Mapping[str, str], address: Address, *, again: bool) -> BusError | None:
    """Why this server will not do: `ConnectionLost` where it will by and by. `again`: there has been one that did."""
    where = address.named
    if _version(info) < VERSION:
        return Misconfigured(f"{where}: Redis {info.get('redis_version')} is too old: 6.2 or newer is needed")
    if info.get("loading") == "1":
        return ConnectionLost(f"{where}: Redis is loading its data")
    if info.get("role") != "master":
        if again or address.service or address.scheme == "redis+cluster":
            return ConnectionLost(f"{where}: waiting for a master")
        return Misconfigured(f"{where}: this is a read-only replica: name its master in the URL")
    if info.get("cluster_enabled") == "1" and address.scheme != "redis+cluster":
        return Misconfigured(f"{where}: this is a Redis Cluster, which serves as a state: write redis+cluster://")
    if address.volatile:
        return None
    if info.get("aof_enabled") != "1":
        return Misconfigured(
            f"{where}: this Redis would lose the crawl with its process: set `appendonly yes` there, "
            "or accept that with ?volatile=1"
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory", "0") != "0" and policy != "noeviction":  # volatile-* drops leases
        return Misconfigured(
            f"{where}: this Redis drops keys as it fills ({policy}): set `maxmemory-policy noeviction` there, "
            "or accept that with ?volatile=1"
        )
    return None


async def _setting(connection: Connection, name: str) -> str | None:
    """None where CONFIG is forbidden, as on managed servers."""
    await connection.send_command("CONFIG", "GET", name, check_health=False)
    reply = await _reply(connection)
    return reply[1].decode() if isinstance(reply, list) and len(reply) == 2 else None


def _durability(info: Mapping[str, str], fsync: str | None) -> Durability:
    """Where nothing is known, no more is declared than the default, `everysec`."""
    if info.get("aof_enabled") != "1":
        return Durability.PROCESS
    return Durability.FSYNC if fsync == "always" else Durability.PAGE_CACHE
