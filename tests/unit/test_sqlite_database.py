"""`Database`: grouped commits, locks, what SQLite's errors become, and the thread's own life."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from adapters.sqlite.database import Database, path_of
from bus.errors import Closed, ConnectionLost, Misconfigured, StorageFailed


def play(path: Path, check: Callable[[Database], Awaitable[None]]) -> None:
    async def run() -> None:
        database = Database.open(str(path))
        try:
            await check(database)
        finally:
            await database.aclose()

    asyncio.run(run())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE t (x INTEGER PRIMARY KEY, y BLOB)")
    return path


def insert(x: int) -> Callable[[sqlite3.Connection], object]:
    return lambda connection: connection.execute("INSERT INTO t VALUES (?, NULL)", (x,)).rowcount


def found(connection: sqlite3.Connection) -> list[int]:
    return [x for (x,) in connection.execute("SELECT x FROM t ORDER BY x")]


def test_a_write_that_raises_is_undone_alone(path: Path) -> None:
    def breaks(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (99, NULL)")
        raise LookupError("mine")

    async def check(database: Database) -> None:
        writes = [database.write(fn) for fn in (insert(1), breaks, insert(2), insert(2), insert(3))]
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert [type(result).__name__ for result in results] == ["int", "LookupError", "int", "TransportError", "int"]
        assert await database.read(found) == [1, 2, 3] == database.peek(found)
        with pytest.raises(LookupError):
            await database.write(breaks)
        assert await database.read(found) == [1, 2, 3]

    play(path, check)


def test_many_writes_share_a_commit(path: Path) -> None:
    async def check(database: Database) -> None:
        version = database.peek(lambda connection: connection.execute("PRAGMA data_version").fetchone()[0])
        first = database.write(lambda _: time.sleep(0.1))
        await asyncio.gather(first, *(database.write(insert(x)) for x in range(100)))
        after = database.peek(lambda connection: connection.execute("PRAGMA data_version").fetchone()[0])
        assert len(await database.read(found)) == 100
        assert after != version
        # the WAL has a frame for each page of each commit: a hundred commits would have left a hundred
        assert (path.parent / "a.db-wal").stat().st_size < 20 * 4200

    play(path, check)


def test_a_full_disk_fails_all_that_shared_the_commit_and_nothing_else(path: Path) -> None:
    def swell(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (1000, zeroblob(1000000))")

    async def check(database: Database) -> None:
        await database.write(insert(1))
        pages = await database.read(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
        await database.read(lambda c: c.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone())
        hold = database.write(lambda _: time.sleep(0.05))
        results = await asyncio.gather(
            hold, *(database.write(fn) for fn in (insert(2), swell, insert(3))), return_exceptions=True
        )
        failed = [result for result in results if isinstance(result, Exception)]
        assert failed and all(isinstance(error, StorageFailed) for error in failed)
        assert "disk is full" in str(failed[0]) and "a.db" in str(failed[0])
        await database.read(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchone())
        await database.write(insert(4))
        stored = await database.read(found)
        assert 4 in stored and 1000 not in stored
        for x, result in zip((2, 3), (results[1], results[3]), strict=True):
            assert (x in stored) == (not isinstance(result, Exception)), "told other than it is"

    play(path, check)


@pytest.mark.parametrize(
    ("name", "words"),
    [("missing/a.db", "make its directory"), ("text.db", "not an SQLite database")],
)
def test_a_file_that_cannot_be_used_is_named_with_the_mend(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "text.db").write_text("this is a letter to a friend, and no database\n" * 100)

    async def check(database: Database) -> None:
        for call in (database.write(insert(1)), database.read(found)):
            with pytest.raises(StorageFailed, match=words) as error:
                await call
            assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)

    play(tmp_path / name, check)


def test_it_waits_for_another_process_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(database: Database) -> None:
        await database.write(insert(1))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.ensure_future(database.write(insert(2)))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            assert database.peek(found) == [1], "readers do not wait"
            other.execute("COMMIT")
            await waiting
            other.execute("BEGIN IMMEDIATE")
            monkeypatch.setattr("adapters.sqlite.database.LOCK_WAIT_S", 0.1)
            with pytest.raises(ConnectionLost, match="lock"):
                await database.write(insert(3))
            other.execute("COMMIT")
        await database.write(insert(4))
        assert await database.read(found) == [1, 2, 4]

    play(path, check)


def test_periodic_work_goes_on_while_the_event_loop_is_blocked(path: Path) -> None:
    async def check(database: Database) -> None:
        turns: list[float] = []
        await database.write(insert(1))
        cancel = database.every(0.02, lambda connection: turns.append(time.monotonic()))
        time.sleep(0.5)  # noqa: ASYNC251
        assert len(turns) >= 5
        cancel()
        await database.read(found)
        count = len(turns)
        await asyncio.sleep(0.1)
        assert len(turns) == count

    play(path, check)


def test_one_thread_for_all_users_of_a_file_until_the_last_closes(path: Path, tmp_path: Path) -> None:
    async def run() -> None:
        link = tmp_path / "link.db"
        link.symlink_to(path)
        first, second = Database.open(str(path)), Database.open(str(link))
        assert first is second
        await first.write(insert(1))
        await first.aclose()
        await second.write(insert(2))
        names = [thread.name for thread in threading.enumerate()]
        assert names.count(f"sqlite {path}") == 1
        last = asyncio.ensure_future(second.write(insert(3)))
        await asyncio.sleep(0)
        await second.aclose()
        assert await last == 1, "what was asked for before is done"
        assert f"sqlite {path}" not in [thread.name for thread in threading.enumerate()]
        for call in (second.write, second.read):
            with pytest.raises(Closed):
                await call(found)
        with pytest.raises(Closed):
            second.peek(found)
        assert sorted(os.listdir(tmp_path)) == ["a.db", "link.db"], "no WAL is left behind"

    asyncio.run(run())


def test_a_forked_child_must_open_its_own(path: Path) -> None:
    async def check(database: Database) -> None:
        await database.write(insert(1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads
            child = os.fork()
        if child == 0:
            code = 1
            try:
                database.peek(found)
            except Closed:
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0  # noqa: ASYNC222
        await database.write(insert(2))
        assert await database.read(found) == [1, 2]

    play(path, check)


def test_paths_are_as_in_sqlalchemy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert path_of("sqlite:///a/b.db?x=1") == str(tmp_path / "a/b.db")
    assert path_of("sqlite:////a/b.db") == "/a/b.db"
    for url in ("sqlite://", "sqlite:///", "sqlite://a.db", "sqlite:///:memory:"):
        with pytest.raises(Misconfigured, match="sqlite:///"):
            path_of(url)
