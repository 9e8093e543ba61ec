"""Ends what the tests have started, however they end themselves.

A process of its own, that reads from a pipe what there is and what is gone again. The pipe closes with the tests, be it
by `kill -9`, and then all that is left is ended. Testcontainers' own reaper is an image, which not every machine has.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

__all__ = ["Reaper", "is_alive", "signal_group"]


class Reaper:
    """Things have a kind and a name: the process group 12, a directory, a container `<engine>,<id>`, an engine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-u", __file__], stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def add(self, kind: str, name: object) -> None:
        self._write(f"+ {kind} {name}")

    def remove(self, kind: str, name: object) -> None:
        self._write(f"- {kind} {name}")

    def _write(self, line: str) -> None:
        assert self._child.stdin is not None
        with self._lock:
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()

    def close(self) -> None:
        """End all that was not removed. Returns when it is gone."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


def main() -> None:
    left: dict[tuple[str, str], None] = {}
    for line in sys.stdin:
        sign, kind, name = line.rstrip("\n").split(" ", 2)
        if sign == "+":
            left[kind, name] = None
        else:
            left.pop((kind, name), None)
    for kind, name in reversed(left):
        with suppress(Exception):  # the others must go, too
            ENDS[kind](name)


def signal_group(group: int, number: signal.Signals) -> list[int]:
    """To the processes of that group, and to children that have left it, as PostgreSQL's do. Returns those."""
    os.killpg(group, signal.SIGSTOP)  # it makes no more of them
    left = _children(group)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    os.killpg(group, number)
    return left


def is_alive(pid: int) -> bool:
    """A zombie is not: it holds nothing any more."""
    try:
        return _stat(pid)[0] not in "ZX"
    except OSError:
        return False


def _children(parent: int) -> list[int]:
    """Those in another process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                _, its_parent, group = _stat(int(entry.name))[:3]
                if int(its_parent) == parent != int(group):
                    found.append(int(entry.name))
    return found


def _stat(pid: int) -> list[str]:
    """State, parent, group, and so on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _end_group(name: str) -> None:
    signal_group(int(name), signal.SIGKILL)


def _end_directory(name: str) -> None:
    shutil.rmtree(name, ignore_errors=True)


def _end_container(name: str) -> None:
    import docker

    host, _, identity = name.partition(",")
    with closing(docker.from_env(environment={"DOCKER_HOST": host})) as client:
        client.containers.get(identity).remove(force=True, v=True)


def _end_engine(directory: str) -> None:
    """Unless another process uses it, too."""
    import docker

    with open(f"{directory}/users", "w") as users:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with closing(docker.from_env(environment={"DOCKER_HOST": f"unix://{directory}/socket"})) as client:
            client.networks.prune()
        pid_file = Path(directory, "pid")
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
        deadline = time.monotonic() + 30
        while pid_file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)


ENDS = {"group": _end_group, "directory": _end_directory, "container": _end_container, "engine": _end_engine}

if __name__ == "__main__":
    main()
