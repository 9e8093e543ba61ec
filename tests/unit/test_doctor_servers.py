"""What `crawlbus doctor` says of real servers, to a user who may do all that is needed, and to one who may not; and of
settings that contradict each other."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import redis
from aiokafka.protocol.admin import CreateAclsRequest

from adapters.kafka.examine import version
from adapters.kafka.transport import KafkaTransport
from adapters.redis.errors import RIGHTS
from consumers.sink import sink_of
from consumers.sinks.postgres.examine import Server as PostgresServer
from consumers.sinks.postgres.examine import about
from tests.servers import Server, kinds, new_database, server
from tests.spiders.scene import crawlbus
from tests.unit.test_kafka_servers import LOCKED

STATE = ("--state", "sqlite:///state.db")
TOPIC, GROUP, ALL, ALLOW, PREFIXED = 2, 3, 2, 3, 4  # as Kafka numbers them


class Answer(NamedTuple):
    code: int
    lines: list[dict[str, Any]]

    @property
    def said(self) -> str:
        return "\n".join(f"{line['verdict']}: {line['found']} -> {line['mend']}" for line in self.lines)

    def fault(self) -> str:
        """The only one, which ends the command with 2."""
        (line,) = (line for line in self.lines if line["verdict"] == "fault")
        assert self.code == 2, self.said
        return f"{line['found']} -> {line['mend']}"

    def in_order(self) -> str:
        assert self.code == 0 and "fault:" not in self.said, self.said
        return self.said


@pytest.fixture
def doctor(tmp_path: Path) -> Any:
    def ask(*words: str) -> Answer:
        ran = crawlbus("doctor", "--json", *words, cwd=tmp_path)
        assert "hush" not in ran.out + ran.err and "sesame" not in ran.out + ran.err
        assert "Traceback" not in ran.err and "ERROR" not in ran.err, ran.err
        return Answer(ran.code, json.loads(ran.out)["checks"])

    return ask


def with_login(url: str, login: str) -> str:
    return re.sub("//(?:[^@]*@)?", f"//{login}@", url)


def test_rabbitmq(doctor: Any) -> None:
    """Its only user may use what begins with `shop.`, and make what begins with `half.`."""
    options = {
        "default_user": "shop",
        "default_pass": "hush",
        "default_permissions.configure": "^(shop|half)[.]",
        "default_permissions.write": "^(shop[.]|amq[.]default)",
        "default_permissions.read": "^(shop[.]|amq[.]default)",  # RabbitMQ takes the one for the other
    }
    with server("rabbitmq-4.3", **options) as one:
        url = with_login(one.url, "shop:hush")
        said = doctor("--bus", f"{url}?prefix=shop.", *STATE).in_order()
        assert "ok: RabbitMQ 4.3" in said and "shop.*" in said
        for prefix, right in ("crawlbus.", "configure"), ("half.", "read"):
            fault = doctor("--bus", f"{url}?prefix={prefix}", *STATE).fault()
            assert f"{right} access to queue '{prefix}" in fault and "rabbitmqctl set_permissions" in fault


def test_redis(doctor: Any) -> None:
    with server("redis-7") as one, redis.Redis.from_url(one.url) as client:
        client.execute_command("ACL", "SETUSER", "crawl", "on", ">hush", *RIGHTS.split())
        client.execute_command("ACL", "SETUSER", "state", "on", ">hush", "~{crawlbus*", "+@all")
        client.execute_command("ACL", "SETUSER", "looker", "on", ">hush", "~*", "+@all", "-xadd")
        said = doctor("--bus", with_login(one.url, "crawl:hush")).in_order()
        assert "ok: Redis 7." in said and "may be written" in said and "clock" in said
        state = ("--bus", "sqlite:///bus.db", "--state", with_login(one.url, "state:hush"))
        assert "may be written" in doctor(*state).in_order()
        for user in ("state", "looker"):
            login = with_login(one.url, f"{user}:hush")
            fault = doctor("--bus", login, "--state", "sqlite:///state.db").fault()
            assert f"ACL SETUSER NAME {RIGHTS}" in fault
        assert client.dbsize() == 0, "nothing is left"


@pytest.mark.parametrize("server_url", kinds("postgres")[:1], indirect=True)
def test_postgres(doctor: Any, server_url: str) -> None:
    with new_database(server_url) as url, psycopg.connect(url, autocommit=True) as db:
        name, user = db.info.dbname, f"user_{db.info.dbname}"
        sink = ("--sink", with_login(url, f"{user}:hush"), *STATE)
        db.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'hush'".encode())
        db.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        db.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC; GRANT CONNECT ON DATABASE {name} TO {user}".encode())
        try:
            granted = []
            while (answer := doctor(*sink)).code and len(granted) < 5:
                granted.append(answer.fault().partition(" -> ")[2])
                db.execute(granted[-1].encode())
            assert granted == [
                f"GRANT TEMPORARY ON DATABASE {name} TO {user}",
                f"GRANT CREATE, USAGE ON SCHEMA public TO {user}",
            ]
            said = answer.in_order()
            assert "ok: PostgreSQL 1" in said and "UTF8" in said and "clock" in said
            assert f"{user} may make and write its tables in the schema public" in said
            assert not db.execute("SELECT 1 FROM pg_class WHERE relnamespace = 'public'::regnamespace").fetchall()

            asyncio.run(open_and_close(url))
            granted = []
            while (answer := doctor(*sink)).code and len(granted) < 5:
                granted.append(answer.fault().partition(" -> ")[2])
                db.execute(granted[-1].encode())
            assert [grant.partition(" TO ")[0] for grant in granted] == [
                'GRANT SELECT, INSERT, UPDATE, DELETE ON "items"',
                "GRANT SELECT, INSERT, UPDATE, DELETE ON sink_gaps, sink_members, sink_progress, sink_quarantine",
            ]
            fault = doctor("--sink", f"{sink[1]}?table=shop.items", *STATE).fault()
            assert f" -> GRANT CREATE ON DATABASE {name} TO {user}" in fault
            more = doctor("--sink", f"{url}?columns=price:numeric&index=price", *STATE).in_order()
            assert "the consumer will add 2 columns or indexes" in more
            fault = doctor("--sink", f"{url}?mode=versions", *STATE).fault()
            assert "the column hash of the table" in fault
            db.execute(f"ALTER ROLE {user} SET default_transaction_read_only = on".encode())
            assert f"transactions are read-only -> ALTER ROLE {user} RESET" in doctor(*sink).fault()
        finally:
            db.execute(f"DROP OWNED BY {user}; DROP ROLE {user}".encode())
        db.execute(f"CREATE DATABASE {name}_latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0".encode())
        try:
            latin = url.replace(name, f"{name}_latin")
            assert f"the database {name}_latin has the encoding LATIN1" in doctor("--sink", latin, *STATE).fault()
        finally:
            db.execute(f"DROP DATABASE {name}_latin".encode())


async def open_and_close(url: str) -> None:
    async with aclosing(sink_of(url)) as sink:
        await sink.open("default", "crawlbus.items")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"version_num": 110022}, "PostgreSQL 11.22 is older than 12 -> upgrade it"),
        ({"standby": True, "read_only": True}, "the server is a standby, which cannot be written -> name the primary"),
    ],
)
def test_a_postgres_that_cannot_be_used(changed: dict[str, Any], said: str) -> None:
    server = PostgresServer(150004, "UTF8", False, False, 0.0, "crawl", "shop", "public")
    assert [finding.verdict for finding in about(server)] == ["ok"]
    (fault,) = (finding for finding in about(server._replace(**changed)) if finding.verdict == "fault")
    assert said in f"{fault.found} -> {fault.mend}"


def test_a_postgres_that_is_not_there(doctor: Any) -> None:
    answer = doctor("--sink", "postgresql://u:hush@127.0.0.1:1/shop", *STATE)
    (line,) = (line for line in answer.lines if line["verdict"] == "fault")
    assert answer.code == 3 and line["what"] == "sink" and "--sink" in line["mend"]


def test_a_directory_of_parquet(doctor: Any, tmp_path: Path) -> None:
    assert f"{tmp_path} can be written" in doctor("--sink", "parquet:///items", *STATE).in_order()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "items").mkdir()
    assert f"{tmp_path / 'items'} can be written" in doctor("--sink", "parquet:///items", *STATE).in_order()
    answer = doctor("--sink", "parquet:////no/such/place/items", *STATE)
    assert answer.code == 3 and "/no/such/place cannot be written" in answer.said


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    options = {"offsets.topic.replication.factor": "1", "min.insync.replicas": "2"}
    with server("kafka-4.1", **LOCKED | options) as one:
        yield one


def test_kafka(doctor: Any, locked: Server) -> None:
    said = doctor("--bus", with_login(locked.url, "boss:sesame"), *STATE).in_order()
    assert "ok: Kafka 4.1" in said and "topics crawlbus.* may be made" in said and "clock" in said


def test_kafka_without_rights_and_with_those_it_names(doctor: Any, locked: Server) -> None:
    url = with_login(locked.url, "nobody:hush") + "?prefix=shop."
    fault = doctor("--bus", url, *STATE).fault()
    command = shlex.split(fault.partition(" -> ")[2])
    assert command[0] == "kafka-acls.sh" and "User:nobody" in command
    assert command[command.index("--topic") + 1] == command[command.index("--group") + 1] == "shop."
    asyncio.run(grant_all(with_login(locked.url, "boss:sesame"), "shop."))
    deadline = time.monotonic() + 30
    while (answer := doctor("--bus", url, *STATE)).code and time.monotonic() < deadline:
        pass
    assert "topics shop.* may be made" in answer.in_order()


async def grant_all(url: str, prefix: str) -> None:
    """As the command does."""
    async with aclosing(await KafkaTransport.connect(url)) as bus:
        for kind in (TOPIC, GROUP):
            request = CreateAclsRequest(kind, prefix, PREFIXED, "User:nobody", "*", ALL, ALLOW)
            answer = await bus._cluster.ask(request, "grant")
            assert [code for code, _ in answer.creation_responses] == [0]


@pytest.mark.parametrize(
    ("newest", "verdict", "said"),
    [
        ({74: 1, 2: 10, 1: 18, 11: 9}, "ok", "Kafka 4.1 or later"),
        ({74: 0, 2: 9, 1: 17, 11: 9}, "note", "Kafka 3.0 or later, and older than 4.1"),
        ({1: 10, 2: 3, 11: 4}, "fault", "Kafka is older than 2.3"),
    ],
)
def test_the_version_of_kafka(newest: dict[int, int], verdict: str, said: str) -> None:
    found = version(newest)
    assert found.verdict == verdict and said in found.found and bool(found.mend) == (verdict != "ok")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--bus", "memory://", *STATE), 0, "note: one of bus and state is memory://"),
        (("--bus", "sqlite:///one.db", "--sink", "jsonl:///one.db"), 2, "fault: a jsonl:// sink would write"),
        (("--bus", "sqlite:///one.db", "--sink", "sqlite:///one.db"), 0, "is a sink"),
    ],
)
def test_settings_that_do_not_go_together(doctor: Any, words: tuple[str, ...], code: int, said: str) -> None:
    answer = doctor(*words)
    assert answer.code == code and said in answer.said, answer.said
