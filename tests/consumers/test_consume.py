"""The loop between the item log and a sink, in one process, on each embedded bus."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

import consumers.sinks.sqlite
from bus.codec import SCHEMA, pack
from bus.errors import ConnectionLost, Misconfigured
from bus.items import item_messages, pack_item
from bus.message import Delivery, HeaderValue, Message, new_id
from bus.registry import connect_state, connect_transport
from bus.state import Job, JobState, State
from bus.topic import item_log
from bus.transport import Subscription, Transport
from consumers.daemon import consume
from consumers.options import ConsumeOptions, ConsumeResult, Ended
from consumers.reader import LogGap
from consumers.sink import Batch, Sink, SinkUnavailable, Written
from consumers.sinks.sqlite import SqliteSink
from tests.consumers.scene import TOPIC, messages, new_sink, query, record, sqlite_items, stored_items

BUSES = pytest.mark.parametrize("scheme", ["memory", "sqlite"])
OPTIONS = ConsumeOptions(batch_seconds=0.05)


class Scene:
    """A bus with its state, in one event loop."""

    def __init__(self, transport: Transport, state: State) -> None:
        self.transport, self.state = transport, state

    async def publish(self, batch: Sequence[Message]) -> None:
        await self.transport.publish(TOPIC, batch)

    async def job(self, state: JobState = JobState.FINISHED, name: str = "shop") -> Job:
        """A job that is in this state."""
        job = (await self.state.join(name, spider="shop")).job
        if state is JobState.FINISHED:
            await self.finish(job)
        elif state is not JobState.RUNNING:
            await self.state.set_state(name, state)
        return job

    async def finish(self, job: Job) -> None:
        assert await self.state.acquire(job, "start", "me")
        assert await self.state.end_start(job, "me")
        assert await self.state.end(job) is JobState.FINISHED

    async def trimmed_to(self, first: int) -> None:
        async with asyncio.timeout(20):
            while (await self.transport.lag(TOPIC)).first != {0: first}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def consume(self, sink: Sink, **options: Any) -> ConsumeResult:
        """Until drained, or as told. Closes the sink."""
        chosen = replace(OPTIONS, **{"until_drained": "limit" not in options, "wait_s": 0.0, **options})
        try:
            async with asyncio.timeout(30):
                return await consume(self.transport, self.state, sink, chosen, asyncio.Event())
        finally:
            await sink.aclose()


@asynccontextmanager
async def scene(scheme: str, directory: Path) -> AsyncIterator[Scene]:
    url = f"{scheme}:///{directory / 'bus.db'}" if scheme == "sqlite" else f"memory://{directory.name}"
    transport = await connect_transport(url)
    state = await connect_state(url)
    try:
        await transport.declare(item_log("crawlbus."))
        yield Scene(transport, state)
    finally:
        await state.aclose()
        await transport.aclose()


def numbers(kind: str, directory: Path) -> list[int]:
    return [item["data"]["number"] for item in stored_items(kind, directory)]


def run(work: Callable[[Scene], Awaitable[None]], scheme: str, directory: Path) -> None:
    async def main() -> None:
        async with scene(scheme, directory) as here:
            await work(here)

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


@BUSES
@pytest.mark.parametrize("kind", ["sqlite", "jsonl"])
def test_all_is_stored_once_and_the_next_run_goes_on(scheme: str, kind: str, tmp_path: Path) -> None:
    async def work(here: Scene) -> None:
        job = await here.job()
        await here.publish(messages(range(1000)))
        result = await here.consume(new_sink(kind, tmp_path))
        assert (result.stored, result.ended) == (1000, Ended.DRAINED)
        await here.publish(messages(range(1000, 1200)))
        assert (await here.consume(new_sink(kind, tmp_path))).stored == 200
        assert (await here.consume(new_sink(kind, tmp_path))).stored == 0
        status = await here.state.status(job.name)
        assert status is not None and status.counters["items_stored:default"] == 1200
        lag = await here.transport.lag(TOPIC, group="default")
        assert lag.ready == 0  # the bus knows, and may drop what is older than its retention

    run(work, scheme, tmp_path)
    assert numbers(kind, tmp_path) == list(range(1200))


@BUSES
@pytest.mark.parametrize("kind", ["sqlite", "jsonl"])
def test_batches_that_begin_and_end_inside_messages(scheme: str, kind: str, tmp_path: Path) -> None:
    """150 items in 3 messages, stored 7 at a time, each run from where the one before left off."""

    async def work(here: Scene) -> None:
        await here.publish(messages(range(150)))
        for count in range(7, 150, 7):
            result = await here.consume(new_sink(kind, tmp_path), limit=7, batch_items=3)
            assert (result.stored, result.ended) == (7, Ended.LIMIT)
            assert numbers(kind, tmp_path) == list(range(count))
        await here.job()
        assert (await here.consume(new_sink(kind, tmp_path))).stored == 3

    run(work, scheme, tmp_path)
    assert numbers(kind, tmp_path) == list(range(150))


def test_batches_by_count_bytes_and_age(tmp_path: Path) -> None:
    async def work(here: Scene) -> None:
        await here.publish(messages(range(640)))
        await here.job()
        by_count = await here.consume(new_sink("sqlite", tmp_path), batch_items=100, name="count")
        assert 7 <= by_count.batches <= 8
        size_bytes = sum(len(message.body) for message in messages(range(640)))
        by_bytes = await here.consume(new_sink("sqlite", tmp_path), batch_bytes=size_bytes // 4, name="bytes")
        assert 4 <= by_bytes.batches <= 5
        stop, sink = asyncio.Event(), new_sink("sqlite", tmp_path)
        task = asyncio.create_task(consume(here.transport, here.state, sink, replace(OPTIONS, name="age"), stop))
        path = tmp_path / "items.sqlite"
        await until(lambda: len(query(path, "SELECT 1 FROM sink_progress WHERE consumer = 'age'")) == 1)
        stop.set()
        assert (await task).ended is Ended.STOPPED
        await sink.aclose()

    run(work, "memory", tmp_path)


@BUSES
def test_what_cannot_be_read_goes_to_quarantine_and_the_rest_is_stored(scheme: str, tmp_path: Path) -> None:
    headers: dict[str, HeaderValue] = {
        "content-type": "crawlbus/items",
        "schema": SCHEMA,
        "job": "shop",
        "spider": "shop",
        "run": 1,
    }
    bad = [
        Message("m-bytes", b"\xc1\xff\x00", headers),
        Message("m-empty", b"", headers),
        Message("m-none", b"", {}),
        Message("m-large", b"\0" * (9 * 1024 * 1024), headers),
        Message("m-newer", pack([]), {**headers, "schema": SCHEMA + 1}),
        Message("m-shape", pack([[1, 2]]), headers),
        Message("m-deep", b"\x91" * 100_000 + b"\xc0", headers),
        Message("m-bomb", b"\xdd\xff\xff\xff\xff", headers),
        Message("m-header", pack([]), {**headers, "run": "one"}),
    ]

    async def work(here: Scene) -> None:
        for number, message in enumerate(bad):
            await here.publish([*messages([number]), message])
        await here.publish(messages([len(bad)]))
        await here.job()
        result = await here.consume(new_sink("sqlite", tmp_path))
        assert (result.stored, result.quarantined) == (len(bad) + 1, len(bad))

    run(work, scheme, tmp_path)
    assert numbers("sqlite", tmp_path) == list(range(len(bad) + 1))
    rows = query(tmp_path / "items.sqlite", 'SELECT message, "offset", content FROM sink_quarantine ORDER BY "offset"')
    assert rows == [(m.id, 2 * n + 1, m.body) for n, m in enumerate(bad)]


@BUSES
def test_hazardous_values_arrive(scheme: str, tmp_path: Path) -> None:
    deep: Any = "bottom"
    for _ in range(55):
        deep = [deep]
    data: dict[Any, Any] = {
        "nul": "a\0b", "lone": "\ud800", "nan": float("nan"), "huge": 2**4000, "bytes": b"\x00\xff", "deep": deep,
        "long": "x" * 1_000_000, "tuple": (1, (2,)), "set": {3, 1}, 5: "five",
    }  # fmt: skip
    item = record(1)

    async def work(here: Scene) -> None:
        packed = pack_item(item.id, "https://x/\ud83d\ude00\0", 0.0, data)
        await here.publish(item_messages("shop", "shop", 1, [packed]))
        await here.job()
        await here.consume(new_sink("sqlite", tmp_path))

    run(work, scheme, tmp_path)
    (row,) = sqlite_items(tmp_path / "items.sqlite")
    assert row["url"] == "https://x/\U0001f600\0" and row["scraped_at"] == "1970-01-01T00:00:00.000000Z"
    assert row["data"] == {
        "nul": "a\0b", "lone": "\ufffd", "nan": None, "huge": 2**4000, "bytes": "AP8=", "deep": deep,
        "long": "x" * 1_000_000, "tuple": [1, [2]], "set": [1, 3], "5": "five",
    }  # fmt: skip


@BUSES
def test_one_job_of_the_log_has_progress_of_its_own(scheme: str, tmp_path: Path) -> None:
    async def work(here: Scene) -> None:
        await here.publish(messages([1, 2]))
        await here.publish(messages([3], job="other"))
        await here.publish(messages([4]))
        await here.job()
        await here.job(name="other")
        assert (await here.consume(new_sink("sqlite", tmp_path), job="shop")).stored == 3
        assert numbers("sqlite", tmp_path) == [1, 2, 4]
        assert (await here.consume(new_sink("sqlite", tmp_path), job="other")).stored == 1
        assert (await here.consume(new_sink("sqlite", tmp_path))).stored == 4  # none is passed over
        assert numbers("sqlite", tmp_path) == [1, 2, 3, 4]

    run(work, scheme, tmp_path)


def test_retention_keeps_what_another_jobs_consumer_has_not_stored(tmp_path: Path) -> None:
    """Also while this job's consumer runs; and a job that is done holds nothing back."""

    async def work(here: Scene) -> None:
        for name in ("shop", "other"):
            await here.job(name=name)
        await here.publish(messages([1], job="other"))
        assert (await here.consume(new_sink("sqlite", tmp_path), job="other", retention_s=0.01)).stored == 1
        await here.publish(messages([2], job="other"))
        for number in range(10, 13):
            await here.publish(messages([number]))
            assert (await here.consume(new_sink("sqlite", tmp_path), job="shop", retention_s=0.01)).stored == 1
        await here.trimmed_to(1)  # what both have passed goes
        await asyncio.sleep(0.1)
        assert (await here.consume(new_sink("sqlite", tmp_path), job="other", retention_s=0.01)).stored == 1
        await here.trimmed_to(5)

    run(work, "sqlite", tmp_path)
    assert numbers("sqlite", tmp_path) == [1, 2, 10, 11, 12]


def test_a_job_that_is_stored_leaves_nothing_held_though_an_ack_went_astray(tmp_path: Path) -> None:
    async def work(here: Scene) -> None:
        await here.job()
        await here.publish(messages([1, 2]))
        await here.consume(new_sink("sqlite", tmp_path), job="shop")
        with closing(sqlite3.connect(tmp_path / "bus.db")) as db, db:
            db.execute("UPDATE bus_groups SET next = 0")
        assert (await here.consume(new_sink("sqlite", tmp_path), job="shop")).stored == 0
        assert (await here.transport.lag(TOPIC, group="default:shop")).ready == 0

    run(work, "sqlite", tmp_path)


# the end


@BUSES
def test_it_ends_only_when_the_jobs_have_ended_and_the_log_is_stored(scheme: str, tmp_path: Path) -> None:
    async def work(here: Scene) -> None:
        paused = await here.job(JobState.PAUSED, "paused")
        running = await here.job(JobState.RUNNING)
        sink = new_sink("sqlite", tmp_path)
        task = asyncio.create_task(here.consume(sink))
        await here.publish(messages(range(10)))
        await until(lambda: (tmp_path / "items.sqlite").exists() and "items" in tables(tmp_path))
        await until(lambda: len(numbers("sqlite", tmp_path)) == 10)
        await here.finish(running)
        done, _ = await asyncio.wait([task], timeout=0.5)
        assert not done  # a paused job is not finished
        await here.publish(messages(range(10, 20)))
        await here.state.set_state(paused.name, JobState.STOPPED)
        assert (await task).ended is Ended.DRAINED

    run(work, scheme, tmp_path)
    assert numbers("sqlite", tmp_path) == list(range(20))


def tables(directory: Path) -> set[str]:
    return {row[0] for row in query(directory / "items.sqlite", "SELECT name FROM sqlite_master")}


@BUSES
def test_no_job_in_time(scheme: str, tmp_path: Path) -> None:
    async def work(here: Scene) -> None:
        await here.job(name="another")
        await here.publish(messages([1]))
        began = time.monotonic()
        result = await here.consume(new_sink("sqlite", tmp_path), job="shop", wait_s=0.3)
        assert result.ended is Ended.NO_JOB and 0.3 <= time.monotonic() - began < 5
        assert result.stored == 1  # what it had read by then

    run(work, scheme, tmp_path)


@BUSES
def test_time_limit_and_stop_store_what_was_read(scheme: str, tmp_path: Path) -> None:
    async def work(here: Scene) -> None:
        await here.publish(messages(range(5)))
        result = await here.consume(
            new_sink("sqlite", tmp_path), until_drained=False, time_limit_s=0.5, batch_seconds=60.0
        )
        assert (result.ended, result.stored) == (Ended.TIME, 5)

    run(work, scheme, tmp_path)


def test_until_drained_needs_a_state_and_a_name_is_checked(tmp_path: Path) -> None:
    async def work(here: Scene) -> None:
        sink, stop = new_sink("sqlite", tmp_path), asyncio.Event()
        with pytest.raises(Misconfigured, match="set --state"):
            await consume(here.transport, None, sink, replace(OPTIONS, until_drained=True), stop)
        with pytest.raises(Misconfigured, match="--name"):
            await consume(here.transport, None, sink, replace(OPTIONS, name="a:b"), stop)
        await here.publish(messages([1]))
        assert (await consume(here.transport, None, sink, replace(OPTIONS, limit=1), stop)).stored == 1
        await sink.aclose()

    run(work, "memory", tmp_path)


# gaps


def test_a_log_that_was_made_anew_stops_it_with_the_numbers(tmp_path: Path) -> None:
    """As when somebody deletes the bus's file, and crawls again into the same table."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()

    async def first(here: Scene) -> None:
        await here.job()
        for number in range(10):
            await here.publish(messages([number]))
        await here.consume(new_sink("sqlite", tmp_path))

    async def shorter(here: Scene) -> None:
        await here.job()
        await here.publish(messages([10]))
        with pytest.raises(LogGap, match=r"is at 0/10, the log holds 0/0 to 0/1; .*--accept-gap"):
            await here.consume(new_sink("sqlite", tmp_path))

    async def longer(here: Scene) -> None:
        await here.job()
        for number in range(10, 25):
            await here.publish(messages([number]))
        with pytest.raises(LogGap, match="is not the one"):
            await here.consume(new_sink("sqlite", tmp_path))
        assert len(numbers("sqlite", tmp_path)) == 10
        result = await here.consume(new_sink("sqlite", tmp_path), accept_gap=True)
        assert result.stored == 15
        await here.publish(messages([25]))
        assert (await here.consume(new_sink("sqlite", tmp_path))).stored == 1

    run(first, "sqlite", tmp_path / "a")
    run(shorter, "sqlite", tmp_path / "b")
    run(longer, "sqlite", tmp_path / "c")
    assert numbers("sqlite", tmp_path) == list(range(26))
    gaps = query(tmp_path / "items.sqlite", 'SELECT asked, first, "end" FROM sink_gaps')
    assert gaps == [("0/10", "0/0", "0/15")]


def test_a_log_as_long_as_the_old_one_is_told_from_it(tmp_path: Path) -> None:
    """Nothing new is there to read: the last message itself gives it away."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    async def first(here: Scene) -> None:
        await here.job()
        await here.publish(messages([1]))
        await here.consume(new_sink("sqlite", tmp_path))

    async def second(here: Scene) -> None:
        await here.job()
        await here.publish(messages([2]))
        with pytest.raises(LogGap, match="is not the one"):
            await here.consume(new_sink("sqlite", tmp_path))

    run(first, "sqlite", tmp_path / "a")
    run(second, "sqlite", tmp_path / "b")


def test_a_memory_bus_is_a_new_log_in_each_process_and_no_gap(tmp_path: Path) -> None:
    async def work(here: Scene) -> None:
        await here.job()
        count = len(stored_items("sqlite", tmp_path)) if (tmp_path / "items.sqlite").exists() else 0
        for number in range(count, count + 5):
            await here.publish(messages([number]))
        await here.consume(new_sink("sqlite", tmp_path))
        await here.publish(messages([count + 5]))
        assert (await here.consume(new_sink("sqlite", tmp_path))).stored == 1

    for _ in range(3):
        run(work, "memory", tmp_path)  # the bus dies with its last connection
    assert numbers("sqlite", tmp_path) == list(range(18))
    assert query(tmp_path / "items.sqlite", "SELECT * FROM sink_gaps") == []


def test_what_retention_has_dropped_stops_it(tmp_path: Path) -> None:
    async def work(here: Scene) -> None:
        await here.job()
        await here.publish(messages([0]))
        assert (await here.consume(new_sink("sqlite", tmp_path))).stored == 1
        for number in range(1, 9):
            await here.publish(messages([number]))
        with closing(sqlite3.connect(tmp_path / "bus.db")) as db, db:
            db.execute("UPDATE bus_topics SET first = 5 WHERE name = ?", (TOPIC,))
            db.execute("DELETE FROM bus_log WHERE place & ((1 << 40) - 1) < 5")
        with pytest.raises(LogGap, match="has dropped 4 messages"):
            await here.consume(new_sink("sqlite", tmp_path))
        assert (await here.consume(new_sink("sqlite", tmp_path), accept_gap=True)).stored == 4

    run(work, "sqlite", tmp_path)
    assert numbers("sqlite", tmp_path) == [0, 5, 6, 7, 8]
    assert query(tmp_path / "items.sqlite", "SELECT asked, first FROM sink_gaps") == [("0/1", "0/5")]


# trouble


@BUSES
def test_an_outage_of_the_sink_is_waited_for_with_one_line(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(consumers.sinks.sqlite, "BUSY_TIMEOUT_S", 0.02)

    async def work(here: Scene) -> None:
        await here.job()
        await here.publish(messages(range(10)))
        await here.consume(new_sink("sqlite", tmp_path))
        await here.publish(messages(range(10, 500)))
        with closing(sqlite3.connect(tmp_path / "items.sqlite", isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            task = asyncio.create_task(here.consume(new_sink("sqlite", tmp_path)))
            await until(lambda: "is locked by another process" in caplog.text)
            await asyncio.wait([task], timeout=1.2)
            assert not task.done()
            db.execute("ROLLBACK")
        assert (await task).stored == 490

    with caplog.at_level(logging.WARNING):
        run(work, scheme, tmp_path)
    assert caplog.text.count("is locked by another process") == 1
    assert numbers("sqlite", tmp_path) == list(range(500))


def test_told_to_end_while_the_sink_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers.sinks.sqlite, "BUSY_TIMEOUT_S", 0.02)

    async def work(here: Scene) -> None:
        await here.job()
        await here.publish(messages(range(10)))
        await here.consume(new_sink("sqlite", tmp_path))
        await here.publish(messages(range(10, 20)))
        with closing(sqlite3.connect(tmp_path / "items.sqlite", isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            with pytest.raises(SinkUnavailable):
                await here.consume(new_sink("sqlite", tmp_path), time_limit_s=0.3)
            db.execute("ROLLBACK")
        assert (await here.consume(new_sink("sqlite", tmp_path))).stored == 10

    run(work, "memory", tmp_path)


@BUSES
def test_a_second_consumer_of_the_name_stands_by(
    scheme: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(here: Scene) -> None:
        await here.job(JobState.RUNNING)
        first, second = new_sink("sqlite", tmp_path), new_sink("sqlite", tmp_path)
        old = asyncio.create_task(here.consume(first, limit=3))
        await here.publish(messages([1]))
        await until(lambda: (tmp_path / "items.sqlite").exists() and "items" in tables(tmp_path))
        await until(lambda: numbers("sqlite", tmp_path) == [1])
        new = asyncio.create_task(here.consume(second, limit=1))
        await until(lambda: "standing by" in caplog.text)
        await here.publish(messages([2]))
        await here.publish(messages([3, 4]))
        assert (await old).stored == 3
        await first.aclose()
        assert (await new).stored == 1

    run(work, scheme, tmp_path)
    assert numbers("sqlite", tmp_path) == [1, 2, 3, 4]


class Flaky:
    """A bus whose connection is lost every now and then: each third call of a reader."""

    def __init__(self, inner: Transport) -> None:
        self._inner, self.lost = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def subscribe(self, *args: Any, **kwargs: Any) -> Subscription:
        return FlakySubscription(self, await self._inner.subscribe(*args, **kwargs))


class FlakySubscription:
    def __init__(self, bus: Flaky, inner: Subscription) -> None:
        self._bus, self._inner, self._calls = bus, inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _call(self) -> None:
        self._calls += 1
        if self._calls % 3 == 0 and self._bus.lost < 6:
            self._bus.lost += 1
            raise ConnectionLost("the bus is not reachable")

    async def receive(self, *, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        self._call()
        return await self._inner.receive(max_messages=min(2, max_messages), timeout_s=timeout_s)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._call()
        await self._inner.ack(deliveries)

    async def seek(self, to: Any) -> None:
        await self._inner.seek(to)

    async def aclose(self) -> None:
        await self._inner.aclose()


@BUSES
def test_a_lost_connection_is_waited_for_and_nothing_is_stored_twice(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.outage.FIRST_PAUSE_S", 0.01)

    async def work(here: Scene) -> None:
        await here.job()
        for number in range(0, 300, 10):
            await here.publish(messages(range(number, number + 10)))
        flaky = Flaky(here.transport)
        result = await Scene(flaky, here.state).consume(new_sink("jsonl", tmp_path), batch_items=15)
        assert flaky.lost == 6 and result.stored == 300

    run(work, scheme, tmp_path)
    assert numbers("jsonl", tmp_path) == list(range(300))


def test_a_gap_is_accepted_once_and_not_again_after_a_lost_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.outage.FIRST_PAUSE_S", 0.01)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    async def first(here: Scene) -> None:
        await here.job()
        await here.publish(messages(range(5)))
        await here.consume(new_sink("jsonl", tmp_path))

    async def second(here: Scene) -> None:
        await here.job()
        for number in range(5, 105):
            await here.publish(messages([number]))
        flaky: Any = Flaky(here.transport)
        await Scene(flaky, here.state).consume(new_sink("jsonl", tmp_path), accept_gap=True, batch_items=3)
        assert flaky.lost == 6

    run(first, "sqlite", tmp_path / "a")
    run(second, "sqlite", tmp_path / "b")
    assert numbers("jsonl", tmp_path) == list(range(105))


def test_on_uvloop(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene("sqlite", tmp_path) as here:
            await here.publish(messages(range(300)))
            await here.job()
            assert (await here.consume(new_sink("sqlite", tmp_path))).stored == 300

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


class Slow(SqliteSink):
    """A sink that never gets on, to see how much is read ahead of it."""

    def __init__(self, path: Path, reached: asyncio.Event) -> None:
        super().__init__(path)
        self._reached = reached

    async def write(self, batch: Batch) -> Written:
        self._reached.set()
        await asyncio.Event().wait()
        raise AssertionError


def test_reading_ahead_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(here: Scene) -> None:
        read: list[int] = []
        subscribe = here.transport.subscribe

        async def counted(*args: Any, **kwargs: Any) -> Subscription:
            subscription = await subscribe(*args, **kwargs)
            receive = subscription.receive

            async def receive_and_count(**limits: Any) -> Sequence[Delivery]:
                found = await receive(**limits)
                read.append(len(found))
                return found

            monkeypatch.setattr(subscription, "receive", receive_and_count)
            return subscription

        monkeypatch.setattr(here.transport, "subscribe", counted)
        for _ in range(100):
            await here.publish([Message(new_id(), b"\0" * 100_000, {}) for _ in range(10)])
        reached = asyncio.Event()
        sink = Slow(tmp_path / "items.sqlite", reached)
        stop = asyncio.Event()
        options = replace(OPTIONS, batch_bytes=1_000_000, batch_seconds=60.0)
        task = asyncio.create_task(consume(here.transport, None, sink, options, stop))
        await reached.wait()
        await asyncio.wait([task], timeout=0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await sink.aclose()
        # one batch is written, one waits, one is full, and what one `receive` gives
        assert sum(read) <= 30 + 45

    run(work, "memory", tmp_path)
