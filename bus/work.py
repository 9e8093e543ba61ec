"""The verbs of a worker, over any transport: publish again, confirmed, then ack.

A crash in between leaves a duplicate, never a loss. `reject` is in `bus.dead`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from bus.capabilities import require
from bus.message import Delivery
from bus.transport import Transport

__all__ = ["Reader", "delay", "nack"]


class Reader(Protocol):
    """Whoever can ack a delivery: a `Subscription`, or a `LaneReader`."""

    async def ack(self, deliveries: Sequence[Delivery]) -> None: ...


async def nack(
    transport: Transport, reader: Reader, delivery: Delivery, delay_s: float, *, now: float | None = None
) -> None:
    """Again, not before `delay_s` from now, attempt + 1: a retry. Raises as `delay` does."""
    await _again(transport, reader, delivery, delivery.message.attempt + 1, delay_s, now)


async def delay(
    transport: Transport, reader: Reader, delivery: Delivery, delay_s: float, *, now: float | None = None
) -> None:
    """Again, not before `delay_s` from now, the attempt unchanged: a hand-back.

    `now`, seconds since the epoch, is the machine's clock by default. Raises `Unsupported` where the transport
    cannot delay, `StaleDelivery` where another reader has the original, too: the copy is published all the same.
    """
    await _again(transport, reader, delivery, None, delay_s, now)


async def _again(
    transport: Transport, reader: Reader, delivery: Delivery, attempt: int | None, delay_s: float, now: float | None
) -> None:
    not_before = None
    if delay_s > 0:
        require(transport.capabilities, delays=True)
        not_before = (time.time() if now is None else now) + delay_s
    await transport.publish(delivery.topic, [delivery.message.again(attempt=attempt, not_before=not_before)])
    await reader.ack([delivery])
