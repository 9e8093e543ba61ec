"""Any value that a message may hold becomes valid JSON, or says why not."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.codec import pack, unpack
from consumers.rows import clean_text, make_rows, to_json, to_row, utc_text
from tests.consumers.scene import batch_of, record

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary()
    | st.datetimes() | st.dates() | st.decimals(allow_nan=False)
)  # fmt: skip
keys = scalars | st.tuples(scalars, scalars)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(keys, inner) | st.sets(scalars),
    max_leaves=20,
)


def strict(text: str) -> Any:
    """Read JSON by the letter: no NaN, and what cannot be UTF-8 is refused."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text.encode(), parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "json_value"),
    [
        (b"\x00\xff", "AP8="),
        (Decimal("1.10"), "1.10"),
        (Decimal("NaN"), "NaN"),
        (datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05"),
        (datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=2))), "2026-01-02T00:00:00+02:00"),
        (date(2026, 1, 2), "2026-01-02"),
        ((1, "a"), [1, "a"]),
        ({"b", "a", 1}, ["a", "b", 1]),
        ({(2, 1), b"x"}, [[2, 1], "eA=="]),
        ([math.nan, math.inf, -math.inf], [None, None, None]),
        ("a\x00b", "a\x00b"),
        ("\ud800x\udc00", "\ufffdx\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        (10**4299, 10**4299),
        (-(2**200), -(2**200)),
        ({1: "a", None: "b", False: "c", 1.5: "d"}, {"1": "a", "null": "b", "false": "c", "1.5": "d"}),
        ({b"k": 1, (1, "x"): 2, date(2026, 1, 1): 3}, {"aw==": 1, '[1,"x"]': 2, "2026-01-01": 3}),
        ({1: "int", "1": "str", Decimal(2): "decimal"}, {"1 (int)": "int", "1": "str", "2": "decimal"}),
        ("x" * 1_000_000, "x" * 1_000_000),
    ],
)
def test_each_kind_of_value(value: Any, json_value: Any) -> None:
    assert strict(to_json({"v": value})) == {"v": json_value}


def test_deep_nesting() -> None:
    value: Any = 1
    for _ in range(62):
        value = [value]
    assert strict(to_json(unpack(pack({"v": value}))))["v"] == value


@given(st.dictionaries(st.text(st.characters()), values))
def test_whatever_travels_is_valid_json_on_one_line_and_the_same_each_time(data: dict[str, Any]) -> None:
    text = to_json(data)
    assert len(strict(text)) == len({clean_text(key) for key in data})
    assert "\n" not in text
    assert to_json(unpack(pack(data))) == text


@pytest.mark.parametrize("data", [{"v": 10**4300}, {"v": {10**5000}}, {10**5000: 1}, {"v": -(10**4300)}])
def test_an_integer_too_long_for_any_reader_is_quarantined(data: dict[Any, Any]) -> None:
    rows, rejects = make_rows(batch_of([record(1), record(2, data), record(3)]).entries)
    assert [position.offset for position, _ in rows] == [0, 2]
    assert "4,300 digits" in rejects[0].reason
    assert unpack(rejects[0].content)[3] == data  # all of it is kept


@pytest.mark.parametrize("at", [math.inf, math.nan, 1e20, -1e20])
def test_a_time_that_is_none_is_quarantined(at: float) -> None:
    rows, rejects = make_rows(batch_of([record(1)._replace(scraped_at=at)]).entries)
    assert not rows and len(rejects) == 1


def test_times_are_utc_and_sort_as_text() -> None:
    assert utc_text(0) == "1970-01-01T00:00:00.000000Z"
    assert utc_text(datetime(2026, 11, 21, 12, 0, 0, 250_000, UTC).timestamp()) == "2026-11-21T12:00:00.250000Z"
    assert sorted(utc_text(t) for t in (1e9, 1e9 + 0.5, 1e9 + 1)) == [utc_text(t) for t in (1e9, 1e9 + 0.5, 1e9 + 1)]


def test_text_columns_hold_no_lone_surrogates() -> None:
    row = to_row(record(1)._replace(url="https://x/\ud800", job="j\udfff"))
    assert row.url == "https://x/\ufffd" and row.job == "j\ufffd"
