"""What the consumer does while the bus or the state is away, and where the bus loses its place in the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bus.errors import PositionExpired
from bus.message import Delivery, Position
from bus.registry import connect_state, connect_transport
from bus.state import JobState, State
from bus.topic import item_log
from bus.transport import Subscription, Transport
from consumers.daemon import consume
from consumers.options import ConsumeOptions, ConsumeResult, Ended
from consumers.reader import LogGap
from consumers.sink import Sink
from tests.consumers.scene import TOPIC, messages, new_sink, stored_items
from tests.servers import server

OPTIONS = ConsumeOptions(batch_seconds=0.05, batch_items=10, until_drained=True)


@asynccontextmanager
async def scene(bus: str, state: str) -> AsyncIterator[tuple[Transport, State]]:
    async with aclosing(await connect_transport(bus)) as transport, aclosing(await connect_state(state)) as shared:
        await transport.declare(item_log("crawlbus."))
        yield transport, shared


async def consume_all(transport: Transport, state: State, sink: Sink) -> ConsumeResult:
    try:
        async with asyncio.timeout(60):
            return await consume(transport, state, sink, OPTIONS, asyncio.Event())
    finally:
        await sink.aclose()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(40):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def numbers(directory: Path) -> list[int]:
    return [item["data"]["number"] for item in stored_items("jsonl", directory)]


@pytest.mark.parametrize("dies", ["bus", "state"])
def test_an_outage_is_said_once_and_its_end_when_it_ends(
    dies: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where nothing has come to be stored since."""
    away, back = {
        "bus": ("waiting, and going on when it is back", "going on after"),
        "state": ("the state is away", "the state is back"),
    }[dies]
    with server("redis-7") as victim, caplog.at_level(logging.WARNING):
        other = f"sqlite:///{tmp_path / 'other.db'}"

        async def main() -> None:
            async with scene(victim.url if dies == "bus" else other, victim.url if dies == "state" else other) as (
                transport,
                state,
            ):
                await state.join("shop", spider="shop")
                await transport.publish(TOPIC, messages(range(5)))
                task = asyncio.create_task(consume_all(transport, state, new_sink("jsonl", tmp_path)))
                await until(lambda: (tmp_path / "items.jsonl").exists() and len(numbers(tmp_path)) == 5)
                victim.kill()
                await until(lambda: away in caplog.text)
                if dies == "state":
                    await transport.publish(TOPIC, messages(range(5, 9)))
                    await until(lambda: len(numbers(tmp_path)) == 9)
                assert back not in caplog.text
                await asyncio.to_thread(victim.start)
                await until(lambda: back in caplog.text)
                await state.set_state("shop", JobState.STOPPED)
                assert (await task).ended is Ended.DRAINED

        asyncio.run(main())
    assert (caplog.text.count(away), caplog.text.count(back)) == (1, 1)


class Clamped:
    """A bus that loses a reader's place in the log: after so many messages, and so many times."""

    def __init__(self, inner: Transport, after: int, times: int) -> None:
        self._inner, self.after, self.times = inner, after, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def subscribe(self, *args: Any, **kwargs: Any) -> Subscription:
        return ClampedSubscription(self, await self._inner.subscribe(*args, **kwargs))


class ClampedSubscription:
    def __init__(self, bus: Clamped, inner: Subscription) -> None:
        self._bus, self._inner, self._read = bus, inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def receive(self, *, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        if self._read >= self._bus.after and self._bus.times > 0:
            self._bus.times -= 1
            raise PositionExpired(Position(0, 1), Position(0, 7), Position(0, 9))
        found = await self._inner.receive(max_messages=1, timeout_s=timeout_s)
        self._read += len(found)
        return found

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._inner.ack(deliveries)

    async def seek(self, to: Any) -> None:
        await self._inner.seek(to)

    async def aclose(self) -> None:
        await self._inner.aclose()


@pytest.mark.parametrize(("after", "times", "is_gap"), [(25, 4, False), (0, 2, False), (0, 3, True)])
def test_a_place_that_was_lost_is_a_gap_only_where_it_is_lost_again_with_nothing_stored(
    after: int, times: int, is_gap: bool, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'bus.db'}"

    async def main() -> None:
        async with scene(url, url) as (transport, state):
            await state.join("shop", spider="shop")
            for number in range(100):
                await transport.publish(TOPIC, messages([number]))
            await state.set_state("shop", JobState.STOPPED)
            clamped: Any = Clamped(transport, after, times)
            if is_gap:
                with pytest.raises(LogGap):
                    await consume_all(clamped, state, new_sink("jsonl", tmp_path))
            else:
                assert (await consume_all(clamped, state, new_sink("jsonl", tmp_path))).stored == 100
            assert clamped.times == 0

    asyncio.run(main())
    if not is_gap:
        assert numbers(tmp_path) == list(range(100))
