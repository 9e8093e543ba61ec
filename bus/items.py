"""Items in the item log: up to 64 in one message, so that a bus that pays per message pays once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

from bus.codec import SCHEMA, pack, pack_array, unpack
from bus.errors import CodecError
from bus.message import Headers, Message, new_id

__all__ = [
    "MAX_PACK_BYTES",
    "MAX_PACK_ITEMS",
    "ItemRecord",
    "item_id",
    "item_messages",
    "pack_item",
    "read_items",
]

MAX_PACK_ITEMS = 64
MAX_PACK_BYTES = 256 * 1024
CONTENT_TYPE = "crawlbus/items"


class ItemRecord(NamedTuple):
    """One item as it is stored. `url` is None for an item from `start()`; `scraped_at` is s since the epoch."""

    id: str
    job: str
    spider: str
    run: int
    url: str | None
    scraped_at: float
    data: dict[str, Any]


_record: Callable[[tuple[Any, ...]], ItemRecord] = partial(tuple.__new__, ItemRecord)  # thrice as fast


def item_id(job: str, page: bytes, ordinal: int) -> str:
    """The id of the `ordinal`-th item of a page: the same whenever that page is fetched again. 32 hex digits."""
    return blake2b(b"%s\0%s\0%d" % (job.encode(), page, ordinal), digest_size=16).hexdigest()


def pack_item(id: str, url: str | None, scraped_at: float, data: dict[str, Any]) -> bytes:
    """One item, ready for `item_messages`. Raises `CodecError` as `pack` does."""
    try:
        return pack([id, url, scraped_at, data])
    except CodecError as error:
        raise type(error)(error.reason, error.path.replace("[3]", "item", 1)) from None


def item_messages(job: str, spider: str, run: int, packed: Sequence[bytes]) -> list[Message]:
    """Messages of at most 64 items and 256 KiB each; one larger item travels alone. Their keys spread them evenly over
    the partitions of a log that has any."""
    headers: Headers = {"content-type": CONTENT_TYPE, "schema": SCHEMA, "job": job, "spider": spider, "run": run}
    messages, batch, size = [], [], 0  # type: list[Message], list[bytes], int
    for item in packed:
        if batch and (len(batch) == MAX_PACK_ITEMS or size + len(item) > MAX_PACK_BYTES):
            messages.append(_message(batch, headers))
            batch, size = [], 0
        batch.append(item)
        size += len(item)
    if batch:
        messages.append(_message(batch, headers))
    return messages


def _message(packed: list[bytes], headers: Headers) -> Message:
    id = new_id()
    return Message(id, pack_array(packed), headers, id[:8].encode())


def read_items(message: Message) -> list[ItemRecord]:
    """The items of one message of the log. Raises `CodecError` for a message that is none."""
    headers = message.headers
    if headers.get("content-type") != CONTENT_TYPE:
        raise CodecError(f"not items: content-type {headers.get('content-type')!r}")
    schema = headers.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise CodecError(f"items of schema {schema!r}, this version reads up to {SCHEMA}")
    job, spider, run = headers.get("job"), headers.get("spider"), headers.get("run")
    values = unpack(message.body)
    if not (isinstance(job, str) and isinstance(spider, str) and isinstance(run, int) and isinstance(values, list)):
        raise CodecError("not items: a header or the body has the wrong type")
    records = []
    for value in values:
        if not (type(value) is list and len(value) == 4):
            raise CodecError("not items: an entry has the wrong shape")
        id, url, at, data = value
        if not (type(id) is str and (url is None or type(url) is str) and type(data) is dict):
            raise CodecError("not items: an entry has the wrong shape")
        if type(at) is not float and type(at) is not int:
            raise CodecError("not items: an entry has the wrong shape")
        try:
            records.append(_record((id, job, spider, run, url, float(at), data)))
        except OverflowError:
            raise CodecError("not items: a time that is no time") from None
    return records
