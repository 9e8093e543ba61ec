"""`Watch`: who looks after a consumer hears of it: systemd, a terminal, and whoever asks by HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from consumers.watch.figures import Figures, Stage
from consumers.watch.health import HealthServer, not_alive
from consumers.watch.notify import Notifier
from consumers.watch.progress import show_progress

__all__ = ["Watch", "watched"]


class Watch:
    """The consumer keeps `figures` up to date, and calls `turn` in the loop that does the work."""

    def __init__(self, figures: Figures, notifier: Notifier | None = None) -> None:
        self.figures, self._notifier = figures, notifier or Notifier()

    def turn(self) -> None:
        """Still there. A consumer that is not well does not feed its watchdog."""
        if self.figures.stage in (Stage.ACTIVE, Stage.STANDBY):
            self._notifier.ready()
        if not_alive(self.figures) is None:
            self._notifier.alive(self.figures.line())

    def stopping(self) -> None:
        """It has been told to end."""
        if self.figures.stage is not Stage.STOPPING:
            self.figures.stage = Stage.STOPPING
            self._notifier.stopping()


@contextmanager
def watched(figures: Figures, health: str | None, *, quiet: bool) -> Iterator[Watch]:
    """With all that the process was told to have: `health` is an address for HTTP. Raises `Misconfigured`."""
    server = HealthServer(health, figures) if health is not None else None
    notifier = Notifier.from_environment()
    try:
        with show_progress(figures, as_json=quiet):
            yield Watch(figures, notifier)
    finally:
        if server is not None:
            server.close()
        notifier.close()
