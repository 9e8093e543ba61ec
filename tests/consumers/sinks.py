"""What the tests of the sinks share: short lives of one sink."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from bus.errors import BusError
from consumers.sink import Batch, Progress, Sink, Written
from consumers.testing import TOPIC

__all__ = ["failure", "fill", "positions"]


async def fill(sink: Sink, *batches: Batch, consumer: str = "default") -> list[Written]:
    """Open, write, close."""
    try:
        await sink.open(consumer, TOPIC)
        await sink.hold({partition for batch in batches for partition in batch.progress})
        return [await sink.write(batch) for batch in batches]
    finally:
        await sink.aclose()


async def positions(sink: Sink, consumer: str = "default") -> list[Progress]:
    try:
        await sink.open(consumer, TOPIC)
        return sorted(await sink.positions())
    finally:
        await sink.aclose()


def failure(work: Coroutine[Any, Any, Any]) -> BusError:
    with pytest.raises(BusError) as caught:
        asyncio.run(work)
    return caught.value
