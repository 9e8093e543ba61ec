"""The consumer: reads the item log from where the sink left off, and stores it in batches."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from bus.capabilities import Durability
from bus.errors import BusError, ConnectionLost, Misconfigured, PositionExpired, Unsupported
from bus.message import Delivery
from bus.state import State
from bus.topic import item_log
from bus.transport import Lag, Subscription, Transport
from consumers.batcher import MESSAGES, Batcher
from consumers.ending import LOOK_S, Ending
from consumers.identity import Identity
from consumers.jobs import JobsTold
from consumers.members import LEASE_S
from consumers.options import ConsumeOptions, ConsumeResult, Ended
from consumers.outage import Outage
from consumers.pump import IDLE_S, Expiries, Pump, while_keeping
from consumers.reader import LogGap, LogReader, LogReplaced, is_outside
from consumers.sink import Batch, Fenced, Gap, Limits, Progress, Sink, SinkUnavailable, Written
from consumers.teller import Teller
from consumers.watch.figures import Figures
from consumers.watch.watch import Watch

__all__ = ["consume"]

log = logging.getLogger(__name__)

STANDBY_S = 1.0  # how often one that holds nothing asks for its share
LOOK_AT_LOG_S = 10.0
FENCED_S = 1.0
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


async def consume(
    transport: Transport,
    state: State | None,
    sink: Sink,
    options: ConsumeOptions,
    stop: asyncio.Event,
    watch: Watch | None = None,
) -> ConsumeResult:
    """Store the item log in the sink, until `stop` is set or the options say so. Closes none of its arguments.

    Several with one name share the partitions of the log; where there are fewer partitions than consumers, the others
    stand by. While the bus or the sink is not reachable it waits and goes on; told to end meanwhile, it raises what it
    waits for (`ConnectionLost`, `SinkUnavailable`). Raises `LogGap`, `StorageFailed`, `Misconfigured`, `Unsupported`;
    what the sink has stored by then stays, and a new call goes on from there.
    The state is only read, and given the number of items stored; without one, `until_drained` is refused.
    """
    if _NAME.fullmatch(options.name) is None:
        raise Misconfigured(f"--name {options.name!r}: use a-z, 0-9, '.', '_' and '-', at most 63 of them")
    if options.until_drained and state is None:
        raise Misconfigured("--until-drained asks the state whether the jobs have ended: set --state")
    watch = watch or Watch(Figures(options.consumer, item_log(options.prefix).name))
    return await _Consumer(transport, state, sink, options, stop, watch).run()


class _Reshared(Exception):
    """Other partitions are held than this session began with."""


class _Consumer:
    """One run: sessions one after another, each from the sink's position."""

    def __init__(
        self,
        transport: Transport,
        state: State | None,
        sink: Sink,
        options: ConsumeOptions,
        stop: asyncio.Event,
        watch: Watch,
    ) -> None:
        self._watch, self._figures = watch, watch.figures
        self._transport, self._sink, self._options, self._stop = transport, sink, options, stop
        self._topic = item_log(options.prefix, options.retention_s)
        self._figures.batch_s = options.limits(sink.limits).seconds
        self._jobs = JobsTold(state, options.name)
        self._ending = Ending(options, self._jobs, stop, sink.positions, self._log_end)
        self._outage = Outage(stop, self._ending.deadline)
        self._result = ConsumeResult()
        self._time = asyncio.get_running_loop().time
        self._opened = self._standing_by = False
        self._replaced: frozenset[int] = frozenset()
        self._said = set[Gap]()
        self._known: frozenset[int] = frozenset({0})  # the partitions of the log; a bus that cannot tell has one
        self._asked_s = 0.0

    async def run(self) -> ConsumeResult:
        expiries = Expiries()
        while True:
            try:
                self._result.ended = await self._session()
                self._outage.over()
                return self._result
            except (ConnectionLost, SinkUnavailable) as error:
                self._figures.away("sink" if isinstance(error, SinkUnavailable) else "bus", str(error))
                self._watch.turn()
                if not await self._outage.wait(error):
                    raise
            except _Reshared:
                pass
            except Fenced as fenced:
                log.warning("%s: what it stores is not stored here", fenced)
                await self._rest(FENCED_S)
            except LogReplaced as replaced:
                self._replaced |= {replaced.partition}
            except PositionExpired as error:  # a new session sees whether the sink's own position is in the log
                if expiries.too_many(self._result.batches):
                    raise LogGap(self._options.consumer, Gap(error.asked, error.first, error.end)) from None

    async def _session(self) -> Ended:
        consumer, topic = self._options.consumer, self._topic.name
        if not self._opened:
            await self._transport.declare(self._topic)
            await self._sink.open(consumer, topic)
            self._opened = True
        lag = await self._lag()
        self._figures.back("bus")
        held = await self._hold()
        if not held:
            return await self._stand_by()
        if any(progress is not None and is_outside(progress, lag) for progress in held.values()):
            lag = await self._lag()  # who held it before us may have stored what came since we asked
        self._say_active(len(held))
        reader = LogReader(self._batcher(), self._options.job, self._on_gap, self._replaced)
        start = reader.begin(held, lag, self._time())
        prefetch = max(256, 4 * min(self._limits.items, MESSAGES))  # a batch of single items, and those on their way
        identity = Identity(self._transport, topic, reader.known)
        subscription = await self._transport.subscribe(
            topic, group=consumer, prefetch=prefetch, start=start or "earliest"
        )
        try:
            ended = await self._pump(reader, subscription, identity, held)
            if ended is Ended.DRAINED:
                await self._ack_all(reader, subscription)
            return ended
        finally:
            await subscription.aclose()

    @property
    def _limits(self) -> Limits:
        return self._options.limits(self._sink.limits)

    def _batcher(self) -> Batcher:
        limit = self._options.limit
        return Batcher(self._limits, None if limit is None else max(0, limit - self._result.stored))

    def _on_gap(self, gap: Gap) -> bool:
        """Whether to record it. A log that lives in one process is a new one in the next: nothing is lost."""
        if self._transport.capabilities.log_durability is Durability.PROCESS:
            return False
        if not self._options.accept_gap:
            raise LogGap(self._options.consumer, gap)
        if gap not in self._said:
            log.warning("the log does not hold %s; going on at %s", gap.asked, gap.first)
            self._said.add(gap)
        return True

    async def _lag(self) -> Lag:
        lag = await self._transport.lag(self._topic.name, group=self._options.consumer)
        self._known, self._asked_s = frozenset(lag.end or {0: 0}), self._time()
        self._figures.saw(lag)
        return lag

    async def _log_end(self) -> Lag:
        lag = await self._lag()
        if lag.end is None:
            raise Unsupported("this bus cannot tell where the item log ends: leave --until-drained out")
        return lag

    # sharing

    async def _stand_by(self) -> Ended:
        """Until there is something to hold, or the others have done all."""
        if not self._standing_by:
            log.warning("another consumer named %r stores all of the log: standing by", self._options.consumer)
        self._standing_by = True
        while (ended := await self._ending.reached(_Nothing())) is None:
            self._outage.over()
            self._watch.turn()
            await self._rest(STANDBY_S)
            await self._look()
            if await self._hold():
                raise _Reshared
        return ended

    def _say_active(self, held: int) -> None:
        if self._standing_by or held < len(self._known):
            log.warning("storing %d of %d partitions of the log", held, len(self._known))
        self._standing_by = False

    async def _keep(self, held: Mapping[int, object], identity: Identity) -> None:
        """Stay a member; raises `_Reshared` once our share is another one, `LogReplaced` once the log is."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with suppress(ConnectionLost):  # who reads will say so
                await self._look()
            try:
                now = await self._hold()
            except SinkUnavailable as error:
                self._figures.away("sink", str(error))
                continue
            if now.keys() != held.keys():
                raise _Reshared
            if identity.in_doubt:
                with suppress(ConnectionLost):
                    await self._verify(identity)

    async def _hold(self) -> Mapping[int, Progress | None]:
        held = await self._sink.hold(self._known)
        self._figures.hold(held)
        self._figures.back("sink")
        return held

    async def _look(self) -> None:
        """How far the log reaches, every now and then: asking is not cheap on every bus."""
        if self._time() >= self._asked_s + LOOK_AT_LOG_S:
            await self._lag()

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    # storing

    async def _pump(
        self, reader: LogReader, subscription: Subscription, identity: Identity, held: Mapping[int, Progress | None]
    ) -> Ended:
        async def store(batch: Batch) -> None:
            await self._verify(identity)
            await self._write(batch)
            identity.stored(batch)
            teller.stored(batch)

        async def ended() -> Ended | None:
            self._watch.turn()
            if (reason := await self._ending.reached(reader)) is not None:
                self._watch.stopping()
            return reason

        pump = Pump(
            reader, subscription, store, ended, on_read=self._on_read,
            idle_s=min(IDLE_S, LOOK_S) if self._options.until_drained else IDLE_S,
        )  # fmt: skip
        teller = Teller(subscription, self._jobs)
        try:
            return await while_keeping(pump.run(), self._keep(held, identity))
        finally:
            await teller.aclose()

    def _on_read(self, deliveries: Sequence[Delivery]) -> None:
        self._outage.over()
        self._figures.back("bus")
        self._figures.bytes_read += sum(len(delivery.message.body) for delivery in deliveries)

    async def _write(self, batch: Batch) -> None:
        """Until the sink has taken it; while it cannot, reading stops by itself, as the queue is full."""
        outage = Outage(self._stop, self._ending.deadline)
        while True:
            writing = asyncio.create_task(self._sink.write(batch))
            writing.add_done_callback(partial(self._count, batch, self._time()))
            try:
                await asyncio.shield(writing)
            except SinkUnavailable as error:
                self._figures.away("sink", str(error))
                self._watch.turn()
                if not await outage.wait(error):
                    raise
            except Fenced:
                outage.over()
                raise
            else:
                outage.over()
                return

    async def _verify(self, identity: Identity) -> None:
        if (alarm := await identity.check()) is not None:
            await self._write(alarm)
            raise LogReplaced(min(alarm.progress))

    def _count(self, batch: Batch, began_s: float, writing: asyncio.Task[Written]) -> None:
        """What is stored counts, also where nobody waits for it any more, as another share has begun."""
        if writing.cancelled() or writing.exception() is not None:
            return
        written = writing.result()
        self._figures.back("sink")
        self._figures.wrote(batch, written, self._time() - began_s)
        self._result.stored += written.stored
        self._result.quarantined += written.quarantined
        self._result.sanitized += written.sanitized
        self._result.batches += 1
        self._replaced = frozenset()  # the sink is at the new log now
        if written.quarantined:
            log.warning("%d entries went to the sink's quarantine", written.quarantined)

    async def _ack_all(self, reader: LogReader, subscription: Subscription) -> None:
        """All that was read is stored, also where an ack went astray: a job's last consumer leaves nothing held."""
        try:
            await subscription.ack(reader.furthest)
        except BusError as error:
            log.debug("the bus was not told the progress: %s", error)


class _Nothing:
    """What one reads who stands by."""

    def has_read(self, partition: int, offset: int) -> bool | None:
        return None
