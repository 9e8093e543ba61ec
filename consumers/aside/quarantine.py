"""What stands in a sink's quarantine: what it is, and how it is stored after all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from bus.errors import CodecError
from bus.items import ItemRecord, item_messages, read_items
from bus.message import Message, Position
from consumers.rows import reject_item
from consumers.sieve import DERIVED
from consumers.sink import Batch, Entry, Limits, Quarantined, Reject, Sink, sink_of

if TYPE_CHECKING:
    from consumers.through import Through

__all__ = ["Retried", "is_item", "items_of", "retry"]


@dataclass(slots=True)
class Retried:
    """What `retry` has done: how many items it stored, and what stands in quarantine again, with its new reason."""

    stored: int = 0
    failed: list[Quarantined] = field(default_factory=list)


def is_item(reject: Reject) -> bool:
    """Is it one item that the sink did not take? Else it is a message that could not be read."""
    return reject.headers.keys() == {"job", "spider", "run"}


def items_of(reject: Reject) -> list[ItemRecord]:
    """The item, or those of the message, which is read anew. Raises `CodecError` where that still fails."""
    if not reject.content:
        raise CodecError(reject.reason)
    if not is_item(reject):
        return read_items(Message(reject.id, reject.content, reject.headers))
    (message,) = item_messages("", "", 0, [reject.content])
    items = read_items(message._replace(headers={**message.headers, **reject.headers}))
    if [item.id for item in items] != [reject.id]:
        raise CodecError("not an item: it has another id")
    return items


async def retry(url: str, entries: Iterable[Quarantined], through: Through | None = None) -> Retried:
    """Write entries once more to the sink of `url`, in batches as it likes them; each leaves the quarantine in the
    transaction that stores it. Cut off anywhere, it may simply be repeated.

    `through` makes something else of each item before; what fails then stays as it was before `through`.
    """
    done, tried, refused = Retried(), set(), 0
    whose = attrgetter("consumer", "topic")
    for (consumer, topic), group in groupby(sorted(entries, key=whose), whose):
        async with aclosing(sink_of(url)) as sink:
            await sink.open(consumer, topic)
            for trial in _trials(group, sink.limits, through):
                written = await sink.write(trial.batch)
                done.stored += written.stored
                refused += written.quarantined
                tried |= {(consumer, topic, *place) for place in _places(trial.batch)}
                if trial.before and written.quarantined > len(trial.batch.rejects):
                    tried |= {(consumer, topic, *place) for place in await _put_back(sink, consumer, topic, trial)}
    if refused:
        async with aclosing(sink_of(url)) as sink:
            done.failed = [entry for entry in await sink.quarantined() if _place(entry) in tried]
    return done


async def _put_back(sink: Sink, consumer: str, topic: str, trial: _Trial) -> Iterable[tuple[Position, str]]:
    """What the sink has refused now, as it was before."""
    written = {(consumer, topic, *place) for place in _places(Batch(trial.batch.entries))}
    batch = Batch()
    for entry in await sink.quarantined():
        before = trial.before.get(entry.reject.position)
        if before is not None and _place(entry) in written:
            batch.resolved.append(entry.id)
            batch.rejects.append(before._replace(reason=entry.reject.reason))
    await sink.write(batch)
    return _places(batch)


class _Trial(NamedTuple):
    """A batch, and what an item of it was before `through`."""

    batch: Batch
    before: dict[Position, Reject]


def _trials(entries: Iterable[Quarantined], limits: Limits, through: Through | None) -> Iterator[_Trial]:
    """No larger than the limits but for one entry that is, and no position twice: a sink tells items apart by it, and
    after a log was made anew another item may stand where one did."""
    trial, size_bytes = _Trial(Batch(), {}), 0
    for entry in entries:
        batch, part = trial.batch, _trial_of(entry, through)
        count = len(batch.entries) + len(batch.rejects) + len(part.batch.entries)
        size_bytes += len(entry.reject.content)
        met = {item.position for item in batch.entries} & {item.position for item in part.batch.entries}
        if batch.resolved and (count > limits.items or size_bytes > limits.size_bytes or met):
            yield trial
            trial, size_bytes = _Trial(Batch(), {}), len(entry.reject.content)
            batch = trial.batch
        batch.entries += part.batch.entries
        batch.rejects += part.batch.rejects
        batch.resolved += part.batch.resolved
        trial.before.update(part.before)
    if trial.batch.resolved:
        yield trial


def _trial_of(entry: Quarantined, through: Through | None) -> _Trial:
    reject, batch = entry.reject, Batch(resolved=[entry.id])
    trial = _Trial(batch, {})
    try:
        items = items_of(reject)
    except CodecError as error:
        batch.rejects.append(reject._replace(reason=str(error)))
        return trial
    for index, item in enumerate(items, reject.position.index):
        position = reject.position._replace(index=index)
        if through is None:
            batch.entries.append(Entry(position, item))
            continue
        before = reject if is_item(reject) else reject_item(Entry(position, item), "")
        made = through(item)
        if isinstance(made, str) or not made:
            why = made if isinstance(made, str) else f"--through {through.name} returned nothing"
            batch.rejects.append(before._replace(reason=why))
            continue
        for number, one in enumerate(made):
            place = position._replace(index=index + number * DERIVED)
            batch.entries.append(Entry(place, one))
            trial.before[place] = before
    return trial


def _places(batch: Batch) -> Iterator[tuple[Position, str]]:
    for entry in batch.entries:
        yield entry.position, entry.record.id
    for reject in batch.rejects:
        yield reject.position, reject.id


def _place(entry: Quarantined) -> tuple[str, str, Position, str]:
    return entry.consumer, entry.topic, entry.reject.position, entry.reject.id
