"""`crawlbus replay`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from bus.cli import Call, Finite, common, setting
from bus.errors import BusError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bus.message import Position
    from consumers.replay.look import Look
    from consumers.replay.options import ReplayOptions, ReplayResult
    from consumers.sink import Changes

__all__ = ["replay"]


@click.command(short_help="Store a part of the item log once more.")
@click.option("--from", "start", required=True, metavar="PLACE", help="From here on.")
@click.option("--to", "end", default="latest", metavar="PLACE", show_default=True, help="Up to here, and without it.")
@setting("sink", "URL")
@click.option("--spider", metavar="NAME", help="Only items of this spider.")
@click.option("--url", metavar="PATTERN", help="Only items whose URL is like this: * is any text, ? one character.")
@click.option("--through", metavar="MODULE:FUNCTION", help="Store what this function of yours makes of each item.")
@click.option("--rate", type=Finite(0, min_open=True), metavar="N", help="At most N items a second.")
@click.option("--dry-run", is_flag=True, help="Only say what would be stored and changed.")
@click.option("--restart", is_flag=True, help="Begin anew what an earlier run of the same replay has begun or done.")
@common
def replay(
    call: Call,
    start: str,
    end: str,
    spider: str | None,
    url: str | None,
    through: str | None,
    rate: float | None,
    dry_run: bool,
    restart: bool,
) -> int:
    """Read a part of the item log, and store it in a sink. No consumer's progress is touched, nor the log.

    PLACE is earliest, latest (the end of the log now), a time of scraping (2026-11-21T12:30, UTC without a zone), a
    position (PARTITION/OFFSET[.INDEX], several joined by commas), or job:NAME: the first item of a job, or as --to what
    comes after its last. What stands at --from is stored, what stands at --to is not.

    Killed or interrupted, the same command goes on where it was; when all is stored, it says so. Needs no state.

    \b
    Examples:
      crawlbus replay --from earliest --sink 'sqlite:///items.db?table=again'
      crawlbus replay --from 2026-11-20 --to 2026-11-21 --job shop --sink jsonl:///day.jsonl --dry-run
      crawlbus replay --from 0/17.3 --sink sqlite:///items.db --url '*/lamps/*' --through clean:price
    """
    from bus.topic import item_log
    from bus.url import bus_options
    from consumers.replay.bounds import parse_place
    from consumers.replay.options import ReplayOptions
    from consumers.replay.run import look_process, replay_process

    settings = call.settings()
    options = ReplayOptions(
        topic=item_log(bus_options(settings.bus).prefix).name,
        start=parse_place("--from", start),
        end=parse_place("--to", end),
        job=settings.job,
        spider=spider,
        url=url,
        through=through,
        rate=rate,
        restart=restart,
    )
    if dry_run:
        found = asyncio.run(look_process(settings, options, as_json=call.as_json))
        call.answer(_look_data(found), *_look_shown(found, bus_options(settings.bus).retention_s))
        return 0
    result = asyncio.run(replay_process(settings, options, as_json=call.as_json))
    _tell(call, settings.sink or "", options, result)
    return 0


def _tell(call: Call, sink: str, options: ReplayOptions, result: ReplayResult) -> None:
    from bus.url import hide_secrets

    data = {
        "name": options.name, "stored": result.stored, "quarantined": result.quarantined, "failed": result.failed,
        "resumed": result.resumed, "ended": "complete" if result.complete else "stopped",
    }  # fmt: skip
    call.answer(data, _sentence(hide_secrets(sink), result))
    if result.failed:
        raise BusError(
            f"--through {options.through} has failed for {result.failed:,} items, which are in the sink's quarantine as"
            " they were: mend it, and replay once more with --restart"
        )


def _sentence(sink: str, result: ReplayResult) -> str:
    if result.idle and result.complete:
        if result.resumed:
            return f"This replay is complete, nothing was left to store in {sink}; --restart does it anew."
        return "0 items stored: the log holds nothing between --from and --to."
    aside = f", {result.quarantined:,} entries in quarantine" if result.quarantined else ""
    rest = "" if result.complete else "; not complete: the same command goes on from here"
    return f"{result.stored:,} items stored in {sink}{aside}{rest}"


# --dry-run


def _look_data(found: Look) -> dict[str, Any]:
    from consumers.rows import utc_text

    return {
        "complete": found.complete,
        "messages": found.messages, "items": found.items, "bytes": found.size_bytes, "refused": found.refused,
        "jobs": [{"job": job, "spider": spider, "items": n} for (job, spider), n in found.jobs.most_common()],
        "oldest": None if found.oldest_s is None else utc_text(found.oldest_s),
        "newest": None if found.newest_s is None else utc_text(found.newest_s),
        "from": _text(found.part.start), "to": _text(found.part.end), "margin": found.margin,
        "changes": None if found.changes is None else found.changes._asdict(),
    }  # fmt: skip


def _look_shown(found: Look, retention_s: float) -> list[RenderableType]:
    from consumers.aside.showing import card, when

    if not found.complete:
        return [f"Interrupted: {found.items:,} items were looked at."]
    lines: dict[str, object] = {
        "from": _text(found.part.start),
        "to": _text(found.part.end),
        "would be stored": f"{found.items:,} items of {found.messages:,} messages, {found.size_bytes:,} bytes",
    }
    if found.refused:
        lines["quarantine"] = f"{found.refused:,} entries cannot be read, or --through or the sink refuses them"
    for (job, spider), count in found.jobs.most_common(20):
        lines[f"job {job}"] = f"{count:,} items of spider {spider}"
    if found.oldest_s is not None and found.newest_s is not None:
        lines["scraped"] = f"{when(found.oldest_s)} to {when(found.newest_s)}"
        left_s = found.oldest_s + retention_s - time.time()
        lines["kept"] = _margin(found.margin, left_s)
    if found.items:
        lines["rows"] = _compared(found.changes)
    return [card(lines), "Nothing was stored: this was a dry run."]


def _compared(changes: Changes | None) -> str:
    if changes is None:
        return "cannot be compared in this sink"
    new, changed, same = changes
    return f"{new:,} items are new, {changed:,} differ from their row, {same:,} are as their row is"


def _margin(messages: int, left_s: float) -> str:
    ahead = f"{messages:,} messages would be dropped before the first of these"
    return f"{ahead}, that one not before {left_s / 3600:,.1f} h from now" if left_s > 0 else f"{ahead}, at any time"


def _text(positions: Mapping[int, Position]) -> str:
    return ",".join(map(str, positions.values()))
