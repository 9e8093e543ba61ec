"""The Redis state behind Sentinel, and on a Cluster of three: processes of this machine."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack

import pytest
import redis
from redis.crc import key_slot

from adapters.redis.state import RedisState
from bus.clock import Clock
from bus.errors import BusError, ConnectionLost, Misconfigured
from bus.state import Arrival, Job, JobState, Verdict
from bus.testing.state import SharedStateConformance
from bus.testing.state_scene import pages
from tests.servers import Server, Unavailable, free_port
from tests.servers.process import ProcessServer
from tests.servers.redis import Redis

PATIENCE_S = 30.0


class Sentinel(Redis):
    """With quorum 1, and in a hurry."""

    config_name = "sentinel.conf"

    def config(self, bind: str, port: int, options: Mapping[str, str]) -> str:
        settings = {"down-after-milliseconds": "500", "failover-timeout": "2000"}
        watch = f"sentinel monitor crawl 127.0.0.1 {options['master']} 1\n"
        return f"bind {bind}\nport {port}\n{watch}" + "".join(f"sentinel {k} crawl {v}\n" for k, v in settings.items())

    def local_command(self, config: str) -> list[str]:
        return [*super().local_command(config), "--sentinel"]


@pytest.fixture
def processes() -> Iterator[Callable[..., Server]]:
    with ExitStack() as stack:

        def start(kind: type[Redis] = Redis, **options: str) -> Server:
            one = ProcessServer(kind("7", "bookworm"), options)
            stack.callback(one.close)
            one.start()
            return one

        yield start


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def insist(call: Callable[[], Awaitable[object]]) -> object:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await call()
        except ConnectionLost:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


# Sentinel


def test_a_failover(processes: Callable[..., Server]) -> None:
    first = processes()
    second = processes(replicaof=f"127.0.0.1 {first.port}")
    with redis.Redis(port=second.port) as client:
        until(lambda: client.info("replication")["master_link_status"] == "up")
    sentinel = processes(Sentinel, master=str(first.port))
    with redis.Redis(port=sentinel.port) as client:
        until(lambda: client.sentinel_master("crawl")["num-slaves"] == 1)

    async def scene() -> None:
        state = await RedisState.connect(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/crawl/0")
        try:
            job = (await state.join("shop", spider="s")).job
            await state.mark(job, pages("a", "b"), finish=pages("b"))
            assert await state.acquire(job, "worker:w", "w", lease_s=2)
            with redis.Redis(port=second.port) as client:
                until(lambda: client.exists("{crawlbus:shop}:1:leases"))
            first.kill()
            with pytest.raises(ConnectionLost):
                await state.mark(job, pages("c"))
            await insist(lambda: state.mark(job, pages("d")))
            status = await state.status("shop")
            assert status and status.suspect and status.open >= 2
            assert await state.check(job, pages("a", "b", "d", "e")) == set(pages("e"))
        finally:
            await state.aclose()

    asyncio.run(scene())


def test_sentinels_that_know_nothing(processes: Callable[..., Server]) -> None:
    plain = processes()
    sentinel = processes(Sentinel, master=str(plain.port))
    for host, text in (
        (f"127.0.0.1:{sentinel.port}/other", "no Sentinel there knows a master named 'other'"),
        (f"127.0.0.1:{plain.port}/crawl", "what answers there is no Sentinel"),
    ):
        assert_refused(f"redis+sentinel://{host}", Misconfigured, text)
    assert_refused("redis+sentinel://127.0.0.1:1/crawl", ConnectionLost, "nobody listens there")
    assert_refused(f"redis+cluster://127.0.0.1:{plain.port}", Misconfigured, "no Redis Cluster")


def assert_refused(url: str, kind: type[BusError], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        asyncio.run(RedisState.connect(url))
    assert "--state (CRAWLBUS_STATE)" in str(caught.value)


# Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[Server]]:
    """Three masters."""
    if not (program := shutil.which("redis-cli")):
        raise Unavailable("redis-cli is not installed")
    with ExitStack() as stack:
        nodes: list[Server] = []
        for _ in range(3):
            options = {"cluster-enabled": "yes", "cluster-port": str(free_port()), "cluster-node-timeout": "2000"}
            nodes.append(ProcessServer(Redis("7", "bookworm"), options))
            stack.callback(nodes[-1].close)
            nodes[-1].start()
        hosts = [f"127.0.0.1:{node.port}" for node in nodes]
        subprocess.run([program, "--cluster", "create", *hosts, "--cluster-yes"], check=True, capture_output=True)
        for node in nodes:
            with redis.Redis(port=node.port) as client:
                until(lambda client=client: client.cluster("info")["cluster_state"] == "ok")  # type: ignore[misc]
        yield nodes


def url_of(cluster: list[Server]) -> str:
    return "redis+cluster://127.0.0.1:1," + ",".join(f"127.0.0.1:{node.port}" for node in cluster)


class TestOnCluster(SharedStateConformance):
    @pytest.fixture(autouse=True)
    def _store(self, cluster: list[Server]) -> None:
        self.url = url_of(cluster)
        for node in cluster:
            with redis.Redis(port=node.port) as client:
                client.flushall()

    async def connect(self, clock: Clock | None = None) -> RedisState:
        return await RedisState.connect(self.url, clock=clock)

    def url_of_store(self) -> tuple[str, str]:
        return "adapters.redis.state:RedisState", self.url


def test_a_job_moves_to_another_node(cluster: list[Server]) -> None:
    """While its slot is being moved, nothing is done to the half that is there."""
    clients = [redis.Redis(port=node.port, decode_responses=True) for node in cluster]
    slot = key_slot(b"{crawlbus:mover}")
    source = next(client for client in clients if port_of(client) == port_with(slot, clients[0]))
    target = next(client for client in clients if client is not source)
    ids = {client: client.cluster("myid") for client in (source, target)}

    async def scene() -> None:
        state = await RedisState.connect(url_of(cluster))
        try:
            job = (await state.join("mover", spider="s")).job
            await state.mark(job, pages(*range(1000)))
            target.cluster("setslot", slot, "importing", ids[source])
            source.cluster("setslot", slot, "migrating", ids[target])
            await refused_while_moving(state, job)
            keys = source.cluster("getkeysinslot", slot, 1000)
            for i, key in enumerate(keys):
                if i == len(keys) // 2:
                    await refused_while_moving(state, job)
                source.migrate("127.0.0.1", port_of(target), key, 0, 5000)
            await refused_while_moving(state, job)
            for client in (target, source):
                client.cluster("setslot", slot, "node", ids[target])
            assert await state.check(job, pages(*range(1001))) == set(pages(1000))
            status = await state.status("mover")
            assert status and (status.open, status.seen) == (1000, 1000)
            assert status.suspect, "its server is another"
            await state.mark(job, pages("new"))
            assert await state.arrive(job, [Arrival(pages("new")[0], "m")]) == [Verdict.FETCH]
            assert (await state.restart("mover")).state is JobState.RUNNING
            assert {finding.verdict for finding in await state.examine()} == {"ok"}
        finally:
            await state.aclose()

    try:
        asyncio.run(scene())
    finally:
        for client in clients:
            client.close()


async def refused_while_moving(state: RedisState, job: Job) -> None:
    with pytest.raises(ConnectionLost):
        await state.mark(job, pages("while moving"))


def port_with(slot: int, client: redis.Redis) -> int:
    slots: list[tuple[int, int, list[int]]] = client.execute_command("CLUSTER", "SLOTS")
    return next(int(host[1]) for first, last, host, *_ in slots if first <= slot <= last)


def port_of(client: redis.Redis) -> int:
    return int(client.connection_pool.connection_kwargs["port"])
