"""One real server, and what all kinds of them share."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.servers.reaper import Reaper

__all__ = ["CACHE", "Kind", "Server", "Unavailable", "alone", "free_port", "reaper"]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crawlbus-tests"
START_TIMEOUT_S = 100.0


class Unavailable(Exception):
    """This machine cannot have that server. The text says why."""


class Kind(ABC):
    """A server in a version: its configuration, and how it is started as a process or in a container."""

    name: str
    version: str
    config_name: str
    port: int  # in a container
    hello: bytes  # any client's first words
    image: str = ""  # the public one; none: only a local process
    suite: str  # of Debian, that has the package in this version
    package: str
    image_changes: list[str] = []  # of an image from that package
    stop_signal = "SIGTERM"  # ends it in order
    close_signal = "SIGKILL"  # ends it at once, with what it holds outside of its directory

    @abstractmethod
    def url(self, port: int) -> str: ...

    @abstractmethod
    def is_answer(self, data: bytes) -> bool:
        """Whether a server that is ready says this to `hello`."""

    @abstractmethod
    def config(self, bind: str, port: int, options: Mapping[str, str]) -> str:
        """The configuration file. `options` are lines of it; data goes to the working directory."""

    @abstractmethod
    def command(self, config: str) -> list[str]:
        """What to run in a container."""

    def environment(self, config: str) -> dict[str, str]:
        """For the container."""
        return {}

    @abstractmethod
    def local_command(self, config: str) -> list[str]:
        """What to run here. Raises `Unavailable`."""

    def local_environment(self, directory: str, port: int) -> dict[str, str]:
        """Beside the test's own."""
        return {}

    def prepare(self, directory: str) -> None:
        """Before the first start here."""


class Server(ABC):
    """A server on loopback. Its port and its data stay over `stop`, `kill` and `start`; `close` ends and forgets it."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.port = kind, free_port()
        self.url = kind.url(self.port)

    def start(self) -> None:
        """Returns when it answers a client."""
        self._start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.answers():
            if not self._is_running() or time.monotonic() > deadline:
                raise RuntimeError(f"{self.kind.name} does not start: {self._log()[-2000:]}")
            time.sleep(0.01)

    def answers(self, timeout_s: float = 1.0) -> bool:
        """Whether it serves a client now."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
                connection.sendall(self.kind.hello)
                return self.kind.is_answer(connection.recv(64))
        except OSError:
            return False

    @abstractmethod
    def stop(self) -> None:
        """End it in order, as an operator would."""

    @abstractmethod
    def kill(self) -> None:
        """`kill -9`."""

    @abstractmethod
    def freeze(self) -> None:
        """It holds its connections, and does nothing, until `thaw`."""

    @abstractmethod
    def thaw(self) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """End it at once, and remove its data."""

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def _is_running(self) -> bool: ...

    @abstractmethod
    def _log(self) -> str: ...


_given: set[int] = set()
_lock = threading.Lock()


def free_port() -> int:
    """A port of loopback that nobody uses.

    Below those that the kernel gives to clients: one that tries to reach a server which is down could otherwise be
    given the server's port, and be connected to itself.
    """
    with _lock:
        while True:
            port = random.SystemRandom().randrange(20_000, 32_000)
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            if port not in _given:
                _given.add(port)
                return port


_reapers: list[Reaper] = []


def reaper() -> Reaper:
    """The one of this process."""
    with _lock:
        if not _reapers:
            _reapers.append(Reaper())
        return _reapers[0]


def new_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="crawlbus-test-"))
    reaper().add("directory", directory)
    return directory


@contextmanager
def alone(what: str) -> Iterator[None]:
    """One process and thread at a time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
