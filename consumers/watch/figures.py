"""`Figures`: how a running consumer stands."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, TypeAlias

from bus.transport import Lag
from bus.url import hide_secrets
from consumers.sink import Batch, Progress, Written

__all__ = ["WRITE_BOUNDS_S", "Figures", "Outage", "Share", "Stage", "System"]

System: TypeAlias = Literal["bus", "sink"]
WRITE_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Stage(Enum):
    """What a consumer is doing. On standby it holds no partition: others of its name hold all of them."""

    STARTING = "starting"
    STANDBY = "standby"
    ACTIVE = "active"
    STOPPING = "stopping"


@dataclass(slots=True)
class Share:
    """One partition that this consumer holds. `stored` is the offset of the first message that is not wholly stored,
    `end` the one that the next message of the log will get; None: not known."""

    stored: int | None
    end: int | None
    still_since_s: float  # when something was stored last; where nothing waited then, since when something does

    @property
    def lag(self) -> int | None:
        """Messages that wait to be stored; None where it is not known."""
        stored, end = self.stored, self.end
        return None if end is None or stored is None else max(0, end - stored)


@dataclass(frozen=True, slots=True)
class Outage:
    """The bus or the sink is away since `since_s`; `reason` is one sentence without secrets."""

    since_s: float
    reason: str


@dataclass(slots=True)
class Figures:
    """Written on the event loop of the consumer, read by any thread: its mappings are replaced, never changed.

    Times are seconds of `clock`, which never goes back. `write_counts` counts batches by how long their write took:
    up to each of `WRITE_BOUNDS_S`, and longer.
    """

    consumer: str
    topic: str
    batch_s: float = 0.0  # how old a batch gets
    clock: Callable[[], float] = time.monotonic
    stage: Stage = Stage.STARTING
    items_stored: int = 0
    quarantined: int = 0
    sanitized: int = 0
    gaps: int = 0
    bytes_read: int = 0
    batches: int = 0
    write_s: float = 0.0
    write_counts: list[int] = field(default_factory=lambda: [0] * (len(WRITE_BOUNDS_S) + 1))
    shares: Mapping[int, Share] = field(default_factory=dict)
    outages: Mapping[System, Outage] = field(default_factory=dict)
    looked_s: float | None = None  # when it was last seen how far the log reaches
    _first: Mapping[int, int] = field(default_factory=dict)
    _end: Mapping[int, int] = field(default_factory=dict)

    @property
    def lag(self) -> int | None:
        """Messages that wait in all partitions that it holds; None where it holds none, or one is not known."""
        lags = [share.lag for share in self.shares.values()]
        known = [lag for lag in lags if lag is not None]
        return sum(known) if lags and len(known) == len(lags) else None

    def hold(self, held: Mapping[int, Progress | None]) -> None:
        """These partitions are ours now, and no others, as far as they are stored. Harmless if repeated."""
        now_s, shares = self.clock(), {}
        for partition, progress in held.items():
            known = self.shares.get(partition) or Share(self._first.get(partition), self._end.get(partition), now_s)
            stored = known.stored if progress is None else progress.next.offset
            since_s = known.still_since_s if stored == known.stored else now_s
            shares[partition] = Share(stored, known.end, since_s)
        self.shares = shares
        if self.stage is not Stage.STOPPING:
            self.stage = Stage.ACTIVE if shares else Stage.STANDBY

    def saw(self, lag: Lag) -> None:
        """From where to where the log reaches now."""
        self._first, self._end, self.looked_s = lag.first or {}, lag.end or {}, self.clock()
        for partition, share in self.shares.items():
            if not share.lag:  # whoever waits, waits from now on
                share.still_since_s = self.looked_s
            share.stored = self._first.get(partition) if share.stored is None else share.stored
            share.end = self._end.get(partition)

    def wrote(self, batch: Batch, written: Written, seconds: float) -> None:
        """The sink has taken a batch, in so many seconds."""
        self.items_stored += written.stored
        self.quarantined += written.quarantined
        self.sanitized += written.sanitized
        self.gaps += len(batch.gaps)
        self.batches += 1
        self.write_s += seconds
        self.write_counts[bisect_left(WRITE_BOUNDS_S, seconds)] += 1
        now_s = self.clock()
        for partition, progress in batch.progress.items():
            if (share := self.shares.get(partition)) is not None:
                share.stored, share.still_since_s = progress.next.offset, now_s

    def away(self, system: System, reason: str) -> None:
        """The bus or the sink does not answer. Of one outage the beginning is kept, and the newest reason."""
        began = self.outages.get(system)
        since_s = self.clock() if began is None else began.since_s
        self.outages = {**self.outages, system: Outage(since_s, hide_secrets(" ".join(reason.split())))}

    def back(self, system: System) -> None:
        """It has answered."""
        if system in self.outages:
            self.outages = {name: outage for name, outage in self.outages.items() if name != system}
            now_s = self.clock()
            for share in self.shares.values():
                share.still_since_s = now_s

    def line(self, items_per_s: float | None = None) -> str:
        """All of it in one line, for people."""
        parts = [f"{self.items_stored:,} items stored"]
        if items_per_s is not None:
            parts.append(f"{items_per_s:,.0f} items/s")
        if (lag := self.lag) is not None:
            parts.append(f"{lag:,} messages behind")
        if self.quarantined:
            parts.append(f"{self.quarantined:,} in quarantine")
        if self.stage is not Stage.ACTIVE:
            parts.append(self.stage.value)
        now_s = self.clock()
        parts += [f"the {name} is away for {now_s - outage.since_s:,.0f} s" for name, outage in self.outages.items()]
        return " · ".join(parts)
