"""What the checks of a state share: page ids, and a scene of two connections."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from bus.clock import Clock
from bus.errors import BusError
from bus.state import Arrival, Job, JobState, State, Verdict
from bus.testing.clock import FakeClock

__all__ = ["Scene", "Store", "page_id", "pages", "raises", "scene"]


def page_id(name: object) -> bytes:
    """The page id of a made-up page."""
    return hashlib.sha256(repr(name).encode()).digest()[:16]


def pages(*names: object) -> list[bytes]:
    return [page_id(name) for name in names]


class Scene(NamedTuple):
    """Two connections to one store, one clock for both, one job that is running."""

    one: State
    two: State
    clock: FakeClock
    job: Job

    async def arrive(self, name: object, message: str, attempt: int = 0, *, alone: bool = False) -> Verdict:
        (verdict,) = await self.one.arrive(self.job, [Arrival(page_id(name), message, attempt, alone)])
        return verdict

    async def numbers(self) -> tuple[int, int, int]:
        """Seen, open and begun, as the other connection sees them."""
        status = await self.two.status(self.job.name)
        assert status is not None
        return status.seen, status.open, status.begun

    async def state(self) -> JobState:
        status = await self.two.status(self.job.name)
        assert status is not None
        return status.state

    async def end_start(self) -> None:
        """`start()` runs and ends, having published nothing."""
        assert await self.one.acquire(self.job, "start", "starter")
        assert await self.one.end_start(self.job, "starter")
        await self.one.drop(self.job, "start", "starter")

    async def finish_job(self) -> None:
        await self.end_start()
        assert await self.one.end(self.job) is JobState.FINISHED


class Store:
    """Where a suite gets its connections from."""

    async def connect(self, clock: Clock | None = None) -> State:
        """One more connection to the store of this check; without a clock, by the machine's own."""
        raise NotImplementedError


def scene(check: Callable[[Any, Scene], Awaitable[None]]) -> Callable[[Store], None]:
    """Make a plain method of a check: it gets its scene, and everything is closed behind it."""

    async def play(suite: Store) -> None:
        clock = FakeClock()
        async with AsyncExitStack() as stack:
            one, two = [await suite.connect(clock) for _ in range(2)]
            for state in (one, two):
                stack.push_async_callback(state.aclose)
            status = await one.join("shop", spider="spider")
            await check(suite, Scene(one, two, clock, status.job))

    def method(self: Store) -> None:
        asyncio.run(play(self))

    method.__name__, method.__doc__ = getattr(check, "__name__", "check"), check.__doc__
    return method


async def raises(error: type[BusError], call: Awaitable[object]) -> BusError:
    try:
        await call
    except error as e:
        return e
    raise AssertionError(f"{error.__name__} was not raised")
