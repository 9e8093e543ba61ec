"""Items that have broken storages: each can travel on the bus, and a sink stores it or sets it aside, alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple

from bus.items import ItemRecord
from consumers.testing.scene import record

__all__ = ["Hazard", "hazards"]

MEGABYTE = 2**20
TEXTS = {
    "nul": "a\0b",
    "only nul": "\0",
    "control characters": "".join(map(chr, range(32))) + "\x7f\x85",
    "lone surrogates": "a\ud800b\udfffc",
    "a pair of surrogates": "\ud83d\ude00",
    "an escape of nul": "\\u0000 \\x00 \\0",
    "copy's own words": "\\N\t\\.\n\\.\r\n\\t\\\\",
    "quotes and commas": "\"'`,;|$$ \" ' \\\" \\'",
    "sql": "'); DROP TABLE items; --",
    "line ends": "\n\r\r\n\u2028\u2029\u0085",
    "beyond the plane": "\U0001f600\U0010ffff\uffff\ufffe\ufeff",
    "right to left": "\u202eabc\u202c שלום",
    "composed and not": "é e\u0301",
    "empty": "",
    "spaces": "  \t ",
    "a megabyte": "x" * MEGABYTE,
    "a megabyte of three bytes each": "語" * (MEGABYTE // 3),
    "null": "null",
    "a number": "1e999",
}
VALUES: dict[str, Any] = {
    "nan": math.nan,
    "infinities": [math.inf, -math.inf],
    "small and large floats": [-0.0, 5e-324, 1.7976931348623157e308, 1e-7, 1e22, 0.1 + 0.2],
    "integers past 53, 63, 64, 200 bits": [2**53 + 1, 2**63, -(2**63) - 1, 2**64, -(2**200)],
    "an integer of 4,300 digits": 10**4299,
    "an integer of 5,001 digits": 10**5000,
    "datetimes": [datetime(2026, 1, 2, 3, 4, 5, 678901), datetime(2026, 1, 2, tzinfo=UTC), datetime.min, datetime.max],
    "a zone": datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=-11, minutes=-30))),
    "dates": [date(2026, 1, 2), date.min, date.max],
    "decimals": [Decimal("1.10"), Decimal("NaN"), Decimal("-Infinity"), Decimal("1e-400")],
    "bytes": b"\x00\xff" * 10,
    "a megabyte of bytes": b"\x00" * MEGABYTE,
    "sets and tuples": [{1, "a", b"b", None}, (1, (2, (3,))), set(), ()],
    "empty things": [{}, [], "", None, [[]], [{}]],
    "ten thousand keys": {f"key {n}": n for n in range(10_000)},
    "fifty thousand numbers": list(range(50_000)),
    "keys that are no strings": {1: "a", None: "b", False: "c", 1.5: "d", b"k": "e", (1, "x"): "f", math.inf: "g"},
    "keys that meet": {2: "int", "2": "str", Decimal(2) / 3: "decimal", date(2026, 1, 1): 1, "2026-01-01": 2},
    "odd keys": {"": 1, "\0": 2, "\ud800": 3, "a b": 4, "id": 5, "data": 6, '"': 7, "$.a": 8, "x" * 70_000: 9},
}
MIXED: tuple[Any, ...] = (1, "1", 1.5, True, None, [1], {"a": 1}, b"1", Decimal(1), date(2026, 1, 1), 2**70, "")


class Hazard(NamedTuple):
    """`item` has `name`, in words, in nothing but this tuple."""

    name: str
    item: ItemRecord


def hazards() -> list[Hazard]:
    """All of them, their items numbered from 1,000,000; most have an id of their own kind."""
    found = [Hazard(name, record(0, {"v": value})) for name, value in [*TEXTS.items(), *VALUES.items(), *_deep()]]
    found += [Hazard(f"a field of mixed types: {value!r}", record(0, {"mixed": value})) for value in MIXED]
    found += [Hazard(f"{name} as a key", record(0, {text: 1})) for name, text in TEXTS.items()]
    numbered = [Hazard(name, record(1_000_000 + n, item.data)) for n, (name, item) in enumerate(found)]
    return numbered + [Hazard(name, item) for name, item in _columns()]


def _deep() -> Iterator[tuple[str, Any]]:
    lists: Any = 1
    maps: Any = 1
    for _ in range(60):
        lists, maps = [lists], {"a": maps}
    yield "sixty lists deep", lists
    yield "sixty maps deep", maps


def _columns() -> Iterator[tuple[str, ItemRecord]]:
    plain = record(2_000_000)
    yield "no fields", plain._replace(id="no-fields", data={})
    yield "no id", plain._replace(id="")
    for name, text in TEXTS.items():
        if text.strip("\0"):
            yield f"{name} in the id", plain._replace(id=f"hazard {text}")
        yield f"{name} as the url", plain._replace(id=f"url-{name}", url=text)
        yield f"{name} as job and spider", plain._replace(id=f"job-{name}", job=text, spider=text)
    for at in (0.0, -1.5, 253402300799.0, -62135596800.0, 1e12, 1e300, math.nan, math.inf):
        yield f"scraped at {at}", plain._replace(id=f"at-{at}", scraped_at=at)
