"""`Link`: one connection to RabbitMQ that comes back by itself, and `Outage`, which says so once."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from aiormq.connection import Connection, TransportFactory
from aiormq.exceptions import AMQPConnectionError

from adapters.rabbitmq.address import Address
from adapters.rabbitmq.errors import DRIVER_ERRORS, OURS, RPC_S, Silence, lost, no_connection, trouble, within
from bus.backoff import Backoff
from bus.errors import BusError, Closed, ConnectionLost

__all__ = ["AWAY_S", "RETRY_S", "Link", "Outage", "close_channel"]

logger = logging.getLogger(__name__)

AWAY_S = 3.0  # a call waits so long for a connection that is away
CONNECT_S = 5.0
CLOSE_S = 3.0
RETRY_S = 5.0  # the longest pause between two attempts
READ_BYTES = 256 * 1024


class Outage:
    """One line when the first of a transport's connections is lost, and one when all are back."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._away: set[Link] = set()

    def begin(self, link: Link, reason: BaseException) -> None:
        if not self._away:
            logger.warning("RabbitMQ at %s is away (%s); connecting again", self._address, reason)
        self._away.add(link)

    def end(self, link: Link) -> None:
        self._away.discard(link)
        if not self._away:
            logger.warning("RabbitMQ at %s is back", self._address)


class Link:
    """One connection, opened at first use and kept until `aclose`. The purpose is shown among the broker's connections.

    Publishing, consuming and streams each have one of their own: a broker with an alarm stops reading what a publisher
    sends, acks and all, and some of what a stream refuses costs the whole connection.
    """

    def __init__(self, address: Address, purpose: str, outage: Outage) -> None:
        self._address, self._purpose, self._outage = address, purpose, outage
        self._turn = 0
        self._opening = asyncio.Lock()
        self._there = asyncio.Event()
        self._connection: Connection | None = None
        self._dialer: _Dialer | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._problem: BusError | None = None
        self.closed = False
        _hush()

    async def get(self) -> Connection:
        """The connection. Where it is away for longer than a few seconds, raises what the last attempt met."""
        if self._connection is not None:
            return self._connection
        if self.closed:
            raise Closed("the bus is closed")
        async with self._opening:
            if self._keeper is None:
                self._connection = await self._dial()
                self._there.set()
                self._keeper = asyncio.create_task(self._keep(self._connection))
                return self._connection
        try:
            async with asyncio.timeout(AWAY_S):
                await self._there.wait()
        except TimeoutError:
            raise self._problem or lost() from None
        return await self.get()

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[Channel]:
        """A channel to throw away: what the broker refuses closes it."""
        channel = await self.open_channel()
        try:
            yield channel
        finally:
            await close_channel(channel)

    async def ask(self, limit_s: float) -> None:
        """Any question will do: a connection that does not answer in time is given up."""
        await close_channel(await self.open_channel(limit_s=limit_s))

    async def open_channel(self, *, confirms: bool = False, limit_s: float = RPC_S) -> Channel:
        connection = await self.get()
        try:
            channel = await within(connection.channel(publisher_confirms=confirms, on_return_raises=True), limit_s)
        except Silence:
            self.drop(connection)
            raise
        except DRIVER_ERRORS as error:
            raise lost(error) from None
        assert isinstance(channel, Channel)
        return channel

    def drop(self, connection: AbstractConnection) -> None:
        """It does not answer: give it up, and all that waits on it."""
        if connection is self._connection and self._dialer is not None:
            self._dialer.abort()

    async def aclose(self) -> None:
        self.closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await within(connection.close(), CLOSE_S)
            except (ConnectionLost, *DRIVER_ERRORS):
                pass
            finally:
                if self._dialer is not None:
                    self._dialer.abort()

    async def _keep(self, connection: Connection) -> None:
        while True:
            await asyncio.wait((connection.closing,))
            self._connection, self._problem = None, lost(_exception(connection.closing))
            self._there.clear()
            self._outage.begin(self, self._problem)
            backoff = Backoff(longest_s=RETRY_S)
            while self._connection is None:
                try:
                    self._connection = await self._dial()
                except Exception as error:
                    self._problem = trouble(error, self._problem)
                    await asyncio.sleep(backoff.next_s())
            connection = self._connection
            self._outage.end(self)
            self._there.set()

    async def _dial(self) -> Connection:
        """Each host in turn, beginning behind the last one."""
        problem: ConnectionLost | None = None
        for _ in self._address.hosts:
            turn = self._turn % len(self._address.hosts)
            try:
                return await self._dial_one(self._address.urls[turn], self._address.hosts[turn])
            except ConnectionLost as error:
                problem = problem or error
                self._turn += 1
        raise problem or lost()

    async def _dial_one(self, url: str, host: str) -> Connection:
        dialer = _Dialer(self._address)
        name = f"crawlbus {self._purpose}, process {os.getpid()} on {socket.gethostname()}"
        connection = Connection(url, transport_factory=dialer, client_properties={"connection_name": name})
        try:
            await within(connection.connect(), CONNECT_S)
        except BaseException as error:
            dialer.abort()
            if isinstance(error, DRIVER_ERRORS):
                raise no_connection(error, host, self._address) from None
            if isinstance(error, ConnectionLost):
                raise ConnectionLost(f"RabbitMQ at {host} does not answer") from None
            raise
        self._dialer = dialer
        return connection


class _Dialer(TransportFactory):
    """Keeps the socket, to be able to give it up at once."""

    def __init__(self, address: Address) -> None:
        self._tls = address.tls
        self._writer: asyncio.StreamWriter | None = None

    async def create(self, url: Any, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=READ_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.create_connection(lambda: protocol, url.host, url.port, ssl=self._tls)
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        self._writer = _Writer(transport, protocol, reader, loop)
        return reader, self._writer

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()


class _Writer(asyncio.StreamWriter):
    """What is written in one turn of the event loop goes out in one piece: the driver writes frame by frame."""

    def __init__(self, *stream: Any) -> None:
        super().__init__(*stream)
        self._frames: list[bytes] = []
        self._turn = asyncio.get_running_loop()

    def write(self, data: Any) -> None:
        if not self._frames:
            self._turn.call_soon(self._flush)
        self._frames.append(data)

    async def drain(self) -> None:
        self._flush()
        await super().drain()

    def write_eof(self) -> None:
        self._flush()
        super().write_eof()

    def close(self) -> None:
        self._flush()
        super().close()

    def _flush(self) -> None:
        frames, self._frames = self._frames, []
        if frames and not self.is_closing():
            super().write(b"".join(frames))


async def close_channel(channel: Channel, limit_s: float = CLOSE_S) -> None:
    """Whatever becomes of it."""
    try:
        await within(channel.close(), limit_s)
    except (ConnectionLost, *DRIVER_ERRORS):
        pass


def _exception(closing: asyncio.Future[Any]) -> BaseException | None:
    return None if closing.cancelled() else closing.exception()


class _Hush(logging.Filter):
    """The driver logs a loss several times and with tracebacks; here it is said once. Nothing but its log tells why
    the broker blocks a connection. What others in the process do with the driver is left alone."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or record.msg == "Consumer callback failed" or not OURS.get():
            return True
        if "was blocked by" in str(record.msg) and isinstance(record.args, tuple):
            logger.warning("RabbitMQ has an alarm and takes no messages until it is over: %s", record.args[-1])
        elif "was unblocked" in str(record.msg):
            logger.warning("RabbitMQ's alarm is over")
        return False


_HUSH = _Hush()


def _hush() -> None:
    driver = logging.getLogger("aiormq")
    if driver.level == logging.NOTSET:
        driver.setLevel(logging.WARNING)  # it makes two records of each frame, even where nobody reads them
    for name in ("aiormq.connection", "aiormq.channel"):
        logging.getLogger(name).addFilter(_HUSH)
