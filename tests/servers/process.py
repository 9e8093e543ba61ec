"""A server that is a process of this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress

from tests.servers.base import Kind, Server, new_directory, reaper
from tests.servers.reaper import is_alive, signal_group

__all__ = ["ProcessServer"]

STOP_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 10.0


class ProcessServer(Server):
    """All its processes are one group, or children of the first one. Raises `Unavailable`."""

    def __init__(self, kind: Kind, options: Mapping[str, str]) -> None:
        kind.local_command("")
        super().__init__(kind)
        self.directory = new_directory()
        self._config = self.directory / kind.config_name
        self._config.write_text(kind.config("127.0.0.1", self.port, options))
        kind.prepare(str(self.directory))
        self._environment = os.environ | kind.local_environment(str(self.directory), self.port)
        self._process: subprocess.Popen[bytes] | None = None

    def _start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.kind.local_command(str(self._config)),
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        reaper().add("group", self._process.pid)

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def _signal(self, number: signal.Signals) -> list[int]:
        assert self._process is not None
        with suppress(ProcessLookupError):
            return signal_group(self._process.pid, number)
        return []

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.Signals[self.kind.stop_signal])
        self._process.wait(STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        if self._process is not None:
            left = self._signal(signal.SIGKILL)
            self._process.wait()
            self._wait_for_group()
            while any(map(is_alive, left)):
                time.sleep(0.002)
            reaper().remove("group", self._process.pid)
            self._process = None

    def _wait_for_group(self) -> None:
        """A child of what we have started may die a little later, and holds the port until then."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            while True:
                os.killpg(self._process.pid, 0)
                time.sleep(0.002)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        if self._is_running():
            assert self._process is not None
            self.thaw()
            self._process.send_signal(signal.Signals[self.kind.close_signal])
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSE_TIMEOUT_S)
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        reaper().remove("directory", self.directory)
