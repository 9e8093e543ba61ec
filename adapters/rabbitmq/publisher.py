"""`Publisher`: many messages in flight on one channel, each of them confirmed."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from aiormq import exceptions as amqp
from aiormq.channel import Channel
from pamqp.commands import Basic

from adapters.rabbitmq.address import Address
from adapters.rabbitmq.connection import Link
from adapters.rabbitmq.errors import DRIVER_ERRORS, lost, refusal
from bus.errors import BusError, ConnectionLost, OverLimit, PublishUnconfirmed

__all__ = ["Outgoing", "Publisher"]

CONFIRM_S = 25.0
IN_FLIGHT = 256  # more is not faster
DRAIN_BYTES = 64 * 1024  # a larger body waits until the socket has taken it, so that memory stays bounded
MAX_BYTES = 16 * 1024 * 1024  # what RabbitMQ 4 takes by default
PERSISTENT = 2
_TOO_LARGE = re.compile(r"larger than (?:configured )?max size (\d+)")


class Outgoing(NamedTuple):
    exchange: str
    routing_key: str
    body: bytes


class Publisher:
    """One channel, opened again when it is gone. What comes back as unroutable is an error of its message alone."""

    def __init__(self, link: Link, address: Address) -> None:
        self._link, self._address = link, address
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._window = asyncio.Semaphore(IN_FLIGHT)
        self._numbers = itertools.count(1)  # a returned message is found by its number: new for each attempt
        self._max_bytes = MAX_BYTES

    async def publish(self, topic: str, messages: Sequence[Outgoing]) -> None:
        """Return when all are confirmed. Raises what the broker has against them, else `PublishUnconfirmed`."""
        if (longest := max((len(one.body) for one in messages), default=0)) > self._max_bytes:
            raise OverLimit(f"{longest:,} bytes, and RabbitMQ takes {self._max_bytes:,}: see its max_message_size")
        for i in range(0, len(messages), IN_FLIGHT):
            await self._publish(topic, messages[i : i + IN_FLIGHT])

    async def _publish(self, topic: str, messages: Sequence[Outgoing]) -> None:
        channel = await self._open()
        try:
            async with asyncio.timeout(CONFIRM_S):
                await channel.connection.ready()  # waits while the broker has an alarm
                problems = await asyncio.gather(*(self._send(channel, one) for one in messages))
        except TimeoutError:
            self._give_up(channel)
            raise PublishUnconfirmed(
                f"RabbitMQ has not confirmed {len(messages)} messages for {topic!r} in {CONFIRM_S:.0f} s"
            ) from None
        if any(problems):
            raise self._explain([one for one in problems if one], topic, max(len(one.body) for one in messages))

    async def _send(self, channel: Channel, message: Outgoing) -> BaseException | None:
        async with self._window:
            properties = Basic.Properties(delivery_mode=PERSISTENT, message_id=str(next(self._numbers)))
            try:
                await channel.basic_publish(
                    message.body,
                    exchange=message.exchange,
                    routing_key=message.routing_key,
                    properties=properties,
                    mandatory=True,
                    wait=len(message.body) > DRAIN_BYTES,
                )
            except DRIVER_ERRORS as error:
                return error
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                return lost()  # nobody has cancelled us: so the driver reports a connection that was given up
        return None

    async def _open(self) -> Channel:
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = await self._link.open_channel(confirms=True)
            return self._channel

    def _give_up(self, channel: Channel) -> None:
        """Give up a connection that is silent, but not one that the broker has blocked: it would be blocked again."""
        ready = channel.connection.ready()
        try:
            ready.send(None)
        except StopIteration:
            self._link.drop(channel.connection)
        finally:
            ready.close()

    def _explain(self, problems: Sequence[BaseException], topic: str, longest: int) -> BusError:
        for error in problems:
            if isinstance(error, amqp.PublishError):
                return BusError(f"topic {topic!r} was not declared")
            if too_large := _TOO_LARGE.search(str(error)):
                self._max_bytes = int(too_large[1])
                if longest > self._max_bytes:
                    return OverLimit(f"{longest:,} bytes, and RabbitMQ takes {self._max_bytes:,}")
            elif isinstance(error, amqp.AMQPChannelError):
                explained = refusal(error, topic, self._address)
                if not isinstance(explained, ConnectionLost):
                    return explained
        return PublishUnconfirmed(
            f"RabbitMQ has not confirmed {len(problems)} messages for {topic!r}: {lost(problems[0])}"
        )
