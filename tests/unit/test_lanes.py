"""`LaneReader` over readers that are played here: shares by weight, and nothing saved up."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from bus.errors import ConnectionLost
from bus.lanes import LaneReader
from bus.message import Delivery, Message
from bus.topic import LANES
from bus.transport import Seek, Start, Subscription


class Lane:
    """A subscription that has `full` messages, and counts its calls."""

    def __init__(self, topic: str, full: int) -> None:
        self.topic, self.full, self.calls, self.closed, self.broken = topic, full, 0, False, False

    async def receive(self, *, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        self.calls += 1
        await asyncio.sleep(0)
        if self.broken:
            raise ConnectionLost("gone")
        if not self.full:
            await asyncio.sleep(timeout_s)
        count = min(max_messages, self.full)
        self.full -= count
        return [Delivery(Message("m", b""), self.topic, 0, 0, None)] * count

    async def ack(self, deliveries: Sequence[Delivery]) -> None: ...

    async def seek(self, to: Seek) -> None: ...

    async def aclose(self) -> None:
        self.closed = True
        if self.broken:
            raise ConnectionLost("gone")


class Bus:
    """As much of a transport as `LaneReader.open` needs."""

    def __init__(self, full: int) -> None:
        self.lanes = {lane: Lane(lane, full) for lane in LANES}
        self.refuses: str | None = None

    async def subscribe(
        self, topic: str, *, group: str = "", prefetch: int = 256, start: Start = "committed", member: str = ""
    ) -> Subscription:
        if topic == self.refuses:
            raise ConnectionLost("gone")
        return self.lanes[topic]


async def opened(bus: Bus) -> LaneReader:
    return await LaneReader.open(bus, {lane: lane for lane in LANES})  # type: ignore[arg-type]


async def taken(reader: LaneReader, total: int, size: int) -> Counter[str]:
    got: Counter[str] = Counter()
    while got.total() < total:
        got.update(d.topic for d in await reader.receive(max_messages=min(size, total - got.total()), timeout_s=1))
    return got


@pytest.mark.parametrize("size", [1, 2, 7, 13, 64, 256])
def test_full_lanes_are_drained_8_4_1_whatever_the_size(size: int) -> None:
    async def play() -> None:
        got = await taken(await opened(Bus(5000)), 1300, size)
        assert {lane: round(count / 100) for lane, count in got.items()} == {"high": 8, "": 4, "bulk": 1}

    asyncio.run(play())


def test_an_empty_lane_gives_its_share_to_the_others() -> None:
    async def play() -> None:
        bus = Bus(5000)
        bus.lanes["high"].full = 0
        got = await taken(await opened(bus), 1000, 50)
        assert got["high"] == 0 and abs(got["bulk"] - 200) <= 2

    asyncio.run(play())


def test_a_lane_that_was_empty_has_saved_nothing_up() -> None:
    async def play() -> None:
        bus = Bus(5000)
        bus.lanes["bulk"].full = 0
        reader = await opened(bus)
        await taken(reader, 4000, 64)
        bus.lanes["bulk"].full = 5000
        got = await taken(reader, 260, 13)
        assert abs(got["bulk"] - 20) <= 2

    asyncio.run(play())


def test_a_single_full_lane_is_asked_once_for_all() -> None:
    async def play() -> None:
        bus = Bus(0)
        bus.lanes[""].full = 6400
        reader = await opened(bus)
        await taken(reader, 640, 64)
        before = bus.lanes[""].calls
        assert len(await reader.receive(max_messages=64, timeout_s=0)) == 64
        assert bus.lanes[""].calls - before == 1

    asyncio.run(play())


def test_what_one_lane_gave_is_kept_when_another_fails() -> None:
    async def play() -> None:
        bus = Bus(4)
        bus.lanes["bulk"].broken = True
        reader = await opened(bus)
        got: list[Delivery] = []
        for _ in range(20):
            try:
                got.extend(await reader.receive(max_messages=13, timeout_s=0.01))
            except ConnectionLost:
                pass
        assert Counter(d.topic for d in got) == {"high": 4, "": 4}
        with pytest.raises(ConnectionLost):
            await reader.aclose()
        assert all(lane.closed for lane in bus.lanes.values())

    asyncio.run(play())


def test_a_lane_that_cannot_be_opened_closes_the_others() -> None:
    async def play() -> None:
        bus = Bus(0)
        bus.refuses = "bulk"
        with pytest.raises(ConnectionLost):
            await opened(bus)
        assert [bus.lanes[lane].closed for lane in LANES] == [True, True, False]

    asyncio.run(play())


@pytest.mark.parametrize("steps", range(12))
def test_what_a_lane_gave_is_kept_whenever_the_receive_is_cancelled(steps: int) -> None:
    async def check() -> None:
        bus = Bus(0)
        reader = await opened(bus)
        receive = asyncio.create_task(reader.receive(max_messages=3, timeout_s=0.001))
        await asyncio.sleep(0.0005)
        bus.lanes["high"].full = 1  # it gives it when its wait is over
        while bus.lanes["high"].full:  # noqa: ASYNC110 - each step of the loop counts here
            await asyncio.sleep(0)
        for _ in range(steps):
            await asyncio.sleep(0)
        receive.cancel()
        try:
            got = await receive
        except asyncio.CancelledError:
            got = await reader.receive(max_messages=3, timeout_s=0)
        assert len(got) == 1

    asyncio.run(check())
