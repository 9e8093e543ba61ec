"""A replay: a part of the item log once more into a sink, under a consumer name of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence, Set
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

from bus.errors import BusError, ConnectionLost, PositionExpired
from bus.message import Position
from bus.transport import Lag, Transport
from consumers.identity import Identity
from consumers.members import LEASE_S
from consumers.options import Ended
from consumers.outage import Outage
from consumers.pump import Expiries, while_keeping
from consumers.reader import LogReplaced
from consumers.replay.bounds import OfJob, Part, bounds_of, find_part
from consumers.replay.course import Course
from consumers.replay.options import ReplayOptions, ReplayResult
from consumers.replay.part_reader import PartReader, pump_part
from consumers.sieve import Sieve
from consumers.sink import Batch, Fenced, Gap, Limits, Progress, Sink, SinkUnavailable, Written
from consumers.through import Through

__all__ = ["Dropped", "replay", "warn_of_dropped"]

log = logging.getLogger(__name__)
T = TypeVar("T")

STANDBY_S = 1.0
RUNS_NOW = "another process runs this replay now: end it before you give --restart, or leave --restart out"


class Dropped(BusError):
    """The log does not hold what is to be replayed next; `gap` has the numbers."""

    def __init__(self, gap: Gap, *, begun: bool) -> None:
        what = f"this replay goes on at {gap.asked}" if begun else f"{gap.asked} was asked for"
        lost = gap.first.offset - gap.asked.offset
        why = f"the item log has dropped {lost:,} messages of it" if lost > 0 else "the item log is not the one it was"
        anew = "crawlbus replay --from earliest" + (" --restart" if begun else "")
        super().__init__(f"{what}, and {why}: it holds {gap.first} to {gap.end}; `{anew}` replays all that is there")
        self.gap = gap


async def replay(
    transport: Transport, sink: Sink, options: ReplayOptions, stop: asyncio.Event, *,
    through: Through | None = None, course: Course | None = None,
) -> ReplayResult:  # fmt: skip
    """Store a part of the log in the sink, from where an earlier run of the same replay has left off, until all is
    stored or `stop` is set. Closes none of its arguments.

    The bus keeps no trace of it, and the log is left as it is. Several processes with the same options share the
    partitions, or stand by. While the bus or the sink is not reachable it waits and goes on; told to end meanwhile, it
    raises what it waits for. Raises `Dropped`, `ThroughBroken`, `Misconfigured` or another `BusError` where it cannot
    go on; what is stored by then stays.
    """
    return await _Replay(transport, sink, options, stop, through, course or Course()).run()


class _Reshared(Exception):
    """Other partitions are held than this session began with."""


class _Replay:
    """One run: sessions one after another, each from the sink's position."""

    def __init__(
        self, transport: Transport, sink: Sink, options: ReplayOptions, stop: asyncio.Event, through: Through | None,
        course: Course,
    ) -> None:  # fmt: skip
        self._transport, self._sink, self._options, self._stop = transport, sink, options, stop
        self._through, self._course = through, course
        self._outage = Outage(stop, float("inf"))
        self._time = asyncio.get_running_loop().time
        self._result = ReplayResult(idle=True)
        self._part = Part({}, {})
        self._opened = self._begun = self._standing_by = False
        self._restart = options.restart
        self._batches = 0
        self._free_at = 0.0  # when the rate allows the next batch

    async def run(self) -> ReplayResult:
        expiries = Expiries()
        while True:
            try:
                ended = await self._session()
                self._outage.over()
                self._result.complete = ended is Ended.DRAINED
                self._result.failed = self._through.failed if self._through else 0
                return self._result
            except (ConnectionLost, SinkUnavailable) as error:
                if not await self._outage.wait(error):
                    raise
            except _Reshared:
                pass
            except Fenced as fenced:
                log.warning("%s: what it stores is not stored here", fenced)
                await self._rest(STANDBY_S)
            except LogReplaced:
                raise BusError(
                    "the item log is not the one that an earlier run of this replay has read: --restart begins anew"
                ) from None
            except PositionExpired as error:  # a new session sees whether the sink's own position is in the log
                if expiries.too_many(self._batches):
                    raise Dropped(Gap(error.asked, error.first, error.end), begun=self._begun) from None

    async def _session(self) -> Ended:
        options, name = self._options, self._options.topic
        if not self._opened:
            part = await _unless(self._stop, find_part(self._transport, name, options.start, options.end))
            if part is None:
                return Ended.STOPPED
            self._part = part
            await self._sink.open(options.name, name)
            self._opened = True
        held = await self._sink.hold(self._part.end.keys())
        if not held:
            return await self._stand_by()
        lag, _ = await bounds_of(self._transport, name)
        starts = {partition: self._start(partition, progress, lag) for partition, progress in held.items()}
        sieve = Sieve(self._limits, self._part, options.selection, self._through, self._stop.is_set)
        reader = PartReader(sieve, self._part, options.selection, lambda gap: self._on_gap(gap, held))
        positions = reader.begin(starts, lag, self._time())
        identity = Identity(self._transport, name, reader.known)
        await self._begin(held, starts, lag)
        return await self._pump(reader, positions, identity, held.keys())

    @property
    def _limits(self) -> Limits:
        """With a rate, no batch is worth more than a second."""
        best, rate = self._sink.limits, self._options.rate
        return best if rate is None else best._replace(items=max(1, min(best.items, int(rate))))

    # where to begin

    def _start(self, partition: int, progress: Progress | None, lag: Lag) -> Progress:
        if progress is not None and not self._restart:
            return progress
        start, first = self._part.start[partition], (lag.first or {}).get(partition, 0)
        if not isinstance(self._options.start, tuple) and start.offset < first:
            start = Position(partition, first)  # no position was asked for: it begins where the log does
        return Progress(start, "")

    def _on_gap(self, gap: Gap, held: Mapping[int, Progress | None]) -> bool:
        raise Dropped(gap, begun=held[gap.asked.partition] is not None and not self._restart)

    async def _begin(self, held: Mapping[int, Progress | None], starts: Mapping[int, Progress], lag: Lag) -> None:
        """Say where it goes on; with `restart`, go back to the beginning first."""
        if self._restart:
            if held.keys() != self._part.end.keys():
                raise BusError(RUNS_NOW)
            await self._sink.write(Batch(progress=dict(starts)))
        idle = all(start.next >= self._part.end[partition] for partition, start in starts.items())
        if not self._begun and any(held.values()) and not self._restart:
            self._result.resumed = True
            if not idle:
                where = ",".join(str(progress.next) for progress in starts.values())
                log.info("going on at %s, where an earlier run of this replay left off; --restart begins anew", where)
        elif not self._begun:
            warn_of_dropped(self._options, starts, lag)
        self._result.idle &= idle
        self._restart, self._begun, self._standing_by = False, True, False
        self._course.begin(self._part, (start.next for start in starts.values()))

    # reading and storing

    async def _pump(
        self, reader: PartReader, positions: Sequence[Position], identity: Identity, held: Set[int]
    ) -> Ended:
        async def store(batch: Batch) -> None:
            if (alarm := await identity.check()) is not None:
                await self._write(alarm)
                raise LogReplaced(min(alarm.progress))
            await self._store(batch)
            identity.stored(batch)

        async def ended() -> Ended | None:
            if self._stop.is_set():
                return Ended.STOPPED
            if not all(map(reader.has_finished, held)):
                return None
            return Ended.DRAINED if await self._is_stored(self._part.end.keys() - held) else None

        pumping = pump_part(
            self._transport, self._options.topic, reader, positions, store, ended, on_read=lambda _: self._outage.over()
        )
        return await while_keeping(pumping, self._keep(held))

    async def _store(self, batch: Batch) -> None:
        if self._options.rate is not None:
            await self._rest(self._free_at - self._time())
            self._free_at = max(self._free_at, self._time()) + len(batch.entries) / self._options.rate
        written = await self._write(batch)
        self._result.stored += written.stored
        self._result.quarantined += written.quarantined
        self._result.sanitized += written.sanitized
        self._batches += 1
        self._course.items_stored = self._result.stored
        self._course.reach(progress.next for progress in batch.progress.values())

    async def _write(self, batch: Batch) -> Written:
        outage = Outage(self._stop, float("inf"))
        while True:
            try:
                written = await self._sink.write(batch)
            except SinkUnavailable as error:
                if not await outage.wait(error):
                    raise
            else:
                outage.over()
                return written

    # sharing

    async def _is_stored(self, partitions: Set[int]) -> bool:
        """By the other processes of this replay."""
        part = self._part
        left = {p for p in partitions if part.start[p] < part.end[p]}
        if not left:
            return True
        stored = {progress.next.partition: progress.next for progress in await self._sink.positions()}
        return all(p in stored and stored[p] >= part.end[p] for p in left)

    async def _stand_by(self) -> Ended:
        """Until there is something to hold, or the others have done all."""
        if self._restart:
            raise BusError(RUNS_NOW)
        if not self._standing_by:
            log.warning("another process runs this replay: standing by")
        self._standing_by = self._result.resumed = True
        while not self._stop.is_set():
            if await self._is_stored(self._part.end.keys()):
                return Ended.DRAINED
            self._outage.over()
            await self._rest(STANDBY_S)
            if await self._sink.hold(self._part.end.keys()):
                raise _Reshared
        return Ended.STOPPED

    async def _keep(self, held: Set[int]) -> None:
        """Stay a member; raises `_Reshared` once our share is another one."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with suppress(ConnectionLost, SinkUnavailable):  # who reads and who stores will say so
                if (await self._sink.hold(self._part.end.keys())).keys() != held:
                    raise _Reshared

    async def _rest(self, seconds: float) -> None:
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), seconds)


def warn_of_dropped(options: ReplayOptions, starts: Mapping[int, Progress], lag: Lag) -> None:
    """A time or a job may have begun before the log does now; only what is asked for by position is certain."""
    first = lag.first or {}
    at = [progress.next for partition, progress in starts.items() if 0 < progress.next.offset == first.get(partition)]
    if at and isinstance(options.start, datetime | OfJob):
        log.warning("the log begins at %s: what it has dropped before that is not replayed", ",".join(map(str, at)))


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work returns; None if `stop` came first."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
