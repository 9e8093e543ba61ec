"""What a replay would do: the same reading, and nothing stored."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bus.errors import Unsupported
from bus.transport import Transport
from consumers.options import Ended
from consumers.replay.bounds import Part, bounds_of, find_part
from consumers.replay.course import Course
from consumers.replay.options import ReplayOptions
from consumers.replay.part_reader import PartReader, pump_part
from consumers.replay.replay import Dropped, warn_of_dropped
from consumers.rows import make_rows
from consumers.sieve import Sieve
from consumers.sink import Batch, Changes, Entry, Gap, Limits, Progress, Sink
from consumers.through import Through

__all__ = ["Look", "look"]


@dataclass(slots=True)
class Look:
    """What was found in a part of the log. `first` are the offsets that the log keeps from on; times in s since the
    epoch, of scraping. `refused` counts what would go to quarantine, as far as that can be told without storing it;
    `changes` counts the ids of each batch: None where the sink cannot look rows up."""

    part: Part
    first: Mapping[int, int]
    messages: int = 0
    items: int = 0
    size_bytes: int = 0
    refused: int = 0
    jobs: Counter[tuple[str, str]] = field(default_factory=Counter)
    oldest_s: float | None = None
    newest_s: float | None = None
    changes: Changes | None = None
    complete: bool = False

    @property
    def margin(self) -> int:
        """Messages that the log would drop before the first one of the part."""
        starts = (at for at in self.part.start.values() if self.part.size(at.partition))
        return min((at.offset - self.first.get(at.partition, 0) for at in starts), default=0)


async def look(
    transport: Transport, sink: Sink | None, options: ReplayOptions, stop: asyncio.Event, *,
    through: Through | None = None, course: Course | None = None,
) -> Look:  # fmt: skip
    """What a replay that begins anew would store; the function is called for it. Nothing is created or changed.

    Raises as `replay` does, and `ConnectionLost` at once.
    """
    part = await find_part(transport, options.topic, options.start, options.end)
    lag, (first, _) = await bounds_of(transport, options.topic)
    found = Look(part, first, changes=None if sink is None else Changes(0, 0, 0))
    sieve = Sieve(sink.limits if sink else Limits(), part, options.selection, through, stop.is_set)
    reader = PartReader(sieve, part, options.selection, _refuse)
    starts = {partition: Progress(start, "") for partition, start in part.start.items()}
    positions = reader.begin(starts, lag, asyncio.get_running_loop().time())
    warn_of_dropped(options, starts, lag)
    course = course or Course()
    course.begin(part, part.start.values())

    async def note(batch: Batch) -> None:
        entries = _note(found, batch)
        await _compare(found, sink, entries)
        course.items_stored = found.items
        course.reach(progress.next for progress in batch.progress.values())

    async def ended() -> Ended | None:
        if stop.is_set():
            return Ended.STOPPED
        return Ended.DRAINED if all(map(reader.has_finished, part.end)) else None

    found.complete = await pump_part(transport, options.topic, reader, positions, note, ended) is Ended.DRAINED
    found.messages, found.size_bytes = sieve.messages, round(sieve.size_bytes)
    return found


def _refuse(gap: Gap) -> bool:
    raise Dropped(gap, begun=False)


def _note(found: Look, batch: Batch) -> list[Entry]:
    """Returns what any sink can take."""
    refused = {reject.position for reject in make_rows(batch.entries)[1]}
    entries = [entry for entry in batch.entries if entry.position not in refused]
    found.items += len(entries)
    found.refused += len(batch.rejects) + len(refused)
    times = [entry.record.scraped_at for entry in entries]
    found.jobs.update((entry.record.job, entry.record.spider) for entry in entries)
    found.oldest_s = min((at for at in (found.oldest_s, *times) if at is not None), default=None)
    found.newest_s = max((at for at in (found.newest_s, *times) if at is not None), default=None)
    return entries


async def _compare(found: Look, sink: Sink | None, entries: Sequence[Entry]) -> None:
    if sink is None or found.changes is None or not entries:
        return
    try:
        more = await sink.compare(entries)
    except Unsupported:
        found.changes = None
    else:
        found.changes = Changes(*(a + b for a, b in zip(found.changes, more, strict=True)))
        refused = max(0, len({entry.record.id for entry in entries}) - sum(more))
        found.items, found.refused = found.items - refused, found.refused + refused
