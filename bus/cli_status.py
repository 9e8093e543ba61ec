"""`crawlbus status`: how each job stands, once or until interrupted."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, nullcontext, suppress

import click
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bus.cli import Call, common
from bus.errors import ConnectionLost
from bus.jobs import NO_JOB, STATE_COLOURS, JobRow, job_row
from bus.registry import connect_state, connect_transport
from bus.settings import Settings, state_url
from bus.state import State
from bus.transport import Transport
from bus.url import bus_options, missing_file

__all__ = ["status"]

log = logging.getLogger(__name__)

LOOK_S = 1.0


@click.command()
@click.option("--watch", is_flag=True, help="Look again each second, until Ctrl-C.")
@common
def status(call: Call, watch: bool) -> None:
    """Show how the jobs stand.

    Open: known pages that are not finished, exact. Queued, delayed: what the bus holds. In flight: begun by a worker.

    \b
    Examples:
      crawlbus status
      crawlbus status --job shop --watch
      crawlbus status --json
    """
    settings = call.settings()
    asyncio.run(_watch(call, settings) if watch else _once(call, settings))


async def _once(call: Call, settings: Settings) -> None:
    if missing_file(state_url(settings)) or missing_file(settings.bus):  # to look makes no file
        return _show(call, [])
    async with _connected(settings) as (transport, state):
        _show(call, await _rows(settings, transport, state))


async def _watch(call: Call, settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with _connected(settings) as (transport, state):
        with nullcontext() if call.as_json else Live(console=call.console, auto_refresh=False) as live:
            while not stop.is_set():
                rows = await _rows(settings, transport, state)
                if live is None:
                    _show(call, rows)
                else:
                    live.update(_table(rows), refresh=True)
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), LOOK_S)


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncIterator[tuple[Transport | None, State]]:
    """A bus that is away leaves the state to tell; a state that is away leaves nothing."""
    async with AsyncExitStack() as stack:
        state = await stack.enter_async_context(aclosing(await connect_state(state_url(settings))))
        transport = None
        try:
            transport = await stack.enter_async_context(aclosing(await connect_transport(settings.bus)))
        except ConnectionLost as error:
            log.warning("%s", error)
        yield transport, state


async def _rows(settings: Settings, transport: Transport | None, state: State) -> list[JobRow]:
    jobs = await state.jobs()
    if settings.job is not None:
        jobs = [job for job in jobs if job.job.name == settings.job]
    prefix = bus_options(settings.bus).prefix
    jobs = sorted(jobs, key=lambda job: job.job.name)
    try:
        return [await job_row(job, transport, prefix) for job in jobs]
    except ConnectionLost as error:
        log.warning("%s", error)
        return [await job_row(job, None, prefix) for job in jobs]


def _show(call: Call, rows: list[JobRow]) -> None:
    call.answer({"jobs": [row.as_json() for row in rows]}, _table(rows))


def _table(rows: list[JobRow]) -> Table | Text:
    if not rows:
        return Text(NO_JOB)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("job", "spider", "state"):
        table.add_column(column)
    for column in ("open", "queued", "in flight", "delayed", "dead", "items", "stored", "workers"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (row.open, row.queued, row.in_flight, row.delayed, row.dead, row.items_published)
        ended = row.state.value + (f", {row.unaccounted:,} unaccounted" if row.unaccounted else "")
        table.add_row(
            row.job,
            Text(row.spider),
            Text(ended, style="red" if row.unaccounted else STATE_COLOURS[row.state]),
            *("?" if number is None else f"{number:,}" for number in numbers),
            ", ".join(f"{count:,} ({name})" for name, count in sorted(row.items_stored.items())) or "-",
            f"{row.workers}, {row.waiting} without the bus" if row.waiting else str(row.workers),
        )
    return table
