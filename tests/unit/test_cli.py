"""The command frame: exit codes, one line for each error, settings, help; and the commands of `bus` on a real file."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click
import pytest

from bus import cli as frame
from bus.cli import Call, common, main, setting
from bus.errors import BusError, ConnectionLost, Misconfigured
from bus.jobs import job_row
from bus.message import Message
from bus.registry import connect_state, connect_transport
from bus.state import JobState, State, WorkerReport
from bus.topic import request_queue
from bus.transport import Transport

BUS = "sqlite:///crawl.db"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in an empty directory, with nothing in the environment; returns exit code, out, err."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())  # Scrapy adds the project's directory
    for name in frame.os.environ.copy():
        if name.startswith("CRAWLBUS_"):
            monkeypatch.delenv(name)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Add a command named `odd` for the time of a test."""

    def put(body: Callable[..., Any]) -> None:
        monkeypatch.setitem(
            frame.cli.commands, "odd", click.command("odd")(setting("sink", "URL")(common(body)))
        )
        monkeypatch.setattr(type(frame.cli), "get_command", click.Group.get_command)

    return put


def on_the_bus(work: Callable[[Transport, State], Coroutine[Any, Any, None]]) -> None:
    """Do something with the bus and the state in the working directory's `crawl.db`."""

    async def connected() -> None:
        transport, state = await connect_transport(BUS), await connect_state(BUS)
        try:
            await work(transport, state)
        finally:
            await state.aclose()
            await transport.aclose()

    asyncio.run(connected())


async def two_jobs(transport: Transport, state: State) -> None:
    """`shop`: three pages known, one finished, two queued of which one is delayed; `news`: empty."""
    job = (await state.join("shop", spider="shop")).job
    await state.join("news", spider="news")
    queue = request_queue("crawlbus.", "shop", "high")
    await transport.declare(queue)
    await transport.publish(queue.name, [Message("a", b""), Message("b", b"", not_before=4e9)])
    pages = [bytes([number]) * 16 for number in range(3)]
    counts = {"pages": 1, "items": 5, "dead": 2, "dead.callback": 2, "items_stored:default": 3}
    await state.mark(job, pages, finish=pages[:1], counts=counts)
    await state.acquire(job, "worker:w1", "w1")
    await state.report(job, WorkerReport("w1", in_flight=1, ready=0))


# errors


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Misconfigured("--x is wrong: mend it"), 2, "crawlbus: --x is wrong: mend it\n"),
        (
            ConnectionLost("redis://u:secret@h does not answer"),
            3,
            "crawlbus: redis://u:***@h does not answer\n",
        ),
        (KeyError("x"), 1, "crawlbus: a bug: KeyError: 'x' (-v shows the traceback)\n"),
        (ExceptionGroup("g", [ValueError("v"), ConnectionLost("gone")]), 3, "crawlbus: gone\n"),
        (KeyboardInterrupt(), 130, "\n"),
        (click.UsageError("no"), 2, "crawlbus: no See: crawlbus odd --help\n"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    run: Run, add: Callable[..., None], error: BaseException, code: int, line: str
) -> None:
    def body(call: Call) -> None:
        raise error

    add(body)
    assert run("odd") == (code, "", line)


def test_v_shows_the_traceback_without_secrets(run: Run, add: Callable[..., None]) -> None:
    def body(call: Call) -> None:
        raise ValueError("redis://u:secret@h")

    add(body)
    code, _, err = run("odd", "-v")
    assert code == 1
    assert "Traceback" in err
    assert "secret" not in err.replace("without_secrets", "").replace('"redis://u:secret@h"', "")


def test_a_command_gets_its_settings_and_its_return_value_is_the_exit_code(
    run: Run, add: Callable[..., None]
) -> None:
    def body(call: Call) -> int:
        settings = call.settings()
        call.answer({"sink": settings.sink}, settings.sink or "")
        return 4

    add(body)
    assert run("odd", "--sink", "jsonl:///[x]") == (4, "jsonl:///[x]\n", "")
    assert run("odd", "--sink", "jsonl:///x", "--json") == (4, '{"sink": "jsonl:///x"}\n', "")


@pytest.mark.parametrize("arguments", [("status", "--nope"), ("nope",), ("job", "show", "a", "b")])
def test_wrong_usage_is_2(run: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("crawlbus: ")
    assert err.count("\n") == 1


def test_version_and_help(run: Run) -> None:
    code, out, _ = run("--version")
    assert (code, out.startswith("crawlbus, version ")) == (0, True)
    code, out, err = run("-h")
    assert (code, err) == (0, "")
    assert {"crawl", "consume", "seed", "status", "pause", "dead", "job", "doctor", "config", "demo"} <= set(
        out.split()
    )


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    assert reader.stdin is not None
    command = [sys.executable, "-m", "bus.cli", "config"]
    done = subprocess.run(
        command, stdout=reader.stdin, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False
    )
    reader.stdin.close()
    assert (done.returncode, done.stderr) == (1, "")


# config


def test_config_shows_values_sources_and_no_secret(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRAWLBUS_STATE", "redis://u:secret@h/0")
    code, out, _ = run("config", "--json", "--job", "shop")
    shown = json.loads(out)
    assert code == 0
    assert shown["state"] == {"value": "redis://u:***@h/0", "source": "CRAWLBUS_STATE"}
    assert shown["job"] == {"value": "shop", "source": "--job"}
    assert shown["bus"] == {"value": "sqlite:///crawlbus.db", "source": "default"}
    assert "secret" not in run("config")[1]


# status and jobs


def test_to_look_makes_no_file(run: Run, tmp_path: Path) -> None:
    assert run("status", "--json") == (0, '{"jobs": []}\n', "")
    assert run("job", "list", "--json") == (0, '{"jobs": []}\n', "")
    assert run("pause")[0] == run("job", "forget", "x")[0] == 2
    run("doctor")
    assert list(tmp_path.iterdir()) == []


def test_status_is_as_documented(run: Run) -> None:
    async def look(transport: Transport, state: State) -> None:
        await two_jobs(transport, state)
        status = await state.status("shop")
        assert status is not None
        row = await job_row(status, transport, "crawlbus.")
        assert row.as_json() == {
            "job": "shop", "spider": "shop", "state": "running", "open": 2, "queued": 1, "in_flight": 1, "delayed": 1,
            "dead": 2, "items_published": 5, "items_stored": {"default": 3}, "workers": 1, "waiting": 0,
            "unaccounted": 0,
        }  # fmt: skip

    run("config")  # in the empty directory
    on_the_bus(look)
    code, out, _ = run("status", "--bus", BUS, "--json")
    assert code == 0
    jobs = json.loads(out)["jobs"]
    assert [(job["job"], job["open"], job["delayed"]) for job in jobs] == [("news", 0, 0), ("shop", 2, 1)]
    assert [
        job["job"] for job in json.loads(run("status", "--bus", BUS, "--json", "--job", "shop")[1])["jobs"]
    ] == ["shop"]

    async def look_again(transport: Transport, _: State) -> None:
        with pytest.raises(BusError):
            await transport.lag(request_queue("crawlbus.", "news").name)

    on_the_bus(look_again)  # to look has made no queue
    assert "3 (default)" in run("status", "--bus", BUS)[1]


def test_a_job_is_paused_resumed_stopped_and_forgotten(run: Run) -> None:
    async def look(transport: Transport, state: State) -> None:
        states.append([(job.job.name, job.state) for job in await state.jobs()])

    states: list[list[tuple[str, JobState]]] = []
    on_the_bus(two_jobs)
    several = "crawlbus: there are several jobs here: set --job to one of news, shop\n"
    assert run("pause", "--bus", BUS) == (2, "", several)
    assert run("pause", "--bus", BUS, "--job", "shop") == (0, "shop is paused\n", "")
    on_the_bus(look)
    assert run("resume", "--bus", BUS, "--job", "shop") == (0, "shop is running\n", "")
    assert run("stop", "--bus", BUS, "--job", "nope")[::2] == (
        2, "crawlbus: there is no job 'nope' here: set --job to one of news, shop\n",
    )  # fmt: skip
    assert run("job", "forget", "news", "--bus", BUS)[0] == 0
    assert run("stop", "--bus", BUS) == (0, "shop is stopped\n", "")  # the only one that is left
    on_the_bus(look)
    assert [dict(found)["shop"] for found in states] == [JobState.PAUSED, JobState.STOPPED]
    assert len(states[1]) == 1


def test_job_list_and_show(run: Run) -> None:
    on_the_bus(two_jobs)
    assert [job["job"] for job in json.loads(run("job", "list", "--bus", BUS, "--json")[1])["jobs"]] == [
        "news",
        "shop",
    ]
    shown = json.loads(run("job", "show", "shop", "--bus", BUS, "--json")[1])
    assert (shown["run"], shown["counters"]["dead.callback"]) == (1, 2)
    code, out, _ = run("job", "show", "--job", "shop", "--bus", BUS)
    assert code == 0
    assert "counters dead.callback" in out


def test_watch_looks_again_until_it_is_told_to_end(run: Run, tmp_path: Path) -> None:
    run("config")
    on_the_bus(two_jobs)
    command = [sys.executable, "-m", "bus.cli", "status", "--bus", BUS, "--watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as watcher:
        assert watcher.stdout is not None
        lines = [json.loads(watcher.stdout.readline()) for _ in range(2)]
        watcher.send_signal(signal.SIGTERM)
        assert watcher.wait(20) == 0
    assert [len(line["jobs"]) for line in lines] == [2, 2]


# doctor


def test_doctor_finds_all_in_order(run: Run) -> None:
    on_the_bus(two_jobs)
    code, out, err = run("doctor", "--bus", BUS, "--sink", "jsonl:///items.jsonl", "--json")
    found = {check["what"]: check for check in json.loads(out)["checks"]}
    assert (code, err) == (0, "")
    assert {"bus", "state", "sink", "directory", "disk", "clock", "packages", "versions"} <= found.keys()
    assert {check["verdict"] for check in found.values()} <= {"ok", "note"}
    assert found["bus"]["found"] == f"{BUS} answers"


@pytest.mark.parametrize(
    ("flags", "code", "what", "mend"),
    [
        (("--bus", "sqlite:////no/such/place/x.db"), 3, "directory", "make it"),
        (("--bus", "sqlite:///text.db"), 3, "bus", "--bus"),
        (("--bus", "amqp://u:secret@127.0.0.1:1/"), 3, "state", "--state"),
        (("--bus", "amqp://u:secret@127.0.0.1:1/", "--state", "sqlite:///s.db"), 3, "bus", "--bus"),
        (("--bus", "foo"), 2, "settings", "--bus"),
        (("--sink", "foo:///x"), 2, "sink", "--sink"),
    ],
)
def test_doctor_says_how_to_mend(
    run: Run, tmp_path: Path, flags: tuple[str, ...], code: int, what: str, mend: str
) -> None:
    (tmp_path / "text.db").write_text("no database at all\n" * 100)
    found_code, out, _ = run("doctor", *flags, "--json")
    faults = {check["what"]: check for check in json.loads(out)["checks"] if check["verdict"] == "fault"}
    assert found_code == code
    assert mend in faults[what]["found"] + faults[what]["mend"]
    assert "secret" not in out


def test_doctor_finds_a_hidden_package(run: Run, tmp_path: Path) -> None:
    (tmp_path / "scrapy.cfg").write_text("")
    (tmp_path / "spiders.py").write_text("")
    code, out, _ = run("doctor", "--json")
    assert code == 2
    assert str(tmp_path / "spiders.py") in out
