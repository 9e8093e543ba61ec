"""Delay bands keep the contract: over a transport that cannot delay, and over one that only holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.memory.transport import CAPABILITIES, MemorySubscription, MemoryTransport
from bus.bands import BANDS_S, EARLY_S, Banded, band_of, bands
from bus.capabilities import Delay
from bus.errors import ConnectionLost, PublishUnconfirmed, StaleDelivery, Unsupported
from bus.message import Message, new_id
from bus.testing.faults import Faults, FaultyTransport
from bus.testing.transport import Hostile, TransportConformance
from bus.topic import Kind, Topic
from bus.transport import Lag, Start, Subscription, Transport

T = TypeVar("T")


@given(left_s=st.floats(0, 10**6))
def test_a_band_is_the_largest_that_is_not_longer(left_s: float) -> None:
    band_s = band_of(left_s)
    assert band_s in BANDS_S
    assert band_s <= max(left_s, BANDS_S[0])
    assert not any(band_s < other <= left_s for other in BANDS_S)


def test_bands_are_queues_that_lanes_share() -> None:
    for lane in ("", ".high", ".bulk"):
        assert [(band.name, band.hold_s) for band in bands(f"crawlbus.shop.requests{lane}")] == [
            (f"crawlbus.shop.requests.delay-{band_s}", band_s) for band_s in BANDS_S
        ]
    assert bands("high")[0].name == "high.delay-1"
    assert {band.kind for band in bands("crawlbus.bulk.items")} == {Kind.QUEUE}


class Undelayed(MemoryTransport):
    """Memory with a clock of no use to its queues, as Kafka."""

    capabilities = replace(CAPABILITIES, delay=Delay.NONE)

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        if any(message.not_before is not None for message in messages):
            raise Unsupported(f"{topic!r} cannot delay")
        await super().publish(topic, messages)


class Holding(Undelayed):
    """Memory whose queues delay only where each message waits equally long, and moves on, as RabbitMQ.

    What is held stands with the delayed of its queue, so that nobody can count it.
    """

    capabilities = replace(CAPABILITIES, delay=Delay.HOLDS, exact_lag=False)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.holds: dict[str, int] = {}

    async def declare(self, *topics: Topic) -> None:
        await super().declare(*topics)
        self.holds.update({one.name: one.hold_s for one in topics if one.hold_s is not None})

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        if topic not in self.holds:
            await super().publish(topic, messages)
            return
        for message in messages:
            held = message._replace(not_before=time.time() + self.holds[topic])
            await MemoryTransport.publish(self, str(message.headers["to"]), [held])

    async def subscribe(
        self, topic: str, *, group: str = "", prefetch: int = 256, start: Start = "committed", member: str = ""
    ) -> Subscription:
        if topic in self.holds:
            raise Unsupported(f"{topic!r} passes its messages on by itself")
        return await super().subscribe(topic, group=group, prefetch=prefetch, start=start, member=member)

    async def lag(self, topic: str, *, group: str = "") -> Lag:
        lag = await super().lag(topic, group=group)
        if topic in self.holds:
            return Lag(None, None, None, exact=False)
        return replace(lag, delayed=0, exact=False)


class TestBanded(TransportConformance):
    """Where the reader has to forward."""

    below: type[MemoryTransport] = Undelayed

    @pytest.fixture(autouse=True)
    def _bus(self, tmp_path: Path) -> None:
        self.url = f"memory://{tmp_path}"

    async def connect(self) -> Banded:
        return Banded(await self.below.connect(self.url))

    async def expel(self, subscription: Subscription) -> None:
        inner = subscription._inner  # type: ignore[attr-defined]
        assert isinstance(inner, MemorySubscription)
        inner._reader.close()


class TestBandedHolds(TestBanded):
    """Where the bus forwards."""

    below = Holding


class TestHostileBanded(Hostile, TestBanded):
    pass


async def stubbornly(call: Callable[[], Awaitable[T]]) -> T | None:
    """Repeat what may have failed; what is stale is another's."""
    while True:
        try:
            return await call()
        except StaleDelivery:
            return None
        except (ConnectionLost, PublishUnconfirmed):
            await asyncio.sleep(0)


@pytest.mark.parametrize("below", [Undelayed, Holding])
def test_troubles_on_the_way_double_and_never_lose(below: type[MemoryTransport], tmp_path: Path) -> None:
    """Connections lost, leases lost, publishes half done, while readers forward."""

    async def check() -> None:
        faults = Faults(short=0.3, unconfirmed=0.1, lost=0.1, stale=0.1)
        inner = FaultyTransport(await below.connect(f"memory://{tmp_path}"), seed=5, faults=faults)
        bus: Transport = Banded(inner)
        await bus.declare(Topic("work", Kind.QUEUE))
        now = time.time()
        due = {new_id(): now + i / 50 for i in range(80)}
        for one, at in due.items():
            await stubbornly(partial(bus.publish, "work", [Message(one, b"", not_before=at)]))
        reader = await bus.subscribe("work")
        missing = set(due)
        async with asyncio.timeout(60):
            while missing:
                for came in await stubbornly(partial(reader.receive, max_messages=10, timeout_s=1)) or ():
                    assert time.time() >= due[came.message.id] - EARLY_S
                    await stubbornly(partial(reader.ack, [came]))
                    missing.discard(came.message.id)
        await bus.aclose()

    asyncio.run(check())
