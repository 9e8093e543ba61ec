"""One line at the foot of the terminal while a consumer runs."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from bus.process import is_child
from consumers.watch.figures import Figures

__all__ = ["show_progress"]

WINDOW_S = 5.0  # the rate is that of the last seconds
REFRESH_PER_S = 2


@contextmanager
def show_progress(figures: Figures, *, as_json: bool = False) -> Iterator[None]:
    """Show them on standard error, where that is a terminal; nothing for a program, or in a child of a command.

    What is logged meanwhile is written above the line. A thread of its own refreshes it.
    """
    if as_json or is_child() or not sys.stderr.isatty():
        yield
        return
    console, line = _Console(stderr=True, highlight=False), _Line(figures)
    live = Live(
        get_renderable=line.render, console=console, transient=True, redirect_stdout=False,
        refresh_per_second=REFRESH_PER_S,
    )  # fmt: skip
    above = _Above(console)
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.StreamHandler)]
    handlers = [handler for handler in handlers if handler.stream is sys.stderr]
    for handler in handlers:
        handler.setStream(above)
    try:
        live.start(refresh=True)
        yield
    finally:
        live.stop()
        for handler in handlers:
            handler.setStream(sys.stderr)


class _Console(Console):
    """Leaves the cursor where it is seen: a kill would leave the terminal without one."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class _Above:
    """A stream for log lines. Unlike rich's own it breaks no long line in two."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str) -> None:
        self._console.out(text.removesuffix("\n"), highlight=False)

    def flush(self) -> None:
        pass


class _Line:
    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._samples: deque[tuple[float, int]] = deque()

    def render(self) -> Text:
        return Text(self._figures.line(self._items_per_s()), style="cyan", no_wrap=True, overflow="ellipsis")

    def _items_per_s(self) -> float:
        now_s, stored, samples = self._figures.clock(), self._figures.items_stored, self._samples
        samples.append((now_s, stored))
        while len(samples) > 2 and samples[1][0] <= now_s - WINDOW_S:
            samples.popleft()
        since_s, before = samples[0]
        return (stored - before) / (now_s - since_s) if now_s > since_s else 0.0
