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

__all__ = ["ProcessServer"]

STOP_TIMEOUT_S = 30.0


class ProcessServer(Server):
    """All its processes are one group. Raises `Unavailable`."""

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

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._wait_for_group()
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
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        reaper().remove("directory", self.directory)
