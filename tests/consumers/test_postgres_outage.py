"""A PostgreSQL that refuses, dies, hangs, or loses an answer; and a consumer that stands still in the middle."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import psycopg
import pytest

import consumers.sinks.postgres.link as link
import consumers.sinks.postgres.sink
from bus.errors import BusError, Misconfigured
from consumers.sink import Fenced, SinkUnavailable, Written
from consumers.sinks.postgres import PostgresSink
from consumers.sinks.postgres.link import Link
from consumers.testing import TOPIC, batch_of, record
from tests.consumers.postgres import KIND, ask, fill, items, member
from tests.consumers.sinks import failure
from tests.consumers.test_postgres_sink import database, on_postgres
from tests.servers import Server, free_port, server

__all__ = ["database"]

PATIENCE_S = 60.0


@pytest.fixture
def own_server() -> Iterator[Server]:
    with server(KIND) as one:
        yield one


def numbers(url: str) -> list[int]:
    return [row["data"]["number"] for row in items(url)]


async def until_done(call: Callable[[], Awaitable[object]]) -> int:
    """Repeat it as the daemon does; returns how often it was not to be had."""
    deadline, failed = time.monotonic() + PATIENCE_S, 0
    while True:
        try:
            await call()
            return failed
        except SinkUnavailable:
            assert time.monotonic() < deadline
            failed += 1
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ((":open-sesame@", ":wrong-sesame@"), "password authentication failed"),
        (("//crawlbus:", "//nobody:"), "password authentication failed"),
        ((":open-sesame@", "@"), "no password supplied"),
        (("/test_", "/not_there_"), 'database "not_there_.*" does not exist'),
    ],
)
@on_postgres
def test_a_login_that_is_refused_is_a_mistake_in_one_sentence(
    change: tuple[str, str], says: str, database: str
) -> None:
    error = failure(fill(database.replace(*change)))
    assert isinstance(error, Misconfigured), repr(error)
    with pytest.raises(Misconfigured, match=f"{says}.*: set user, password and database in its URL"):
        raise error
    assert "sesame" not in str(error) and "\n" not in str(error)


@on_postgres
@pytest.mark.parametrize(("option", "says"), [("sslmode=bogus", "sslmode"), ("sslmode=require", "not support SSL")])
def test_an_option_of_libpq_that_cannot_be_is_a_mistake(option: str, says: str, database: str) -> None:
    error = failure(fill(f"{database}?{option}"))
    assert isinstance(error, Misconfigured) and says in str(error) and "mend that option of its URL" in str(error)


def test_a_server_that_is_not_there_may_come() -> None:
    error = failure(fill(f"postgresql://me:sesame@127.0.0.1:{free_port()}/db"))
    assert isinstance(error, SinkUnavailable) and "refused" in str(error) and "sesame" not in str(error)
    assert "\n" not in str(error)


@on_postgres
def test_a_read_only_server_may_become_another(database: str) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            ask(database, f"ALTER DATABASE {database.rpartition('/')[2]} SET default_transaction_read_only = on")
            sink = PostgresSink.from_url(database)
            stack.push_async_callback(sink.aclose)
            with pytest.raises(SinkUnavailable, match="target_session_attrs=read-write"):
                await sink.open("default", TOPIC)

    asyncio.run(run())


def test_a_server_that_was_killed_is_used_again_and_nobody_is_fenced(own_server: Server) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            sink = await member(stack, own_server.url)
            await sink.write(batch_of(map(record, range(100))))
            own_server.kill()
            second = batch_of(map(record, range(100, 200)), start=100)
            for _ in range(2):
                with pytest.raises(SinkUnavailable):
                    await sink.write(second)
            await asyncio.to_thread(own_server.start)
            await until_done(lambda: sink.write(second))
            own_server.stop()
            await asyncio.to_thread(own_server.start)
            assert await until_done(lambda: sink.hold({0})) <= 1, "one call finds the connection lost"
            other = await member(stack, own_server.url, "other")
            assert (await sink.positions())[0].next.offset == 200 and await other.positions() == []

    asyncio.run(run())
    assert numbers(own_server.url) == list(range(200))


def test_a_server_that_hangs_is_cut_off_and_used_again(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            sink, leaver = await member(stack, own_server.url), await member(stack, own_server.url, "leaver")
            await sink.write(batch_of([record(1)]))
            own_server.freeze()
            try:
                monkeypatch.setattr(link, "STUCK_S", 0.5)
                second = batch_of(map(record, range(2, 200)), start=1)
                with pytest.raises(SinkUnavailable, match="is not reachable"):
                    await asyncio.wait_for(sink.write(second), PATIENCE_S)
                monkeypatch.setattr(consumers.sinks.postgres.sink, "LEAVE_S", 0.5)
                await asyncio.wait_for(leaver.aclose(), PATIENCE_S)
            finally:
                own_server.thaw()
                monkeypatch.undo()
            await until_done(lambda: sink.write(second))

    asyncio.run(run())
    assert numbers(own_server.url) == list(range(1, 200))


@on_postgres
@pytest.mark.parametrize("mode", ["latest", "versions", "append"])
@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_whose_answer_is_lost_is_repeated(
    committed: bool, mode: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, lose = Link.commit, True

    def lose_the_answer(self: Link) -> None:
        nonlocal lose
        if committed or not lose:
            commit(self)
        if lose:
            lose = False
            self.cut_if_stuck(-1.0)
            assert self._socket is not None
            self._socket.shutdown(2)
            self.execute("SELECT 1")

    async def run() -> None:
        async with AsyncExitStack() as stack:
            sink = await member(stack, f"{database}?mode={mode}")
            await sink.write(batch_of([record(0)]))
            batch = batch_of(map(record, range(1, 100)), start=1)
            monkeypatch.setattr(Link, "commit", lose_the_answer)
            with pytest.raises(SinkUnavailable, match="is not reachable"):
                await sink.write(batch)
            assert len(items(database)) == (100 if committed else 1)
            assert await sink.write(batch) == Written(99, 0)
            assert (await sink.positions())[0].next.offset == 100

    asyncio.run(run())
    assert numbers(database) == list(range(100))


@on_postgres
def test_who_lost_the_connection_and_a_partition_is_fenced(database: str) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            old = await member(stack, database)
            await old.write(batch_of([record(1)]))
            ask(database, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                " AND datname = current_database()")  # fmt: skip
            ask(database, "DELETE FROM sink_members")  # as if its lease had run out
            new = await member(stack, database)
            await new.write(batch_of([record(2)], start=1))
            with pytest.raises(SinkUnavailable):
                await old.write(batch_of([record(3)], start=1))
            with pytest.raises(Fenced):
                await old.write(batch_of([record(3)], start=1))

    asyncio.run(run())
    assert numbers(database) == [1, 2]


@on_postgres
@pytest.mark.parametrize("place", ["_copy", "_insert", "_commit"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_one_that_stands_still_in_a_write_stops_nobody_for_long(
    when: str, place: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its locks are taken from it; once it goes on, it is fenced."""
    monkeypatch.setattr(link, "IDLE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(consumers.sinks.postgres.sink, "LEAVE_S", 0.5)
    stands, go_on = threading.Event(), threading.Event()

    async def run() -> None:
        async with AsyncExitStack() as stack:
            old = await member(stack, database)
            stop(old._store, place, when, stands, go_on)
            batch = batch_of(map(record, range(100)))
            write = asyncio.create_task(old.write(batch))
            assert await asyncio.to_thread(stands.wait, PATIENCE_S)
            ask(database, "DELETE FROM sink_members")
            try:
                new = PostgresSink.from_url(database)
                stack.push_async_callback(new.aclose)
                await new.open("default", TOPIC)
                await until_done(lambda: new.hold({0}))
                await until_done(lambda: new.write(batch_of(map(record, range(50)))))
            finally:
                go_on.set()
            if (place, when) == ("_commit", "after"):
                assert await write == Written(100, 0), "it was done"
            else:
                with pytest.raises((SinkUnavailable, Fenced)):
                    await write
            with pytest.raises(Fenced):
                await old.write(batch)

    asyncio.run(run())
    assert numbers(database) == list(range(100 if (place, when) == ("_commit", "after") else 50))


def stop(thing: object, place: str, when: str, stands: threading.Event, go_on: threading.Event) -> None:
    """Make a method of it stand still once, before or after its deed."""
    method = getattr(thing, place)

    def wait() -> None:
        if not stands.is_set():
            stands.set()
            go_on.wait(PATIENCE_S)

    def standing(*args: object, **kwargs: object) -> object:
        if when == "before":
            wait()
        result = method(*args, **kwargs)
        if when == "after":
            wait()
        return result

    setattr(thing, place, standing)


@on_postgres
def test_a_deadlock_or_a_lock_is_waited_for_and_nothing_is_set_aside(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "LOCK_TIMEOUT_S", 0.2)

    async def run() -> None:
        async with AsyncExitStack() as stack:
            sink = await member(stack, database)
            await sink.write(batch_of([record(1)]))
            with psycopg.connect(database) as db:
                db.execute("SELECT FROM items FOR UPDATE")
                with pytest.raises(SinkUnavailable, match="another process has locked"):
                    await sink.write(batch_of([record(1, {"v": 2})], start=1))
            assert await sink.write(batch_of([record(1, {"v": 2})], start=1)) == Written(1, 0)
            assert await sink.quarantined() == []

    asyncio.run(run())


@on_postgres
def test_a_table_that_was_dropped_is_said(database: str) -> None:
    async def run() -> BusError:
        async with AsyncExitStack() as stack:
            sink = await member(stack, database)
            ask(database, "DROP TABLE items")
            try:
                await sink.write(batch_of([record(1)]))
            except BusError as error:
                return error
        raise AssertionError("nothing was said")

    assert 'relation "items" does not exist' in str(asyncio.run(run()))
