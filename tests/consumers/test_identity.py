"""A log that is not the one that the sink has read: the consumer stops with the numbers, and goes on if it is told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bus.errors import BusError, StorageFailed
from consumers import daemon, identity
from consumers.daemon import consume
from consumers.options import ConsumeOptions
from consumers.reader import LogGap
from tests.consumers.logs import Log, open_log
from tests.consumers.scene import new_sink, query, sqlite_items
from tests.servers import KINDS

SERVERS = [kind for kind in KINDS if not kind.startswith("postgres")]
SAYS = re.compile(
    r"the item log (is not the one that consumer 'default' has read"
    r"|has dropped [\d,]+ messages that consumer 'default' has not stored):"
    r" the sink is at \d/\d+, the log holds \d/\d+ to \d/\d+;"
    r" `crawlbus consume --accept-gap` with the same --bus and --sink goes on at \d/\d+"
)


async def consume_until(log: Log, directory: Path, wanted: Sequence[int], *, accept_gap: bool = False) -> None:
    """Into SQLite, until it holds all these numbers."""
    sink, stop = new_sink("sqlite", directory), asyncio.Event()
    options = ConsumeOptions(prefix=log.prefix, batch_seconds=0.05, accept_gap=accept_gap)

    async def look() -> None:
        while not set(wanted) <= set(numbers(directory)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        stop.set()

    looking = asyncio.create_task(look())
    try:
        async with asyncio.timeout(60), log.connected() as transport:
            await consume(transport, None, sink, options, stop)
    finally:
        looking.cancel()
        await sink.aclose()


def numbers(directory: Path) -> list[int]:
    path = directory / "items.sqlite"
    if not path.exists() or not query(path, "SELECT 1 FROM sqlite_master WHERE name = 'items'"):
        return []
    return sorted(item["data"]["number"] for item in sqlite_items(path))


def gaps(directory: Path) -> list[tuple[Any, ...]]:
    return query(directory / "items.sqlite", 'SELECT asked, first, "end" FROM sink_gaps')


COUNTS = {"rewound": 20, "made anew as long": 40, "made anew longer": 60, "deleted": 0}
CASES = [(kind, fate) for kind in SERVERS for fate in (*COUNTS, "trimmed")]
CASES.remove(("rabbitmq-3.10", "deleted"))  # that a stream is empty takes long to be known, on each version


@pytest.mark.parametrize(("server_url", "fate"), CASES, indirect=["server_url"])
def test_another_log_is_noticed(server_url: str, fate: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    async def main() -> None:
        log = open_log(request.node.callspec.params["server_url"], server_url)
        await log.publish(range(40))
        await consume_until(log, tmp_path, range(40))
        before = await log.end()
        if fate == "trimmed":
            await log.publish(range(40, 80), large=True)
            await log.trim()
        else:
            await log.delete()
            await log.publish(range(40, 40 + COUNTS[fate]))

        with pytest.raises(LogGap) as stopped:
            await consume_until(log, tmp_path, [100])
        assert SAYS.fullmatch(str(stopped.value))
        gap, end = stopped.value.gap, await log.end()
        assert (gap.asked.offset, gap.end.offset) == (before[gap.asked.partition], end[gap.asked.partition])
        assert (gap.first.offset > gap.asked.offset) == (fate == "trimmed")
        assert numbers(tmp_path) == list(range(40)) and gaps(tmp_path) == []

        await log.publish(range(100, 140))
        await consume_until(log, tmp_path, range(100, 140), accept_gap=True)
        there = set(range(40 + COUNTS.get(fate, 0))) | set(range(100, 140))
        assert there <= set(numbers(tmp_path)) and (fate == "trimmed" or there == set(numbers(tmp_path)))
        recorded = gaps(tmp_path)
        assert {asked for asked, *_ in recorded} == {f"{number}/{offset}" for number, offset in before.items()}
        assert len(recorded) == len(before)
        assert (str(gap.asked), str(gap.first)) in [(asked, first) for asked, first, _ in recorded]

        await log.publish(range(140, 160))
        await consume_until(log, tmp_path, range(140, 160))
        assert gaps(tmp_path) == recorded

    asyncio.run(main())


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "quiet"])
@pytest.mark.parametrize("server_url", ["rabbitmq-4.3", "kafka-4.1", "redis-8"], indirect=True)
def test_a_log_that_is_replaced_under_a_reader_is_noticed(
    server_url: str, busy: bool, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one soon is longer, so that reading goes on in it without a word. Where it is `busy`, some of that is
    stored by then, and still whoever comes next stops, too."""
    monkeypatch.setattr(identity, "CHECK_S", 2.0 if busy else 0.0)
    monkeypatch.setattr(daemon, "LEASE_S", 1.0)

    async def main() -> None:
        log = open_log(request.node.callspec.params["server_url"], server_url)
        await log.publish(range(40))
        consuming = asyncio.create_task(consume_until(log, tmp_path, [999]))
        while numbers(tmp_path) != list(range(40)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await log.delete()
        await log.publish(range(100, 200))
        with pytest.raises(BusError):  # or it is told that the log was deleted
            await consuming
        with pytest.raises(LogGap) as stopped:
            await consume_until(log, tmp_path, [999])
        assert SAYS.fullmatch(str(stopped.value)) and stopped.value.gap.first.offset == 0
        assert busy or numbers(tmp_path) == list(range(40))
        await consume_until(log, tmp_path, range(100, 200), accept_gap=True)

    asyncio.run(main())


@pytest.mark.parametrize("server_url", ["kafka-4.1", "redis-8"], indirect=True)
def test_a_log_that_is_trimmed_behind_a_reader_is_the_same(
    server_url: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "CHECK_S", 0.0)

    async def main() -> None:
        log = open_log(request.node.callspec.params["server_url"], server_url)
        await log.publish(range(40), large=True)
        consuming = asyncio.create_task(consume_until(log, tmp_path, range(100)))
        while numbers(tmp_path) != list(range(40)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await log.trim()
        await log.publish(range(40, 100))
        await consuming
        assert gaps(tmp_path) == []

    asyncio.run(main())


@pytest.mark.parametrize("anew", [False, True], ids=["deleted", "made anew"])
def test_a_file_that_is_replaced_under_a_reader_is_noticed(
    anew: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written to the old one would be gone when it is closed, and nothing of the new one would be seen."""
    monkeypatch.setattr(daemon, "LEASE_S", 1.0)
    monkeypatch.setattr(daemon, "LOOK_AT_LOG_S", 0.0)

    async def main() -> None:
        bus = tmp_path / "bus.db"
        log = Log(f"sqlite:///{bus}")
        await log.publish(range(40))
        consuming = asyncio.create_task(consume_until(log, tmp_path, [999]))
        while numbers(tmp_path) != list(range(40)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        bus.rename(tmp_path / "old.db")
        if anew:
            bus.write_bytes((tmp_path / "old.db").read_bytes())
        with pytest.raises(StorageFailed, match="was moved, deleted or replaced while it was in use"):
            await consuming

    asyncio.run(main())
