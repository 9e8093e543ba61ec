"""What stands in a sink's quarantine: what it is, and how it is stored after all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from bus.errors import CodecError
from bus.items import ItemRecord, item_messages, read_items
from bus.message import Message, Position
from consumers.rows import clean_text
from consumers.sink import Batch, Entry, Limits, Quarantined, Reject, sink_of

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
    if [_kept(item.id) for item in items] != [_kept(reject.id)]:
        raise CodecError("not an item: it has another id")
    return items


async def retry(url: str, entries: Iterable[Quarantined]) -> Retried:
    """Write entries once more to the sink of `url`, in batches as it likes them; each leaves the quarantine in the
    transaction that stores it. Cut off anywhere, it may simply be repeated."""
    done, tried, refused = Retried(), set(), 0
    whose = attrgetter("consumer", "topic")
    for (consumer, topic), group in groupby(sorted(entries, key=whose), whose):
        sink = sink_of(url)
        try:
            await sink.open(consumer, topic)
            for batch in _batches(group, sink.limits):
                written = await sink.write(batch)
                done.stored += written.stored
                refused += written.quarantined
                tried |= {(consumer, topic, position, id) for position, id in _places(batch)}
        finally:
            await sink.aclose()
    if refused:
        done.failed = [entry for entry in await _standing(url) if _place(entry) in tried]
    return done


async def _standing(url: str) -> Sequence[Quarantined]:
    sink = sink_of(url)
    try:
        return await sink.quarantined()
    finally:
        await sink.aclose()


def _batches(entries: Iterable[Quarantined], limits: Limits) -> Iterator[Batch]:
    """No larger than the limits but for one entry that is, and no position twice: a sink tells items apart by it, and
    after a log was made anew another item may stand where one did."""
    batch, size_bytes = Batch(), 0
    for entry in entries:
        part = _batch_of(entry)
        count = len(batch.entries) + len(batch.rejects) + len(part.entries)
        size_bytes += len(entry.reject.content)
        met = {item.position for item in batch.entries} & {item.position for item in part.entries}
        if batch.resolved and (count > limits.items or size_bytes > limits.size_bytes or met):
            yield batch
            batch, size_bytes = Batch(), len(entry.reject.content)
        batch.entries += part.entries
        batch.rejects += part.rejects
        batch.resolved += part.resolved
    if batch.resolved:
        yield batch


def _batch_of(entry: Quarantined) -> Batch:
    reject = entry.reject
    try:
        items = items_of(reject)
    except CodecError as error:
        return Batch(rejects=[reject._replace(reason=str(error))], resolved=[entry.id])
    partition, offset, index = reject.position
    numbered = (Entry(Position(partition, offset, n), item) for n, item in enumerate(items, index))
    return Batch(entries=list(numbered), resolved=[entry.id])


def _places(batch: Batch) -> Iterator[tuple[Position, str]]:
    for entry in batch.entries:
        yield entry.position, _kept(entry.record.id)
    for reject in batch.rejects:
        yield reject.position, _kept(reject.id)


def _place(entry: Quarantined) -> tuple[str, str, Position, str]:
    return entry.consumer, entry.topic, entry.reject.position, _kept(entry.reject.id)


def _kept(id: str) -> str:
    """An id as every sink keeps it."""
    return clean_text(id).replace("\0", "")
