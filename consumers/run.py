"""One run of the consumer from URLs: as a process of its own, or inside of a worker's."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from bus.errors import Misconfigured
from bus.process import PARENT_FD, is_child
from bus.registry import connect_state, connect_transport
from bus.settings import Settings, state_url
from bus.topic import item_log
from bus.transport import Transport
from bus.url import bus_options, scheme
from consumers.daemon import consume
from consumers.options import ConsumeOptions, ConsumeResult
from consumers.sink import sink_of
from consumers.watch.figures import Figures
from consumers.watch.watch import Watch, watched

__all__ = ["connected", "consume_process", "consume_urls"]


@asynccontextmanager
async def connected(bus: str) -> AsyncIterator[Transport]:
    """The bus of a URL, closed at the end. Refuses one that lives in another process only."""
    if scheme(bus) == "memory":
        raise Misconfigured("a memory:// bus lives in the process that crawls: set --bus to sqlite:///FILE")
    transport = await connect_transport(bus)
    try:
        yield transport
    finally:
        await transport.aclose()


async def consume_urls(
    bus: str, state: str | None, sink: str, options: ConsumeOptions, stop: asyncio.Event, watch: Watch | None = None
) -> ConsumeResult:
    """`consume` with its parts made from URLs, and closed. Prefix and retention are those of the bus's URL."""
    options = replace(options, **bus_options(bus)._asdict())
    target, transport = sink_of(sink), await connect_transport(bus)
    try:
        shared = await connect_state(state) if state is not None else None
        try:
            return await consume(transport, shared, target, options, stop, watch)
        finally:
            await target.aclose()
            if shared is not None:
                await shared.aclose()
    finally:
        await transport.aclose()


async def consume_process(settings: Settings, options: ConsumeOptions, *, quiet: bool = False) -> ConsumeResult:
    """Until the options say so, or a signal: the first ends it in good order, the second at once with code 130.
    It ends, too, when the process that started it is gone. `quiet`: no line on the terminal."""
    if settings.sink is None:
        raise Misconfigured("no sink is set: say where items go, by --sink sqlite:///items.db or CRAWLBUS_SINK")
    if scheme(settings.bus) == "memory":
        raise Misconfigured("a memory:// bus lives in the process that crawls: use `crawlbus crawl --sink` there")
    stop = asyncio.Event()
    _collect_less_often()
    _end_on_signals(stop)
    _end_with_parent(stop)
    state = _state_or_none(settings) if not options.until_drained else state_url(settings)
    topic = item_log(bus_options(settings.bus).prefix).name
    with watched(Figures(options.consumer, topic), settings.health, quiet=quiet) as watch:
        return await consume_urls(settings.bus, state, settings.sink, options, stop, watch)


def _collect_less_often() -> None:
    """Batches are hundreds of thousands of containers without a cycle: looking for some in them, as often as Python
    does by itself, takes half of a consumer's time."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def _state_or_none(settings: Settings) -> str | None:
    """A consumer that runs for ever needs no state: it only tells it how much is stored."""
    try:
        return state_url(settings)
    except Misconfigured:
        return None


def _end_on_signals(stop: asyncio.Event) -> None:
    def on_signal() -> None:
        if stop.is_set():
            os._exit(130)  # as a kill: what is not committed was never there
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)


def _end_with_parent(stop: asyncio.Event) -> None:
    if not is_child():
        return
    loop, pipe = asyncio.get_running_loop(), int(os.environ[PARENT_FD])

    def on_end() -> None:
        loop.remove_reader(pipe)
        stop.set()

    loop.add_reader(pipe, on_end)
