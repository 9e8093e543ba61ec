"""The commands of this room: `consume`, `replay`, `dead` and `quarantine`."""

from __future__ import annotations

import asyncio

import click

from bus.cli import Call, Finite, common, setting
from bus.errors import BusError
from consumers.aside.dead_cli import dead
from consumers.aside.quarantine_cli import quarantine
from consumers.replay.cli import replay

__all__ = ["commands"]


class NothingToDo(BusError):
    """No job came in time."""

    exit_code = 4


@click.command(short_help="Store the items of the log in a database or a file.")
@setting("sink", "URL")
@click.option(
    "--name", default="default", metavar="NAME", show_default=True, help="The consumer, whose progress it is."
)
@setting("batch_size", "N")
@setting("batch_seconds", "S")
@setting("health", "[HOST:]PORT")
@click.option("--until-drained", is_flag=True, help="End when all jobs have ended and all is stored.")
@click.option("--wait", type=Finite(0), default=60.0, metavar="S", show_default=True,
              help="With --until-drained: how long to wait for the first job.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="End after N items.")
@click.option("--time-limit", type=Finite(0), metavar="S", help="End after S seconds.")
@click.option(
    "--accept-gap", is_flag=True, help="Go on where the log has dropped what is next; the sink keeps a record."
)
@common
def consume(
    call: Call,
    name: str,
    until_drained: bool,
    wait: float,
    limit: int | None,
    time_limit: float | None,
    accept_gap: bool,
) -> int:
    """Read the item log from where the sink left off, and store it in batches.

    Runs until SIGTERM or Ctrl-C, which finish the batch. Rows and progress are one transaction: kill it at any moment,
    start it again, and a table has nothing missing and nothing twice. With --job only the items of that job are
    stored, with progress of its own.

    \b
    Examples:
      crawlbus consume --sink sqlite:///items.db
      crawlbus consume --sink jsonl:///items.jsonl --job shop --until-drained
      crawlbus consume --sink sqlite:///items.db --limit 100 --json
    """
    from bus.process import is_child
    from bus.url import hide_secrets
    from consumers.options import ConsumeOptions, Ended
    from consumers.run import consume_process

    settings = call.settings()
    options = ConsumeOptions(
        name=name,
        job=settings.job,
        batch_items=settings.batch_size,
        batch_seconds=settings.batch_seconds,
        until_drained=until_drained,
        wait_s=wait,
        limit=limit,
        time_limit_s=time_limit,
        accept_gap=accept_gap,
    )
    result = asyncio.run(consume_process(settings, options, quiet=call.as_json))
    if not is_child():
        aside = f", {result.quarantined:,} entries in quarantine" if result.quarantined else ""
        call.answer(
            {"stored": result.stored, "quarantined": result.quarantined, "ended": result.ended.value},
            f"{result.stored:,} items stored in {hide_secrets(settings.sink or '')}{aside}",
        )
    if result.ended is Ended.NO_JOB:
        which = f"job {settings.job!r} has not been" if settings.job else "no job was"
        raise NothingToDo(f"{which} started within {wait:g} s: start it by `crawlbus crawl`, or set --wait")
    if result.ended is Ended.TIME and until_drained:
        raise BusError(f"not drained within {time_limit:g} s (--time-limit); what is stored stays")
    return 0


commands: list[click.Command] = [consume, replay, dead, quarantine]
