"""One replay as a process, from URLs."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, nullcontext
from typing import Any, NamedTuple

from bus.errors import Misconfigured
from bus.settings import Settings
from bus.transport import Transport
from bus.url import file_path, missing_file
from consumers.replay.course import Course, show_course
from consumers.replay.look import Look, look
from consumers.replay.options import ReplayOptions, ReplayResult
from consumers.replay.replay import replay
from consumers.run import connected
from consumers.sink import Sink, sink_of
from consumers.through import Through

__all__ = ["look_process", "replay_process"]


class _Parts(NamedTuple):
    transport: Transport
    sink: Sink | None
    stop: asyncio.Event
    through: Through | None
    course: Course


async def replay_process(settings: Settings, options: ReplayOptions, *, as_json: bool = False) -> ReplayResult:
    """Until all is stored, or a signal: the first ends it in good order, the second at once with code 130."""
    if settings.sink is None:
        raise Misconfigured("no sink is set: say where items go, by --sink sqlite:///items.db or CRAWLBUS_SINK")
    async with _parts(settings, options, as_json) as (transport, sink, stop, through, course):
        assert sink is not None
        return await replay(transport, sink, options, stop, through=through, course=course)


async def look_process(settings: Settings, options: ReplayOptions, *, as_json: bool = False) -> Look:
    """Likewise, for `--dry-run`. Without a sink nothing is compared."""
    async with _parts(settings, options, as_json) as (transport, sink, stop, through, course):
        return await look(transport, sink, options, stop, through=through, course=course)


@asynccontextmanager
async def _parts(settings: Settings, options: ReplayOptions, as_json: bool) -> AsyncIterator[_Parts]:
    """Made from what the settings say, and closed; ended by signals, and shown."""
    if missing_file(settings.bus):
        raise Misconfigured(f"there is no bus file {file_path(settings.bus)}: give the --bus of the crawl")
    gc.set_threshold(100_000, 20, 20)  # batches are many containers without a cycle
    through = None if options.through is None else Through.load(options.through)
    course = Course()
    with _ending_on_signals() as stop:
        async with (
            nullcontext() if settings.sink is None else aclosing(sink_of(settings.sink)) as sink,
            connected(settings.bus) as transport,
            show_course(course, as_json=as_json),
        ):
            yield _Parts(transport, sink, stop, through, course)


@contextmanager
def _ending_on_signals() -> Iterator[asyncio.Event]:
    """Also while a function of the user's runs: a handler of the loop's would wait for its end."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def on_signal(*_: Any) -> None:
        if stop.is_set():
            os._exit(130)  # as a kill: what is not committed was never there
        stop.set()
        loop.call_soon_threadsafe(lambda: None)  # so that it looks

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
