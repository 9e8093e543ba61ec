"""`crawlbus replay` as a process: killed, interrupted, on a terminal, and told nonsense."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any

import pytest

from bus.cli import main
from bus.message import Position
from consumers.replay.bounds import Part
from consumers.replay.course import Course, show_course
from tests.consumers.replays import log_on, new_bus
from tests.consumers.scene import jsonl_items, query, sqlite_items

PROGRAM = [sys.executable, "-P", "-m", "bus.cli", "replay"]


@contextmanager
def replaying(directory: Path, bus: str, *words: str, **how: Any) -> Iterator[subprocess.Popen[str]]:
    """Killed at the end, if it has not ended by itself."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRAWLBUS_")}
    process = subprocess.Popen(
        [*PROGRAM, "--bus", bus, *words], cwd=directory, text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, **how},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def replay(directory: Path, bus: str, *words: str) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    with replaying(directory, bus, *words) as process:
        out, err = process.communicate(timeout=90)
        return process.returncode, out, err


def fill(url: str, count: int) -> None:
    async def publish() -> None:
        async with log_on(url) as here:
            await here.publish(range(count))

    asyncio.run(publish())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def numbers(path: Path) -> list[int]:
    """What is stored, of items and lines that are whole."""
    if path.suffix == ".jsonl":
        progress = path.with_name(path.name + ".progress")
        length = json.loads(progress.read_bytes())["length"] if progress.exists() else 0
        whole = path.read_bytes()[:length] if length else b""
        return [json.loads(line)["data"]["number"] for line in whole.splitlines()]
    if not path.exists() or not query(path, "SELECT 1 FROM sqlite_master WHERE name = 'items'"):
        return []
    return [item["data"]["number"] for item in sqlite_items(path)]


@pytest.mark.parametrize("kind", ["sqlite", "jsonl"])
@pytest.mark.parametrize("bus", ["sqlite", "kafka-4.1"])
def test_killed_again_and_again_it_stores_each_item_once(bus: str, kind: str, tmp_path: Path) -> None:
    url, path = new_bus(bus, tmp_path), tmp_path / f"items.{kind}"
    fill(url, 2000)
    words = ("--from", "earliest", "--sink", f"{kind}:///{path}")
    for _ in range(3):
        before = len(numbers(path))
        with replaying(tmp_path, url, *words, "--rate", "200") as process:
            wait_until(lambda: len(numbers(path)) > before)  # noqa: B023
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
    assert 0 < len(numbers(path)) < 2000
    if kind == "sqlite":  # an upsert that finds its row there would show
        query(path, "CREATE TRIGGER t BEFORE UPDATE ON items BEGIN SELECT raise(ABORT, 'stored twice'); END")
    code, out, err = replay(tmp_path, url, *words, "--json")
    assert code == 0 and "where an earlier run of this replay left off" in err
    told = json.loads(out)
    assert (told["ended"], told["resumed"], told["quarantined"]) == ("complete", True, 0)
    assert sorted(numbers(path)) == list(range(2000))
    assert replay(tmp_path, url, *words) == (
        0, f"This replay is complete, nothing was left to store in {kind}:///{path}; --restart does it anew.\n", "",
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_batch(number: signal.Signals, tmp_path: Path) -> None:
    url = new_bus("sqlite", tmp_path)
    fill(url, 1000)
    words = ("--from", "earliest", "--sink", "sqlite:///items.sqlite")
    with replaying(tmp_path, url, *words, "--rate", "100") as process:
        wait_until(lambda: len(numbers(tmp_path / "items.sqlite")) > 0)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    stored = len(numbers(tmp_path / "items.sqlite"))
    assert (process.returncode, err) == (0, "") and 0 < stored < 1000
    assert out == (
        f"{stored} items stored in sqlite:///items.sqlite; not complete: the same command goes on from here\n"
    )
    assert replay(tmp_path, url, *words)[1] == f"{1000 - stored} items stored in sqlite:///items.sqlite\n"
    assert numbers(tmp_path / "items.sqlite") == list(range(1000))


def test_the_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """Even where a function of the user's never returns."""
    url = new_bus("sqlite", tmp_path)
    fill(url, 10)
    (tmp_path / "mine.py").write_text("import time\ndef f(item):\n    open('begun', 'w')\n    time.sleep(3600)\n")
    words = ("--from", "earliest", "--sink", "sqlite:///items.sqlite", "--through", "mine:f")
    with replaying(tmp_path, url, *words) as process:
        wait_until((tmp_path / "begun").exists)

        def ended() -> bool:
            process.send_signal(signal.SIGINT)
            return process.poll() is not None

        wait_until(ended)
        assert process.returncode == 130


def test_through_a_module_of_the_current_directory(tmp_path: Path) -> None:
    url = new_bus("sqlite", tmp_path)
    fill(url, 20)
    (tmp_path / "mine.py").write_text(
        "import helper\ndef f(item):\n    if item['data']['number'] == 3: raise ValueError('three')\n"
        "    return {'data': helper.double(item['data'])}\n"
    )
    (tmp_path / "helper.py").write_text("def double(data):\n    return {'number': data['number'] * 2}\n")
    words = ("--from", "earliest", "--sink", "jsonl:///items.jsonl", "--through", "mine:f")
    code, out, err = replay(tmp_path, url, *words)
    assert code == 1 and out == "19 items stored in jsonl:///items.jsonl, 1 entries in quarantine\n"
    assert err == (
        "crawlbus: --through mine:f has failed for 1 items, which are in the sink's quarantine as they were: mend it,"
        " and replay once more with --restart\n"
    )
    assert [item["data"]["number"] for item in jsonl_items(tmp_path / "items.jsonl")] == [
        2 * number for number in range(20) if number != 3
    ]


def test_a_dry_run_creates_nothing(tmp_path: Path) -> None:
    url = new_bus("sqlite", tmp_path)
    fill(url, 100)
    before = content(tmp_path)
    for sink in ("sqlite:///items.sqlite", f"sqlite:///{tmp_path / 'bus.db'}?table=again", "jsonl:///items.jsonl"):
        words = ("--from", "earliest", "--dry-run", "--sink", sink)
        code, out, err = replay(tmp_path, url, *words)
        assert (code, err) == (0, "") and "100 items of 15 messages" in out and "Nothing was stored" in out
        assert ("cannot be compared" in out) == sink.startswith("jsonl")
        told = json.loads(replay(tmp_path, url, *words, "--json")[1])
        assert told["items"] == 100 and told["from"] == "0/0" and told["to"] == "0/15" and told["margin"] == 0
        assert told["jobs"] == [{"job": "shop", "spider": "shop", "items": 100}]
        assert content(tmp_path) == before
    assert replay(tmp_path, url, "--from", "0/3.2", "--dry-run")[0] == 0  # without a sink


def content(directory: Path) -> tuple[list[str], list[Any]]:
    return sorted(os.listdir(directory)), query(directory / "bus.db", "SELECT * FROM sqlite_master")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "--from"),
        (("--from", "earliest"), 2, "no sink is set"),
        (("--from", "noon", "--sink", "sqlite:///x.db"), 2, "--from 'noon' is no place in the log: write a position"),
        (("--from", "0/7", "--sink", "sqlite:///x.db"), 1, "--from 0/7 is not in the item log yet, which ends at 0/3"),
        (("--from", "3/0", "--sink", "sqlite:///x.db"), 1, "--from 3/0 is not in the item log yet"),
        (("--from", "job:x", "--sink", "sqlite:///x.db"), 1, "holds no item of job 'x'"),
        (("--from", "latest", "--sink", "sqlite:///x.db", "--through", "json"), 2, "write it as module:function"),
        (("--from", "latest", "--sink", "sqlite:///x.db", "--through", "json:x"), 2, "the module json has no x"),
        (("--from", "latest", "--sink", "sqlite:///x.db", "--through", "nosuch:x"), 2, "nosuch cannot be loaded"),
        (("--from", "latest", "--sink", "sqlite:///x.db", "--through", "leaving:x"), 2, "loaded: SystemExit: 7"),
        (("--from", "latest", "--sink", "sqlite:///x.db", "--through", "json:codecs"), 2, "is no function"),
        (("--from", "latest", "--sink", "sqlite:///x.db", "--rate", "0"), 2, "--rate"),
        (("--from", "latest", "--sink", "sqlite:///x.db", "--rate", "nan"), 2, "'nan' is not a finite number"),
        (("--from", "latest", "--sink", "sqlite:///x.db", "--rate", "inf"), 2, "'inf' is not a finite number"),
        (("--from", "latest", "--sink", "sqlite:///no/x.db"), 3, "no directory"),
        (("--from", "latest", "--sink", "sqlite:///x.db", "--bus", "sqlite:///no.db"), 2, "there is no bus file no.db"),
        (("--from", "latest", "--sink", "sqlite:///x.db", "--bus", "memory://x"), 2, "a memory:// bus lives in the"),
        (("--from", "latest", "--sink", "sqlite:///x.db", "--bus", "sqlite:///bus.db?prefix=x."), 1, "?prefix="),
    ],
)
def test_mistakes_are_one_line_with_the_documented_code(
    words: Sequence[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    fill(new_bus("sqlite", tmp_path), 20)
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(7)\n")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = sorted(os.listdir())
    assert main(["replay", "--bus", "sqlite:///bus.db", *words]) == code
    out, err = capsys.readouterr()
    assert out == "" and says in err and err.startswith("crawlbus: ") and err.count("\n") == 1
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("option", ["--wait", "--time-limit"])
def test_a_consumer_wants_finite_numbers_too(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.db"
    for number in ("nan", "inf"):
        assert main(["consume", "--bus", "memory://x", "--sink", f"sqlite:///{path}", option, number]) == 2
        assert f"'{option}': '{number}' is not a finite number" in capsys.readouterr().err
    assert not path.exists()


def test_on_a_terminal_there_is_a_bar(tmp_path: Path) -> None:
    url = new_bus("sqlite", tmp_path)
    fill(url, 1000)
    ours, theirs = pty.openpty()
    words = ("--from", "earliest", "--sink", "sqlite:///items.sqlite", "--rate", "100")
    with replaying(tmp_path, url, *words, stderr=theirs, env={**os.environ, "TERM": "xterm"}):
        os.close(theirs)
        shown = ""
        while not re.search(r"━─+ [1-9]\d*% · [1-9]\d+ items · [\d,]+ items/s · \d+ s left", shown):
            assert select([ours], [], [], 60)[0], shown
            shown += os.read(ours, 1000).decode(errors="replace")
    os.close(ours)


def test_elsewhere_there_is_a_line_from_time_to_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("consumers.replay.course.LINE_S", 0.01)
    course = Course()

    async def told(words: str) -> None:
        async with asyncio.timeout(30):
            while words not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def work() -> None:
        async with show_course(course):
            await told("looking where to begin")
            course.begin(Part({0: Position(0, 0)}, {0: Position(0, 10)}), [Position(0, 0)])
            await told("0% · 0 items")

    asyncio.run(work())


def test_the_share_is_that_of_messages_and_those_of_earlier_runs_count() -> None:
    now_s = 100.0
    course = Course(clock=lambda: now_s)
    part = Part({0: Position(0, 10), 1: Position(1, 0)}, {0: Position(0, 110), 1: Position(1, 99, 3)})
    course.begin(part, [Position(0, 30), Position(1, 0)])
    assert course.line() == "━━────────────────── 10% · 0 items · 0 items/s"
    course.items_stored, now_s = 6000, 110.0
    course.reach([Position(1, 80)])
    assert course.words() == "50% · 6,000 items · 600 items/s · 12 s left"
    course.reach([Position(0, 111), Position(1, 100)])
    assert course.line(1.0) == "━━━━━━━━━━━━━━━━━━━━ 100% · 6,000 items · 1 items/s"
    assert Course().words() == "looking where to begin"
