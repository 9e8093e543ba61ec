"""Which entries `dead` and `quarantine` are about: one set of options for both."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click

from bus.cli import Call
from bus.errors import BusError, Misconfigured

__all__ = ["Choice", "Facts", "choose", "parse_time"]


class Facts(NamedTuple):
    """What an entry can be chosen by. `at_s` is s since the epoch."""

    job: str
    spider: str
    reason: str
    at_s: float
    url: str | None = None
    consumer: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a command was given: ids, or their beginnings, and filters that an entry must all meet."""

    ids: tuple[str, ...] = ()
    everything: bool = False
    yes: bool = False
    job: str | None = None
    spider: str | None = None
    host: str | None = None
    name: str | None = None
    reason: str | None = None
    since: float | None = None
    until: float | None = None
    limit: int | None = None

    @property
    def filters(self) -> list[str]:
        """The options that choose, as given."""
        names = ("job", "spider", "host", "name", "reason", "since", "until")
        return [f"--{name}" for name in names if getattr(self, name) is not None]

    def meets(self, facts: Facts) -> bool:
        """Does an entry of these facts meet all filters?"""
        return (
            self.job in (None, facts.job)
            and self.spider in (None, facts.spider)
            and (self.host is None or _is_host(facts.url, self.host))
            and self.name in (None, facts.consumer, facts.consumer.rpartition(":")[0])  # NAME:JOB is of NAME
            and (self.reason is None or self.reason.casefold() in facts.reason.casefold())
            and (self.since is None or self.since <= facts.at_s)
            and (self.until is None or facts.at_s < self.until)
        )

    def pick(self, ids: Sequence[str], what: str) -> set[str]:
        """The ids that begin as those given. Raises `BusError` where none does, or more than one."""
        picked = set()
        for start in self.ids:
            found = {id for id in ids if id.startswith(start)}
            if len(found) != 1:
                raise BusError(f"{len(found) or 'no'} {what} begin with {start!r}: see the ids in `list`")
            picked |= found
        return picked

    def confirm(self, count: int) -> None:
        """Raise `Misconfigured` where many are to be dropped that were not named one by one, and no --yes was said."""
        if count and not self.ids and not self.yes:
            raise Misconfigured(f"{count:,} would be dropped for good: repeat it with --yes")


def parse_time(text: str) -> float:
    """ISO 8601 as s since the epoch; without a zone it is UTC. Raises `ValueError`."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _time(text: str) -> float:
    try:
        return parse_time(text)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is no time: write 2026-11-21, or 2026-11-21T12:30:00Z; without a zone it is UTC"
        ) from None


_FILTERS = {
    "name": click.option("--name", metavar="NAME", help="Only those of this consumer."),
    "spider": click.option("--spider", metavar="NAME", help="Only those of this spider."),
    "host": click.option("--host", metavar="HOST", help="Only those whose URL has this host, or HOST:PORT."),
    "reason": click.option("--reason", metavar="TEXT", help="Only those with TEXT in their reason."),
    "since": click.option("--since", type=_time, metavar="TIME", help="Only those since then (ISO 8601, UTC)."),
    "until": click.option("--until", type=_time, metavar="TIME", help="Only those before then."),
}
_IDS = (
    click.argument("ids", metavar="[ID]...", nargs=-1),
    click.option("--all", "everything", is_flag=True, help="All of them."),
)
_YES = click.option("--yes", is_flag=True, help="Drop what is not named by ID without asking back.")


def choose(
    *filters: str, limit: int | None = None, ids: bool = False, yes: bool = False
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Options that choose, those of `filters` and --reason, --since, --until and --limit; with `ids` also by ID and
    --all, and then something must be chosen. Put it below `common`: the command is called with a `Choice` after its
    `Call`."""
    options = [
        *(_IDS if ids else ()),
        *(_FILTERS[name] for name in (*filters, "reason", "since", "until")),
        click.option("--limit", type=click.IntRange(1), default=limit, metavar="N", show_default=True,
                     help="At most so many, oldest first."),
        *([_YES] if yes else []),
    ]  # fmt: skip

    def add(command: Callable[..., int | None]) -> Callable[..., int | None]:
        @functools.wraps(command)
        def called(call: Call, **params: Any) -> int | None:
            given = {field.name: params.pop(field.name) for field in fields(Choice) if field.name in params}
            if ids and not (given["ids"] or given["everything"] or call.flags.get("job") or Choice(**given).filters):
                ways = ", ".join(f"--{name}" for name in ("job", *filters, "reason", "since", "until"))
                raise click.UsageError(f"Name them by ID, or choose them by {ways} or --all.")
            return command(call, Choice(**given, job=call.settings().job), **params)

        return functools.reduce(lambda inner, option: option(inner), reversed(options), called)

    return add


def _is_host(url: str | None, wanted: str) -> bool:
    try:
        parts = urlsplit(url or "")
        place = parts.netloc.rpartition("@")[2].casefold()
        return wanted.casefold() in (place, parts.hostname)
    except ValueError:
        return False
