"""`Child`: a process of a fleet that is started again when it dies, and leaves by itself when its parent does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from random import random

from bus.errors import ConnectionLost
from bus.process import AWAY, PARENT_FD
from spiders.relay import Relay

__all__ = ["OPENED", "READY", "READY_FD", "Child", "ChildFailed", "Reached"]

READY_FD = "CRAWLBUS_READY_FD"  # a pipe that hears how far a child has come:
OPENED, READY = b"o", b"r"  # it has the bus and the state; it has begun its first fetch
BACKOFF_S = (0.5, 30.0)
KILLED_S = 4.0  # the longest pause after a kill from outside, which may be for want of memory
FAILURES = 3
FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM})  # no process does that to itself by mistake


class ChildFailed(Exception):
    """It failed three times before its first fetch; `code` is its exit code, `errors` its last words."""

    def __init__(self, code: int, errors: str) -> None:
        super().__init__(errors)
        self.code, self.errors = code, errors


class Reached:
    """Whether any of ours has had the bus and the state: from then on, that they are away will pass."""

    def __init__(self, yes: bool = False) -> None:
        self.yes = yes


class Child:
    """Runs `python -m bus.cli ARGUMENTS` until it exits with a code in `final`; anything else is a death, and it is
    started again with backoff. Three deaths in a row before it was ready end it with `ChildFailed`; but where a bus or
    a state that were reached are away, it is started again until they are back."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        reached: Reached,
        *,
        final: frozenset[int] = frozenset({0, 130}),
        tells_ready: bool = True,
        kill_after_s: float = 35.0,
    ) -> None:
        self._arguments, self._environment, self._final = list(arguments), dict(environment), final
        self._reached, self._tells_ready, self._kill_after_s = reached, tells_ready, kill_after_s
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def run(self) -> int:
        """Until it has exited for good; returns its exit code."""
        failures, pause_s = 0, BACKOFF_S[0]
        while not self._stopping.is_set():
            code, ready, errors = await self._once()
            if away := code == AWAY:
                code = ConnectionLost.exit_code
            if code in self._final:
                return code
            if self._stopping.is_set():
                return 0 if away else max(code, 0)  # below nought: the signal came before it could take one
            outside = -code in FROM_OUTSIDE or (code < 0 and not self._tells_ready)
            if not (away and self._reached.yes):
                failures = 0 if ready or outside else failures + 1
            if ready:
                pause_s = BACKOFF_S[0]
            if failures >= FAILURES or (code == 2 and not (ready or self._reached.yes)):
                raise ChildFailed(code if code > 0 else 1, errors)
            self.restarts += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s * (0.5 + random() / 2))
                return 0
            pause_s = min(2 * pause_s, KILLED_S if outside else BACKOFF_S[1])
        return 0

    async def _once(self) -> tuple[int, bool, str]:
        parent_read, parent_write = os.pipe()
        ready_read, ready_write = os.pipe()
        environment = {**os.environ, **self._environment, PARENT_FD: str(parent_read)}
        passed = [parent_read]
        if self._tells_ready:
            environment[READY_FD] = str(ready_write)
            passed.append(ready_write)
        loop = asyncio.get_running_loop()
        heard, relay = bytearray(), Relay()
        loop.add_reader(ready_read, self._hear, ready_read, heard)
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "bus.cli", *self._arguments,
                stderr=relay.write, env=environment, pass_fds=passed, start_new_session=True,
            )  # fmt: skip
            await relay.begin()
            os.close(parent_read)
            os.close(ready_write)
            passed.clear()
            if self._stopping.is_set():
                self.stop()
            code = await self._process.wait()
            self._hear(ready_read, heard)  # it may have said so just now
            return code, READY in heard, await relay.last_words()
        finally:
            relay.close()
            loop.remove_reader(ready_read)
            if passed:
                os.close(parent_read)
                os.close(ready_write)
            os.close(parent_write)
            os.close(ready_read)

    def _hear(self, pipe: int, heard: bytearray) -> None:
        words = _read_now(pipe)
        heard += words
        self._reached.yes |= bool(heard)
        if not words:
            asyncio.get_running_loop().remove_reader(pipe)

    def stop(self) -> None:
        """Ask it to finish what it has begun and leave; it is killed after `kill_after_s`."""
        self._stopping.set()
        if self.pid is not None:
            self._send(signal.SIGTERM)
            asyncio.get_running_loop().call_later(self._kill_after_s, self.kill)

    def kill(self) -> None:
        """At once. Nothing is lost by it: what it held comes back."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.pid is not None:
            with suppress(ProcessLookupError):  # it has ended, and we are about to hear of it
                os.kill(self.pid, number)


def _read_now(fd: int) -> bytes:
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 16)
    except BlockingIOError:
        return b""
