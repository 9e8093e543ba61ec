"""QUEUE topics: quorum queues, whose messages a reader holds until it acks them, or its channel is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from adapters.rabbitmq.address import Address
from adapters.rabbitmq.connection import Link
from adapters.rabbitmq.envelope import unseal
from adapters.rabbitmq.errors import DRIVER_ERRORS, Silence, within
from adapters.rabbitmq.reader import Reader
from bus.errors import ConnectionLost, StaleDelivery, Unsupported
from bus.message import Delivery
from bus.transport import Seek
from bus.watermark import Watermark

__all__ = ["QueueSubscription"]

LIVES = 64  # of so many former lives it is known what was acked in time


class QueueSubscription(Reader):
    """A delivery's token is the life it came in, its offset the delivery tag there.

    `ack` returns when the broker has read it. Where the connection is lost before, it may have, or not: the delivery is
    told as stale, and most likely comes again.
    """

    def __init__(self, link: Link, address: Address, topic: str, prefetch: int) -> None:
        super().__init__(link, address, topic, prefetch)
        self._unacked: set[int] = set()
        self._mark = Watermark(1)
        self._sending = asyncio.Lock()  # an ack of many tags must not overtake one of fewer
        self._lost_tags: dict[int, set[int]] = {}  # by former life

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._check_open()
        life, unacked = self._life, self._unacked
        mine = [d.offset for d in deliveries if d.token == life and d.offset in unacked]
        if mine:
            await self._settle(life, mine)
        if stale := [delivery for delivery in deliveries if self._is_stale(delivery)]:
            raise StaleDelivery(stale)

    async def seek(self, to: Seek) -> None:
        raise Unsupported(f"{self._name!r} is a QUEUE, which has no positions")

    async def _settle(self, life: int, tags: Sequence[int]) -> None:
        """Send the acks, and a question that the broker answers once it has read them."""
        channel, mark = self._channel, self._mark
        assert channel is not None
        try:
            async with self._sending:
                await within(_send(channel, mark, tags))  # a connection that ends meanwhile takes nothing more
            await within(channel.flow(True))
        except BaseException as error:
            if isinstance(error, Silence):
                self._link.drop(channel.connection)
            self._end(life)  # nobody knows which of them have arrived
            if isinstance(error, (ConnectionLost, *DRIVER_ERRORS)):
                return
            raise
        (self._unacked if life == self._life else self._lost_tags.get(life, set())).difference_update(tags)

    def _is_stale(self, delivery: Delivery) -> bool:
        if delivery.token == self._life and self._life:
            return False
        lost = self._lost_tags.get(delivery.token)
        return lost is None or delivery.offset in lost

    async def _add(self, message: DeliveredMessage) -> None:
        properties = message.header.properties
        headers = properties.headers or {}
        tag = message.delivery_tag or 0
        count = headers.get("x-acquired-count", headers.get("x-delivery-count", 0))
        sent, _ = unseal(message.body, properties.message_id or "")
        self._mark.open(tag)
        self._unacked.add(tag)
        self._arrived.append(Delivery(sent, self._name, 0, tag, int(str(count)), self._life))

    def _forget(self) -> None:
        super()._forget()
        self._lost_tags[self._life] = self._unacked
        while len(self._lost_tags) > LIVES:
            del self._lost_tags[next(iter(self._lost_tags))]
        self._unacked, self._mark = set(), Watermark(1)


async def _send(channel: Channel, mark: Watermark, tags: Sequence[int]) -> None:
    """One ack for all below the first that is not done, and one for each above it.

    The tag of an ack of many must itself be one that the broker still waits for.
    """
    fresh = [tag for tag in dict.fromkeys(tags) if mark.close(tag)]
    if below := [tag for tag in fresh if tag < mark.next]:
        await channel.basic_ack(max(below), multiple=len(below) > 1, wait=False)
    for tag in fresh:
        if tag >= mark.next:
            await channel.basic_ack(tag, wait=False)
