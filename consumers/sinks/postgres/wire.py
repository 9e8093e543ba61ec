"""Rows as they are sent: in the binary form of COPY, or as parameters."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from consumers.sinks.postgres.staged import EPOCH, MICROSECOND, Staged

__all__ = ["copy_stream", "parameters"]

# https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format"; a length of -1 is NULL
_HEAD, _TAIL = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
_NULL = struct.pack("!i", -1)
_length = struct.Struct("!i").pack
_LENGTHS = [_length(length) for length in range(1024)]
_time_and_length = struct.Struct("!iqi").pack
_place = struct.Struct("!iiiqii").pack


def copy_stream(parts: Iterable[Iterable[Staged]], *, with_place: bool) -> Iterator[bytes]:
    """A COPY of `id, job, spider, url, scraped_at, data` and perhaps the place in the log, part by part."""
    count = struct.pack("!h", 9 if with_place else 6)
    starts = [count + length for length in _LENGTHS]
    sources: dict[tuple[str, str], bytes] = {}
    yield _HEAD
    for rows in parts:
        found: list[bytes] = []
        for position, id, job, spider, url, micros, data in rows:
            key, place = id.encode(), b"" if url is None else url.encode()
            if (source := sources.get((job, spider))) is None:
                source = sources[job, spider] = _sized(job) + _sized(spider)
            found += (
                starts[len(key)] if len(key) < 1024 else count + _length(len(key)), key, source,
                _NULL if url is None else _LENGTHS[len(place)] if len(place) < 1024 else _length(len(place)), place,
                _time_and_length(8, micros, len(data)), data,
            )  # fmt: skip
            if with_place:
                found.append(_place(4, position.partition, 8, position.offset, 4, position.index))
        yield b"".join(found)
    yield _TAIL


def _sized(text: str) -> bytes:
    data = text.encode()
    return _length(len(data)) + data


def parameters(rows: Sequence[Staged], *, with_place: bool) -> list[list[Any]]:
    """The same as a list for each column."""
    columns: list[list[Any]] = [
        [row.id for row in rows],
        [row.job for row in rows],
        [row.spider for row in rows],
        [row.url for row in rows],
        [EPOCH + row.micros * MICROSECOND for row in rows],
        [row.data[1:].decode() for row in rows],
    ]
    if with_place:
        columns += map(list, zip(*(row.position for row in rows), strict=True)) if rows else [[], [], []]
    return columns
