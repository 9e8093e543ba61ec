"""The consumer: reads the item log from where the sink left off, and stores it in batches."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from bus.backoff import Backoff
from bus.capabilities import Durability
from bus.errors import BusError, ConnectionLost, Misconfigured, PositionExpired, Unsupported
from bus.state import Job, JobState, JobStatus, State
from bus.topic import RETENTION_S, item_log
from bus.transport import Lag, Subscription, Transport
from consumers.batcher import BATCH_BYTES, BATCH_ITEMS, BATCH_SECONDS, Batcher
from consumers.reader import LogGap, LogReader, LogReplaced
from consumers.sink import Batch, Gap, Sink, SinkUnavailable, Written

__all__ = ["ConsumeOptions", "ConsumeResult", "Ended", "consume"]

log = logging.getLogger(__name__)

LOOK_S = 0.1  # how often the state is asked whether the jobs have ended
IDLE_S = 0.25  # the longest that one `receive` waits: how soon a stop is noticed
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_OVER = {JobState.FINISHED, JobState.STOPPED}


class Ended(Enum):
    """Why a consumer has ended."""

    STOPPED = "stopped"
    DRAINED = "drained"
    LIMIT = "limit"
    TIME = "time"
    NO_JOB = "no job"


@dataclass(frozen=True, slots=True)
class ConsumeOptions:
    """What `crawlbus consume` is told. Times in seconds, sizes in bytes; None: no limit.

    With `job`, only items of that job are stored; progress, fence and group on the bus are then those of `name:job`,
    so that two jobs may be stored side by side, and no item is passed over.
    `accept_gap`: where the log does not hold what comes next, go on at the first that it holds, and record the gap
    in the sink.
    """

    name: str = "default"
    prefix: str = "crawlbus."
    retention_s: float = RETENTION_S
    job: str | None = None
    batch_items: int = BATCH_ITEMS
    batch_bytes: int = BATCH_BYTES
    batch_seconds: float = BATCH_SECONDS
    until_drained: bool = False
    wait_s: float = 60.0
    limit: int | None = None
    time_limit_s: float | None = None
    accept_gap: bool = False

    @property
    def consumer(self) -> str:
        """The name under which the sink knows it, and its group on the bus."""
        return f"{self.name}:{self.job}" if self.job else self.name


@dataclass(slots=True)
class ConsumeResult:
    """What one run has done. `stored` counts items written, also those whose id the sink held already."""

    stored: int = 0
    quarantined: int = 0
    batches: int = 0
    ended: Ended = Ended.STOPPED


async def consume(
    transport: Transport, state: State | None, sink: Sink, options: ConsumeOptions, stop: asyncio.Event
) -> ConsumeResult:
    """Store the item log in the sink, until `stop` is set or the options say so. Closes none of its arguments.

    While the bus or the sink is not reachable it waits and goes on; told to end meanwhile, it raises what it waits
    for (`ConnectionLost`, `SinkUnavailable`). Raises `Fenced`, `LogGap`, `StorageFailed`,
    `Misconfigured`, `Unsupported`; what the sink has stored by then stays, and a new call goes on from there.
    The state is only read, and given the number of items stored; without one, `until_drained` is refused.
    """
    if _NAME.fullmatch(options.name) is None:
        raise Misconfigured(f"--name {options.name!r}: use a-z, 0-9, '.', '_' and '-', at most 63 of them")
    if options.until_drained and state is None:
        raise Misconfigured("--until-drained asks the state whether the jobs have ended: set --state")
    return await _Consumer(transport, state, sink, options, stop).run()


class _Consumer:
    """One run. A reader fills batches, a writer stores them: one is being filled, one waits, one is written."""

    def __init__(
        self,
        transport: Transport,
        state: State | None,
        sink: Sink,
        options: ConsumeOptions,
        stop: asyncio.Event,
    ) -> None:
        self._transport, self._state, self._sink = transport, state, sink
        self._options, self._stop = options, stop
        self._topic = item_log(options.prefix, options.retention_s)
        self._result = ConsumeResult()
        self._time = asyncio.get_running_loop().time
        self._began = self._next_look = self._time()
        self._end: Lag | None = None  # the log's end, taken after all jobs had ended
        self._opened = False
        self._replaced: frozenset[int] = frozenset()
        self._outage, self._state_away = _Outage(stop, self._deadline), False

    async def run(self) -> ConsumeResult:
        """Sessions one after another, each from the sink's position, until one comes to its end."""
        expired_at = -1  # batches stored when the last position was not found
        while True:
            try:
                await self._session()
                self._outage.over()
                return self._result
            except (ConnectionLost, SinkUnavailable) as error:
                if not await self._outage.wait(error):
                    raise
            except LogReplaced as replaced:
                self._replaced |= {replaced.partition}
            except PositionExpired as error:  # a new session sees whether the sink's own position is in the log
                if expired_at == self._result.batches:
                    raise LogGap(self._options.consumer, Gap(error.asked, error.first, error.end)) from None
                expired_at = self._result.batches

    async def _session(self) -> None:
        consumer, topic = self._options.consumer, self._topic.name
        if not self._opened:
            await self._transport.declare(self._topic)
            await self._sink.open(consumer, topic)
            self._opened = True
        stored = await self._sink.positions()
        lag = await self._transport.lag(topic, group=consumer)
        reader = LogReader(self._batcher(), self._options.job, self._on_gap, self._replaced)
        start = reader.begin(stored, lag, self._time())
        prefetch = max(256, 4 * self._options.batch_items)  # a batch of single items, and those on their way
        subscription = await self._transport.subscribe(
            topic, group=consumer, prefetch=prefetch, start=start or "earliest"
        )
        try:
            await self._pump(reader, subscription)
            if self._result.ended is Ended.DRAINED:
                await self._ack_all(reader, subscription)
        finally:
            await subscription.aclose()

    def _batcher(self) -> Batcher:
        options = self._options
        left = None if options.limit is None else max(0, options.limit - self._result.stored)
        return Batcher(
            max_items=options.batch_items,
            max_bytes=options.batch_bytes,
            max_age_s=options.batch_seconds,
            limit=left,
        )

    def _on_gap(self, gap: Gap) -> bool:
        """Whether to record it. A log that lives in one process is a new one in the next: nothing is lost."""
        if self._transport.capabilities.log_durability is Durability.PROCESS:
            return False
        if not self._options.accept_gap:
            raise LogGap(self._options.consumer, gap)
        log.warning("the log does not hold %s; going on at %s", gap.asked, gap.first)
        return True

    async def _pump(self, reader: LogReader, subscription: Subscription) -> None:
        """Read and write side by side. If reading fails, what was read is written first."""
        batches: asyncio.Queue[Batch | None] = asyncio.Queue(1)
        reading = asyncio.create_task(self._read(reader, subscription, batches))
        writing = asyncio.create_task(self._write(subscription, batches))
        try:
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
            await writing
            await reading
        finally:
            reading.cancel()
            writing.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)

    # reading

    async def _read(self, reader: LogReader, subscription: Subscription, batches: asyncio.Queue[Batch | None]) -> None:
        try:
            while (ended := await self._has_ended(reader)) is None:
                await self._read_once(reader, subscription, batches)
            self._result.ended = ended
            await batches.put(reader.last())
        except Exception:
            await batches.put(None)
            raise
        await batches.put(None)

    async def _read_once(
        self, reader: LogReader, subscription: Subscription, batches: asyncio.Queue[Batch | None]
    ) -> None:
        due_s = reader.due_in(self._time())
        if due_s is not None and due_s <= 0:
            await batches.put(reader.last())
            due_s = None
        timeout_s = min(IDLE_S, due_s or IDLE_S, LOOK_S if self._options.until_drained else IDLE_S)
        deliveries = await subscription.receive(max_messages=reader.fetch, timeout_s=timeout_s)
        self._outage.over()
        for delivery in deliveries:
            for batch in reader.take(delivery, self._time()):
                await batches.put(batch)
            if reader.exhausted:
                return

    async def _has_ended(self, reader: LogReader) -> Ended | None:
        if reader.exhausted:
            return Ended.LIMIT
        if (told := self._told_to_end()) is not None:
            return told
        if not self._options.until_drained:
            return None
        if self._end is None and self._time() >= self._next_look:
            jobs = await self._jobs()
            self._next_look = self._time() + LOOK_S
            if jobs is not None and not jobs and self._time() - self._began >= self._options.wait_s:
                return Ended.NO_JOB
            if jobs and all(job.state in _OVER for job in jobs):
                self._end = await self._log_end()
        return Ended.DRAINED if self._end is not None and reader.has_read(self._end) else None

    def _told_to_end(self) -> Ended | None:
        if self._stop.is_set():
            return Ended.STOPPED
        return Ended.TIME if self._time() >= self._deadline else None

    @property
    def _deadline(self) -> float:
        limit_s = self._options.time_limit_s
        return float("inf") if limit_s is None else self._began + limit_s

    async def _jobs(self) -> Sequence[JobStatus] | None:
        """The jobs whose end is waited for; None while the state cannot be asked."""
        assert self._state is not None
        try:
            if self._options.job is None:
                jobs = await self._state.jobs()
            else:
                status = await self._state.status(self._options.job)
                jobs = [] if status is None else [status]
        except ConnectionLost as error:
            self._say_state_away(error)
            return None
        self._say_state_back()
        return jobs

    async def _log_end(self) -> Lag:
        lag = await self._transport.lag(self._topic.name, group=self._options.consumer)
        if lag.end is None:
            raise Unsupported("this bus cannot tell where the item log ends: leave --until-drained out")
        return lag

    # writing

    async def _write(self, subscription: Subscription, batches: asyncio.Queue[Batch | None]) -> None:
        while (batch := await batches.get()) is not None:
            if not batch.progress:
                continue
            written = await self._store(batch)
            self._result.stored += written.stored
            self._result.quarantined += written.quarantined
            self._result.batches += 1
            self._replaced = frozenset()  # the sink is at the new log now
            if written.quarantined:
                log.warning("%d entries went to the sink's quarantine", written.quarantined)
            await self._tell(subscription, batch)

    async def _store(self, batch: Batch) -> Written:
        """Until the sink has taken it; while it cannot, reading stops by itself, as the queue is full."""
        outage = _Outage(self._stop, self._deadline)
        while True:
            try:
                written = await self._sink.write(batch)
            except SinkUnavailable as error:
                if not await outage.wait(error):
                    raise
            else:
                outage.over()
                return written

    async def _tell(self, subscription: Subscription, batch: Batch) -> None:
        """Let the bus and the state know. Both are for display and retention; the sink's word is what counts."""
        try:
            if batch.acks:
                await subscription.ack(list(batch.acks.values()))
        except BusError as error:
            log.debug("the bus was not told the progress: %s", error)
        if self._state is not None:
            await self._tell_state(self._state, batch)

    async def _tell_state(self, state: State, batch: Batch) -> None:
        stored = Counter(Job(entry.record.job, entry.record.run) for entry in batch.entries)
        try:
            for job, count in stored.items():
                await state.mark(job, (), counts={f"items_stored:{self._options.name}": count})
        except ConnectionLost as error:
            self._say_state_away(error)
        except BusError as error:
            log.debug("the state was not told the progress: %s", error)
        else:
            if stored:
                self._say_state_back()

    def _say_state_away(self, error: ConnectionLost) -> None:
        if not self._state_away:
            log.warning("the state is away, items are stored all the same: %s", error)
        self._state_away = True

    def _say_state_back(self) -> None:
        if self._state_away:
            log.warning("the state is back")
        self._state_away = False

    async def _ack_all(self, reader: LogReader, subscription: Subscription) -> None:
        """All that was read is stored, also where an ack went astray: a job's last consumer leaves nothing held."""
        try:
            await subscription.ack(reader.furthest)
        except BusError as error:
            log.debug("the bus was not told the progress: %s", error)


class _Outage:
    """Longer and longer waits while something is not reachable, and one line at each end of it."""

    def __init__(self, stop: asyncio.Event, deadline: float) -> None:
        self._stop, self._deadline = stop, deadline
        self._time = asyncio.get_running_loop().time
        self._backoff = Backoff(FIRST_PAUSE_S, MAX_PAUSE_S)
        self._began: float | None = None

    async def wait(self, error: BusError) -> bool:
        """False: told to end meanwhile."""
        if self._began is None:
            self._began = self._time()
            log.warning("waiting, and going on when it is back: %s", error)
        timeout_s = min(self._backoff.next_s(), self._deadline - self._time())
        try:
            await asyncio.wait_for(self._stop.wait(), max(0.0, timeout_s))
        except TimeoutError:
            return self._time() < self._deadline
        return False

    def over(self) -> None:
        """It has answered."""
        if self._began is not None:
            log.warning("going on after %.0f s", self._time() - self._began)
            self._began = None
            self._backoff.reset()
