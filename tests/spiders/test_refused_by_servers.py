"""What a server refuses, as the user of a command sees it: one sentence that names the setting, no secret, no crawl."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import aiormq
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.servers import Server, kinds, server, shared_url
from tests.spiders.scene import crawlbus
from tests.unit.test_kafka_servers import LOCKED

STATE = ("--state", "sqlite:///state.db")
WORKERS = pytest.mark.parametrize("workers", [1, 2])


def refusal(tmp_path: Path, words: Sequence[str], code: int, workers: int = 1) -> str:
    """The one line that `crawlbus crawl` ends with."""
    fleet = ("--workers", "2", "--sink", "sqlite:///items.db") if workers > 1 else ()
    ran = crawlbus("crawl", "http://127.0.0.1:1/", *words, *fleet, cwd=tmp_path)
    assert ran.code == code, ran
    ours = [line for line in ran.err.splitlines() if line.startswith("crawlbus: ")]
    assert ours == ran.err.splitlines()[-1:] and "Traceback" not in ran.err, ran.err
    assert "hush" not in ran.err + ran.out and "sesame" not in ran.err + ran.out
    return ours[0]


def with_login(url: str, login: str) -> str:
    return re.sub("//(?:[^@]*@)?", f"//{login}@", url)


@pytest.mark.parametrize("kind", kinds("rabbitmq"))
def test_rabbitmq(tmp_path: Path, kind: str) -> None:
    url = shared_url(kind)
    assert "password" in refusal(tmp_path, ("--bus", with_login(url, "somebody:hush"), *STATE), 2)
    assert "nowhere" in refusal(tmp_path, ("--bus", url.rstrip("/") + "/nowhere", *STATE), 2)


@WORKERS
def test_a_queue_of_rabbitmq_with_other_arguments(tmp_path: Path, workers: int) -> None:
    url, queue = shared_url("rabbitmq-3.10"), f"odd{workers}.shop.requests"

    async def declare() -> None:
        connection = await aiormq.connect(url)
        channel = await connection.channel()
        await channel.queue_declare(queue, durable=True, arguments={"x-max-length": 5})
        await connection.close()

    asyncio.run(declare())
    words = ("--bus", f"{url}?prefix=odd{workers}.", "--job", "shop", *STATE)
    line = refusal(tmp_path, words, 2, workers)
    assert queue in line and "?prefix= on the bus URL" in line


def test_a_user_of_rabbitmq_without_rights(tmp_path: Path) -> None:
    rights = {f"default_permissions.{right}": "^shop[.]" for right in ("configure", "write", "read")}
    with server("rabbitmq-3.10", default_user="shop", default_pass="hush", **rights) as one:
        for workers in 1, 2:
            line = refusal(tmp_path, ("--bus", with_login(one.url, "shop:hush"), *STATE), 2, workers)
            assert "user 'shop' of the bus URL" in line and "rabbitmqctl set_permissions" in line


@pytest.mark.parametrize("setting", ["--bus", "--state"])
def test_redis(tmp_path: Path, setting: str) -> None:
    bus = () if setting == "--bus" else ("--bus", "sqlite:///bus.db")
    with server("redis-7", requirepass="hush", appendonly="no") as locked:
        place = locked.url.partition("://")[2].rpartition("@")[2]
        line = refusal(tmp_path, (*bus, setting, f"redis://:hush-not@{place}"), 2)
        assert "password" in line and place.partition("/")[0] in line
        line = refusal(tmp_path, (*bus, setting, f"redis://:hush@{place}"), 2)
        assert "appendonly yes" in line and "volatile=1" in line


@pytest.mark.parametrize(
    ("options", "login", "code", "mend"),
    [
        ({"replicaof": "127.0.0.1 1"}, "", 2, "read-only replica: name its master"),
        ({"maxmemory": "1mb", "maxmemory-policy": "noeviction"}, "", 3, "out of memory: raise its `maxmemory`"),
        ({"user": "shop on >hush ~* +@read +@connection +info +config|get"}, "shop:hush", 2, "ACL SETUSER NAME"),
    ],
    ids=["replica", "full", "rights"],
)
def test_a_redis_that_takes_no_writes(
    tmp_path: Path, options: Mapping[str, str], login: str, code: int, mend: str
) -> None:
    with server("redis-7", **options) as one:
        url = with_login(one.url, login) if login else one.url
        line = refusal(tmp_path, ("--bus", url), code)
        assert mend in line and "CRAWLBUS_" in line
        line = refusal(tmp_path, ("--bus", url, *STATE), code, workers=2)
        assert mend in line and "CRAWLBUS_BUS" in line


def test_kafka_that_knows_no_users(tmp_path: Path) -> None:
    place = shared_url("kafka-4.1").partition("://")[2]
    line = refusal(tmp_path, ("--bus", f"kafka://somebody:hush@{place}", *STATE), 2)
    assert "CRAWLBUS_BUS" in line


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    """One broker, that wants two replicas in sync; of its users `boss` has all rights, and `nobody` none."""
    with server("kafka-4.1", **LOCKED | {"offsets.topic.replication.factor": "1"}) as one:
        yield one


@WORKERS
def test_topics_of_kafka_without_rights(tmp_path: Path, locked: Server, workers: int) -> None:
    line = refusal(tmp_path, ("--bus", with_login(locked.url, "nobody:hush"), *STATE), 2, workers)
    assert "topic 'crawlbus." in line and "ACL" in line and "the user of the bus URL" in line


@WORKERS
def test_a_kafka_with_too_few_replicas(tmp_path: Path, locked: Server, workers: int) -> None:
    """The topic was made by somebody else, with the broker's own min.insync.replicas."""
    topic = f"thin{workers}.items"

    async def create() -> None:
        admin = AIOKafkaAdminClient(
            bootstrap_servers=locked.url.partition("://")[2], security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN", sasl_plain_username="boss", sasl_plain_password="sesame",
        )  # fmt: skip
        await admin.start()
        await admin.create_topics([NewTopic(topic, 1, 1)])
        await admin.close()

    asyncio.run(create())
    url = with_login(locked.url, "boss:sesame")
    line = refusal(tmp_path, ("--bus", f"{url}?prefix=thin{workers}.", *STATE), 2, workers)
    assert topic in line and "min.insync.replicas" in line
