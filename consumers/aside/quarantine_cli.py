"""`crawlbus quarantine list|show|retry|drop`."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bus.cli import Call, common, setting
from bus.errors import CodecError, Misconfigured
from bus.url import hide_secrets
from consumers.aside.choice import Choice, Facts, choose, parse_time
from consumers.aside.showing import card, listing, plain, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from consumers.sink import Quarantined, Sink

__all__ = ["quarantine"]

T = TypeVar("T")

_VALUE = re.compile(r': ".*"( \(column .*\))?$', re.DOTALL)  # at the end of what PostgreSQL says

SHOWN_FAILED = 50
SHOWN_BYTES = 512  # of what cannot be decoded


@click.group(short_help="What a sink could not store, why, and storing it after all.")
def quarantine() -> None:
    """Items that a sink did not take, and messages that could not be read: they stand whole in the sink itself, until
    somebody decides on them. Needs neither bus nor state.

    \b
    Examples:
      crawlbus quarantine list --sink sqlite:///items.db
      crawlbus quarantine show 4f2a --sink sqlite:///items.db
      crawlbus quarantine retry --all --sink sqlite:///items.db
      crawlbus quarantine drop 4f2a 91c0 --sink sqlite:///items.db
    """


@quarantine.command("list", short_help="What stands there, by reason.")
@setting("sink", "URL")
@common
@choose("name", "spider", limit=50)
def list_(call: Call, choice: Choice) -> None:
    """Counts by reason, then the entries.

    \b
    Examples:
      crawlbus quarantine list --sink sqlite:///items.db --job shop --since 2026-11-21
      crawlbus quarantine list --sink sqlite:///items.db --reason constraint --limit 500 --json
    """
    entries = [entry for entry in _standing(call) if choice.meets(_facts(entry))]
    reasons = _reasons(entries)
    rows = [_summary(entry) for entry in entries[: choice.limit]]
    shown = _shown(reasons, rows) if rows else [f"Nothing is in the quarantine of {hide_secrets(_sink_url(call))}"]
    call.answer({"total": len(entries), "reasons": plain(reasons), "entries": rows}, *shown)


@quarantine.command(short_help="One entry with all of its content.")
@click.argument("id")
@setting("sink", "URL")
@common
def show(call: Call, id: str) -> None:
    """The entry whose id begins with ID: headers and content, and why it could not be stored.

    \b
    Example:
      crawlbus quarantine show 4f2a --sink sqlite:///items.db
    """
    entries = _standing(call)
    picked = Choice(ids=(id,)).pick([entry.id for entry in entries], "entries")
    (entry,) = (entry for entry in entries if entry.id in picked)
    details = _details(entry)
    content = details.get("content")
    text = "\n".join(printable(line, None) for line in json.dumps(content, indent=2, ensure_ascii=False).split("\n"))
    told = {name: value for name, value in details.items() if name != "content"}
    call.answer(details, card(told), *(["", text] if "content" in details else []))


@quarantine.command(short_help="Store entries after all.")
@setting("sink", "URL")
@common
@choose("name", "spider", ids=True)
@click.option("--through", metavar="MODULE:FUNCTION", help="Store what this function makes of each item.")
def retry(call: Call, choice: Choice, through: str | None) -> int:
    """Write entries once more to the same sink: after a constraint was dropped, or an upgrade reads what it could not.

    Each leaves the quarantine in the transaction that stores it. What fails again stays, with its new reason, and the
    exit code is 1. A function mends items on their way, as in `crawlbus replay --through`; one for which it returns
    None stays where it is.

    \b
    Examples:
      crawlbus quarantine retry 4f2a 91c0 --sink sqlite:///items.db
      crawlbus quarantine retry --reason constraint --limit 1000 --sink sqlite:///items.db
      crawlbus quarantine retry --all --through mend:prices --sink sqlite:///items.db
    """
    from consumers.aside.quarantine import retry as store
    from consumers.through import Through

    url = _sink_url(call)
    function = Through.load(through) if through else None
    chosen = _chosen(_standing(call), choice)
    done = asyncio.run(store(url, chosen, function))
    failed = [_summary(entry) for entry in done.failed]
    lines: list[RenderableType] = ["Nothing to retry."]
    if chosen:
        lines = [f"{done.stored:,} items stored in {hide_secrets(url)}"]
    if failed:
        lines += [f"{len(failed):,} failed again:", "", *_shown(_reasons(done.failed), failed[:SHOWN_FAILED])]
    call.answer({"stored": done.stored, "failed": failed}, *lines)
    return 1 if failed else 0


@quarantine.command(short_help="Take entries out for good.")
@setting("sink", "URL")
@common
@choose("name", "spider", ids=True, yes=True)
def drop(call: Call, choice: Choice) -> None:
    """They are deleted, and can be had again only by a replay, while the item log holds them.

    \b
    Examples:
      crawlbus quarantine drop 4f2a --sink sqlite:///items.db
      crawlbus quarantine drop --job shop --until 2026-11-21 --yes --sink sqlite:///items.db
    """

    async def forget(sink: Sink) -> int:
        chosen = _chosen(await sink.quarantined(), choice)
        choice.confirm(len(chosen))
        return await sink.drop([entry.id for entry in chosen]) if chosen else 0

    dropped = _with_sink(call, forget)
    call.answer({"dropped": dropped}, f"{dropped:,} dropped")


# choosing


def _sink_url(call: Call) -> str:
    if (url := call.settings().sink) is None:
        raise Misconfigured("no sink is set: name the one whose quarantine it is, by --sink or CRAWLBUS_SINK")
    return url


def _with_sink(call: Call, work: Callable[[Sink], Awaitable[T]]) -> T:
    from consumers.sink import sink_of

    async def run() -> T:
        async with aclosing(sink_of(_sink_url(call))) as sink:
            return await work(sink)

    return asyncio.run(run())


def _standing(call: Call) -> Sequence[Quarantined]:
    return _with_sink(call, lambda sink: sink.quarantined())


def _chosen(entries: Sequence[Quarantined], choice: Choice) -> list[Quarantined]:
    picked = choice.pick([entry.id for entry in entries], "entries")
    found = [entry for entry in entries if choice.meets(_facts(entry)) and (not choice.ids or entry.id in picked)]
    return found[: choice.limit]


def _facts(entry: Quarantined) -> Facts:
    headers = entry.reject.headers
    job, spider = (str(headers.get(name, "")) for name in ("job", "spider"))
    return Facts(job, spider, entry.reject.reason, parse_time(entry.at), consumer=entry.consumer)


# showing


def _summary(entry: Quarantined) -> Any:
    from consumers.aside.quarantine import is_item

    facts, reject = _facts(entry), entry.reject
    return plain({
        "id": entry.id, "at": entry.at, "consumer": entry.consumer, "job": facts.job, "spider": facts.spider,
        "reason": reject.reason, "topic": entry.topic, "position": str(reject.position),
        "item": reject.id if is_item(reject) else None, "message": None if is_item(reject) else reject.id,
    })  # fmt: skip


def _reasons(entries: Iterable[Quarantined]) -> Counter[str]:
    """How often each, whatever the value was."""
    return Counter(_VALUE.sub(r": …\1", entry.reject.reason) for entry in entries)


def _shown(reasons: Counter[str], rows: Sequence[dict[str, Any]]) -> list[RenderableType]:
    columns = ("id", "at", "consumer", "job", "position", "reason")
    return listing("entries", reasons, columns, [[row[name] for name in columns] for row in rows])


def _details(entry: Quarantined) -> dict[str, Any]:
    from bus.codec import unpack
    from consumers.aside.quarantine import items_of

    reject = entry.reject
    details: dict[str, Any] = {**_summary(entry), "headers": plain(dict(reject.headers)), "bytes": len(reject.content)}
    try:
        details["items"] = len(items_of(reject))
    except CodecError as error:
        details["items"] = f"none: {error}"
    try:
        details["content"] = plain(unpack(reject.content))
    except CodecError:
        details["hex"] = reject.content[:SHOWN_BYTES].hex(" ")
    return details
