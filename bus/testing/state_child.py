"""What another process does to a state under test: `python -m bus.testing.state_child MODULE:CLASS URL DEED …`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from importlib import import_module

from bus.state import Job, State
from bus.testing.state_scene import pages


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


async def hold(state: State, job: Job, lease_s: float, block_s: float) -> None:
    """Take the lease, block the event loop, say so, then wait to be killed."""
    assert await state.acquire(job, "start", "child", lease_s=lease_s)
    say("held")
    time.sleep(block_s)  # noqa: ASYNC251 - the event loop is to be blocked
    say("held still" if await state.end_start(job, "child") else "lost")
    await asyncio.sleep(600)


async def churn(state: State, job: Job, count: float) -> None:
    """Mark pages and finish most of them, as workers do, as fast as it goes."""
    say("begun")
    for n in range(int(count)):
        await state.mark(job, pages(n, n + 1, n + 2), finish=pages(n - 1), counts={"turns": 1})
        if n % 10 == 0:
            say(str(n))
    say("done")


DEEDS: dict[str, Callable[..., Awaitable[None]]] = {"hold": hold, "churn": churn}


async def main(where: str, url: str, deed: str, name: str, *numbers: str) -> None:
    module, _, cls = where.partition(":")
    state: State = await getattr(import_module(module), cls).connect(url)
    try:
        job = (await state.join(name, spider="s")).job
        await DEEDS[deed](state, job, *map(float, numbers))
    finally:
        await state.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
