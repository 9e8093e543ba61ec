"""The quarantine of a sink: what goes in is listed, shown, retried in vain, and stored once nothing is in the way."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet
import pytest

import bus.items
from bus.cli import main
from bus.codec import SCHEMA
from bus.errors import CodecError
from bus.items import item_messages, pack_item
from bus.message import Headers, Message, Position
from bus.url import hide_secrets
from consumers.aside.quarantine import _trials, items_of, retry
from consumers.rows import reject_item
from consumers.sink import Batch, Entry, Limits, Quarantined, Reject, Sink, sink_of
from tests.consumers.scene import TOPIC, batch_of, jsonl_items, record, sqlite_items
from tests.servers import kinds, new_database, shared_url

Ask = Callable[..., Any]


class Constrained:
    """A table with a constraint of the user's, who drops it. `fill` brings items 1 to 3, of which the second cannot be
    stored, for the `reason`, until `allow`."""

    reason = "no seconds"

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url = url

    def fill(self) -> None:
        write(self.url)
        forbid(2, url=self.url)
        write(self.url, batch_of(map(record, [1, 2, 3])))

    def allow(self) -> None:
        forbid(url=self.url)


class Upgraded:
    """A file takes every item; but a message of a newer version can be read only by that."""

    reason = f"items of schema {SCHEMA + 1}, this version reads up to {SCHEMA}"

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url, self._monkeypatch = url, monkeypatch

    def fill(self) -> None:
        batch = batch_of(map(record, [1, 3]))
        batch.rejects = [reject(packed(2, schema=SCHEMA + 1), self.reason, 7)]
        write(self.url, batch)

    def allow(self) -> None:
        self._monkeypatch.setattr(bus.items, "SCHEMA", SCHEMA + 1)


URLS = [
    "sqlite:///items.sqlite",
    "jsonl:///items.jsonl",
    "parquet:///items",
    *(f"{kind}?mode={mode}" for kind in kinds("postgres")[:1] for mode in ("latest", "versions", "append")),
]


@pytest.fixture(params=URLS)
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a sink that is not there yet, and is set."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        found: str = request.param
        if found.startswith("postgres"):
            kind, _, options = found.partition("?")
            found = f"{stack.enter_context(new_database(shared_url(kind)))}?{options}"
        monkeypatch.setenv("CRAWLBUS_SINK", found)
        yield found


@pytest.fixture
def place(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A sink with items 1 and 3, that refused the second."""
    kind = Constrained if url.startswith(("sqlite", "postgres")) else Upgraded
    one = kind(url, monkeypatch)
    one.fill()
    return one


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """What `quarantine` answers in JSON, or with `code` 2 on standard error."""

    def call(*words: str, code: int = 0) -> Any:
        assert main(["quarantine", *words, *(["--json"] if code < 2 else [])]) == code
        said = capsys.readouterr()
        return json.loads(said.out) if code < 2 else said.err

    return call


@pytest.fixture
def sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty one, which is set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAWLBUS_SINK", url := "sqlite:///items.sqlite")
    write(url)
    return url


async def opened(sink: Sink, consumer: str = "default") -> Sink:
    await sink.open(consumer, TOPIC)
    await sink.hold({0})
    return sink


def write(url: str, *batches: Batch, consumer: str = "default") -> None:
    async def run() -> None:
        sink = await opened(sink_of(url), consumer)
        try:
            for batch in batches:
                await sink.write(batch)
        finally:
            await sink.aclose()

    asyncio.run(run())


def standing(url: str) -> Sequence[Quarantined]:
    async def run() -> Sequence[Quarantined]:
        sink = sink_of(url)
        try:
            return await sink.quarantined()
        finally:
            await sink.aclose()

    return asyncio.run(run())


def rows(url: str) -> list[dict[str, Any]]:
    """What is stored in the sink of a URL, here."""
    if url.startswith("sqlite:"):
        return sqlite_items(Path("items.sqlite"))
    if url.startswith("jsonl:"):
        return jsonl_items(Path("items.jsonl"))
    if url.startswith("postgresql:"):
        with psycopg.connect(url.partition("?")[0]) as db:
            return [{"id": id, "data": data} for id, data in db.execute("SELECT id, data FROM items")]
    table = pyarrow.parquet.read_table("items").to_pylist()
    return [{**row, "data": json.loads(row["data"])} for row in table]


def stored(url: str) -> list[int]:
    return sorted(row["data"]["number"] for row in rows(url))


def packed(*numbers: int, schema: int = SCHEMA) -> Message:
    items = [record(number) for number in numbers]
    (message,) = item_messages("shop", "shop", 1, [pack_item(i.id, i.url, i.scraped_at, i.data) for i in items])
    return message._replace(headers={**message.headers, "schema": schema})


def reject(message: Message, reason: str = "newer", offset: int = 0) -> Reject:
    return Reject(Position(0, offset), reason, message.id, message.headers, message.body)


def forbid(*numbers: int, url: str = "sqlite:") -> None:
    """A constraint that somebody has put on the table."""
    if url.startswith("postgresql:"):
        allowed = f"(data->>'number')::int NOT IN {(*numbers, -1, -2)}"
        with psycopg.connect(url.partition("?")[0]) as db:
            db.execute('ALTER TABLE items DROP CONSTRAINT IF EXISTS "no seconds"')
            if numbers:
                db.execute(f'ALTER TABLE items ADD CONSTRAINT "no seconds" CHECK ({allowed})'.encode())
        return
    with closing(sqlite3.connect("items.sqlite")) as db:
        db.execute("DROP TRIGGER IF EXISTS mine")
        if numbers:
            db.execute(
                f"CREATE TRIGGER mine BEFORE INSERT ON items WHEN new.data ->> 'number' IN {(*numbers, -1)}"
                " BEGIN SELECT RAISE(ABORT, 'no seconds'); END"
            )


def numbers() -> list[int]:
    return stored("sqlite:")


def test_what_was_refused_is_stored_once_nothing_is_in_the_way(place: Any, ask: Ask) -> None:
    assert stored(place.url) == [1, 3]
    listed = ask("list")
    (entry,) = listed["entries"]
    assert listed["total"] == 1 and place.reason in entry["reason"] and listed["reasons"] == {entry["reason"]: 1}
    assert (entry["consumer"], entry["job"], entry["spider"]) == ("default", "shop", "shop")
    for words in (["--all"], [entry["id"][:6]], ["--reason", place.reason.upper()]):
        answer = ask("retry", *words, code=1)
        (failed,) = answer["failed"]
        assert answer["stored"] == 0 and failed["id"] == entry["id"] and place.reason in failed["reason"]
    assert ask("list")["total"] == 1 and stored(place.url) == [1, 3]
    place.allow()
    assert ask("retry", "--all") == {"stored": 1, "failed": []}
    assert stored(place.url) == [1, 2, 3]
    assert ask("list") == {"total": 0, "reasons": {}, "entries": []}
    assert ask("retry", "--all") == {"stored": 0, "failed": []}


def test_people_are_told_the_same(place: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str, code: int = 0) -> str:
        assert main(["quarantine", *words]) == code
        return capsys.readouterr().out

    id = standing(place.url)[0].id
    assert id in said("list") and place.reason in said("list")
    shown = said("show", id[:8])
    assert place.reason in shown and '"number": 2' in shown and "https://shop.example/2" in shown
    tried = said("retry", id, code=1)
    assert f"0 items stored in {hide_secrets(place.url)}" in tried
    assert "1 failed again" in tried and place.reason in tried
    place.allow()
    assert said("retry", id) == f"1 items stored in {hide_secrets(place.url)}\n"
    assert said("list") == f"Nothing is in the quarantine of {hide_secrets(place.url)}\n"
    assert said("retry", "--all") == "Nothing to retry.\n"


def test_what_fails_for_another_reason_has_that(sink: str, ask: Ask) -> None:
    write(sink, Batch(rejects=[reject(packed(1, 2, 3), "newer")]))
    forbid(2)
    answer = ask("retry", "--all", code=1)
    (failed,) = answer["failed"]
    assert answer["stored"] == 2 and numbers() == [1, 3]
    assert (failed["reason"], failed["item"], failed["position"]) == ("no seconds", record(2).id, "0/0.1")
    assert [entry["id"] for entry in ask("list")["entries"]] == [failed["id"]], "the message itself has left"
    forbid()
    assert ask("retry", failed["id"]) == {"stored": 1, "failed": []} and numbers() == [1, 2, 3]


def test_each_is_retried_for_its_consumer_and_disturbs_no_other(sink: str, ask: Ask) -> None:
    forbid(1, 2, 3)
    write(sink, batch_of([record(1), record(2)]))
    write(sink, batch_of([record(3)]), consumer="second:shop")
    forbid(3)

    async def run() -> None:
        daemon = await opened(sink_of(sink))
        done = await retry(sink, await daemon.quarantined())
        assert done.stored == 2 and [entry.consumer for entry in done.failed] == ["second:shop"]
        await daemon.write(batch_of([record(4)], start=2))  # it holds its partition still
        await daemon.aclose()

    asyncio.run(run())
    assert numbers() == [1, 2, 4]
    assert ask("list", "--name", "second")["total"] == ask("list", "--name", "second:shop")["total"] == 1
    assert ask("list", "--name", "default")["total"] == 0


def test_two_items_of_one_position_are_two(sink: str, ask: Ask) -> None:
    """The log was made anew, so that another item stands where one did."""
    forbid(1, 2)
    write(sink, batch_of([record(1)]), batch_of([record(2)]))
    assert ask("list")["total"] == 2
    assert len(ask("retry", "--all", code=1)["failed"]) == 2
    forbid(2)
    assert [failed["item"] for failed in ask("retry", "--all", code=1)["failed"]] == [record(2).id]
    forbid()
    assert ask("retry", "--all")["stored"] == 1 and numbers() == [1, 2]


def test_what_cannot_be_read_stays(sink: str, ask: Ask) -> None:
    headers: Headers = {"job": "shop", "spider": "shop", "run": 1}
    other = pack_item("another", None, 0.0, {})
    rejects = [
        Reject(Position(0, 0), "why", "m0", {"content-type": "text/html"}, b"<html>"),
        Reject(Position(0, 1), "why", "m1", headers, other),  # a stranger's message that looks like an item of ours
        Reject(Position(0, 2), "it cannot be packed", "m2", headers, b""),
        Reject(Position(0, 3), "why", "m3", {}, b"\xc1"),
        Reject(Position(0, 4), "why", "m4\ud800\0", {"job": "\ud800"}, b"\xc1"),
    ]
    write(sink, Batch(rejects=rejects))
    before = standing(sink)
    reasons = {failed["position"]: failed["reason"] for failed in ask("retry", "--all", code=1)["failed"]}
    assert reasons == {
        "0/0": "not items: content-type 'text/html'",
        "0/1": "not an item: it has another id",
        "0/2": "it cannot be packed",
        "0/3": "not items: content-type None",
        "0/4": "not items: content-type None",
    }
    after = standing(sink)
    assert [entry.reject[2:] for entry in after] == [entry.reject[2:] for entry in before] and numbers() == []


@pytest.mark.parametrize("id", ["a", "\0a", "\ud800", ""])
def test_an_item_is_told_from_a_message(id: str) -> None:
    item = record(1)._replace(id=id, run=7, job="\ud83d\ude00")
    entry = reject_item(Entry(Position(0, 5, 3), item), "why")
    assert items_of(entry) == [item]
    assert items_of(reject(packed(1, 2))) == [record(1), record(2)]
    with pytest.raises(CodecError):
        items_of(entry._replace(id="other"))


def test_batches_are_as_large_as_the_sink_likes_them() -> None:
    def entry(number: int, message: Message) -> Quarantined:
        return Quarantined(str(number), "default", TOPIC, "", reject(message, offset=number))

    def sizes(limits: Limits, *entries: Quarantined) -> list[tuple[int, int]]:
        found = [trial.batch for trial in _trials(entries, limits, None)]
        assert [id for batch in found for id in batch.resolved] == [entry.id for entry in entries]
        return [(len(batch.entries), len(batch.rejects)) for batch in found]

    five = [entry(n, packed(n)) for n in range(5)]
    size = len(five[0].reject.content)
    assert sizes(Limits(items=2), *five) == [(2, 0), (2, 0), (1, 0)]
    assert sizes(Limits(size_bytes=3 * size), *five) == [(3, 0), (2, 0)]
    assert sizes(Limits(size_bytes=1), *five) == [(1, 0)] * 5
    assert sizes(Limits(items=2), entry(0, packed(*range(9))), entry(1, packed(1)._replace(body=b"?")), five[2]) == [
        (9, 0),
        (1, 1),
    ]
    assert sizes(Limits(), entry(1, packed(1)), entry(1, packed(2)), entry(2, packed(3))) == [(1, 0), (2, 0)]


# through a function


MEND = """
def one(item):
    number = item["data"]["number"]
    if number == 4:
        raise KeyError("price")
    if number == 5:
        return None
    made = {"data": {"number": number + 10, "was": number}}
    return [made, {**made, "data": {"number": number + 20}}] if number == 3 else made
"""


@pytest.fixture
def mended(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A sink with six items in quarantine, of which three are in one message; and the function."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mend", raising=False)
    Path("mend.py").write_text(MEND)
    alone = [reject_item(Entry(Position(0, n), record(n)), "why") for n in (1, 2, 4)]
    write(url, Batch(rejects=[*alone, reject(packed(3, 5, 6), offset=9)]))
    return url


def test_a_function_mends_items(mended: str, ask: Ask) -> None:
    answer = ask("retry", "--all", "--through", "mend:one", code=1)
    reasons = {failed["item"]: failed["reason"] for failed in answer["failed"]}
    assert answer["stored"] == 5 and reasons == {
        record(4).id: "--through mend:one: KeyError: 'price'",
        record(5).id: "--through mend:one returned nothing",
    }
    assert stored(mended) == [11, 12, 13, 16, 23]
    assert {record(n).id for n in (1, 2, 3, 6)} < {row["id"] for row in rows(mended)}
    assert {entry.reject.position: items_of(entry.reject) for entry in standing(mended)} == {
        Position(0, 4): [record(4)],
        Position(0, 9, 1): [record(5)],
    }


def test_what_is_refused_after_it_was_mended_is_kept_as_it_was(mended: str, ask: Ask) -> None:
    huge = "__import__('builtins').pow(10, 5000)"  # no sink takes it
    Path("mend.py").write_text(MEND.replace("number + 10", huge))
    failed = ask("retry", "--all", "--through", "mend:one", code=1)["failed"]
    assert {entry["item"] for entry in failed} == {record(n).id for n in range(1, 7)}
    kept = {record.id: record for entry in standing(mended) for record in items_of(entry.reject)}
    assert kept == {record(n).id: record(n) for n in range(1, 7)}
    assert ask("retry", "--all")["stored"] == 6 and standing(mended) == []


def test_a_function_that_is_not_there_is_said_first(mended: str, ask: Ask) -> None:
    assert "has no two" in ask("retry", "--all", "--through", "mend:two", code=2)
    assert len(standing(mended)) == 4


# commands


def test_entries_are_chosen_by_what_they_are(sink: str, ask: Ask) -> None:
    forbid(1, 2, 3, 4)
    other = [record(3, job="books"), record(4, job="books")._replace(spider="b")]
    write(sink, batch_of([record(1), record(2), *other]))
    with closing(sqlite3.connect("items.sqlite")) as db:
        db.execute("""UPDATE sink_quarantine SET at = '2026-11-21T1' || "offset" || ':00:00Z'""")
        db.execute("""UPDATE sink_quarantine SET reason = 'Another' WHERE "offset" = 0""")
        db.commit()

    def chosen(*words: str) -> list[str]:
        return [entry["position"] for entry in ask("list", *words)["entries"]]

    assert chosen() == ["0/0", "0/1", "0/2", "0/3"]
    assert chosen("--job", "books") == ["0/2", "0/3"] and chosen("--spider", "b") == ["0/3"]
    assert chosen("--reason", "another") == ["0/0"] and chosen("--reason", "OTHER", "--job", "books") == []
    assert chosen("--since", "2026-11-21T11:00", "--until", "2026-11-21T14:00:00+01:00") == ["0/1", "0/2"]
    assert chosen("--limit", "3") == ["0/0", "0/1", "0/2"] and ask("list", "--limit", "1")["total"] == 4
    assert len(ask("retry", "--job", "shop", "--limit", "1", code=1)["failed"]) == 1
    ids = [entry["id"] for entry in ask("list", "--job", "books")["entries"]]
    assert ask("drop", ids[0], "--json") == {"dropped": 1}
    assert "3 would be dropped for good: repeat it with --yes" in ask("drop", "--all", code=2)
    assert ask("drop", "--spider", "b", "--yes") == {"dropped": 1}
    assert ask("drop", "--spider", "b") == {"dropped": 0}
    assert ask("drop", "--all", "--yes") == {"dropped": 2} and chosen() == []


def test_choosing_nothing_is_a_mistake(place: Any, ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("retry", "drop"):
        assert "--all" in ask(verb, code=2)
        assert main(["quarantine", verb, "nosuch"]) == 1
        assert "no entries begin with 'nosuch'" in capsys.readouterr().err
    assert "no time" in ask("list", "--since", "now", code=2)
    assert len(standing(place.url)) == 1


@pytest.mark.parametrize("url", ["sqlite:///none.sqlite", "jsonl:///none.jsonl", "parquet:///none"])
def test_to_look_makes_no_sink(url: str, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no sink is set" in ask("list", code=2)
    for words in (["list"], ["show", "4f2a"], ["retry", "--all"], ["drop", "--all", "--yes"]):
        assert "give the --sink that the consumer stores to" in ask(*words, "--sink", url, code=2)
    assert list(tmp_path.iterdir()) == []


def test_show_has_all_and_says_nothing_to_the_terminal(
    sink: str, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    item = record(1, {"v": 10**5000, "\x1b[31m": "\u202e", "k": {1: [b"\xff"]}, "long": "x" * 9000})
    html = b"<html>\xff" + b"x" * 10_000
    write(
        sink,
        batch_of([item]),
        Batch(rejects=[Reject(Position(0, 5), "bad \x1b]0;x\x07\nline", "m", {"content-type": "text/html"}, html)]),
    )
    first, second = (entry["id"] for entry in ask("list")["entries"])
    shown = ask("show", first)
    assert shown["item"] == item.id and shown["headers"] == {"job": "shop", "spider": "shop", "run": 1}
    assert shown["content"][:3] == [item.id, item.url, item.scraped_at] and "digits" in shown["reason"]
    data = shown["content"][3]
    assert int(data["v"], 16) == 10**5000 and data["k"] == {"1": ["/w=="]} and data["long"] == "x" * 9000
    shown = ask("show", second)
    assert shown["message"] == "m" and shown["items"] == "none: not items: content-type 'text/html'"
    assert bytes.fromhex(shown["hex"]) == html[:512] and shown["bytes"] == len(html)
    for id in (first, second):
        assert main(["quarantine", "show", id]) == main(["quarantine", "list"]) == 0
        said = capsys.readouterr().out
        assert "\x1b" not in said and "\u202e" not in said and "\x07" not in said
    assert main(["quarantine", "show", ""]) == 1
    assert "2 entries begin with ''" in capsys.readouterr().err
