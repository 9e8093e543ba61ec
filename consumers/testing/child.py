"""What another process does to the storage under test: `python -m consumers.testing.child MODULE:CLASS URL DEED …`."""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module

import consumers.members
from consumers.sink import Fenced, Sink
from consumers.testing.scene import TOPIC, batch_of, record

FOUR = frozenset(range(4))


def say(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def hold(sink: Sink) -> None:
    """All four partitions, until it is killed."""
    say(len(await sink.hold(FOUR)))
    await asyncio.sleep(600)


async def sleep(sink: Sink) -> None:
    """Hold all and store one item; once woken, store another."""
    held = await sink.hold(FOUR)
    await sink.write(batch_of([record(0)]))
    say(len(held))
    sys.stdin.readline()
    try:
        await sink.write(batch_of([record(2)], start=1))
        say("stored")
    except Fenced:
        say("fenced")


async def fill(sink: Sink) -> None:
    """Store one batch after another, from where it stands, until it is killed."""
    at = (await sink.hold({0}))[0]
    count = 0 if at is None else at.next.offset
    while True:
        await sink.write(batch_of(map(record, range(count, count + 30)), start=count))
        count += 30
        say(count)


async def main(where: str, url: str, deed: str) -> None:
    module, _, cls = where.partition(":")
    sink: Sink = getattr(import_module(module), cls).from_url(url)
    try:
        await sink.open("default", TOPIC)
        await {"hold": hold, "sleep": sleep, "fill": fill}[deed](sink)
    finally:
        await sink.aclose()


if __name__ == "__main__":
    where, url, deed, *lease_s = sys.argv[1:]
    if lease_s:  # before the sink is imported, and what it keeps its members with
        consumers.members.LEASE_S = float(*lease_s)
    asyncio.run(main(where, url, deed))
