"""`Reader`: what the subscriptions of queues and streams share: a channel that comes back, and what arrives on it."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from adapters.rabbitmq.address import Address
from adapters.rabbitmq.connection import AWAY_S, RETRY_S, Link, close_channel
from adapters.rabbitmq.errors import DRIVER_ERRORS, lost, refusal, trouble, within
from bus.backoff import Backoff
from bus.errors import BusError, Closed
from bus.message import Delivery

__all__ = ["Reader"]

MAX_PREFETCH = 65535
_lives = itertools.count(1)  # in all readers of the process: no delivery is ever taken for another reader's


class Reader:
    """Each time it is attached is a life of its own; what the one before had unacknowledged is lost with it."""

    def __init__(self, link: Link, address: Address, topic: str, prefetch: int) -> None:
        self._link, self._address, self._name = link, address, topic
        self._prefetch = self._window = min(prefetch, MAX_PREFETCH)  # `_window`: what the broker may send ahead of acks
        self._arrived: deque[Delivery] = deque()
        self._life = 0  # 0: not attached
        self._channel: Channel | None = None
        self._lost = asyncio.Event()
        self._attached = asyncio.Event()
        self._problem: BusError | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.closed = self._reading = False

    async def open(self) -> None:
        """Attach for the first time; later it does so by itself."""
        await self._attach()
        self._keeper = asyncio.create_task(self._keep())

    async def receive(self, *, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        if self._reading:
            raise BusError(f"two tasks read one subscription of {self._name!r}")
        self._reading = True
        try:
            await asyncio.sleep(0)  # a reader that always finds something still lets others run
            return await self._receive(max_messages, timeout_s)
        finally:
            self._reading = False

    async def _receive(self, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        now = loop.time()
        deadline, patience = now + timeout_s, now + AWAY_S
        while True:
            self._check_open()
            if taken := await self._take(max_messages):
                return taken
            now = loop.time()
            if not self._life:
                if now >= patience or (now >= deadline and self._problem):
                    raise self._problem or lost()
                if now >= deadline:
                    return ()
                await self._wait(min(deadline, patience) - now)
            elif now >= deadline:
                return ()
            else:
                await self._wait(deadline - now)

    async def aclose(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._wake()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._channel is not None:
            await close_channel(self._channel)

    # what differs

    async def _arguments(self) -> dict[str, Any]:
        """Of the consumer."""
        return {}

    async def _add(self, message: DeliveredMessage) -> None:
        """It has arrived."""
        raise NotImplementedError

    async def _take(self, max_messages: int) -> Sequence[Delivery]:
        """Of what has arrived."""
        return [self._arrived.popleft() for _ in range(min(max_messages, len(self._arrived)))]

    def _forget(self) -> None:
        """This life is over."""
        self._arrived.clear()

    # attaching

    def _check_open(self) -> None:
        if self.closed:
            raise Closed(f"the subscription of {self._name!r} is closed")

    async def _attach(self) -> None:
        channel = await self._link.open_channel()
        life = self._life = next(_lives)
        self._channel = channel
        channel.closing.add_done_callback(lambda _: self._end(life))
        channel.on_consumer_cancel_callbacks.add(lambda _: self._end(life))
        try:
            await within(channel.basic_qos(prefetch_count=self._window))
            arguments = await self._arguments()
            await within(channel.basic_consume(self._name, partial(self._on_message, life), arguments=arguments))
            await within(channel.flow(True))  # the broker has begun, and what it had at hand is here
        except BaseException as error:
            self._end(life)
            await close_channel(channel)
            if isinstance(error, DRIVER_ERRORS):
                raise refusal(error, self._name, self._address) from None
            raise
        if self._life != life:
            raise lost()
        self._problem = None
        self._attached.set()

    async def _on_message(self, life: int, message: DeliveredMessage) -> None:
        if life == self._life:
            await self._add(message)
            self._wake()

    def _end(self, life: int) -> None:
        """The channel of this life is of no use any more."""
        if life == self._life and life:
            self._forget()
            self._life = 0
            self._attached.clear()
            self._lost.set()
            self._wake()

    async def _keep(self) -> None:
        backoff = Backoff(longest_s=RETRY_S)
        while True:
            await self._lost.wait()
            self._lost.clear()
            while not self._life:  # it is there where an attempt had failed before the one that did not
                channel, self._channel = self._channel, None
                try:
                    if channel is not None and not channel.is_closed:
                        await close_channel(channel)
                    await self._attach()
                    backoff.reset()
                except Exception as error:
                    self._problem = trouble(error, self._problem)
                    self._wake()
                    await asyncio.sleep(backoff.next_s())

    async def _again(self) -> None:
        """Attach anew, as the arguments are others now."""
        self._end(self._life)
        try:
            async with asyncio.timeout(AWAY_S):
                await self._attached.wait()
        except TimeoutError:
            raise self._problem or lost() from None

    async def _wait(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(timeout_s, self._wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
