"""What becomes of items in PostgreSQL: the same by every way; what it cannot hold; rows that are refused alone."""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import consumers.sinks.postgres.staged
import consumers.sinks.postgres.store
from bus.items import ItemRecord
from bus.message import Position
from consumers.rows import clean_text, quick_json, raw_json, utc_text
from consumers.sink import Batch, Entry, Written
from consumers.sinks.postgres.staged import PART, stage
from consumers.sinks.postgres.store import Store
from consumers.sinks.postgres.wire import parameters
from consumers.testing import batch_of, hazards, record
from tests.consumers.postgres import ask, fill, items, member
from tests.consumers.test_postgres_sink import database, on_postgres
from tests.consumers.test_rows import values

__all__ = ["database"]


@given(values)
def test_the_quick_way_to_json_means_the_same(value: Any) -> None:
    quick = quick_json(value)
    if quick is not None:
        assert json.loads(quick) == json.loads(clean_text(raw_json(value)))


@given(st.floats(-62135596800, 253402300799) | st.integers(-(10**9), 10**10).map(float))
def test_times_are_rounded_as_in_other_sinks(at: float) -> None:
    ((row,), _, _) = stage([Entry(Position(0, 0), record(1)._replace(scraped_at=at))], rejects_nul=False)
    ((time,),) = [column for column in parameters([row], with_place=False) if isinstance(column[0], datetime)]
    assert time == datetime.fromtimestamp(at, UTC) and utc_text(at)


@pytest.mark.parametrize("at", [math.nan, math.inf, -math.inf, 1e300, 253402300800.0, -62135596801.0])
def test_a_time_that_is_none_is_rejected(at: float) -> None:
    rows, rejects, _ = stage([Entry(Position(0, 0), record(1)._replace(scraped_at=at))], rejects_nul=False)
    assert not rows and len(rejects) == 1 and rejects[0].reason


@on_postgres
@pytest.mark.parametrize("mode", ["latest", "versions", "append"])
def test_copy_and_insert_store_the_same(mode: str, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each hazard that the INSERT takes, with a column that many of them are refused for."""
    url, batch = f"{database}?mode={mode}&columns=mixed:integer,v:jsonb", batch_of(h.item for h in hazards())
    monkeypatch.setattr(consumers.sinks.postgres.store, "COPY_FROM", 10**6)
    (inserted,) = asyncio.run(fill(f"{url}&table=inserted", batch))
    aside = dict(ask(database, 'SELECT "offset", reason FROM sink_quarantine'))
    assert len(aside) == inserted.quarantined > 4 and inserted.sanitized > 10
    assert any("22P02: invalid input syntax" in reason for reason in aside.values())

    batch.entries = [entry for entry in batch.entries if entry.position.offset not in aside]
    monkeypatch.setattr(consumers.sinks.postgres.store, "COPY_FROM", 1)
    monkeypatch.delattr(Store, "_write_by_halves")
    assert asyncio.run(fill(f"{url}&table=copied", batch)) == [inserted._replace(quarantined=0)]
    one, other = (ask(database, f"SELECT row_to_json(t)::text FROM {t} t ORDER BY 1") for t in ("inserted", "copied"))
    assert one == other and len(one) == inserted.stored


HOSTILE = record(7, {"a\0": "b\0", "a\ufffd": ["\0", "\ud800", "\ud83d\ude00", "\\u0000"], "ok": "x", "n": 2**70})


@on_postgres
def test_text_that_it_cannot_hold_is_changed_and_counted(database: str) -> None:
    odd = HOSTILE._replace(id="i\0", job="j\ud800", url="https://x/\0\0")
    assert asyncio.run(fill(database, batch_of([record(1), odd]))) == [Written(2, 0, 7)]
    row = items(database)[1]
    assert (row["id"], row["job"], row["url"]) == ("i\ufffd", "j\ufffd", "https://x/\ufffd\ufffd")
    assert row["data"] == {
        "a\ufffd": ["\ufffd", "\ufffd", "\U0001f600", "\\u0000"], "a\ufffd\ufffd": "b\ufffd", "ok": "x", "n": 2**70,
    }  # fmt: skip


@on_postgres
def test_text_with_nul_goes_to_quarantine_where_that_is_asked_for(database: str) -> None:
    fine = [record(1, {"v": "\\u0000"}), record(2, {"v": "\ud800"})]
    assert asyncio.run(fill(f"{database}?nul=reject", batch_of([*fine, HOSTILE]))) == [Written(2, 1, 1)]
    ((reason, message),) = ask(database, "SELECT reason, message FROM sink_quarantine")
    assert "U+0000" in reason and "nul=replace" in reason and message == HOSTILE.id


REFUSING = """
ALTER TABLE items ADD CHECK (data->>'number' <> '5'), ADD UNIQUE (url), ADD COLUMN twin TEXT UNIQUE
DEFERRABLE INITIALLY DEFERRED GENERATED ALWAYS AS (data->>'twin') STORED;
CREATE INDEX ON items ((data->>'long'));
CREATE FUNCTION no_nines() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN IF NEW.data->>'number' = '9' THEN RAISE EXCEPTION 'no nines'; END IF; RETURN NEW; END$$;
CREATE TRIGGER no_nines BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION no_nines();
CREATE TABLE audit (id text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN INSERT INTO audit VALUES (NEW.id); RETURN NEW; END$$;
CREATE TRIGGER audited AFTER INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION note();
"""


@on_postgres
@pytest.mark.parametrize("count", [30, 300])
def test_what_the_users_table_refuses_is_set_aside_alone(count: int, database: str) -> None:
    """By a check, a unique index, a deferred one, an index whose rows are too long, a column's type, and a trigger."""
    asyncio.run(fill(f"{database}?columns=price:numeric(4,2),name:varchar(3)"))
    ask(database, REFUSING)
    found = [record(n) for n in range(count)]
    bad: dict[int, ItemRecord] = {
        5: found[5],
        9: found[9],
        11: found[11]._replace(url=found[10].url),
        14: record(14, {"twin": "t"}),
        17: record(17, {"long": "".join(map(chr, range(256, 6000)))}),
        20: record(20, {"price": "cheap"}),
        21: record(21, {"price": 100}),
        23: record(23, {"name": "four"}),
    }
    found = [record(13, {"twin": "t"}) if n == 13 else bad.get(n, item) for n, item in enumerate(found)]
    assert asyncio.run(fill(database + "?columns=price:numeric(4,2),name:varchar(3)", batch_of(found))) == [
        Written(count - 8, 8)
    ]
    aside = ask(database, 'SELECT "offset", reason FROM sink_quarantine ORDER BY 1')
    codes = {offset: reason.partition(":")[0] for offset, reason in aside}
    twin, url = ({13, 14} & codes.keys()).pop(), ({10, 11} & codes.keys()).pop()  # either of the two may come first
    assert codes == {
        5: "23514", 9: "P0001", url: "23505", twin: "23505", 17: "54000", 20: "22P02", 21: "22003", 23: "22001",
    }  # fmt: skip
    assert "no nines" in dict(aside)[9]
    assert len(items(database)) == count - 8
    assert ask(database, "SELECT count(*), count(DISTINCT id) FROM audit") == [(count - 8, count - 8)], "written once"


@on_postgres
def test_of_one_id_the_last_good_one_is_stored(database: str) -> None:
    good, bad = record(1, {"price": 1}), record(1, {"price": "x"})
    batch = batch_of([good, bad, *map(record, range(2, 99))])
    assert asyncio.run(fill(f"{database}?columns=price:numeric", batch)) == [Written(98, 1)]
    assert ask(database, "SELECT price FROM items WHERE price IS NOT NULL") == [(1,)]


def twice(mode: str) -> Batch:
    """Ids that come twice, parts apart, the older one last; and two that are one in PostgreSQL."""
    found = [record(n) for n in range(3 * PART)]
    found[-1] = record(0, {"again": 1})._replace(scraped_at=found[0].scraped_at + (60 if mode == "versions" else -60))
    found[3] = record(3, {"nul": 1})._replace(id="x\0")
    found[-2] = record(3, {"nul": 2})._replace(id="x\ufffd", scraped_at=found[3].scraped_at + 1)
    return batch_of(found)


@on_postgres
@pytest.mark.parametrize("mode", ["latest", "versions", "append"])
def test_parts_of_a_batch_are_as_the_whole(mode: str, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each id comes once, where one comes twice, and where the server refuses a row of a later part."""
    single = batch_of(record(n) for n in range(3 * PART))
    refused = batch_of(record(n, {"price": "x" if n == 2 * PART else n}) for n in range(3 * PART))
    found = []
    for name, part in (("whole", 10**6), ("parts", PART)):
        monkeypatch.setattr(consumers.sinks.postgres.staged, "PART", part)
        for what, batch in (("single", single), ("twice", twice(mode)), ("refused", refused)):
            table = f"{name}_{what}"
            url = f"{database}?mode={mode}&table={table}" + ("&columns=price:numeric" if what == "refused" else "")
            (written,) = asyncio.run(fill(url, batch))
            found.append((written, ask(database, f"SELECT row_to_json(t)::text FROM {table} t ORDER BY 1")))
    assert found[:3] == found[3:]
    assert found[0][0] == Written(3 * PART, 0) and found[2][0] == Written(3 * PART - 1, 1)
    assert len(found[1][1]) == 3 * PART - {"latest": 2, "versions": 0, "append": 0}[mode]


@on_postgres
def test_all_of_a_batch_may_be_refused(database: str) -> None:
    batch = batch_of(record(n, {"price": "x"}) for n in range(200))
    assert asyncio.run(fill(f"{database}?columns=price:numeric", batch, batch)) == [Written(0, 200)] * 2
    assert items(database) == [] and len(ask(database, "SELECT 1 FROM sink_quarantine")) == 200


@on_postgres
def test_a_batch_of_large_items(database: str) -> None:
    large = [record(n, {"text": chr(0x4E00 + n) * 2**18}) for n in range(50)]

    async def run() -> None:
        async with AsyncExitStack() as stack:
            sink = await member(stack, database)
            assert await sink.write(batch_of(large)) == Written(50, 0)

    asyncio.run(run())
    assert ask(database, "SELECT count(*), min(length(data->>'text')) FROM items") == [(50, 2**18)]
