"""The consumer as a process: killed, stopped, replaced, out of disk, and its exit codes."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bus.message import Message
from bus.registry import connect_state, connect_transport
from bus.state import JobState
from bus.topic import item_log
from tests.consumers.scene import TOPIC, jsonl_items, messages, query, sqlite_items

PROGRAM = [sys.executable, "-P", "-m", "bus.cli"]


@contextmanager
def consumer(directory: Path, *arguments: str, **how: Any) -> Iterator[subprocess.Popen[str]]:
    """`crawlbus consume` of the bus in `directory`; ended at the end, if it has not by itself."""
    words = ["consume", "--bus", f"sqlite:///{directory / 'bus.db'}", "--batch-seconds", "0.02", *arguments]
    process = subprocess.Popen(
        [*PROGRAM, *words], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def consume(directory: Path, *arguments: str, **how: Any) -> tuple[int, str, str]:
    """Run it to its end: exit code, output, errors."""
    with consumer(directory, *arguments, **how) as process:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


def on_bus(directory: Path, *batches: Sequence[Message], state: JobState | None = None) -> None:
    """Publish, and bring the job `shop` into a state."""

    async def main() -> None:
        url = f"sqlite:///{directory / 'bus.db'}"
        transport, shared = await connect_transport(url), await connect_state(url)
        try:
            await transport.declare(item_log("crawlbus."))
            for batch in batches:
                await transport.publish(TOPIC, batch)
            if state is not None:
                job = (await shared.join("shop", spider="shop")).job
                if state is JobState.FINISHED:
                    assert await shared.acquire(job, "start", "me") and await shared.end_start(job, "me")
                    assert await shared.end(job) is state
                else:
                    await shared.set_state("shop", state)
        finally:
            await shared.aclose()
            await transport.aclose()

    asyncio.run(main())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def stored(directory: Path) -> int:
    """Rows of the table; 0 before there is one."""
    path = directory / "items.sqlite"
    if not path.exists() or not query(path, "SELECT 1 FROM sqlite_master WHERE name = 'items'"):
        return 0
    return int(query(path, "SELECT count(*) FROM items")[0][0])


class Publisher:
    """Publishes numbered items to the bus in a process of its own, some hundreds in a second, until told to end."""

    PROGRAM = """
import asyncio, select, sys
from bus.registry import connect_transport
from bus.topic import item_log
from tests.consumers.scene import TOPIC, messages

async def main():
    transport = await connect_transport(sys.argv[1])
    await transport.declare(item_log("crawlbus."))
    first = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        count = 1 + first * 7919 % 90
        await transport.publish(TOPIC, messages(range(first, first + count)))
        first += count
        await asyncio.sleep(0.03)
    await transport.aclose()
    print(first)

asyncio.run(main())
"""

    def __init__(self, directory: Path) -> None:
        url = f"sqlite:///{directory / 'bus.db'}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, url], cwd=Path(__file__).parents[2], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def end(self) -> int:
        """How many items it has published."""
        try:
            out, _ = self._process.communicate(timeout=60)
            return int(out)
        finally:
            self._process.kill()
            self._process.wait()


@pytest.mark.parametrize("kind", ["sqlite", "jsonl", "bus"])
def test_twenty_kills_while_items_arrive(kind: str, tmp_path: Path) -> None:
    """`bus`: the sink is in the bus's own file."""
    kills, rng = 0, random.Random(4)
    path = tmp_path / {"sqlite": "items.sqlite", "jsonl": "items.jsonl", "bus": "bus.db"}[kind]
    sink = ("--sink", f"{'jsonl' if kind == 'jsonl' else 'sqlite'}:///{path}", "--batch-size", "150")
    publisher = Publisher(tmp_path)
    while kills < 20:
        before = progress(kind, path)
        with consumer(tmp_path, *sink) as process:
            wait_until(lambda: progress(kind, path) != before)  # noqa: B023
            time.sleep(rng.random() * 0.1)
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
    count = publisher.end()
    on_bus(tmp_path, state=JobState.FINISHED)
    code, out, err = consume(tmp_path, *sink, "--until-drained", "--json")
    assert (code, err) == (0, "") and json.loads(out)["ended"] == "drained"
    found = [item["data"]["number"] for item in (jsonl_items(path) if kind == "jsonl" else sqlite_items(path))]
    assert sorted(set(found)) == list(range(count))
    assert Counter(found).most_common(1)[0][1] == 1  # jsonl too: what was not committed was cut off


def progress(kind: str, path: Path) -> object:
    """Where the sink says it is; None before it says anything."""
    if kind == "jsonl":
        ledger = path.with_name(path.name + ".progress")
        ours = json.loads(ledger.read_text())["consumers"].get("default", {}) if ledger.exists() else {}
        return [row["at"] for row in ours[TOPIC]["partitions"].values()] if ours else None
    if not path.exists() or not query(path, "SELECT 1 FROM sqlite_master WHERE name = 'sink_progress'"):
        return None
    return query(path, 'SELECT "offset", item FROM sink_progress WHERE "offset" IS NOT NULL') or None


@contextmanager
def lock(kind: str, path: Path) -> Iterator[None]:
    """The sink's own lock."""
    if kind == "jsonl":
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    else:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("ROLLBACK")


@pytest.mark.parametrize("kind", ["sqlite", "jsonl"])
def test_stopped_replaced_and_continued_it_changes_nothing(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"items.{kind}"
    sink = ("--sink", f"{kind}:///{path}")
    on_bus(tmp_path, messages(range(100)))
    with consumer(tmp_path, *sink) as stale:
        wait_until(lambda: progress(kind, path) is not None)
        wait_until(lambda: len(sqlite_items(path) if kind == "sqlite" else jsonl_items(path)) == 100)
        # it must hold no lock when it is stopped: whoever came next would wait until it goes on
        with lock("sqlite", tmp_path / "bus.db"), lock(kind, path):
            os.kill(stale.pid, signal.SIGSTOP)
            os.waitpid(stale.pid, os.WUNTRACED)  # until it stands
        on_bus(tmp_path, messages(range(100, 300)))
        with consumer(tmp_path, *sink, "--limit", "150") as successor:
            _, err = successor.communicate(timeout=60)
            assert successor.returncode == 0 and "standing by" in err, err
            os.kill(stale.pid, signal.SIGCONT)
        wait_until(lambda: len(sqlite_items(path) if kind == "sqlite" else jsonl_items(path)) == 300)
        stale.send_signal(signal.SIGTERM)
        _, err = stale.communicate(timeout=30)
    assert stale.returncode == 0, err
    items = sqlite_items(path) if kind == "sqlite" else jsonl_items(path)
    assert [item["data"]["number"] for item in items] == list(range(300))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_batch(number: signal.Signals, tmp_path: Path) -> None:
    on_bus(tmp_path, messages(range(100)))
    sink = ("--sink", "sqlite:///items.sqlite", "--batch-seconds", "3600", "--batch-size", "60")
    with consumer(tmp_path, *sink) as process:
        wait_until(lambda: stored(tmp_path) == 60)  # and the others have come with them
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert out == "100 items stored in sqlite:///items.sqlite\n" and stored(tmp_path) == 100


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    on_bus(tmp_path, messages(range(10)))
    read_end, write_end = os.pipe()
    environment = {**os.environ, "CRAWLBUS_PARENT_FD": str(read_end)}
    sink = ("--sink", "sqlite:///items.sqlite")
    with consumer(tmp_path, *sink, env=environment, pass_fds=[read_end]) as process:
        os.close(read_end)
        wait_until(lambda: stored(tmp_path) == 10)
        os.close(write_end)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")  # the last word is the other's


def test_until_drained_and_the_exit_codes(tmp_path: Path) -> None:
    sink = ("--sink", "sqlite:///items.sqlite", "--until-drained")
    code, _, err = consume(tmp_path, *sink, "--wait", "0.2")
    assert (
        code == 4 and err == "crawlbus: no job was started within 0.2 s: start it by `crawlbus crawl`, or set --wait\n"
    )
    on_bus(tmp_path, messages(range(10)), state=JobState.RUNNING)
    code, _, err = consume(tmp_path, *sink, "--time-limit", "0.5")
    assert code == 1 and "not drained within 0.5 s" in err
    on_bus(tmp_path, messages(range(10, 20)), state=JobState.FINISHED)
    code, out, err = consume(tmp_path, *sink, "--json")
    assert (code, err) == (0, "") and json.loads(out) == {"stored": 10, "quarantined": 0, "ended": "drained"}
    assert stored(tmp_path) == 20


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "no sink is set"),
        (("--sink", "items.db"), 2, "--sink must be a URL"),
        (("--sink", "sqlite:///none/items.db"), 3, "there is no directory none"),
        (("--sink", "sqlite:///text"), 3, "is not a database"),
        (("--sink", "sqlite:///x.db?table=a-b"), 2, "?table=a-b"),
        (("--sink", "jsonl:///text"), 2, "was not written by crawlbus"),
        (("--sink", "nosuch://x"), 2, "nosuch:// is no sink"),
        (("--sink", "sqlite:///x.db", "--name", "A/B"), 2, "--name"),
        (("--sink", "sqlite:///x.db", "--limit", "0"), 2, "--limit"),
        (("--sink", "sqlite:///x.db", "--bus", "memory://"), 2, "crawlbus crawl --sink"),
    ],
)
def test_mistakes_are_one_line_with_the_documented_code(
    arguments: tuple[str, ...], code: int, says: str, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("hello world\n" * 1000)
    found, out, err = consume(tmp_path, *arguments)
    assert (found, out) == (code, "")
    assert says in err and err.startswith("crawlbus: ") and err.count("\n") == 1
    assert (tmp_path / "text").read_text() == "hello world\n" * 1000


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    on_bus(tmp_path, *(messages(range(n, n + 60)) for n in range(0, 12_000, 60)), state=JobState.FINISHED)
    (tmp_path / "sink").mkdir()
    sink = ("--sink", f"sqlite:///{tmp_path / 'sink' / 'items.sqlite'}", "--until-drained", "--batch-size", "500")
    size_bytes = (tmp_path / "bus.db").stat().st_size + 1_000_000  # the bus has room for what it writes itself

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (min(size_bytes, 2_000_000),) * 2)

    code, _, err = consume(tmp_path, *sink, preexec_fn=no_room)
    assert code == 3 and "cannot be written" in err.splitlines()[-1] and "Traceback" not in err
    assert stored(tmp_path / "sink") < 12_000
    code, _, err = consume(tmp_path, *sink)
    assert (code, err) == (0, "") and stored(tmp_path / "sink") == 12_000
