"""`FakeClock` moves only when told, and wakes sleepers in the order of their times."""

from __future__ import annotations

import asyncio

from bus.testing.clock import FakeClock


def test_sleepers_wake_in_order_and_see_their_own_time() -> None:
    async def play() -> None:
        clock, woke = FakeClock(100.0), []

        async def sleeper(name: str, *naps: float) -> None:
            for nap in naps:
                await clock.sleep(nap)
                woke.append((name, clock.time()))

        tasks = [asyncio.create_task(sleeper(*args)) for args in (("a", 3.0), ("b", 1.0, 1.0), ("c", 3.0), ("d", 9.0))]
        await asyncio.sleep(0.01)
        assert (clock.time(), woke) == (100.0, [])
        await clock.advance(5)
        assert woke == [("b", 101.0), ("b", 102.0), ("a", 103.0), ("c", 103.0)]
        assert clock.time() == 105.0
        tasks[3].cancel()
        await clock.advance(10)
        assert len(woke) == 4 and clock.time() == 115.0

    asyncio.run(play())
