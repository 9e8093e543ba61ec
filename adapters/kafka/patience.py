"""Tasks that end: a cancelled start of the driver's clients leaves nothing open, and no failure stays unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.metadata import MetadataRequest

__all__ = ["failure", "look_only", "started"]

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


def look_only(client: AIOKafkaClient) -> None:
    """The driver asks for topics so that Kafka makes what is missing, with the broker's defaults: a LOG of 7 days. It
    has no option for that, so each connection of this client is made to ask without."""
    connection_to = client._get_conn

    async def looking(*args: Any, **options: Any) -> Any:
        connection = await connection_to(*args, **options)
        if connection is not None and "send" not in vars(connection):
            connection.send = partial(_look, connection.send)
        return connection

    client._get_conn = looking


def _look(send: Callable[..., Any], request: Any, **options: Any) -> Any:
    if isinstance(request, MetadataRequest):
        request._allow_auto_topic_creation = False
    return send(request, **options)


def failure(task: asyncio.Task[None]) -> BaseException | None:
    """Why a task that is done did not return, unless somebody has cancelled it; the driver cancels futures, too."""
    if task.cancelled():
        return None if task.cancelling() else asyncio.CancelledError()
    return task.exception()
