"""The line at the foot of a terminal, on a real one: a pty, and what a person would see on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from select import select

import pytest

from bus.message import Position
from bus.process import PARENT_FD
from consumers.sink import Progress
from consumers.watch.figures import Figures
from consumers.watch.progress import WINDOW_S, _Line

WIDTH = 80
LONG = "a log line that is longer than the terminal is wide: https://shop.example/" + "0123456789" * 12

# Stores 41 items, then as many as each line of standard input says; an empty line ends it.
SCRIPT = """
import logging, sys
from consumers.watch.figures import Figures
from consumers.watch.progress import show_progress
logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.INFO)
figures = Figures("default", "crawlbus.items", items_stored=41)
with show_progress(figures, as_json="--json" in sys.argv):
    logging.info("begun [red]"); logging.warning(sys.argv[1])
    print("a stray line", file=sys.stderr)
    while more := sys.stdin.readline().strip():
        figures.items_stored += int(more)
        logging.info("stored %s more", more)
logging.info("ended")
"""


class Screen:
    """A terminal, as far as it is needed: what is written, and what can be seen of it."""

    def __init__(self) -> None:
        self.rows, self._row, self._column = [""], 0, 0
        self.written = ""

    def feed(self, text: str) -> None:
        self.written += text
        for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|.", text, re.DOTALL):
            self._put(part)

    def _put(self, part: str) -> None:
        if part == "\r":
            self._column = 0
        elif part == "\n":
            self._down()
        elif part == "\x1b[2K":
            self.rows[self._row] = ""
        elif part == "\x1b[1A":
            self._row -= 1
        elif not part.startswith("\x1b"):
            if self._column == WIDTH:
                self._down()
                self._column = 0
            row = self.rows[self._row].ljust(self._column)
            self.rows[self._row] = row[: self._column] + part + row[self._column + 1 :]
            self._column += 1
        else:
            assert part.endswith("m"), f"unknown to this screen: {part!r}"

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.rows):
            self.rows.append("")


class Terminal:
    """A process whose standard error is a terminal."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process, self._master, self.screen = process, master, Screen()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def read_until(self, condition: Callable[[list[str]], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition(self.screen.rows):
            assert time.monotonic() < deadline, self.screen.rows
            assert self._read(), self.screen.rows

    def read_all(self) -> None:
        while self._read():
            pass

    def _read(self) -> bool:
        """False: the other end is closed."""
        if not select([self._master], [], [], 60)[0]:
            raise TimeoutError
        try:
            self.screen.feed(os.read(self._master, 65536).decode())
        except OSError:  # EIO
            return False
        return True


@contextmanager
def terminal(*arguments: str, **environment: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stdin=subprocess.PIPE, stderr=slave, env=_environment(environment)
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
        os.close(master)


def _environment(more: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "FORCE_COLOR", "NO_COLOR"}}
    return {**kept, "TERM": "xterm-256color", **more}


def log_of(rows: list[str]) -> list[str]:
    """What stands above the line."""
    return rows[:-1]


CUT = [LONG[at : at + WIDTH] for at in range(0, len(LONG), WIDTH)]


def test_the_line_stands_below_a_log_that_is_whole_and_leaves_nothing_behind() -> None:
    with terminal(LONG) as seen:
        seen.read_until(lambda rows: rows[-1].startswith("41 items stored · ") and "a stray line" in rows)
        log = ["begun [red]", *CUT, "a stray line"]
        assert log_of(seen.screen.rows) == log
        seen.say("1")
        seen.read_until(lambda rows: rows[-1].startswith("42 items stored · "))
        assert log_of(seen.screen.rows) == [*log, "stored 1 more"]
        seen.say("")
        seen.read_all()
        assert [row for row in seen.screen.rows if row] == [*log, "stored 1 more", "ended"]
        assert "\x1b[?25l" not in seen.screen.written, "a kill would leave the terminal without a cursor"
        assert seen.process.wait(60) == 0


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--json"], {}), ([], {PARENT_FD: "9"}), ([], {"TERM": "dumb"})],
    ids=["json", "child", "dumb terminal"],
)
def test_a_program_a_parent_and_a_dumb_terminal_get_no_line(arguments: list[str], environment: dict[str, str]) -> None:
    with terminal("x", *arguments, **environment) as seen:
        seen.say("1")
        seen.say("")
        seen.read_all()
    assert seen.screen.written.splitlines() == ["begun [red]", "x", "a stray line", "stored 1 more", "ended"]


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}], ids=["plain", "forced colours"])
def test_where_there_is_no_terminal_there_is_no_line(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, LONG], input=b"1\n\n", capture_output=True, env=_environment(environment),
        check=True,
    )  # fmt: skip
    assert done.stderr.decode().splitlines() == ["begun [red]", LONG, "a stray line", "stored 1 more", "ended"]
    assert done.stdout == b""


def test_the_rate_is_that_of_the_last_seconds() -> None:
    now_s = 0.0
    figures = Figures("default", "crawlbus.items", clock=lambda: now_s)
    figures.hold({0: Progress(Position(0, 0), "")})
    line = _Line(figures)
    assert str(line.render()) == "0 items stored · 0 items/s"
    for _ in range(20):
        now_s += 0.5
        figures.items_stored += 1000
        shown = str(line.render())
    assert shown == "20,000 items stored · 2,000 items/s"
    now_s += WINDOW_S / 2
    assert str(line.render()) == "20,000 items stored · 1,000 items/s"
    now_s += WINDOW_S / 2
    line.render()
    now_s += WINDOW_S / 2
    figures.quarantined = 3
    figures.away("sink", "locked")
    figures.hold({})
    now_s += 34
    shown = str(line.render())
    assert shown == "20,000 items stored · 0 items/s · 3 in quarantine · standby · the sink is away for 34 s"
