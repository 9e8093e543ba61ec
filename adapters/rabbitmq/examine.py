"""What `crawlbus doctor` asks of RabbitMQ: its version, our rights, and whether an alarm stops it."""

from __future__ import annotations

import asyncio

from adapters.rabbitmq.address import Address
from adapters.rabbitmq.connection import Link
from adapters.rabbitmq.errors import DRIVER_ERRORS, refusal, within
from adapters.rabbitmq.publisher import Outgoing, Publisher
from bus.errors import BusError, PublishUnconfirmed
from bus.findings import FAULT, NOT_REACHABLE, OK, Finding, fault
from bus.message import new_id

__all__ = ["examine"]

ANSWER_S = 5.0


async def examine(link: Link, address: Address, publisher: Publisher, version: str, prefix: str) -> list[Finding]:
    """Makes, writes and reads a queue of its own, under the prefix; it is gone with our connection at the latest."""
    what = f"RabbitMQ {version}, virtual host {address.vhost!r}"
    name = f"{prefix}doctor.{new_id()}"
    try:
        async with link.channel() as channel:
            await within(channel.queue_declare(name, exclusive=True, auto_delete=True))
            try:
                await _use(link, publisher, name)
            except (TimeoutError, PublishUnconfirmed):
                mend = "look at its memory and disk: rabbitmq-diagnostics alarms"
                return [Finding("bus", FAULT, f"{what} takes no messages: it has an alarm", mend, NOT_REACHABLE)]
            finally:
                await within(channel.queue_delete(name))
    except BusError as error:
        return [fault("bus", error)]
    except DRIVER_ERRORS as error:
        return [fault("bus", refusal(error, name, address))]
    return [Finding("bus", OK, f"{what}: user {address.user!r} may make queues {prefix}*, write and read them")]


async def _use(link: Link, publisher: Publisher, name: str) -> None:
    """On other channels than the one it is deleted on: what is refused closes its channel."""
    async with asyncio.timeout(ANSWER_S):
        await publisher.publish(name, [Outgoing("", name, b"")])
    async with link.channel() as channel:
        await within(channel.basic_get(name, no_ack=True))
