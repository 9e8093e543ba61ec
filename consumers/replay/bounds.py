"""What `--from` and `--to` of a replay mean, and which part of a log that is."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Set
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias, cast

from bus.errors import BusError, Closed, Misconfigured, TransportError, Unsupported
from bus.message import Delivery, Position, parse_positions
from bus.settings import JOB_NAME
from bus.transport import Lag, Seek, Transport

__all__ = ["OfJob", "Part", "Place", "bounds_of", "find_part", "parse_place", "past", "place_text"]

EPOCH = datetime.fromtimestamp(0, UTC)
EARLY_S = 600.0  # an item is published after it was scraped, but clocks may differ by so much
LATE_S = 24 * 3600.0  # so long a worker may have waited with an item for a bus that was away
PROBE_S, QUIET_S = 3.0, 0.5  # how long the first message is waited for, and then the first of another partition
PREFETCH = 256

Bounds: TypeAlias = "tuple[Mapping[int, int], Mapping[int, int]]"


@dataclass(frozen=True, slots=True)
class OfJob:
    """The items of a job, from the first of them to the last."""

    name: str


Place: TypeAlias = Literal["earliest", "latest"] | tuple[Position, ...] | datetime | OfJob


@dataclass(frozen=True, slots=True)
class Part:
    """Of each partition what stands from `start` on, and before `end`. Partitions that are not in it are left out."""

    start: Mapping[int, Position]
    end: Mapping[int, Position]

    def size(self, partition: int) -> int:
        """Offsets of a partition; a message that is cut in two counts."""
        return max(0, past(self.end[partition]) - self.start[partition].offset)


def past(end: Position) -> int:
    """The offset before which all messages are read that have something before `end`."""
    return end.offset + 1 if end.index else end.offset


def parse_place(option: str, text: str) -> Place:
    """`0/17.3,1/4`, a time (ISO 8601, else UTC), `earliest`, `latest` or `job:NAME`. Raises `Misconfigured`."""
    if text in ("earliest", "latest"):
        return cast(Literal["earliest", "latest"], text)
    if text.startswith("job:") and re.fullmatch(JOB_NAME, name := text.removeprefix("job:")):
        return OfJob(name)
    try:
        if "/" in text:
            positions = sorted(parse_positions(text))
            if len({position.partition for position in positions}) < len(positions):
                raise Misconfigured(f"{option} {text}: give one position for each partition")
            return tuple(positions)
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Misconfigured(
            f"{option} {text!r} is no place in the log: write a position such as 0/17 or 0/17.3,1/4,"
            " a time such as 2026-11-21T12:30 (UTC), earliest, latest or job:NAME"
        ) from None


def place_text(place: Place) -> str:
    """The same for the same place, however it was written."""
    match place:
        case str():
            return place
        case datetime():
            return place.isoformat()
        case OfJob(name):
            return f"job:{name}"
    return ",".join(map(str, place))


async def bounds_of(transport: Transport, topic: str) -> tuple[Lag, Bounds]:
    """The first offset kept and the next one to be given, by partition. Raises `BusError` where there is no log."""
    try:
        lag = await transport.lag(topic)
    except (TransportError, Misconfigured, Unsupported, Closed):
        raise
    except BusError:
        raise BusError(
            f"the bus has no item log {topic!r}: nothing was crawled there, or its URL needs another ?prefix="
        ) from None
    if lag.first is None or lag.end is None:
        raise Unsupported("this bus cannot tell where the item log begins and ends: nothing can be replayed from it")
    return lag, (lag.first, lag.end)


async def find_part(transport: Transport, topic: str, start: Place, end: Place) -> Part:
    """Where that is now. What the log has dropped of it is not looked at.

    `latest` is the log's end now. A time is that of scraping, by which the log has no order: the part holds all that
    was scraped in it, and more. It begins with what was published up to `EARLY_S` before, and ends where `LATE_S`
    have passed. Raises `BusError` for a job that the log does not hold, and for what lies behind its end.
    """
    _, (first, last) = await bounds_of(transport, topic)
    starts, ends = dict(first), dict(last)
    if isinstance(start, OfJob) or isinstance(end, OfJob):
        jobs = {at.name for at in (start, end) if isinstance(at, OfJob)}
        spans = await _spans(transport, topic, jobs, (first, last), to_last=isinstance(end, OfJob))
        if isinstance(start, OfJob):
            starts = dict(last) | {partition: span[0] for partition, span in spans[start.name].items()}
        if isinstance(end, OfJob):
            ends = dict(first) | {partition: span[1] for partition, span in spans[end.name].items()}
    if isinstance(start, datetime):
        starts |= await _published(transport, topic, _moved(start, -EARLY_S), (first, last))
    if isinstance(end, datetime):
        ends |= await _published(transport, topic, _moved(end, LATE_S), (first, last))
    part_start = _positions("--from", start, last if start == "latest" else starts, last)
    part_end = _positions("--to", end, first if end == "earliest" else ends, last)
    both = part_start.keys() & part_end.keys()
    if not both:
        raise Misconfigured("--from and --to name different partitions of the log: nothing lies between them")
    return Part({p: part_start[p] for p in sorted(both)}, {p: part_end[p] for p in sorted(both)})


def _positions(option: str, place: Place, offsets: Mapping[int, int], last: Mapping[int, int]) -> dict[int, Position]:
    if not isinstance(place, tuple):
        return {partition: Position(partition, offset) for partition, offset in offsets.items()}
    for position in place:
        if past(position) > last.get(position.partition, -1):
            held = ",".join(str(Position(*end)) for end in sorted(last.items()))
            raise BusError(f"{option} {position} is not in the item log yet, which ends at {held}")
    return {position.partition: position for position in place}


def _moved(at: datetime, by_s: float) -> datetime:
    """Never outside of what a bus and a datetime can hold: `9999-12-31` means for ever."""
    try:
        return max(EPOCH, at + timedelta(seconds=by_s))
    except OverflowError:
        return at if by_s > 0 else EPOCH


async def _published(transport: Transport, topic: str, at: datetime, bounds: Bounds) -> dict[int, int]:
    """The offset of the first message of each partition that was published at `at` or later.

    A partition is left out where there is none, or where the bus does not tell in time.
    """
    if at >= datetime.now(UTC):
        return {}
    waited_for = {partition for partition, end in bounds[1].items() if end > bounds[0].get(partition, 0)}
    found: dict[int, int] = {}
    now = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(PROBE_S) as waiting, aclosing(_read(transport, topic, at)) as deliveries:
            while waited_for - found.keys():
                delivery = await anext(deliveries)
                if found.setdefault(delivery.partition, delivery.offset) == delivery.offset:
                    waiting.reschedule(now() + QUIET_S)
    except TimeoutError:
        pass
    return found


async def _spans(
    transport: Transport, topic: str, jobs: Set[str], bounds: Bounds, *, to_last: bool
) -> dict[str, dict[int, tuple[int, int]]]:
    """Of each job, by partition: the offset of its first message, and the one behind its last.

    Without `to_last` a partition is read up to the first message of any of them only.
    """
    first, end = bounds
    found: dict[str, dict[int, tuple[int, int]]] = {job: {} for job in jobs}
    left = {partition for partition in end if end[partition] > first.get(partition, 0)}
    start = [Position(partition, first.get(partition, 0)) for partition in sorted(left)]
    async with aclosing(_read(transport, topic, start)) as deliveries:
        while left:
            delivery = await anext(deliveries)
            partition, offset = delivery.partition, delivery.offset
            if offset < end[partition] and (job := delivery.message.headers.get("job")) in jobs:
                spans = found[str(job)]
                spans[partition] = (spans.get(partition, (offset, 0))[0], offset + 1)
                if not to_last:
                    left.discard(partition)
            if offset + 1 >= end[partition]:
                left.discard(partition)
    for job, spans in found.items():
        if not spans:
            raise BusError(f"the item log holds no item of job {job!r}: see `crawlbus job list`")
    return found


async def _read(transport: Transport, topic: str, start: Seek) -> AsyncGenerator[Delivery, None]:
    """For ever."""
    subscription = await transport.subscribe(topic, prefetch=PREFETCH, start=start)
    try:
        while True:
            deliveries = await subscription.receive(max_messages=PREFETCH, timeout_s=1.0)
            for delivery in deliveries:
                yield delivery
            await subscription.ack(deliveries)
    finally:
        await subscription.aclose()
