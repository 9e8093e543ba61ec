"""`Course`: how far a replay is, shown as a bar on a terminal, else as a line in the log from time to time."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

from bus.message import Position
from consumers.replay.bounds import Part
from consumers.watch.figures import Figures
from consumers.watch.progress import show_progress

__all__ = ["Course", "show_course"]

log = logging.getLogger(__name__)

LINE_S = 10.0
BAR = 20


@dataclass(slots=True)
class Course:
    """Filled in by whoever reads and stores; `items_stored` are those of this run. Times are those of `clock`, in s."""

    part: Part | None = None
    items_stored: int = 0
    clock: Callable[[], float] = time.monotonic
    _next: dict[int, int] = field(default_factory=dict)
    _began_s: float = 0.0
    _began_at: int = 0

    def begin(self, part: Part, starts: Iterable[Position]) -> None:
        """A part, and where storing goes on now."""
        first, self.part = self.part is None, part
        self.reach(starts)
        if first:
            self._began_s, self._began_at = self.clock(), self.done

    def reach(self, positions: Iterable[Position]) -> None:
        """All that stands before these is stored."""
        self._next |= {position.partition: position.offset for position in positions}

    @property
    def size(self) -> int:
        """Messages of the part."""
        return 0 if self.part is None else sum(map(self.part.size, self.part.end))

    @property
    def done(self) -> int:
        """Of these, how many are behind us, those of earlier runs included."""
        part = self.part
        if part is None:
            return 0
        ahead = {p: self._next.get(p, 0) - part.start[p].offset for p in part.end}
        return sum(max(0, min(count, part.size(p))) for p, count in ahead.items())

    @property
    def left_s(self) -> float | None:
        """How long the rest will take, at the speed of this run; None while that is not known."""
        gone = self.done - self._began_at
        return (self.size - self.done) * (self.clock() - self._began_s) / gone if gone > 0 else None

    def line(self, items_per_s: float | None = None) -> str:
        """A bar, and the words."""
        full = int(BAR * self._share)
        return f"{'━' * full}{'─' * (BAR - full)} {self.words(items_per_s)}"

    def words(self, items_per_s: float | None = None) -> str:
        """All of it, for people; by default with the speed of the whole run."""
        if self.part is None:
            return "looking where to begin"
        if items_per_s is None:
            items_per_s = self.items_stored / max(self.clock() - self._began_s, 1e-9)
        parts = [f"{self._share:.0%}", f"{self.items_stored:,} items", f"{items_per_s:,.0f} items/s"]
        if self._share < 1 and (left_s := self.left_s) is not None:
            parts.append(f"{_duration(left_s)} left")
        return " · ".join(parts)

    @property
    def _share(self) -> float:
        if self.part is None:
            return 0.0
        return self.done / self.size if self.size else 1.0


@asynccontextmanager
async def show_course(course: Course, *, as_json: bool = False) -> AsyncIterator[None]:
    """Show it on standard error."""
    if not as_json and sys.stderr.isatty():
        with show_progress(cast(Figures, course)):  # of which it asks for what a course has, too
            yield
        return
    telling = asyncio.create_task(_tell(course))
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def _tell(course: Course) -> None:
    while True:
        await asyncio.sleep(LINE_S)
        log.info("%s", course.words())


def _duration(seconds: float) -> str:
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest_s:02} s" if minutes else f"{rest_s} s"
