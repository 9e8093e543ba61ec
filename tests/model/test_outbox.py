"""The real outbox, over the real memory bus and state, killed before and after every one of its calls."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from scrapy import Request, Spider

from adapters.memory.state import MemoryState
from adapters.memory.transport import MemoryTransport
from bus.codec import unpack
from bus.errors import PublishUnconfirmed
from bus.message import Delivery, Message
from bus.state import Arrival, Job, JobState, Verdict
from bus.topic import Kind, Topic
from spiders.batch import Link, Prepared
from spiders.fetch import Fetch
from spiders.outbox import Outbox, OutboxTopics
from spiders.pages import page_of
from spiders.requests import RequestCodec
from spiders.seen import SeenFilter

SITE = {"a": "bc", "b": "cd", "c": "ad", "d": "e", "e": ""}  # page -> links
SOAK, FULL = "CRAWLBUS_SOAK" in os.environ, "CI" in os.environ or "CRAWLBUS_SOAK" in os.environ
SCHEDULES = 200_000 if SOAK else 15_000 if FULL else 1_000  # and about 10,000 exhaustive ones
RETRIED, DEAD = "d", "e"  # fails once; its callback raises
QUEUE, ITEMS, LETTERS = "m.requests", "m.items", "m.dead"


class Killed(Exception):
    """The process is gone."""


class Strings:
    """Passes every call on, but kills the process before or after call number `at`, or leaves it unconfirmed."""

    def __init__(self, inner: Any, plan: Plan) -> None:
        self._inner, self._plan = inner, plan

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        async def call(*args: Any, **kw: Any) -> Any:
            return await self._plan.run(name, lambda: method(*args, **kw))

        return call


class Plan:
    """What happens to the n-th call of a whole crawl: `{3: "before", 7: "after", 9: "unconfirmed"}`."""

    def __init__(self, faults: dict[int, str], pause: Callable[[], Awaitable[None]]) -> None:
        self._faults, self._pause, self._numbers = faults, pause, count(1)
        self.calls: list[str] = []
        self.after: Callable[[str], Awaitable[None]]

    async def run(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        number = next(self._numbers)
        self.calls.append(name)
        await self._pause()
        fault = self._faults.get(number)
        if fault == "before":
            raise Killed
        result = await call()
        if fault == "after":
            raise Killed
        await self.after(name)
        if fault == "unconfirmed" and name == "publish":
            raise PublishUnconfirmed("the confirm is lost")
        await self._pause()
        return result


class Process:
    """A worker without Scrapy: receives, arrives, "fetches" from `SITE`, and lets the outbox do the rest."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen = SeenFilter()
        self._held = 0
        self._failed: list[BaseException] = []

    async def run(self) -> None:
        """Until the queue is empty or it is killed; what it held comes back."""
        world = self._world
        subscription = await world.transport.subscribe(QUEUE)
        reader, state = Strings(subscription, world.plan), Strings(world.state, world.plan)
        self._outbox = world.outbox(
            Strings(world.transport, world.plan), state, reader, world.codec,
            OutboxTopics({"high": QUEUE, "": QUEUE, "bulk": QUEUE}, ITEMS, LETTERS), world.job, "model",
            on_ended=self._ended, on_failure=self._failed.append,
        )  # fmt: skip
        self._outbox.open()
        try:
            while deliveries := await subscription.receive(max_messages=2, timeout_s=0):
                await self._take(deliveries, state, reader)
                await self._quiet()
        except Killed:
            pass
        finally:
            await self._outbox.aclose()
            await subscription.aclose()

    def _ended(self, ended: int) -> None:
        self._held -= ended

    async def _quiet(self) -> None:
        while not self._outbox.empty:
            self._outbox.hurry()
            await asyncio.sleep(0)
            if self._failed:
                raise Killed

    async def _take(self, deliveries: Sequence[Delivery], state: Any, reader: Any) -> None:
        arrivals = [Arrival(d.message.key, d.message.id, d.message.attempt) for d in deliveries]
        for delivery, verdict in zip(deliveries, await state.arrive(self._world.job, arrivals), strict=True):
            if verdict is Verdict.FETCH:
                self._fetch(Fetch(delivery, delivery.message.key))
            else:
                await reader.ack([delivery])

    def _fetch(self, fetch: Fetch) -> None:
        name = self._world.names[fetch.page]
        self._world.fetched[name] += 1
        if name == RETRIED and fetch.attempt == 0:
            fetch.retry_delay_s = 0.0
            self._outbox.retry(fetch)
            return
        for link in SITE[name]:
            page = self._world.page(link)
            if self._seen.add(page):
                self._outbox.link(page, self._world.link(link))
        self._outbox.item(name.encode())  # a small number, to msgpack
        if name == DEAD:
            self._outbox.reject(fetch, "callback", "raised")
        else:
            self._outbox.finish(fetch)


class World:
    """One job, seeded with page `a`."""

    def __init__(self, faults: dict[int, str], seed: int | None = None, outbox: type[Outbox] = Outbox) -> None:
        self.outbox = outbox
        rng = random.Random(seed)

        async def pause() -> None:
            for _ in range(rng.randrange(4) if seed is not None else 0):
                await asyncio.sleep(0)

        self.plan = Plan(faults, pause)
        self.plan.after = self._look
        self.early = False
        self.job = Job("model", 1)
        self.codec = RequestCodec(Spider("model"), "model", 1)
        self.names = {self.page(name): name for name in SITE}
        self.fetched: Counter[str] = Counter()

    @staticmethod
    def page(name: str) -> bytes:
        return page_of(name.encode())

    @staticmethod
    def link(name: str) -> Link:
        return Link(name, 0, "", request=Request(f"http://model/{name}"))

    async def run(self, workers: int) -> None:
        """Processes, started again until all is done."""
        url = f"memory://{uuid4().hex}"
        self.transport, self.state = await MemoryTransport.connect(url), await MemoryState.connect(url)
        await self.transport.declare(
            Topic(QUEUE, Kind.QUEUE), Topic(ITEMS, Kind.LOG, 60.0), Topic(LETTERS, Kind.LOG, 60.0)
        )
        await self.state.join("model", spider="model")
        await self.state.acquire(self.job, "start", "me")
        body = self.codec.encode(Request("http://model/a"))
        await self.transport.publish(QUEUE, [self.codec.message(self.page("a"), body, source="start")])
        await self.state.mark(self.job, [self.page("a")])
        await self.state.end_start(self.job, "me")
        for _ in range(50):
            await asyncio.gather(*(Process(self).run() for _ in range(workers)))
            lag = await self.transport.lag(QUEUE)
            if not (lag.ready or lag.unacked or lag.delayed):
                break
        await self._check()
        await self.transport.aclose()
        await self.state.aclose()

    async def _look(self, call: str) -> None:
        """The job must not look drained while a page is left."""
        if call in ("mark", "finish"):
            status = await self.state.status("model")
            assert status is not None
            self.early |= status.drained and set(self.fetched) != set(SITE)

    async def _check(self) -> None:
        status = await self.state.status("model")
        assert status is not None
        assert (status.open, status.begun) == (0, 0), "the job never ends"
        assert await self.state.end(self.job) is JobState.FINISHED
        assert set(self.fetched) == set(SITE), "a page was lost"
        assert not self.early, "the job looked drained too early"
        assert status.seen == len(SITE)
        assert await self._log(ITEMS) == set(SITE), "an item was lost"

    async def _log(self, topic: str) -> set[str]:
        subscription = await self.transport.subscribe(topic, start="earliest", prefetch=10_000)
        deliveries = await subscription.receive(max_messages=10_000, timeout_s=0)
        await subscription.aclose()
        return {chr(number) for delivery in deliveries for number in unpack(delivery.message.body)}


def crawl(faults: dict[int, str], *, workers: int = 1, seed: int | None = None, outbox: type[Outbox] = Outbox) -> World:
    world = World(faults, seed, outbox)
    asyncio.run(world.run(workers))
    return world


CALLS = len(crawl({}).plan.calls)


def test_without_faults_each_page_is_fetched_once() -> None:
    world = crawl({})
    assert world.fetched == {"a": 1, "b": 1, "c": 1, "d": 2, "e": 1}
    assert CALLS > 20


@pytest.mark.parametrize("fault", ["before", "after", "unconfirmed"])
def test_one_fault_at_every_call(fault: str) -> None:
    for number in range(1, CALLS + 1):
        world = crawl({number: fault})
        extra = world.fetched.total() - 6
        assert extra <= 2, (number, fault, world.fetched)  # what one process held


def test_two_faults_at_every_pair_of_calls() -> None:
    """Exhaustive; a schedule is one crawl."""
    kinds = ("before", "after", "unconfirmed")
    for first in range(1, CALLS + 1):
        for second in range(first + 1, CALLS + 8, 1 if FULL else 5):
            for one in kinds:
                for other in kinds:
                    crawl({first: one, second: other})


@pytest.mark.parametrize("part", range(4))
@pytest.mark.timeout(600)
def test_two_processes_in_random_interleavings_with_random_faults(part: int) -> None:
    for seed in range(part * SCHEDULES // 4, (part + 1) * SCHEDULES // 4):
        rng = random.Random(seed)
        kinds = ["before", "after", "unconfirmed"]
        faults = {rng.randrange(1, 2 * CALLS): rng.choice(kinds) for _ in range(rng.randrange(4))}
        try:
            crawl(faults, workers=2, seed=seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {faults}: {error}") from error


class EagerMark(Outbox):
    """Marks before the confirm."""

    async def _publish_to(self, topic: str, messages: list[Message]) -> None:
        await self._state.mark(self._job, [message.key for message in messages if message.key and not message.attempt])
        await super()._publish_to(topic, messages)


class HastyAck(Outbox):
    """Acknowledges before it marks and finishes."""

    async def _settle(self, out: Prepared) -> None:
        await self._reader.ack([fetch.delivery for fetch in out.ended])
        await super()._settle(out)


class EarlyFinish(Outbox):
    """Finishes pages in a call before the one that marks their links."""

    async def _settle(self, out: Prepared) -> None:
        await self._state.finish(self._job, out.finish)
        await super()._settle(out)


@pytest.mark.parametrize("mutant", [EagerMark, HastyAck, EarlyFinish])
def test_each_rule_left_out_is_found(mutant: type[Outbox]) -> None:
    """A crash at some call then loses a page, or the job never ends."""
    found = []
    for number in range(1, CALLS + 8):
        for fault in ("before", "after"):
            try:
                crawl({number: fault}, outbox=mutant)
            except AssertionError as error:
                found.append((number, fault, str(error)))
    assert found
