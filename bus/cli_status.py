"""`crawlbus status`: how each job stands, once or until interrupted."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import aclosing, nullcontext, suppress

import click
from rich.console import Group
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
    async with aclosing(_Sight(settings)) as sight:
        rows = await sight.rows()
    if sight.bus_away:
        log.warning("%s", sight.bus_away)
    _show(call, rows)


async def _watch(call: Call, settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with aclosing(_Sight(settings)) as sight:
        with nullcontext() if call.as_json else Live(console=call.console, auto_refresh=False) as live:
            shows = _Lines(call) if live is None else _Screen(live)
            while not stop.is_set():
                try:
                    shows.show(await sight.rows(), sight.bus_away)
                except ConnectionLost as error:
                    shows.show(None, str(error))
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), LOOK_S)


class _Screen:
    """The last rows, and under them what is away, for as long as it is."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._table: Table | Text = Text()

    def show(self, rows: list[JobRow] | None, away: str) -> None:
        self._table = self._table if rows is None else _table(rows)
        self._live.update(Group(self._table, *([Text(away, "yellow")] if away else [])), refresh=True)


class _Lines:
    """A line of rows at each look; what is away is logged when that changes."""

    def __init__(self, call: Call) -> None:
        self._call, self._told = call, (False, False)

    def show(self, rows: list[JobRow] | None, away: str) -> None:
        if rows is not None:
            _show(self._call, rows)
        if (now := (bool(away), rows is None)) != self._told:
            log.warning("%s", away or "all that was away is back")
        self._told = now


class _Sight:
    """How the jobs stand, again and again; what is not connected is tried once more at each look.

    A bus that is away leaves the state to tell, and `bus_away` says why; a state that is away leaves nothing.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._state: State | None = None
        self._transport: Transport | None = None
        self.bus_away = ""

    async def rows(self) -> list[JobRow]:
        """Raises `ConnectionLost` where the state is away."""
        settings = self._settings
        if missing_file(state_url(settings)) or missing_file(settings.bus):  # to look makes no file
            return []
        self._state = self._state or await connect_state(state_url(settings))
        jobs = [job for job in await self._state.jobs() if settings.job in (None, job.job.name)]
        jobs.sort(key=lambda job: job.job.name)
        prefix = bus_options(settings.bus).prefix
        try:
            self._transport = self._transport or await connect_transport(settings.bus)
            rows, self.bus_away = [await job_row(job, self._transport, prefix) for job in jobs], ""
        except ConnectionLost as error:
            rows, self.bus_away = [await job_row(job, None, prefix) for job in jobs], str(error)
        return rows

    async def aclose(self) -> None:
        for one in (self._transport, self._state):
            if one is not None:
                await one.aclose()


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
