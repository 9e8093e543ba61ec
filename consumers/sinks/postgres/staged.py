"""Items as PostgreSQL takes them: checked and encoded."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from bus.items import ItemRecord
from bus.message import Position
from consumers.rows import clean_text, quick_json, raw_json, reject_item
from consumers.sink import Entry, Reject

__all__ = ["EPOCH", "MICROSECOND", "PART", "Staged", "Stager", "newest", "stage"]

PART = 500  # rows

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # of PostgreSQL
_EPOCH_S = int(EPOCH.timestamp())
MICROSECOND = timedelta(microseconds=1)
_FIRST = (datetime.min.replace(tzinfo=UTC) - EPOCH) // MICROSECOND
_LAST = (datetime.max.replace(tzinfo=UTC) - EPOCH) // MICROSECOND
_JSONB = b"\1"  # the version of its form
_NUL = b"\\u0000"  # in JSON; the text \u0000 has one more backslash, and is looked at once more


class Staged(NamedTuple):
    """A row to store. `micros` is when it was scraped, in µs since 2000; `data` is JSONB as it is sent."""

    position: Position
    id: str
    job: str
    spider: str
    url: str | None
    micros: int
    data: bytes


_staged: Callable[[tuple[Any, ...]], Staged] = partial(tuple.__new__, Staged)  # thrice as fast as Staged(…)


def stage(entries: Iterable[Entry], *, rejects_nul: bool) -> tuple[list[Staged], list[Reject], int]:
    """The rows of a batch, what cannot be one, and how many texts were changed, as PostgreSQL cannot hold them: U+0000
    (which is refused where `rejects_nul`) and lone surrogates become U+FFFD."""
    rows, rejects, sanitized = [], [], 0
    for position, record in entries:
        id, job, spider, _, url, scraped_at, data = record
        try:
            if not id:
                raise ValueError("the item has no id")
            micros = _micros(scraped_at)
            if (
                (encoded := quick_json(data)) is not None
                and _NUL not in encoded
                and _is_clean(id + job + spider + (url or ""))
            ):
                # a copy by the way, of just its size: orjson's own keeps a kilobyte, which costs more than the rest
                rows.append(_staged((position, id, job, spider, url, micros, _JSONB + encoded)))
            else:
                cleaner = _Cleaner()
                row = cleaner.row(position, record, micros)
                if rejects_nul and cleaner.nul:
                    raise ValueError("a text with U+0000, which PostgreSQL cannot hold; nul=replace makes it U+FFFD")
                rows.append(row)
                sanitized += cleaner.changed
        except (ValueError, OverflowError) as error:
            rejects.append(reject_item(Entry(position, record), str(error)))
    return rows, rejects, sanitized


def _micros(at: float) -> int:
    """As `datetime.fromtimestamp` rounds. Raises `ValueError` or `OverflowError` for what is no time."""
    fraction, whole = math.modf(at)
    micros = (int(whole) - _EPOCH_S) * 1_000_000 + round(fraction * 1e6)
    if not _FIRST <= micros <= _LAST:
        raise ValueError("scraped_at is not within the years 1 to 9999")
    return micros


def _is_clean(text: str) -> bool:
    return "\0" not in text and (text.isascii() or clean_text(text) is text)


class _Cleaner:
    """The slow way for one item."""

    def __init__(self) -> None:
        self.changed = 0
        self.nul = False

    def row(self, position: Position, record: ItemRecord, micros: int) -> Staged:
        id, job, spider = self._text(record.id), self._text(record.job), self._text(record.spider)
        url = None if record.url is None else self._text(record.url)
        return Staged(position, id, job, spider, url, micros, self._json(record.data))

    def _json(self, data: dict[str, Any]) -> bytes:
        raw = raw_json(data)
        if _NUL.decode() in raw or clean_text(raw) is not raw:
            value = json.loads(raw, object_pairs_hook=self._map)
            raw = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return _JSONB + raw.encode()

    def _map(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """No value is lost where two keys become one."""
        found: dict[str, Any] = {}
        for key, child in sorted(pairs, key=lambda pair: "\0" in pair[0]):
            name = self._text(key)
            while name in found:
                name += "\ufffd"
            found[name] = self._value(child)
        return found

    def _value(self, value: Any) -> Any:
        """Maps are clean already: they are read from the inside."""
        if isinstance(value, str):
            return self._text(value)
        return [self._value(child) for child in value] if isinstance(value, list) else value

    def _text(self, text: str) -> str:
        clean = clean_text(text).replace("\0", "\ufffd")
        self.changed += clean.count("\ufffd") != text.count("\ufffd")
        self.nul = self.nul or "\0" in text
        return clean


class Stager:
    """`stage` by parts: the server takes one part while the next is made. `merge` leaves one row for each key; without
    one, every row is left."""

    def __init__(
        self,
        entries: Sequence[Entry],
        merge: Callable[[Sequence[Staged]], Sequence[Staged]] | None,
        *,
        rejects_nul: bool,
    ) -> None:
        self._entries, self._merge, self._rejects_nul = entries, merge, rejects_nul
        self._at = 0
        self.rows, self.rejects, self.sanitized = [], [], 0  # type: list[Staged], list[Reject], int

    def parts(self) -> Iterator[Sequence[Staged]]:
        """Merged. What was made is in `rows`, not merged, and in `rejects`; asked again, the rest follows."""
        size = PART if self._merge is None or self._are_single() else len(self._entries)
        while self._at < len(self._entries):
            part = self._entries[self._at : self._at + size]
            self._at += size
            rows, rejects, sanitized = stage(part, rejects_nul=self._rejects_nul)
            self.rows += rows
            self.rejects += rejects
            self.sanitized += sanitized
            yield rows if self._merge is None else self._merge(rows)

    def _are_single(self) -> bool:
        """No id comes twice, and none may become another."""
        ids = [entry[1][0] for entry in self._entries]
        return len(set(ids)) == len(ids) and _is_clean("".join(ids))


def newest(rows: Sequence[Staged], *, each_time: bool = False) -> Sequence[Staged]:
    """One row of each id, in the order in which the ids come first: the newest, the last of those of one time.
    `each_time`: one of each id and time."""
    if len({row[1] for row in rows}) == len(rows):
        return rows
    found: dict[object, Staged] = {}
    for row in rows:
        key = (row.id, row.micros) if each_time else row.id
        if (other := found.get(key)) is None or other.micros <= row.micros:
            found[key] = row
    return list(found.values())
