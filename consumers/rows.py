"""Items as rows, and any value that a message may hold as JSON."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import orjson

from bus.errors import CodecError
from bus.items import ItemRecord, pack_item
from bus.message import HeaderValue, Position
from consumers.sink import Entry, Reject

__all__ = [
    "COLUMNS", "Row", "clean_text", "make_rows", "quick_json", "raw_json", "reject_item", "to_json", "to_row",
    "utc_text",
]  # fmt: skip

COLUMNS = ("id", "job", "spider", "url", "scraped_at", "data")
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False)
_AS_HERE = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS


class Row(NamedTuple):
    """One item as every sink stores it. `scraped_at` is ISO 8601 in UTC with Z; `data` is a JSON object."""

    id: str
    job: str
    spider: str
    url: str | None
    scraped_at: str
    data: str


def make_rows(entries: Iterable[Entry]) -> tuple[list[tuple[Position, Row]], list[Reject]]:
    """The rows of a batch, and what cannot be one."""
    rows, rejects = [], []
    for entry in entries:
        try:
            rows.append((entry.position, to_row(entry.record)))
        except (ValueError, OverflowError, OSError) as error:
            rejects.append(reject_item(entry, str(error)))
    return rows, rejects


def to_row(record: ItemRecord) -> Row:
    """Raises `ValueError`, `OverflowError` or `OSError` for an item that no sink can take."""
    if not record.id:
        raise ValueError("the item has no id")
    url = None if record.url is None else clean_text(record.url)
    job, spider = clean_text(record.job), clean_text(record.spider)
    return Row(clean_text(record.id), job, spider, url, utc_text(record.scraped_at), to_json(record.data))


def reject_item(entry: Entry, reason: str) -> Reject:
    """The quarantined form of an item: packed again as it was in its message."""
    record = entry.record
    headers: dict[str, HeaderValue] = {"job": record.job, "spider": record.spider, "run": record.run}
    try:
        content = pack_item(record.id, record.url, record.scraped_at, record.data)
    except CodecError as error:
        content, reason = b"", f"{reason} (and it cannot be packed: {error})"
    return Reject(entry.position, reason, record.id, headers, content)


def utc_text(seconds: float) -> str:
    """Seconds since the epoch as `2026-11-21T12:00:00.000000Z`: sorts as text."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def clean_text(text: str) -> str:
    """Text that every store takes: a pair of surrogates becomes its character, a lone one U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def to_json(value: Any) -> str:
    """One line of valid JSON (RFC 8259), the same for equal values.

    bytes: base64. Decimal: string. datetime and date: ISO 8601. tuple and set: array, a set in the order
    of `repr`. NaN and the infinities: null. Lone surrogates: U+FFFD. Integers of up to 4,300 digits: kept,
    a longer one raises `ValueError`. Keys that are no strings become strings; where that meets another key,
    ` (int)` or its like is added.
    """
    quick = quick_json(value)
    return clean_text(raw_json(value)) if quick is None else quick.decode()


def quick_json(value: Any) -> bytes | None:
    """The same, ten times as fast; None where it takes `raw_json`: lone surrogates, integers of more than 64 bits, keys
    that are no strings."""
    try:
        return orjson.dumps(value, _as_json, _AS_HERE)
    except TypeError:
        return None


def raw_json(value: Any) -> str:
    """The same, with lone surrogates as they are."""
    return _ENCODER.encode(_plain(value))


def _as_json(value: Any) -> Any:
    return _sorted_set(value) if type(value) is set else _as_text(value)


def _plain(value: Any) -> Any:
    """The same value, made of what JSON has."""
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is int:
        return _short_enough(value)
    if kind is dict:
        return _plain_map(value)
    if kind is list or kind is tuple:
        return [_plain(child) for child in value]
    if kind is set:
        return [_plain(child) for child in _sorted_set(value)]
    return _as_text(value)


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise ValueError(f"a value of type {type(value).__name__} has no JSON form")


def _plain_map(value: dict[Any, Any]) -> dict[str, Any]:
    if all(type(key) is str for key in value):
        return {key: _plain(child) for key, child in value.items()}
    taken = {key for key in value if type(key) is str}
    found: dict[str, Any] = {}
    for key, child in value.items():
        text = key
        if type(key) is not str:
            text = _key_text(key)
            while text in taken:
                text = f"{text} ({type(key).__name__})"
            taken.add(text)
        found[text] = _plain(child)
    return found


def _key_text(key: Any) -> str:
    plain = _plain(key)
    return plain if isinstance(plain, str) else _ENCODER.encode(plain)


def _sorted_set(value: set[Any]) -> Sequence[Any]:
    return sorted((_short_enough(child) for child in value), key=repr)


def _short_enough(value: Any) -> Any:
    """Python neither writes nor reads an integer of more than 4,300 digits: the cost is quadratic."""
    if type(value) is int and value.bit_length() > 14_000 and abs(value) >= 10**4300:
        raise ValueError("an integer of more than 4,300 digits")
    return value
