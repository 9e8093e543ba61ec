"""What systemd is told of a service: that it is ready, alive, and stopping (sd_notify(3), Type=notify)."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Self

from bus.process import is_child

__all__ = ["Notifier"]

log = logging.getLogger(__name__)

STATUS_S = 10.0  # how often the status is told where there is no watchdog


class Notifier:
    """Datagrams to the socket that systemd names. Without one nothing is sent; no call waits, and none raises."""

    def __init__(
        self, address: str = "", watchdog_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """An address that begins with `@` is in Linux' abstract namespace."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._each_s, self._clock, self._next_s = (watchdog_s or 3 * STATUS_S) / 3, clock, float("-inf")
        self._watched, self._ready = watchdog_s is not None, False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address[:1] in ("@", "/") else None
        if self._socket is not None:
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """As systemd sets it up. A child of another command is silent: it is not the service."""
        if is_child():
            return cls()
        microseconds = environ.get("WATCHDOG_USEC", "")
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog_s = int(microseconds) / 1e6 if mine and microseconds.isdecimal() else 0.0
        return cls(environ.get("NOTIFY_SOCKET", ""), watchdog_s or None)

    def ready(self) -> None:
        """The service has started. Told once, however often it is called."""
        self._ready = self._ready or self._send("READY=1")

    def alive(self, status: str) -> None:
        """To be called at each turn of the loop that does the work. Told at most each third of the watchdog's time."""
        now_s = self._clock()
        if now_s >= self._next_s and self._send(
            f"STATUS={' '.join(status.split())}" + ("\nWATCHDOG=1" if self._watched else "")
        ):
            self._next_s = now_s + self._each_s

    def stopping(self) -> None:
        """The service has begun to stop."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Harmless if called twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> bool:
        if self._socket is None:
            return False
        try:
            self._socket.sendto(text.encode(errors="replace"), self._address)
        except OSError as error:
            log.debug("systemd was not told: %s", error)
            return False
        return True
