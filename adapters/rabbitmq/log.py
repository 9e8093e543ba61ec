"""LOG topics: streams, read by AMQP 0-9-1, which keeps no positions of a reader and moves one that is out of range."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from adapters.rabbitmq.address import Address
from adapters.rabbitmq.connection import Link
from adapters.rabbitmq.envelope import unseal
from adapters.rabbitmq.errors import DRIVER_ERRORS, Undeclared, lost, refusal, within
from adapters.rabbitmq.publisher import Outgoing, Publisher
from adapters.rabbitmq.reader import MAX_PREFETCH, Reader
from adapters.rabbitmq.topology import group_stream
from bus.errors import ConnectionLost, PositionExpired
from bus.message import Delivery, Position
from bus.transport import Lag, Seek, Start

__all__ = ["LogSubscription", "Logs"]

EMPTY_S = 5.5  # nothing has come, and the count, up to 5 s old, is still 0: then a stream is empty
SHOWN_S = 10.0  # a stream that holds something has shown it by then
FIRST_LOOK_S, LONGEST_LOOK_S = 0.05, 1.0
WINDOW = 128  # messages that have come and are not handed out: of 256 KiB each, 32 MiB
SKEW_S = 5.0  # how far the clocks of publishers and broker may differ

Offset: TypeAlias = "int | str | datetime"


class Bounds(NamedTuple):
    """`end` is what the next message gets, unless a segment begins there: then one more. `last`: the last messages.

    What was trimmed begins with a segment, whose first offset is left out: who stands there has missed nothing.
    """

    first: int
    end: int
    last: Sequence[bytes] = ()

    def expired(self, asked: Position) -> PositionExpired:
        return PositionExpired(asked, Position(0, self.first), Position(0, self.end))


class Logs:
    """The streams of a broker: their bounds, and the positions of groups, each group's in a small stream of its own."""

    def __init__(self, link: Link, address: Address, publisher: Publisher) -> None:
        self._link, self._address, self._publisher = link, address, publisher

    async def bounds(self, topic: str) -> Bounds:
        """Read, not asked: the broker tells only a count, and that seconds late. Nothing is kept.

        Cheap where there is a message; that there is none takes `EMPTY_S`.
        """
        try:
            async with self._link.channel() as channel:
                firsts: list[DeliveredMessage] = []
                lasts: list[DeliveredMessage] = []
                both = asyncio.Event()

                async def add(to: list[DeliveredMessage], message: DeliveredMessage) -> None:
                    to.append(message)
                    if firsts and lasts:
                        both.set()

                for where, found, prefetch in (("first", firsts, 1), ("last", lasts, MAX_PREFETCH)):
                    await within(channel.basic_qos(prefetch_count=prefetch))
                    arguments: dict[str, Any] = {"x-stream-offset": where}
                    await within(channel.basic_consume(topic, partial(add, found), arguments=arguments))
                shown = await _shown(channel, topic, both)
                if not shown and not firsts and not lasts:
                    return Bounds(0, 0)
                if not both.is_set():
                    raise lost(TimeoutError())
                await within(channel.flow(True))  # the chunk that has begun to come is here to its end
                first = max(0, _offset(firsts[0]) - 1)
                return Bounds(first, _offset(lasts[-1]) + 1, [message.body for message in lasts])
        except DRIVER_ERRORS as error:
            raise refusal(error, topic, self._address) from None

    async def committed(self, topic: str, group: str) -> int | None:
        """What follows the last message that a group has acked; None if it never has."""
        try:
            last = (await self.bounds(group_stream(topic, group))).last if group else ()
        except Undeclared:
            return None
        return max(map(int, last), default=None)

    async def commit(self, topic: str, group: str, offset: int) -> None:
        name = group_stream(topic, group)
        await self._publisher.publish(name, [Outgoing("", name, b"%d" % offset)])

    async def lag(self, topic: str, group: str) -> Lag:
        """An estimate: a stream leaves an offset out wherever a segment begins."""
        bounds, committed = await asyncio.gather(self.bounds(topic), self.committed(topic, group))
        ready = max(0, bounds.end - max(bounds.first, committed or 0))
        return Lag(ready, None, 0, exact=False, first={0: bounds.first}, end={0: bounds.end})


class LogSubscription(Reader):
    """One reader of a stream. Its acks are the position of its group; the broker gets credit for what is handed out."""

    def __init__(self, link: Link, address: Address, logs: Logs, topic: str, group: str, prefetch: int) -> None:
        super().__init__(link, address, topic, prefetch)
        self._logs, self._group = logs, group
        self._from: Offset = "first"  # where to attach
        self._next: int | None = None  # the offset to hand out next, where it is known
        self._since: float | None = None  # what was published before is passed over
        self._window = min(self._prefetch, WINDOW)
        self._used = self._credited = 0  # messages of this life; its delivery tags count them
        self._given: deque[int] = deque()  # offsets that are handed out, and not acked
        self._done = 0
        self._expired: PositionExpired | None = None

    async def begin(self, start: Start) -> None:
        """Go to the start, and attach."""
        committed = await self._logs.committed(self._name, self._group)
        self._done = committed or 0
        if start == "committed":
            start = "earliest" if committed is None else [Position(0, committed)]
            await self._go(start, check=False)  # what has been trimmed meanwhile shows at the first message
        else:
            await self._go(start)
        await self.open()

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._check_open()
        done = max((delivery.offset for delivery in deliveries), default=-1) + 1
        if self._group and done > self._done:
            await self._logs.commit(self._name, self._group, done)
            self._done = max(self._done, done)
        while self._given and self._given[0] < done:
            self._given.popleft()
        self._wake()  # a `receive` may wait for room

    async def seek(self, to: Seek) -> None:
        self._check_open()
        await self._go(to)
        await self._again()

    async def _go(self, to: Seek, *, check: bool = True) -> None:
        """Find out where that is."""
        since: float | None = None
        at: Offset = "first"
        if isinstance(to, datetime):
            since = (to if to.tzinfo else to.replace(tzinfo=UTC)).timestamp()
            at = datetime.fromtimestamp(max(0.0, since - SKEW_S), UTC)
        elif to == "latest":
            at = (await self._logs.bounds(self._name)).end
        elif to != "earliest" and to:
            bounds = await self._logs.bounds(self._name) if check else None
            for position in to:
                assert isinstance(position, Position)
                if bounds and (position.partition or not bounds.first <= position.offset <= bounds.end):
                    raise bounds.expired(position)
                at = position.offset
        self._from, self._next, self._since = at, at if isinstance(at, int) else None, since
        self._given.clear()
        self._expired = None

    async def _arguments(self) -> dict[str, Any]:
        if isinstance(self._from, int) and self._from and self._expired is None:
            await self._check_end(self._from)
        return {"x-stream-offset": self._from}

    async def _check_end(self, asked: int) -> None:
        """Streams are not fsynced: a server whose power was cut may have lost what we have read, and gives those
        offsets to other messages."""
        bounds = await self._logs.bounds(self._name)
        if asked > bounds.end and asked == self._from:
            self._expired = bounds.expired(Position(0, asked))
            self._wake()

    async def _add(self, message: DeliveredMessage) -> None:
        offset = _offset(message)
        sent, at = unseal(message.body, message.header.properties.message_id or "")
        if self._since is not None:
            if at is not None and at < self._since:
                self._used += 1
                return
            self._since = None
        if self._next is not None and offset < self._next:
            self._used += 1
            return
        self._arrived.append(Delivery(sent, self._name, 0, offset, None))

    async def _take(self, max_messages: int) -> Sequence[Delivery]:
        """What is there without a gap, as far as `prefetch` allows: RabbitMQ 3 sends a chunk to its end, whatever the
        credit. Nothing is awaited between taking and giving, so that a `receive` that is cancelled loses nothing."""
        if self._expired is not None:
            raise self._expired
        await self._credit()
        room = min(max_messages, self._prefetch - len(self._given))
        if room <= 0:
            return ()
        while self._arrived and self._next is not None and self._arrived[0].offset > self._next:
            await self._check_gap(self._next, self._arrived[0].offset)
        taken: list[Delivery] = []
        while self._arrived and len(taken) < room and self._next in (None, self._arrived[0].offset):
            taken.append(self._arrived.popleft())
            self._from = self._next = taken[-1].offset + 1
        self._used += len(taken)
        self._given.extend(delivery.offset for delivery in taken)
        return taken

    async def _check_gap(self, asked: int, found: int) -> None:
        """Left out where a segment begins, or trimmed before we came?"""
        bounds = await self._logs.bounds(self._name)
        if asked != self._next:
            return
        if bounds.first > asked:
            self._expired = bounds.expired(Position(0, asked))
            raise self._expired
        self._next = found

    async def _credit(self) -> None:
        """For what was handed out before."""
        life, channel, used = self._life, self._channel, self._used
        if channel is None or used == self._credited:
            return
        try:
            await within(channel.basic_ack(used, multiple=True, wait=False))
        except (ConnectionLost, *DRIVER_ERRORS):
            self._end(life)
        if life == self._life:
            self._credited = used

    def _forget(self) -> None:
        super()._forget()
        self._used = self._credited = 0


async def _shown(channel: Channel, topic: str, both: asyncio.Event) -> bool:
    """Whether a stream has a message. Only pauses count that end with the broker's answer: what it had sent before is
    here by then, however slow the broker or the way from it."""
    waited_s, pause_s = 0.0, FIRST_LOOK_S
    count: int | None = 0
    while not both.is_set() and waited_s < (SHOWN_S if count else EMPTY_S):
        try:
            async with asyncio.timeout(pause_s):
                await both.wait()
        except TimeoutError:
            count = (await within(channel.queue_declare(topic, passive=True))).message_count
            waited_s += pause_s
            pause_s = min(2 * pause_s, LONGEST_LOOK_S)
    return both.is_set() or bool(count)


def _offset(message: DeliveredMessage) -> int:
    headers = message.header.properties.headers or {}
    return int(str(headers["x-stream-offset"]))
