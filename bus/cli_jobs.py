"""`crawlbus pause`, `resume`, `stop` and `job`: control of a whole fleet through the shared state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from bus.cli import Call, common
from bus.errors import Misconfigured
from bus.jobs import NO_JOB, STATE_COLOURS, the_job
from bus.registry import connect_state
from bus.settings import Settings, state_url
from bus.state import JobState, JobStatus, State
from bus.url import missing_file

__all__ = ["job", "pause", "resume", "stop"]


@click.command()
@common
def pause(call: Call) -> None:
    """Pause a job.

    Its workers finish what they have begun, and wait for crawlbus resume.

    \b
    Example:
      crawlbus pause --job shop
    """
    _set(call, JobState.PAUSED)


@click.command()
@common
def resume(call: Call) -> None:
    """Let a paused or stopped job go on.

    The workers of a paused job wait for this. A stopped one needs workers again: crawlbus crawl.

    \b
    Example:
      crawlbus resume --job shop
    """
    _set(call, JobState.RUNNING)


@click.command()
@common
def stop(call: Call) -> None:
    """Stop a job.

    Its workers finish what they have begun, and leave. Nothing is lost: crawlbus crawl takes it up again.

    \b
    Example:
      crawlbus stop --job shop
    """
    _set(call, JobState.STOPPED)


def _set(call: Call, wanted: JobState) -> None:
    async def run() -> None:
        async with _state(settings := call.settings()) as state:
            name = (await the_job(state, settings.job)).job.name
            status = await state.set_state(name, wanted)
            changed = status.state is wanted
            hint = "" if changed else "; crawl it anew with crawlbus crawl --restart"
            call.answer(
                _as_json(status), Text(f"{name} {'is' if changed else 'has'} {status.state.value}{hint}")
            )

    asyncio.run(run())


@click.group()
def job() -> None:
    """List, show or forget jobs.

    \b
    Examples:
      crawlbus job list
      crawlbus job show --job shop
    """


@job.command(name="list")
@common
def list_jobs(call: Call) -> None:
    """List the jobs of this bus.

    \b
    Example:
      crawlbus job list
    """
    jobs = asyncio.run(_jobs(call.settings()))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("job", "spider", "state", "run", "created"):
        table.add_column(column)
    for status in jobs:
        state = Text(status.state.value, style=STATE_COLOURS[status.state])
        table.add_row(
            status.job.name, Text(status.spider), state, str(status.job.run), _time(status.created_at)
        )
    call.answer({"jobs": [_as_json(status) for status in jobs]}, table if jobs else Text(NO_JOB))


@job.command()
@click.argument("name", required=False)
@common
def show(call: Call, name: str | None) -> None:
    """Show all that is known of one job.

    \b
    Example:
      crawlbus job show --job shop
    """
    status = asyncio.run(_show(call.settings(job=name)))
    table = Table(box=None, pad_edge=False, show_header=False)
    for key, value in _as_json(status).items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for part, number in parts:
            table.add_row(f"{key} {part}".strip(), Text("-" if number in (None, []) else str(number)))
    call.answer(_as_json(status), table)


@job.command()
@click.argument("name", required=False)
@common
def forget(call: Call, name: str | None) -> None:
    """Forget a job, but not its items.

    What it has seen and what it had to do is gone; a crawl of that name begins anew.

    \b
    Example:
      crawlbus job forget --job shop
    """
    settings = call.settings(job=name)

    async def run() -> str:
        async with _state(settings) as state:
            status = await the_job(state, settings.job)
            await state.forget(status.job.name)
            return status.job.name

    forgotten = asyncio.run(run())
    call.answer(
        {"job": forgotten, "forgotten": True},
        Text(f"{forgotten} is forgotten; its items stay in the item log"),
    )


async def _jobs(settings: Settings) -> list[JobStatus]:
    if missing_file(state_url(settings)):
        return []
    async with _state(settings) as state:
        return sorted(await state.jobs(), key=lambda status: status.job.name)


async def _show(settings: Settings) -> JobStatus:
    async with _state(settings) as state:
        return await the_job(state, settings.job)


@asynccontextmanager
async def _state(settings: Settings) -> AsyncIterator[State]:
    """The shared state, if there is one: a look at a file makes none."""
    url = state_url(settings)
    if missing_file(url):
        raise Misconfigured(
            f"there is no file for {url}: set --bus to where the job is, or start one with crawlbus crawl"
        )
    async with aclosing(await connect_state(url)) as state:
        yield state


def _as_json(status: JobStatus) -> dict[str, Any]:
    return {
        "job": status.job.name,
        "run": status.job.run,
        "spider": status.spider,
        "state": status.state.value,
        "open": status.open,
        "seen": status.seen,
        "start_ended": status.start_ended,
        "seeds_loading": status.loading,
        "suspect": status.suspect,
        "unaccounted": status.unaccounted,
        "created_at": _time(status.created_at),
        "finished_at": None if status.finished_at is None else _time(status.finished_at),
        "counters": dict(sorted(status.counters.items())),
        "workers": [worker.worker for worker in status.workers],
    }


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
