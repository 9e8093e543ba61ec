"""Tasks that end: a cancelled start of the driver's clients leaves nothing open, and no failure stays unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["failure", "started"]

LEAVE_S = 3.0


async def started(start: Coroutine[Any, Any, None], connected: Callable[[], bool] = lambda: False) -> None:
    """Cancelled while it connects for the first time, the driver would leave that connection open: it is given a
    moment to get as far as `connected`, or to its end."""
    task = asyncio.create_task(start)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LEAVE_S
        while not (task.done() or connected() or loop.time() > deadline):
            await asyncio.wait([task], timeout=0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise


def failure(task: asyncio.Task[None]) -> BaseException | None:
    """Why a task that is done did not return."""
    return asyncio.CancelledError() if task.cancelled() else task.exception()
