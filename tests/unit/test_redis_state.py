"""The Redis state where a server goes away, comes back, refuses, or holds a million pages."""

from __future__ import annotations

import asyncio
import os
import re
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import pytest
import redis
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from adapters.redis.leases import Lease
from adapters.redis.state import RedisState
from adapters.redis.transport import RedisTransport
from bus.errors import BusError, ConnectionLost, Misconfigured, StorageFailed
from bus.findings import FAULT
from bus.message import Message
from bus.state import LEASE_S, Arrival, Job, JobState, WorkerReport
from bus.testing.clock import FakeClock
from bus.testing.state_scene import page_id, pages
from bus.topic import Kind, Topic
from tests.servers import Server, server, shared_url

T = TypeVar("T")
SECRET = "s3cr%2Ft"
PATIENCE_S = 30.0
FORGET_S = 60.0


def play(scene: Callable[[RedisState, Job], Awaitable[None]], url: str) -> None:
    async def run() -> None:
        async with state_at(url) as state:
            await scene(state, (await state.join("shop", spider="s")).job)

    asyncio.run(run())


@asynccontextmanager
async def state_at(url: str) -> AsyncIterator[RedisState]:
    state = await RedisState.connect(url)
    try:
        yield state
    finally:
        await state.aclose()


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Again until it is there, as a worker does."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await call()
        except ConnectionLost:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


@pytest.fixture
def url() -> str:
    """An empty database of a server that all share."""
    found = shared_url("redis-7").rpartition("/")[0] + "/8"
    with redis.Redis.from_url(found) as client:
        client.flushdb()
    return found


@pytest.fixture
def own(request: pytest.FixtureRequest) -> Iterator[Server]:
    with server("redis-7", **getattr(request, "param", {})) as one:
        yield one


# a server that goes away


def test_a_killed_server_comes_back_with_all_that_was_confirmed(own: Server) -> None:
    async def scene(state: RedisState, job: Job) -> None:
        confirmed: list[bytes] = []
        stop = asyncio.Event()

        async def mark_for_ever(first: int) -> None:
            n = first
            while not stop.is_set():
                some = pages(*range(n, n + 5))
                await insist(partial(state.mark, job, some))
                confirmed.extend(some)
                n += 5

        assert await state.acquire(job, "worker:w", "w", lease_s=3)
        tasks = [asyncio.create_task(mark_for_ever(1_000_000 * i)) for i in range(3)]
        for kills in range(1, 3):
            before = len(confirmed)
            await grown(confirmed, before + 200)
            await asyncio.to_thread(own.kill)
            with pytest.raises(ConnectionLost):
                await state.status("shop")
            await asyncio.to_thread(own.start)
            await grown(confirmed, len(confirmed) + 200)
            status = await state.status("shop")
            assert status and status.suspect and status.state is JobState.RUNNING, kills
        stop.set()
        await asyncio.gather(*tasks)
        assert await state.check(job, confirmed) == set()
        await until_suspect_ends(state, job)

    play(scene, own.url)


async def until_suspect_ends(state: RedisState, job: Job) -> None:
    """A suspect job ends the slow way only, and is none any more."""
    assert await state.acquire(job, "start", "w") and await state.end_start(job, "w")
    async with asyncio.timeout(PATIENCE_S):
        status = await state.status("shop")
        assert status and status.seen == status.open
    every = [page_id(1_000_000 * i + n) for i in range(3) for n in range(20_000)]
    await state.finish(job, every)
    assert await state.end(job) is JobState.RUNNING
    assert await state.end(job, unaccounted=0) is JobState.FINISHED
    status = await state.status("shop")
    assert status and not status.suspect and status.unaccounted == status.open


async def grown(found: list[bytes], size: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < size:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_finished_job_runs_again_when_its_server_is_another(own: Server) -> None:
    async def scene(state: RedisState, job: Job) -> None:
        assert await state.acquire(job, "start", "w") and await state.end_start(job, "w")
        assert await state.end(job) is JobState.FINISHED
        own.kill()
        own.start()
        status = await insist(lambda: state.status("shop"))
        assert status and (status.state, status.suspect) == (JobState.FINISHED, False), "who looks changes nothing"
        assert await state.end(job) is JobState.RUNNING
        status = await state.restart("shop")
        assert not status.suspect

    play(scene, own.url)


def test_a_lease_is_renewed_by_a_server_that_was_away(own: Server) -> None:
    async def scene(state: RedisState, job: Job) -> None:
        assert await state.acquire(job, "start", "w", lease_s=3)
        own.kill()
        own.start()
        async with state_at(own.url) as other:
            end = time.monotonic() + 5
            while time.monotonic() < end:
                await other.acquire(job, "seed:x", "other")
                assert await state.end_start(job, "w")
                assert not await other.acquire(job, "start", "other")
                await asyncio.sleep(0.1)

    play(scene, own.url)


def test_a_frozen_server_does_not_hold_a_call_for_ever(own: Server) -> None:
    async def scene(state: RedisState, job: Job) -> None:
        own.freeze()
        began = time.monotonic()
        try:
            with pytest.raises(ConnectionLost):
                await state.mark(job, pages("a"))
        finally:
            own.thaw()
        assert time.monotonic() - began < 8
        await insist(lambda: state.mark(job, pages("a")))

    play(scene, own.url)


def test_connections_that_were_closed_are_replaced(url: str) -> None:
    async def scene(state: RedisState, job: Job) -> None:
        with redis.Redis.from_url(url) as client:
            for n in range(5):
                client.client_kill_filter(_type="normal", skipme=True)
                await asyncio.sleep(0.05)
                await state.mark(job, pages(n))
        status = await state.status("shop")
        assert status and status.open == 5 and not status.suspect

    play(scene, url)


# what a server refuses, and what we refuse


def refusal(url: str, call: Callable[[RedisState, Job], Awaitable[object]] | None = None) -> BusError:
    async def run() -> None:
        async with state_at(url) as state:
            if call:
                await call(state, (await state.join("shop", spider="s")).job)

    with pytest.raises(BusError) as caught:
        asyncio.run(run())
    text = str(caught.value)
    assert "s3cr" not in text and "\n" not in text
    assert "--state (CRAWLBUS_STATE) redis://127.0.0.1:" in text
    return caught.value


@pytest.mark.parametrize("own", [{"requirepass": "s3cr/t"}], indirect=True)
def test_passwords(own: Server) -> None:
    place = own.url.removeprefix("redis://")
    for login in ("", ":wrong@", f"nobody:{SECRET}@"):
        error = refusal(f"redis://{login}{place}")
        assert isinstance(error, Misconfigured) and "user or the password" in str(error)

    async def scene(state: RedisState, job: Job) -> None:
        await state.mark(job, pages("a"))

    play(scene, f"redis://:{SECRET}@{place}")
    with redis.Redis.from_url(f"redis://:{SECRET}@{place}") as client:
        client.execute_command(
            "ACL", "SETUSER", "reader", "on", ">s3cr/t", "~*", "+@read", "+info", "+ping", "+evalsha", "+eval"
        )
    error = refusal(f"redis://reader:{SECRET}@{place}", lambda state, job: state.mark(job, pages("a")))
    assert isinstance(error, Misconfigured) and "ACL SETUSER" in str(error)


def test_who_does_what_the_error_says_has_all_rights(own: Server) -> None:
    """For the state and for the bus, and for what the doctor tries."""
    place = own.url.removeprefix("redis://")
    with redis.Redis.from_url(own.url) as client:
        client.execute_command("ACL", "SETUSER", "crawl", "on", ">s3cr/t", "+@all")
        error = refusal(f"redis://crawl:{SECRET}@{place}")
        said = re.search(r"ACL SETUSER NAME ([^()]*) \(", str(error))
        assert said, error
        client.execute_command("ACL", "SETUSER", "crawl", *said[1].split())
        client.execute_command("ACL", "SETUSER", "crawl", "-config")

    async def scene(state: RedisState, job: Job) -> None:
        await state.acquire(job, "worker:w", "w")
        await state.mark(job, pages("a"))
        await state.arrive(job, [Arrival(pages("a")[0], "m")])
        await state.restart("shop")
        assert not [finding for finding in await state.examine() if finding.verdict == FAULT]
        transport = await RedisTransport.connect(f"redis://crawl:{SECRET}@{place}")
        try:
            topics = [Topic("acl.queue", Kind.QUEUE), Topic("acl.log", Kind.LOG, 60.0)]
            await transport.declare(*topics)
            for topic in topics:
                reader = await transport.subscribe(topic.name, group="g")
                await transport.publish(topic.name, [Message("m", b"")])
                await reader.ack(await reader.receive(max_messages=1, timeout_s=5))
                await transport.lag(topic.name, group="g")
            assert not [finding for finding in await transport.examine() if finding.verdict == FAULT]
        finally:
            await transport.aclose()

    play(scene, f"redis://crawl:{SECRET}@{place}")


@pytest.mark.parametrize("own", [{"appendonly": "no"}], indirect=True)
def test_a_server_that_keeps_nothing_must_be_accepted(own: Server) -> None:
    error = refusal(own.url)
    assert isinstance(error, Misconfigured)
    assert "appendonly yes" in str(error) and "?volatile=1" in str(error)
    asyncio.run(connects(f"{own.url}?volatile=1"))


@pytest.mark.parametrize(
    "own",
    [{"maxmemory": "1gb", "maxmemory-policy": policy} for policy in ("allkeys-lru", "volatile-ttl")],
    indirect=True,
    ids=["any", "those that expire"],
)
def test_a_server_that_drops_keys_must_be_accepted(own: Server) -> None:
    error = refusal(own.url)
    assert isinstance(error, Misconfigured)
    assert "maxmemory-policy noeviction" in str(error) and "?volatile=1" in str(error)
    asyncio.run(connects(f"{own.url}?volatile=1"))


async def connects(url: str) -> None:
    async with state_at(url):
        pass


def test_a_server_that_will_not_write(own: Server) -> None:
    with redis.Redis.from_url(own.url) as client:

        async def fill(state: RedisState, job: Job) -> None:
            client.config_set("maxmemory", "1mb")
            await state.mark(job, pages(*range(5000)))

        error = refusal(own.url, fill)
        assert isinstance(error, StorageFailed) and "maxmemory" in str(error)
        client.config_set("maxmemory", "0")

        async def demote(state: RedisState, job: Job) -> None:
            client.replicaof("127.0.0.1", 1)
            await state.mark(job, pages("a"))

        error = refusal(own.url, demote)
        assert isinstance(error, ConnectionLost) and "waiting for a master" in str(error)
        error = refusal(own.url)
        assert isinstance(error, Misconfigured) and "name its master" in str(error)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://127.0.0.1:1/0", "nobody listens there"),
        ("redis://nowhere.invalid/0", "that host has no address"),
        ("redis://127.0.0.1:70000/0", "'127.0.0.1:70000' is not HOST or HOST:PORT"),
        ("redis://127.0.0.1/shop", "'shop' is no number of a Redis database"),
        ("redis://127.0.0.1,127.0.0.2/0", "takes one host"),
        ("redis://127.0.0.1/0?persist=0", "has no option 'persist'"),
        ("rediss://127.0.0.1/0?ca=nowhere.pem", "ca=nowhere.pem"),
        ("rediss://127.0.0.1/0?verify=foo", "verify='foo' of the URL is neither 1"),
        ("redis://127.0.0.1/0?volatile=yes", "volatile='yes' of the URL is neither 0 nor 1"),
        ("redis://127.0.0.1/0?verify=0", "has verify=, which is of use with rediss:// only"),
        ("redis://127.0.0.1/0?volatile=1&ca=nowhere.pem", "has ca=, which is of use with rediss:// only"),
        ("rediss://127.0.0.1/0?key=pyproject.toml", "has key= without cert="),
    ],
)
def test_urls_that_lead_nowhere(url: str, text: str) -> None:
    with pytest.raises(BusError, match=text) as caught:
        asyncio.run(connects(url.replace("://", f"://user:{SECRET}@")))
    assert "s3cr" not in str(caught.value) and "--state (CRAWLBUS_STATE)" in str(caught.value)


def test_a_database_that_is_not_there(url: str) -> None:
    error = refusal(url.rpartition("/")[0] + "/9999")
    assert isinstance(error, Misconfigured) and "no such database" in str(error)


# leases of processes that are gone


def test_the_lease_of_a_dead_process_is_free_at_once(url: str) -> None:
    async def scene(state: RedisState, job: Job) -> None:
        command = [
            sys.executable,
            "-m",
            "bus.testing.state_child",
            "adapters.redis.state:RedisState",
            url,
            "hold",
            "shop",
        ]
        child = await asyncio.create_subprocess_exec(*command, "600", "600", stdout=asyncio.subprocess.PIPE)
        assert child.stdout
        assert await asyncio.wait_for(child.stdout.readline(), PATIENCE_S) == b"held\n"
        assert not await state.acquire(job, "start", "me")
        child.kill()
        await child.wait()
        assert await state.acquire(job, "start", "me")

    play(scene, url)


def test_leases_of_workers_that_nobody_sees_die_are_forgotten(url: str) -> None:
    """With their reports, as others come; but not at once, and who comes back has them again."""

    async def scene() -> None:
        clock = FakeClock()
        one = await RedisState.connect(url, clock=clock)
        two = await RedisState.connect(url, clock=clock)
        job = (await one.join("shop", spider="s")).job

        async def come(worker: str) -> None:
            assert await two.acquire(job, f"worker:{worker}", worker)
            await two.report(job, WorkerReport(worker, 0, 0))

        def kept(kind: str) -> set[bytes]:
            return set(client.hkeys(f"{{crawlbus:shop}}:1:{kind}"))

        assert await one.acquire(job, "slot:0", "w0")
        for n in range(50):
            assert await one.acquire(job, f"worker:w{n}", f"w{n}")
            await one.report(job, WorkerReport(f"w{n}", 0, 0))
        await clock.advance(LEASE_S + FORGET_S - 1)
        await come("new")
        assert len(kept("leases")) == 52, "it may be late only"
        await clock.advance(2)
        assert await two.acquire(job, "worker:new", "new")
        assert len(kept("leases")) == 52, "who keeps his lease need not look at the others"
        await come("newer")
        assert kept("leases") == {b"worker:new", b"worker:newer"}
        assert kept("reports") == {b"new", b"newer"}

        await one._renew(Lease(job, "worker:w0", "w0"), LEASE_S)
        status = await one.report(job, WorkerReport("w0", 1, 0))
        assert status and [worker.worker for worker in status.workers] == ["new", "newer", "w0"]
        assert await two.acquire(job, "slot:0", "newer")
        await one._renew(Lease(job, "slot:0", "w0"), LEASE_S)
        assert not await one.acquire(job, "slot:0", "w0"), "another's is not taken by renewing"
        await two.drop(job, "slot:0", "newer")
        await one._renew(Lease(job, "slot:0", "w0"), LEASE_S)
        assert not await two.acquire(job, "slot:0", "newer"), "what nobody has is the former owner's again"
        await one._keepers.aclose()  # it was used in this thread
        await one.aclose()
        await two.aclose()

    with redis.Redis.from_url(url) as client:
        asyncio.run(scene())


# buckets


def buckets_of(client: redis.Redis, kind: str) -> dict[int, set[int]]:
    prefix = f"{{crawlbus:shop}}:1:{kind}"
    return {
        int(key.decode().removeprefix(prefix)): set(map(int, client.smembers(key)))
        for key in client.keys(prefix.replace("{", "\\{") + "[0-9]*")
    }


def address(member: int, buckets: int) -> int:
    """Litwin's, told once more."""
    wide = 1 << (buckets - 1).bit_length()
    bits = member & (wide - 1) & 0x3FFFFF
    return bits if bits < buckets else bits & (wide // 2 - 1)


MEMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(-100, 100), st.integers(1, 63).map(lambda n: -(1 << n))
)


@options(max_examples=30, deadline=None)
@given(st.lists(MEMBERS, min_size=1, max_size=60, unique=True), st.integers(1, 4))
def test_a_page_is_in_the_bucket_of_its_low_bits(members: list[int], load: int) -> None:
    found = shared_url("redis-7").rpartition("/")[0] + "/8"
    ids = [struct.pack(">q", member) + bytes(8) for member in members]
    with redis.Redis.from_url(found) as client:
        client.flushdb()

        async def scene(state: RedisState, job: Job) -> None:
            client.hset("{crawlbus:shop}", "load", load)
            half = len(ids) // 2
            await state.mark(job, ids[:half])
            await state.arrive(job, [Arrival(page, "m") for page in ids[half:]])
            await state.finish(job, ids[::3])
            assert await state.check(job, ids) == set()
            status = await state.status("shop")
            assert status and (status.seen, status.open) == (len(ids), len(ids) - len(ids[::3]))

        play(scene, found)
        count = int(client.hget("{crawlbus:shop}", "buckets") or 0)
        assert count == max(1, -(-len(members) // load))
        for kind, whole in (("s", set(members)), ("o", set(members) - set(members[::3]))):
            found_in = buckets_of(client, kind)
            assert set().union(*found_in.values()) == whole
            assert all(address(m, count) == bucket for bucket, some in found_in.items() for m in some)


def test_a_page_takes_less_than_ten_bytes(url: str) -> None:
    many = 500_000
    with redis.Redis.from_url(url) as client:

        async def scene(state: RedisState, job: Job) -> None:
            before = client.info("memory")["used_memory"]
            for _ in range(0, many, 10_000):
                await state.known(job, [os.urandom(16) for _ in range(10_000)])
            taken = settled(client) - before
            print(f"{taken / many:.2f} bytes a page, {client.hget('{crawlbus:shop}', 'buckets')} buckets")
            assert taken <= 10 * many
            assert {client.object("encoding", f"{{crawlbus:shop}}:1:s{n}") for n in range(many // 200)} == {b"intset"}
            await state.restart("shop")
            assert client.dbsize() == 2

        play(scene, url)


def settled(client: redis.Redis) -> int:
    """Memory in use, once buffers of the append-only file and of clients are written out."""
    lowest, since = client.info("memory")["used_memory"], time.monotonic()
    while time.monotonic() < since + 1.5:
        now = client.info("memory")["used_memory"]
        if now < lowest:
            lowest, since = now, time.monotonic()
        time.sleep(0.1)
    return int(lowest)
