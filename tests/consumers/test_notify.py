"""What systemd hears, at a real socket."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.process import PARENT_FD
from consumers.watch.notify import Notifier


class Clock:
    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """What has come since it was last asked: a datagram is there as soon as it is sent."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@crawlbus-test-{os.getpid()}"


@pytest.fixture
def systemd(address: str) -> Iterator[Systemd]:
    there = Systemd(address)
    yield there
    there.close()


def test_a_service_is_ready_once_and_stops(systemd: Systemd, address: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    for _ in range(3):
        notifier.ready()
    assert systemd.heard() == ["READY=1"]
    notifier.alive("5 items stored\nand more")
    notifier.alive("6 items stored")
    assert systemd.heard() == ["STATUS=5 items stored and more"]
    notifier.stopping()
    assert systemd.heard() == ["STOPPING=1"]
    notifier.close()
    notifier.close()
    notifier.ready()
    notifier.alive("7 items stored")


def test_the_watchdog_hears_each_third_of_its_time(tmp_path: Path) -> None:
    address, clock = str(tmp_path / "notify"), Clock()
    systemd = Systemd(address)
    notifier = Notifier(address, 30.0, clock)
    for _ in range(60):
        notifier.alive("well")
        clock.now_s += 0.5
    assert systemd.heard() == ["STATUS=well\nWATCHDOG=1"] * 3
    notifier.close()
    systemd.close()


@pytest.mark.parametrize(
    ("environment", "watched"),
    [
        ({"WATCHDOG_USEC": "3000000"}, True),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, True),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, False),
        ({"WATCHDOG_USEC": "soon"}, False),
        ({"WATCHDOG_USEC": "0"}, False),
        ({}, False),
    ],
)
def test_the_watchdog_is_fed_where_it_is_ours(environment: dict[str, str], watched: bool, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    systemd = Systemd(address)
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, **environment})
    notifier.alive("")
    assert systemd.heard() == ["STATUS=\nWATCHDOG=1" if watched else "STATUS="]
    notifier.close()
    systemd.close()


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "notify"])
def test_without_systemd_nothing_happens(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    systemd = Systemd("notify")
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.alive("well")
    notifier.stopping()
    notifier.close()
    assert systemd.heard() == []
    systemd.close()


def test_a_child_is_not_the_service(systemd: Systemd, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PARENT_FD, "9")
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"})
    notifier.ready()
    notifier.alive("well")
    assert systemd.heard() == []


def test_what_could_not_be_told_is_told_at_the_next_turn(tmp_path: Path) -> None:
    """Also where systemd is so busy that its queue is full: nobody waits for it."""
    address, clock = str(tmp_path / "notify"), Clock()
    notifier = Notifier(address, 30.0, clock)
    notifier.ready()
    notifier.alive("nobody is there")
    systemd = Systemd(address)
    told = 0
    while told < 100_000 and _fits(address):
        told += 1
    assert told < 100_000
    notifier.ready()
    notifier.alive("full")
    assert systemd.heard() == ["x"] * told
    notifier.ready()
    notifier.alive("there is room")
    assert systemd.heard() == ["READY=1", "STATUS=there is room\nWATCHDOG=1"]
    notifier.close()
    systemd.close()


def _fits(address: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        try:
            other.sendto(b"x", address)
        except BlockingIOError:
            return False
        return True


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_understands_the_unit_in_the_docs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text(encoding="utf-8")
    units = re.findall(r"^```ini\n# .*/(\S+\.service)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(units) == 1
    name, text = units[0]
    (tmp_path / "consumer.env").touch()
    unit = text.replace("/etc/crawlbus", str(tmp_path))
    (tmp_path / name).write_text(unit.replace("/opt/crawlbus/bin/crawlbus", shutil.which("true") or ""))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / name)], capture_output=True, text=True, check=False
    )
    assert [line for line in (done.stdout + done.stderr).splitlines() if name in line] == []
