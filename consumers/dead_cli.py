"""`crawlbus dead list|show|retry|drop`."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bus.cli import Call, common
from bus.errors import CodecError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bus.dead import DeadLetter
    from consumers.dead import DeadLetters, History, Retried

__all__ = ["dead"]

F = TypeVar("F", bound=Callable[..., Any])

CHUNK = 64
SECRET = {"authorization", "cookie", "cookies", "proxy-authorization"}


def _choice(limit: int | None) -> Callable[[F], F]:
    def add(command: F) -> F:
        command = click.option("--limit", type=click.IntRange(1), default=limit, metavar="N", show_default=True,
                               help="At most so many, oldest first.")(command)  # fmt: skip
        return click.option("--reason", metavar="REASON", help="Only those that died of this.")(command)

    return add


@click.group(short_help="What was given up, why, and what to do about it.")
def dead() -> None:
    """Requests and items that will not be tried again by themselves, until somebody decides on them.

    \b
    Examples:
      crawlbus dead list
      crawlbus dead show 4f2a
      crawlbus dead retry --reason download
      crawlbus dead drop 4f2a 91c0
    """


@dead.command("list", short_help="Those that nobody has decided on, by reason.")
@_choice(50)
@common
def list_(call: Call, reason: str | None, limit: int) -> None:
    """Counts by reason, then the letters. Needs no state.

    \b
    Examples:
      crawlbus dead list --job shop
      crawlbus dead list --reason callback --limit 500 --json
    """

    async def read(letters: DeadLetters) -> tuple[Counter[str], list[DeadLetter]]:
        counts: Counter[str] = Counter()
        shown: list[DeadLetter] = []
        async for letter in letters.undecided(call.settings().job, reason):
            counts[letter.reason] += 1
            if len(shown) < limit:
                shown.append(letter._replace(message=letter.message._replace(body=b"")))
        return counts, shown

    if nothing := _nothing_there(call):
        return call.answer({"total": 0, "reasons": {}, "letters": []}, nothing)
    counts, shown = _with_letters(call, read)
    data = {"total": counts.total(), "reasons": dict(counts), "letters": [_summary(letter) for letter in shown]}
    call.answer(_plain(data), *_list_tables(counts, shown))


@dead.command(short_help="One letter with its whole history.")
@click.argument("id")
@common
def show(call: Call, id: str) -> None:
    """The letter whose id begins with ID: what it was, why it died, and what was decided. Needs no state.

    \b
    Example:
      crawlbus dead show 4f2a
    """
    if nothing := _nothing_there(call):
        return call.answer([], nothing)
    history = _with_letters(call, lambda letters: letters.history(id))
    entries = [_details(letter, history) for letter in history.letters]
    call.answer(_plain(entries), *_history(entries))


@dead.command(short_help="Try requests again, from their first attempt.")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@_choice(None)
@common
def retry(call: Call, ids: Sequence[str], everything: bool, reason: str | None, limit: int | None) -> int:
    """Publish requests again. A job that was finished is running again: `crawlbus crawl` it.

    \b
    Examples:
      crawlbus dead retry 4f2a 91c0
      crawlbus dead retry --job shop --reason download --limit 100
      crawlbus dead retry --all
    """
    from bus.registry import connect_state
    from bus.settings import state_url
    from consumers.dead import Retried

    done = Retried()

    async def again(letters: DeadLetters) -> None:
        state = await connect_state(state_url(call.settings()))
        try:
            async for chunk in _chosen(call, letters, ids, everything, reason, limit):
                part = await letters.retry(state, chunk, time.time())
                done.jobs.update(Counter(done.jobs) + Counter(part.jobs))
                done.refused += part.refused
        finally:
            await state.aclose()

    _with_letters(call, again)
    data = {"retried": done.jobs, "refused": [refused._asdict() for refused in done.refused]}
    call.answer(data, *_retried(done))
    return 1 if done.refused else 0


@dead.command(short_help="Record that letters are done with.")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@_choice(None)
@common
def drop(call: Call, ids: Sequence[str], everything: bool, reason: str | None, limit: int | None) -> None:
    """They leave the list; `show` still has them while the log is kept. Needs no state.

    \b
    Examples:
      crawlbus dead drop 4f2a
      crawlbus dead drop --job shop --reason status
    """
    dropped = 0

    async def forget(letters: DeadLetters) -> None:
        nonlocal dropped
        async for chunk in _chosen(call, letters, ids, everything, reason, limit):
            await letters.drop(chunk, time.time())
            dropped += len(chunk)

    _with_letters(call, forget)
    call.answer({"dropped": dropped}, f"{dropped:,} dropped")


# choosing


def _nothing_there(call: Call) -> str:
    """What to say where the bus is a file that is not there: to look makes no file."""
    from bus.url import file_path, missing_file

    bus = call.settings().bus
    return f"No dead letters: there is no bus file {file_path(bus)}." if missing_file(bus) else ""


def _with_letters(call: Call, work: Callable[[DeadLetters], Any]) -> Any:
    from bus.url import bus_options
    from consumers.dead import DeadLetters
    from consumers.run import connected

    url = call.settings().bus

    async def run() -> Any:
        async with connected(url) as transport:
            return await work(DeadLetters(transport, bus_options(url).prefix))

    return asyncio.run(run())


async def _chosen(
    call: Call,
    letters: DeadLetters,
    ids: Sequence[str],
    everything: bool,
    reason: str | None,
    limit: int | None,
) -> AsyncIterator[list[DeadLetter]]:
    """The letters that the command is about, in chunks."""
    if not (ids or everything or reason or call.flags.get("job")):
        raise click.UsageError("Name letters by ID, or choose them by --job, --reason or --all.")
    named = {(await letters.find(id)).id for id in ids}
    chunk: list[DeadLetter] = []
    count = 0
    async for letter in letters.undecided(call.settings().job, reason):
        if ids and letter.id not in named:
            continue
        chunk.append(letter)
        count += 1
        if len(chunk) == CHUNK or count == limit:
            yield chunk
            chunk = []
        if count == limit:
            return
    if chunk:
        yield chunk


# showing


def _summary(letter: DeadLetter) -> dict[str, Any]:
    names = ("id", "job", "spider", "reason", "detail", "url", "at", "attempt")
    return {name: getattr(letter, name) for name in names}


def _details(letter: DeadLetter, history: History) -> dict[str, Any]:
    from bus.codec import unpack
    from consumers.dead import why_not

    decided = history.decisions.get(letter.id)
    details = {
        **_summary(letter),
        "source": letter.source,
        "headers": dict(letter.message.headers),
        "decision": {"verb": decided.verb, "at": decided.at} if decided else None,
        "retry": why_not(letter) or "possible",
    }
    try:
        details["message"] = _without_secrets(unpack(letter.message.body))
    except CodecError:
        details["body"] = letter.message.body
    return details


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: "***" if _key(key) in SECRET and child else _without_secrets(child) for key, child in value.items()
        }
    return value


def _key(key: Any) -> str:
    return (key.decode(errors="replace") if isinstance(key, bytes) else str(key)).lower()


def _plain(value: Any) -> Any:
    from consumers.rows import to_json

    return json.loads(to_json(value))


def _text(value: object, length: int = 300) -> str:
    """What a page or a server has said must not steer the terminal."""
    text = str(value)[:length]
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)) + " UTC"


def _list_tables(counts: Counter[str], shown: Sequence[DeadLetter]) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    if not counts:
        return ["No dead letters."]
    by_reason = Table("reason", "letters", box=None, pad_edge=False)
    for reason, count in counts.most_common():
        by_reason.add_row(Text(_text(reason)), f"{count:,}")
    rows = Table("id", "job", "reason", "attempt", "url", "detail", box=None, pad_edge=False)
    for letter in shown:
        cells = (letter.id[:12], letter.job, letter.reason, letter.attempt, letter.url or "-", letter.detail)
        rows.add_row(*(Text(_text(cell)) for cell in cells))
    rest = counts.total() - len(shown)
    more = [f"\n… and {rest:,} more: see --limit"] if rest else []
    return [by_reason, "", rows, *more]


def _history(entries: Sequence[dict[str, Any]]) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    tables: list[RenderableType] = []
    for entry in entries:
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, value in entry.items():
            shown = _when(value) if name == "at" else _decided(value) if name == "decision" else value
            table.add_row(name, Text(_text(shown, 2000)))
        tables += [table, ""]
    return tables


def _decided(decision: dict[str, Any] | None) -> str:
    return f"{decision['verb']}, {_when(decision['at'])}" if decision else "none yet"


def _retried(done: Retried) -> list[RenderableType]:
    from rich.text import Text

    lines: list[RenderableType] = [
        Text(f"{count:,} published again; fetch them by `crawlbus crawl … --job {job}`")
        for job, count in done.jobs.items()
    ]
    lines += [Text(f"{refused.letter[:12]} not retried: {_text(refused.why)}") for refused in done.refused]
    return lines or ["Nothing to retry."]
