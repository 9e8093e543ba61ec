"""`crawlbus dead list|show|retry|drop`."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from bus.cli import Call, common
from bus.errors import CodecError
from consumers.aside.choice import Choice, Facts, choose
from consumers.aside.showing import card, listing, plain, printable, when

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bus.dead import DeadLetter
    from consumers.aside.dead import DeadLetters, History, Retried

__all__ = ["dead"]

CHUNK = 64  # letters, whole ones among them
SHOWN = 2000  # characters of one value: a letter holds up to 4 KiB of many
SECRET = {"authorization", "cookie", "cookies", "proxy-authorization"}


@click.group(short_help="What was given up, why, and what to do about it.")
def dead() -> None:
    """Requests and items that will not be tried again by themselves, until somebody decides on them.

    \b
    Examples:
      crawlbus dead list
      crawlbus dead show 4f2a
      crawlbus dead retry --reason download --host shop.example
      crawlbus dead drop 4f2a 91c0
    """


@dead.command("list", short_help="Those that nobody has decided on, by reason.")
@common
@choose("spider", "host", limit=50)
def list_(call: Call, choice: Choice) -> None:
    """Counts by reason, then the letters. Needs no state.

    \b
    Examples:
      crawlbus dead list --job shop --host shop.example --since 2026-11-21
      crawlbus dead list --reason callback --limit 500 --json
    """

    async def read(letters: DeadLetters) -> tuple[Counter[str], list[DeadLetter]]:
        counts: Counter[str] = Counter()
        shown: list[DeadLetter] = []
        async for letter in letters.undecided(lambda letter: choice.meets(_facts(letter))):
            counts[letter.reason] += 1
            if len(shown) < (choice.limit or 0):
                shown.append(_without_body(letter))
        return counts, shown

    if nothing := _nothing_there(call):
        return call.answer({"total": 0, "reasons": {}, "letters": []}, nothing)
    counts, shown = _with_letters(call, read)
    data = {"total": counts.total(), "reasons": dict(counts), "letters": [_summary(letter) for letter in shown]}
    columns = ("id", "job", "reason", "attempt", "url", "detail")
    rows = [(each.id[:12], each.job, each.reason, each.attempt, each.url or "-", each.detail) for each in shown]
    call.answer(plain(data), *(listing("letters", counts, columns, rows) if counts else ["No dead letters."]))


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
    call.answer(plain(entries), *_history(entries))


@dead.command(short_help="Try requests again, from their first attempt.")
@common
@choose("spider", "host", ids=True)
def retry(call: Call, choice: Choice) -> int:
    """Publish requests again. A job that was finished is running again: `crawlbus crawl` it.

    \b
    Examples:
      crawlbus dead retry 4f2a 91c0
      crawlbus dead retry --job shop --reason download --host shop.example --limit 100
      crawlbus dead retry --all
    """
    from bus.registry import connect_state
    from bus.settings import state_url
    from consumers.aside.dead import Retried

    done = Retried()

    async def again(letters: DeadLetters) -> None:
        state = await connect_state(state_url(call.settings()))
        try:
            async for chunk in _chosen(letters, choice):
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
@common
@choose("spider", "host", ids=True, yes=True)
def drop(call: Call, choice: Choice) -> None:
    """They leave the list; `show` still has them while the log is kept. Needs no state.

    \b
    Examples:
      crawlbus dead drop 4f2a
      crawlbus dead drop --job shop --reason status --until 2026-11-21 --yes
    """

    async def forget(letters: DeadLetters) -> int:
        chosen = [_without_body(letter) async for chunk in _chosen(letters, choice) for letter in chunk]
        choice.confirm(len(chosen))
        for start in range(0, len(chosen), CHUNK):
            await letters.drop(chosen[start : start + CHUNK], time.time())
        return len(chosen)

    dropped = _with_letters(call, forget)
    call.answer({"dropped": dropped}, f"{dropped:,} dropped")


# choosing


def _facts(letter: DeadLetter) -> Facts:
    return Facts(letter.job, letter.spider, letter.reason, letter.at, letter.url)


def _without_body(letter: DeadLetter) -> DeadLetter:
    """What may be held of many."""
    return letter._replace(message=letter.message._replace(body=b""))


def _nothing_there(call: Call) -> str:
    """What to say where the bus is a file that is not there: to look makes no file."""
    from bus.url import file_path, missing_file

    bus = call.settings().bus
    return f"No dead letters: there is no bus file {file_path(bus)}." if missing_file(bus) else ""


def _with_letters(call: Call, work: Callable[[DeadLetters], Any]) -> Any:
    from bus.url import bus_options
    from consumers.aside.dead import DeadLetters
    from consumers.run import connected

    url = call.settings().bus

    async def run() -> Any:
        async with connected(url) as transport:
            return await work(DeadLetters(transport, bus_options(url).prefix))

    return asyncio.run(run())


async def _chosen(letters: DeadLetters, choice: Choice) -> AsyncIterator[list[DeadLetter]]:
    """The letters that the command is about, in chunks."""
    named = {(await letters.find(id)).id for id in choice.ids}
    chunk: list[DeadLetter] = []
    count = 0
    async for letter in letters.undecided(lambda letter: choice.meets(_facts(letter))):
        if choice.ids and letter.id not in named:
            continue
        chunk.append(letter)
        count += 1
        if len(chunk) == CHUNK or count == choice.limit:
            yield chunk
            chunk = []
        if count == choice.limit:
            return
    if chunk:
        yield chunk


# showing


def _summary(letter: DeadLetter) -> dict[str, Any]:
    names = ("id", "job", "spider", "reason", "detail", "url", "at", "attempt")
    return {name: getattr(letter, name) for name in names}


def _details(letter: DeadLetter, history: History) -> dict[str, Any]:
    from bus.codec import unpack
    from consumers.aside.dead import why_not

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


def _history(entries: Sequence[dict[str, Any]]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for entry in entries:
        told = {**entry, "at": when(entry["at"]), "decision": _decided(entry["decision"])}
        parts += [card(told, SHOWN), ""]
    return parts


def _decided(decision: dict[str, Any] | None) -> str:
    return f"{decision['verb']}, {when(decision['at'])}" if decision else "none yet"


def _retried(done: Retried) -> list[RenderableType]:
    lines: list[RenderableType] = [
        f"{count:,} published again; fetch them by `crawlbus crawl … --job {job}`" for job, count in done.jobs.items()
    ]
    lines += [f"{refused.letter[:12]} not retried: {printable(refused.why)}" for refused in done.refused]
    return lines or ["Nothing to retry."]
