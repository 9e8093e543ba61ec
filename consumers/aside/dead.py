"""Dead letters that nobody has decided on, and the decisions: retry and drop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from bus.codec import SCHEMA
from bus.dead import DeadLetter, Decision, decision, read_dead
from bus.errors import BusError, CodecError
from bus.message import Delivery, Message, new_id
from bus.state import Job, State
from bus.topic import LANES, dead_log, request_queue
from bus.transport import Transport

__all__ = ["DeadLetters", "History", "Refused", "Retried", "page_of", "retried_page", "why_not"]

REQUEST = "crawlbus/request"
IDLE_S = 2.0  # where a bus cannot tell the end of its log: so long without a message is the end
FETCH = 64


class Refused(NamedTuple):
    """A letter that cannot be retried, and why."""

    letter: str
    why: str


class History(NamedTuple):
    """All letters of one page, in the order of the log, and what was decided on each."""

    letters: list[DeadLetter]
    decisions: dict[str, Decision]


@dataclass(slots=True)
class Retried:
    """What `retry` has done: the letters published again, by job, and those that could not be."""

    jobs: dict[str, int] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)


def page_of(letter: DeadLetter) -> bytes | None:
    """The page that died, by the id under which it was first published."""
    headers = letter.message.headers
    page = headers.get("origin", headers.get("page"))
    return page if isinstance(page, bytes) else None


def retried_page(page: bytes, letter: str) -> bytes:
    """The page id of a dead page that is tried again: the same whenever this letter is retried, so that a retry
    that was cut off between its publish and its record fetches nothing twice. 16 bytes."""
    return blake2b(b"dead-retry\0%s\0%s" % (page, letter.encode()), digest_size=16).digest()


def why_not(letter: DeadLetter) -> str | None:
    """Why a letter cannot be retried; None: it can."""
    headers = letter.message.headers
    if not letter.whole:
        return "the letter holds only the beginning of its message"
    if headers.get("content-type") != REQUEST:
        return "it is not a request"
    page, schema = headers.get("page"), headers.get("schema")
    if not isinstance(page, bytes) or len(page) != 16:
        return "it has no page id"
    if not isinstance(schema, int) or schema > SCHEMA:
        return f"its schema {schema!r} is newer than this version of crawlbus"
    return None


class DeadLetters:
    """Those of one bus. Its log is read twice, decisions first, so that bodies need not be held in memory."""

    def __init__(self, transport: Transport, prefix: str) -> None:
        self._transport, self._prefix = transport, prefix
        self._topic = dead_log(prefix)
        self.unreadable = 0  # entries of the last pass that are neither letter nor decision

    async def undecided(self, wanted: Callable[[DeadLetter], bool] = lambda _: True) -> AsyncIterator[DeadLetter]:
        """The letters without a decision that are wanted, each once, in the order of the log."""
        decided = {entry.letter async for entry in self._entries() if isinstance(entry, Decision)}
        async for entry in self._entries():
            if isinstance(entry, Decision) or entry.id in decided:
                continue
            decided.add(entry.id)
            if wanted(entry):
                yield entry

    async def history(self, start: str) -> History:
        """The letter whose id begins with `start`, with all others of its page. Raises `BusError` if there is none,
        or more than one."""
        letter = await self.find(start)
        page = page_of(letter)
        letters: dict[str, DeadLetter] = {}
        decisions: dict[str, Decision] = {}
        async for entry in self._entries():
            if isinstance(entry, Decision):
                decisions.setdefault(entry.letter, entry)
            elif entry.id == letter.id or (page is not None and entry.job == letter.job and page_of(entry) == page):
                letters.setdefault(entry.id, entry)
        return History(list(letters.values()), decisions)

    async def find(self, start: str) -> DeadLetter:
        """The letter whose id begins with `start`. Raises `BusError` if there is none, or more than one."""
        found: dict[str, DeadLetter] = {}
        async for entry in self._entries():
            if isinstance(entry, DeadLetter) and entry.id.startswith(start):
                found[entry.id] = entry
        if len(found) != 1:
            raise BusError(f"{len(found) or 'no'} dead letters begin with {start!r}: see `crawlbus dead list`")
        return next(iter(found.values()))

    async def drop(self, letters: Sequence[DeadLetter], at: float) -> None:
        """Record that these letters are done with."""
        await self._transport.declare(self._topic)
        await self._record([decision(letter.id, "drop", job=letter.job, at=at) for letter in letters])

    async def retry(self, state: State, letters: Iterable[DeadLetter], at: float) -> Retried:
        """Publish requests again, each under a page id of its own; a finished job is running again by it.

        Order: publish, confirmed, mark, decision. Cut off anywhere, it may simply be repeated.
        """
        done = Retried()
        by_job: dict[str, list[DeadLetter]] = {}
        for letter in letters:
            if why := why_not(letter):
                done.refused.append(Refused(letter.id, why))
            else:
                by_job.setdefault(letter.job, []).append(letter)
        for job, of_job in by_job.items():
            if why := await self._retry_job(state, job, of_job, at):
                done.refused += [Refused(letter.id, why) for letter in of_job]
            else:
                done.jobs[job] = len(of_job)
        return done

    async def _retry_job(self, state: State, name: str, letters: Sequence[DeadLetter], at: float) -> str | None:
        if (status := await state.status(name)) is None:
            return f"job {name!r} is not known to the state"
        queues = {lane: request_queue(self._prefix, name, lane) for lane in LANES}
        await self._transport.declare(self._topic, *queues.values())
        pages = []
        for lane, queue in queues.items():
            here = [_again(letter, status.job) for letter in letters if self._lane(letter) == lane]
            if here:
                await self._transport.publish(queue.name, here)
            pages += [message.key for message in here]
        await state.mark(status.job, pages)
        now = await state.status(name)
        if now is None or now.job != status.job:
            return f"job {name!r} was restarted meanwhile: try again"
        await self._record([decision(letter.id, "retry", job=name, at=at) for letter in letters])
        return None

    def _lane(self, letter: DeadLetter) -> str:
        """That of the queue it came from; a band of delays has the lane in a header."""
        queue = request_queue(self._prefix, letter.job).name
        lane = letter.source.removeprefix(f"{queue}.") if letter.source.startswith(queue) else None
        lane = "" if letter.source == queue else lane
        named = lane if lane in LANES else letter.message.headers.get("lane")
        return named if isinstance(named, str) and named in LANES else ""

    async def _record(self, decisions: Sequence[Message]) -> None:
        if decisions:
            await self._transport.publish(self._topic.name, decisions)

    async def _entries(self) -> AsyncIterator[DeadLetter | Decision]:
        """The log as it stands when the pass begins."""
        await self._transport.declare(self._topic)
        self.unreadable = 0
        async for delivery in _read_log(self._transport, self._topic.name):
            try:
                yield read_dead(delivery.message)
            except CodecError:
                self.unreadable += 1


def _again(letter: DeadLetter, job: Job) -> Message:
    """The request of a letter as a new message of a new page; items keep the id that the first page gives them."""
    old, first = letter.message, page_of(letter)
    died = old.headers["page"]
    assert isinstance(died, bytes)
    page = retried_page(died, letter.id)
    headers = {**old.headers, "page": page, "origin": first, "run": job.run, "attempt": 0}
    id = new_id()
    if "id" in headers:
        headers["id"] = id
    headers.pop("not-before", None)
    return Message(id, old.body, headers, page)


async def _read_log(transport: Transport, topic: str) -> AsyncIterator[Delivery]:
    """A log from its first message to the end that it had when the call began."""
    lag = await transport.lag(topic)
    left = None if lag.end is None else {p: end for p, end in lag.end.items() if end > (lag.first or {}).get(p, 0)}
    if left is not None and not left:
        return
    subscription = await transport.subscribe(topic, start="earliest")
    try:
        while left is None or left:
            deliveries = await subscription.receive(max_messages=FETCH, timeout_s=IDLE_S)
            if not deliveries and left is None:
                return
            for delivery in deliveries:
                if left is None or delivery.offset < left.get(delivery.partition, 0):
                    yield delivery
                if left is not None and delivery.offset + 1 >= left.get(delivery.partition, 0):
                    left.pop(delivery.partition, None)
            if deliveries:
                await subscription.ack([deliveries[-1]])
    finally:
        await subscription.aclose()
