"""Dead letters: their records, and what `dead list|show|retry|drop` do about them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bus.cli import cli, main
from bus.codec import MAX_BYTES, SCHEMA, pack
from bus.dead import DeadLetter, Decision, Reason, dead_letter, decision, read_dead
from bus.errors import BusError, CodecError, ConnectionLost
from bus.message import Delivery, HeaderValue, Message, new_id
from bus.registry import connect_state, connect_transport
from bus.state import Arrival, JobState, State, Verdict
from bus.topic import LANES, dead_log, request_queue
from bus.transport import Transport
from consumers.aside.dead import DeadLetters, retried_page

BUSES = pytest.mark.parametrize("scheme", ["memory", "sqlite"])
AT = 1_800_000_000.0


def request(number: int, /, **headers: HeaderValue) -> Message:
    """The message of a request, as a worker publishes it."""
    page = number.to_bytes(16, "big")
    known: dict[str, HeaderValue] = {
        "content-type": "crawlbus/request", "schema": SCHEMA, "job": "shop", "spider": "shop", "run": 1,
        "page": page, "first-seen": AT, "source": "https://shop.example/", "attempt": 2,
    }  # fmt: skip
    body = pack({"url": f"https://shop.example/{number}", "cookies": {"session": "s3cret"}})
    return Message(f"message-{number}", body, {**known, **headers}, page)


def letter(
    message: Message, *, reason: Reason = "callback", lane: str = "", whole: bool = True, at: float = AT
) -> Message:
    source = request_queue("crawlbus.", "shop", lane).name
    url = f"https://shop.example/{message.id}"
    detail = "ValueError: no price"
    return dead_letter(
        message, reason=reason, detail=detail, job="shop", spider="shop", url=url, at=at, source=source, whole=whole
    )


# records


def test_a_letter_is_read_as_it_was_written() -> None:
    read = read_dead(letter(request(1), lane="high"))
    assert isinstance(read, DeadLetter)
    assert (read.job, read.spider, read.reason, read.detail) == ("shop", "shop", "callback", "ValueError: no price")
    assert (read.attempt, read.source, read.whole, read.at) == (2, "crawlbus.shop.requests.high", True, AT)
    assert read.message == request(1)
    assert read_dead(decision(read.id, "drop", job="shop", at=AT)) == Decision(read.id, "drop", AT)


def test_the_same_death_has_the_same_id_and_another_has_another() -> None:
    one = letter(request(1))
    assert letter(request(1), at=AT + 5).id == one.id
    others = [letter(request(2)), letter(request(1, attempt=3)), letter(request(1), reason="pipeline")]
    assert len({one.id, *(other.id for other in others)}) == 4


def test_a_part_of_a_message_is_its_first_4_kib() -> None:
    large = request(1)._replace(body=b"x" * 10_000)
    read = read_dead(letter(large, reason="decode", whole=False))
    assert isinstance(read, DeadLetter) and read.message.body == b"x" * 4096 and not read.whole


@pytest.mark.parametrize(
    "message",
    [
        request(1)._replace(body=b"x" * (MAX_BYTES - 10)),
        request(1)._replace(body=b"x" * MAX_BYTES * 2),
        request(1, source="y" * MAX_BYTES),
        request(1, **{f"h{n}": "z" * 10_000 for n in range(1000)}),
    ],
)
def test_a_letter_always_fits(message: Message) -> None:
    written = letter(message)
    assert len(written.body) <= MAX_BYTES
    read = read_dead(written)
    assert isinstance(read, DeadLetter) and not read.whole and read.reason == "callback"
    assert read.id == letter(message).id


@given(st.binary() | st.recursive(st.text() | st.integers(), lambda x: st.dictionaries(st.text(), x)).map(pack))
def test_what_is_no_letter_is_a_codec_error(body: bytes) -> None:
    for kind in ("crawlbus/dead", "crawlbus/decision", "crawlbus/items", 5, None):
        with pytest.raises(CodecError):
            read_dead(Message("m", body, {"content-type": kind}))


# decisions


class Scene:
    """A bus and a state with the job `shop`, which is finished."""

    def __init__(self, transport: Transport, state: State) -> None:
        self.transport, self.state = transport, state
        self.letters = DeadLetters(transport, "crawlbus.")

    async def bury(self, *letters: Message) -> list[DeadLetter]:
        await self.transport.publish("crawlbus.dead", letters)
        return [read for read in map(read_dead, letters) if isinstance(read, DeadLetter)]

    async def undecided(self) -> list[str]:
        return [letter.id async for letter in self.letters.undecided()]

    async def requests(self, lane: str = "") -> Sequence[Delivery]:
        queue = request_queue("crawlbus.", "shop", lane)
        await self.transport.declare(queue)
        subscription = await self.transport.subscribe(queue.name)
        found = await subscription.receive(max_messages=100, timeout_s=0.2)
        await subscription.ack(found)
        await subscription.aclose()
        return found


@asynccontextmanager
async def scene(scheme: str, directory: Path) -> AsyncIterator[Scene]:
    url = f"sqlite:///{directory / 'bus.db'}" if scheme == "sqlite" else f"memory://{directory.name}"
    transport, state = await connect_transport(url), await connect_state(url)
    try:
        await transport.declare(dead_log("crawlbus."))
        job = (await state.join("shop", spider="shop")).job
        await state.acquire(job, "start", "me")
        await state.end_start(job, "me")
        await state.end(job)
        yield Scene(transport, state)
    finally:
        await state.aclose()
        await transport.aclose()


def run(work: Callable[[Scene], Awaitable[None]], scheme: str, directory: Path) -> None:
    async def go() -> None:
        async with scene(scheme, directory) as here:
            await work(here)

    asyncio.run(go())


@BUSES
def test_the_list_is_what_has_no_decision_yet(scheme: str, tmp_path: Path) -> None:
    async def work(here: Scene) -> None:
        assert await here.undecided() == []
        first, second, third = await here.bury(
            letter(request(1)), letter(request(2), reason="status"), letter(request(3))
        )
        await here.bury(letter(request(1)))  # written twice
        await here.transport.publish("crawlbus.dead", [Message(new_id(), b"\xc1", {})])
        assert await here.undecided() == [first.id, second.id, third.id]
        assert here.letters.unreadable == 1
        wanted = [dead.id async for dead in here.letters.undecided(lambda dead: dead.reason == "status")]
        assert wanted == [second.id]
        await here.letters.drop([first, third], AT)
        assert await here.undecided() == [second.id]

    run(work, scheme, tmp_path)


@BUSES
def test_a_retry_is_a_new_page_that_keeps_its_origin(scheme: str, tmp_path: Path) -> None:
    async def work(here: Scene) -> None:
        (dead,) = await here.bury(letter(request(7), lane="high"))
        await here.state.restart("shop")
        job = (await here.state.join("shop", spider="shop")).job
        done = await here.letters.retry(here.state, [dead], AT)
        assert (done.jobs, done.refused) == ({"shop": 1}, [])
        assert await here.undecided() == []
        (delivery,) = await here.requests("high")
        message, page = delivery.message, retried_page(request(7).key, dead.id)
        assert message.headers["page"] == message.key == page and page != request(7).key
        assert message.headers["origin"] == request(7).key
        assert (message.headers["run"], message.attempt) == (job.run, 0) and job.run == 2
        assert message.id != dead.message.id and message.body == dead.message.body
        assert await here.state.check(job, [page]) == set()  # it is marked
        # it dies again, and is tried again: the origin stays
        (again,) = await here.bury(letter(message))
        await here.letters.retry(here.state, [again], AT)
        (delivery,) = await here.requests()
        assert delivery.message.headers["origin"] == request(7).key
        assert delivery.message.headers["page"] not in (page, request(7).key)

    run(work, scheme, tmp_path)


@BUSES
def test_a_retry_sets_a_finished_job_running_again(scheme: str, tmp_path: Path) -> None:
    async def work(here: Scene) -> None:
        (dead,) = await here.bury(letter(request(1)))
        before = await here.state.status("shop")
        await here.letters.retry(here.state, [dead], AT)
        after = await here.state.status("shop")
        assert before is not None and before.state is JobState.FINISHED
        assert after is not None and after.state is JobState.RUNNING and after.open == 1

    run(work, scheme, tmp_path)


class CutOff:
    """A bus or a state that is gone from its `calls`-th call of `publish` or `mark` on."""

    def __init__(self, inner: Any, left: list[int]) -> None:
        self._inner, self._left = inner, left

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in ("publish", "mark"):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            if not self._left[0]:
                raise ConnectionLost("gone")
            self._left[0] -= 1
            return await found(*args, **kwargs)

        return call


@BUSES
@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_retry_that_was_cut_off_and_is_repeated_fetches_once(scheme: str, calls: int, tmp_path: Path) -> None:
    """Publish, mark, decision: cut off before each of them."""

    async def work(here: Scene) -> None:
        (dead,) = await here.bury(letter(request(1)))
        left = [calls]
        cut: Any = CutOff(here.transport, left)
        gone: Any = CutOff(here.state, left)
        with pytest.raises(ConnectionLost):
            await DeadLetters(cut, "crawlbus.").retry(gone, [dead], AT)
        assert await here.undecided() == [dead.id]
        await here.letters.retry(here.state, [dead], AT)
        assert await here.undecided() == []
        job = (await here.state.join("shop", spider="shop")).job
        deliveries = await here.requests()
        assert len(deliveries) == (1 if calls == 0 else 2)
        verdicts = []
        for delivery in deliveries:
            page = delivery.message.key
            verdicts += await here.state.arrive(job, [Arrival(page, delivery.message.id)])
        assert verdicts.count(Verdict.FETCH) == 1  # the other is acked unread

    run(work, scheme, tmp_path)


def test_what_cannot_be_retried_is_told_and_stays(tmp_path: Path) -> None:
    async def work(here: Scene) -> None:
        newer: dict[str, HeaderValue] = {"schema": SCHEMA + 1}
        letters = await here.bury(
            letter(request(1), whole=False),
            letter(request(2, **{"content-type": "crawlbus/items"})),
            letter(request(3, page=b"short")),
            letter(request(4, **newer)),
            dead_letter(request(5), reason="status", detail="", job="gone", spider="s", url=None, at=AT),
            letter(request(6)),
        )
        done = await here.letters.retry(here.state, letters, AT)
        whys = {refused.letter: refused.why for refused in done.refused}
        says = ["beginning", "not a request", "no page id", "newer", "'gone' is not known"]
        for dead, say in zip(letters, says, strict=False):
            assert say in whys[dead.id]
        assert done.jobs == {"shop": 1}
        assert await here.undecided() == [dead.id for dead in letters[:5]]

    run(work, "memory", tmp_path)


def test_the_lane_is_that_of_the_queue_or_of_the_header(tmp_path: Path) -> None:
    async def work(here: Scene) -> None:
        band = dead_letter(
            request(9, lane="bulk"), reason="poison", detail="", job="shop", spider="shop", url=None, at=AT,
            source="crawlbus.shop.requests.delay-60",
        )  # fmt: skip
        elsewhere = dead_letter(
            request(8), reason="poison", detail="", job="shop", spider="shop", url=None, at=AT, source="other.topic"
        )
        letters = await here.bury(*(letter(request(n), lane=lane) for n, lane in enumerate(LANES)), band, elsewhere)
        await here.letters.retry(here.state, letters, AT)
        found = {lane: {delivery.message.body for delivery in await here.requests(lane)} for lane in LANES}
        expected = {"high": {0}, "": {1, 8}, "bulk": {2, 9}}
        assert found == {lane: {request(n).body for n in expected[lane]} for lane in LANES}

    run(work, "memory", tmp_path)


def test_history_has_all_letters_of_a_page(tmp_path: Path) -> None:
    async def work(here: Scene) -> None:
        first, other = await here.bury(letter(request(1)), letter(request(2)))
        await here.letters.retry(here.state, [first], AT)
        (delivery,) = await here.requests()
        (second,) = await here.bury(letter(delivery.message, reason="status"))
        for start in (first.id, second.id[:12]):
            history = await here.letters.history(start)
            assert [dead.id for dead in history.letters] == [first.id, second.id]
            assert history.decisions[first.id].verb == "retry" and second.id not in history.decisions
        with pytest.raises(BusError, match="no dead letters begin with 'zz'"):
            await here.letters.history("zz")
        with pytest.raises(BusError, match="3 dead letters begin with"):
            await here.letters.history("")
        assert other.id in await here.undecided()

    run(work, "memory", tmp_path)


# commands


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bus with three dead letters; one of them says things to the terminal."""
    monkeypatch.chdir(tmp_path)
    evil = dead_letter(
        request(3), reason="status", detail="503 \x1b[31m[bold]x[/bold]\n\u202e", job="shop", spider="shop",
        url="https://shop.example/\x1b]0;x\x07", at=AT, source="crawlbus.shop.requests",
    )  # fmt: skip

    async def work(here: Scene) -> None:
        await here.bury(letter(request(1)), letter(request(2)), evil)

    run(work, "sqlite", tmp_path)
    url = f"sqlite:///{tmp_path / 'bus.db'}"
    monkeypatch.setenv("CRAWLBUS_BUS", url)
    return url


def ask(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What a command prints."""
    assert main(["dead", *words]) == code
    return capsys.readouterr().out


def test_list_counts_by_reason(bus: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = ask(capsys, "list")
    assert "callback" in shown and "ValueError: no price" in shown and "https://shop.example/message-1" in shown
    assert "\x1b" not in shown and "\u202e" not in shown and "[bold]x[/bold]" in shown
    data = json.loads(ask(capsys, "list", "--json"))
    assert data["total"] == 3 and data["reasons"] == {"callback": 2, "status": 1}
    assert [entry["reason"] for entry in data["letters"]] == ["callback", "callback", "status"]
    data = json.loads(ask(capsys, "list", "--json", "--reason", "callback", "--limit", "1"))
    assert data["total"] == 2 and len(data["letters"]) == 1
    assert ask(capsys, "list", "--job", "other") == "No dead letters.\n"


def test_to_look_makes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAWLBUS_BUS", "sqlite:///none.db")
    for words in (["list"], ["show", "4f2a"]):
        assert ask(capsys, *words) == "No dead letters: there is no bus file none.db.\n"
    assert json.loads(ask(capsys, "list", "--json")) == {"total": 0, "reasons": {}, "letters": []}
    assert json.loads(ask(capsys, "show", "4f2a", "--json")) == []
    assert list(tmp_path.iterdir()) == []


def test_show_hides_secrets(bus: str, capsys: pytest.CaptureFixture[str]) -> None:
    id = json.loads(ask(capsys, "list", "--json"))["letters"][0]["id"]
    (entry,) = json.loads(ask(capsys, "show", id[:16], "--json"))
    assert entry["id"] == id and entry["retry"] == "possible" and entry["decision"] is None
    assert entry["message"] == {"url": "https://shop.example/1", "cookies": "***"}
    shown = ask(capsys, "show", id)
    assert "none yet" in shown and "s3cret" not in shown and "2027-01-15" in shown


def test_retry_and_drop(bus: str, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = (entry["id"] for entry in json.loads(ask(capsys, "list", "--json"))["letters"])
    assert "1 published again" in ask(capsys, "retry", first[:20])
    assert json.loads(ask(capsys, "drop", third, "--json")) == {"dropped": 1}
    assert [entry["id"] for entry in json.loads(ask(capsys, "list", "--json"))["letters"]] == [second]
    assert json.loads(ask(capsys, "retry", "--all", "--json")) == {"retried": {"shop": 1}, "refused": []}
    assert ask(capsys, "retry", "--all") == "Nothing to retry.\n"
    (entry,) = json.loads(ask(capsys, "show", first, "--json"))
    assert entry["decision"]["verb"] == "retry" and entry["decision"]["at"] <= time.time()


def test_history_outlives_a_retry(bus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = json.loads(ask(capsys, "list", "--json"))["letters"][0]["id"]
    ask(capsys, "retry", first)

    async def die_again() -> None:
        transport = await connect_transport(bus)
        queue = request_queue("crawlbus.", "shop")
        subscription = await transport.subscribe(queue.name)
        (delivery,) = await subscription.receive(max_messages=1, timeout_s=30)
        again = letter(delivery.message.again(attempt=3), reason="download")
        await transport.publish("crawlbus.dead", [again])
        await subscription.ack([delivery])
        await subscription.aclose()
        await transport.aclose()

    asyncio.run(die_again())
    (second,) = json.loads(ask(capsys, "list", "--json", "--reason", "download"))["letters"]
    for id in (first, second["id"]):
        entries = json.loads(ask(capsys, "show", id, "--json"))
        assert [(entry["id"], entry["reason"], entry["attempt"]) for entry in entries] == [
            (first, "callback", 2),
            (second["id"], "download", 3),
        ]
        assert [entry["decision"] and entry["decision"]["verb"] for entry in entries] == ["retry", None]
        shown = ask(capsys, "show", id)
        assert "retry, 20" in shown and "none yet" in shown and "callback" in shown and "download" in shown


def test_letters_are_chosen_by_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def died(number: int, url: str | None, *, job: str = "shop", spider: str = "shop") -> Message:
        reason: Reason = "status" if number % 2 else "download"
        return dead_letter(
            request(number), reason=reason, detail="", job=job, spider=spider, url=url, at=AT + 3600 * number
        )

    letters = [
        died(0, "https://shop.example/0"),
        died(1, "https://SHOP.example:8443/1"),
        died(2, "http://other.example/shop.example"),
        died(3, None, spider="books"),
        died(4, "http://[::bad", job="gone"),
    ]
    ids = [letter.id for letter in letters]

    async def work(here: Scene) -> None:
        await here.bury(*letters)

    run(work, "sqlite", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAWLBUS_BUS", "sqlite:///bus.db")

    def chosen(*words: str) -> list[int]:
        return [ids.index(entry["id"]) for entry in json.loads(ask(capsys, "list", "--json", *words))["letters"]]

    assert chosen("--host", "Shop.example") == [0, 1]
    assert chosen("--host", "shop.example:8443") == [1]
    assert chosen("--spider", "books") == [3]
    assert chosen("--reason", "Stat") == [1, 3]
    assert chosen("--since", "2027-01-15T09:00", "--until", "2027-01-15T12:00:00+01:00") == [1, 2]
    assert chosen("--job", "gone") == [4]
    assert main(["dead", "list", "--since", "yesterday"]) == 2
    assert "'yesterday' is no time: write 2026-11-21" in capsys.readouterr().err
    assert json.loads(ask(capsys, "retry", "--host", "shop.example", "--reason", "download", "--json")) == {
        "retried": {"shop": 1},
        "refused": [],
    }
    assert main(["dead", "drop", "--spider", "books"]) == 2
    assert "1 would be dropped for good: repeat it with --yes" in capsys.readouterr().err
    assert chosen() == [1, 2, 3, 4]
    assert json.loads(ask(capsys, "drop", "--spider", "books", "--yes", "--json")) == {"dropped": 1}
    assert json.loads(ask(capsys, "drop", "--all", "--yes", "--limit", "2", "--json")) == {"dropped": 2}
    assert chosen() == [4]


def test_choosing_nothing_is_a_mistake(bus: str, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("retry", "drop"):
        assert main(["dead", verb]) == 2
        assert "--all" in capsys.readouterr().err
        assert main(["dead", verb, "nosuch"]) == 1
        assert "no dead letters begin with 'nosuch'" in capsys.readouterr().err
    assert json.loads(ask(capsys, "list", "--json"))["total"] == 3


@pytest.mark.parametrize(
    "words", [["consume"], ["dead"], *(["dead", verb] for verb in ("list", "show", "retry", "drop"))]
)
def test_each_help_has_an_example(words: list[str]) -> None:
    shown = CliRunner().invoke(cli, [*words, "--help"])
    assert shown.exit_code == 0 and "Example" in shown.output and f"crawlbus {' '.join(words)}" in shown.output
