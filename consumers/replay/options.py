"""What a replay is told, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b

from bus.errors import Misconfigured
from consumers.replay.bounds import Place, place_text
from consumers.replay.selection import Selection

__all__ = ["ReplayOptions", "ReplayResult"]


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """From `start` on, and before `end`. `url` is a pattern, `through` a `module:function`; `rate` is in items/s.

    `restart`: forget how far an earlier run of the same replay has come.
    """

    topic: str
    start: Place
    end: Place = "latest"
    job: str | None = None
    spider: str | None = None
    url: str | None = None
    through: str | None = None
    rate: float | None = None
    restart: bool = False

    def __post_init__(self) -> None:
        start, end = self.start, self.end
        if isinstance(start, datetime) and isinstance(end, datetime) and start > end:
            raise Misconfigured("--from is later than --to: nothing lies between them")
        if isinstance(start, tuple) and isinstance(end, tuple):
            ends = {position.partition: position for position in end}
            if any(position > ends.get(position.partition, position) for position in start):
                raise Misconfigured("--from is behind --to: nothing lies between them")

    @property
    def name(self) -> str:
        """The consumer whose progress the sink keeps: the same for the same part, selection and function."""
        said = (self.topic, place_text(self.start), place_text(self.end), self.job, self.spider, self.url, self.through)
        return "replay-" + blake2b(repr(said).encode(), digest_size=6).hexdigest()

    @property
    def selection(self) -> Selection:
        """Which items are wanted."""
        since_s = self.start.timestamp() if isinstance(self.start, datetime) else None
        before_s = self.end.timestamp() if isinstance(self.end, datetime) else None
        return Selection(self.job, self.spider, self.url, since_s, before_s)


@dataclass(slots=True)
class ReplayResult:
    """What one run has done. `failed` counts the items for which the function has raised: they are in quarantine, too.

    `complete`: all of the part is stored. `resumed`: an earlier run had begun; `idle`: nothing was left to do.
    """

    stored: int = 0
    quarantined: int = 0
    sanitized: int = 0
    failed: int = 0
    complete: bool = False
    resumed: bool = False
    idle: bool = False
