"""What a consumer is told, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bus.topic import RETENTION_S
from consumers.sink import Limits

__all__ = ["ConsumeOptions", "ConsumeResult", "Ended"]


class Ended(Enum):
    """Why a consumer has ended."""

    STOPPED = "stopped"
    DRAINED = "drained"
    LIMIT = "limit"
    TIME = "time"
    NO_JOB = "no job"


@dataclass(frozen=True, slots=True)
class ConsumeOptions:
    """What `crawlbus consume` is told. Times in seconds; None: no limit, or for a batch what the sink likes best.

    With `job`, only items of that job are stored; progress, members and group on the bus are then those of `name:job`,
    so that two jobs may be stored side by side, and no item is passed over.
    `accept_gap`: where the log does not hold what comes next, go on at the first that it holds, and record the gap
    in the sink.
    """

    name: str = "default"
    prefix: str = "crawlbus."
    retention_s: float = RETENTION_S
    job: str | None = None
    batch_items: int | None = None
    batch_bytes: int | None = None
    batch_seconds: float | None = None
    until_drained: bool = False
    wait_s: float = 60.0
    limit: int | None = None
    time_limit_s: float | None = None
    accept_gap: bool = False

    @property
    def consumer(self) -> str:
        """The name under which the sink knows it, and its group on the bus."""
        return f"{self.name}:{self.job}" if self.job else self.name

    def limits(self, best: Limits) -> Limits:
        """How large and how old batches get."""
        return Limits(
            self.batch_items or best.items,
            self.batch_bytes or best.size_bytes,
            best.seconds if self.batch_seconds is None else self.batch_seconds,
        )


@dataclass(slots=True)
class ConsumeResult:
    """What one run has done. `stored` counts items written, also those whose id the sink held already."""

    stored: int = 0
    quarantined: int = 0
    sanitized: int = 0
    batches: int = 0
    ended: Ended = Ended.STOPPED
