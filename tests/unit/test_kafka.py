"""What of the Kafka transport needs no server: URLs, partitions, shares of a group, foreign records."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.kafka.group import share
from adapters.kafka.record import HEADER, message_of
from adapters.kafka.topics import _warn_of_few_replicas, partition_of
from adapters.kafka.url import parse
from bus.errors import CodecError, Misconfigured
from bus.head import pack_head
from bus.message import Message


def test_a_url_names_hosts() -> None:
    servers = parse("kafka://one,two:9093,[::1]:19092/")
    assert servers.hosts == (("one", 9092), ("two", 9093), ("::1", 19092))
    assert servers.driver["bootstrap_servers"] == ["one:9092", "two:9093", "[::1]:19092"]
    assert servers.driver["security_protocol"] == "PLAINTEXT"


def test_a_url_holds_a_login_that_is_never_shown() -> None:
    servers = parse("kafka://us%40er:s%3Acret@one?mechanism=scram-sha-512")
    assert servers.driver["security_protocol"] == "SASL_PLAINTEXT"
    assert servers.driver["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (servers.driver["sasl_plain_username"], servers.driver["sasl_plain_password"]) == ("us@er", "s:cret")
    assert "cret" not in f"{servers} {servers!r}"


def test_tls_checks_the_certificate_unless_told_otherwise() -> None:
    assert parse("kafka+ssl://one").driver["ssl_context"].check_hostname
    relaxed = parse("kafka+ssl://u:p@one?verify=0").driver
    assert not relaxed["ssl_context"].check_hostname
    assert relaxed["security_protocol"] == "SASL_SSL"


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("kafka://", "no host"),
        ("kafka://one:port", "no host"),
        ("kafka://one/topic", "?prefix="),
        ("kafka://user@one", "password"),
        ("kafka://user:secret@one?mechanism=OAUTH", "mechanism=OAUTH"),
        ("kafka://one?mechanism=PLAIN", "needs a user"),
        ("kafka://one?ca=/ca.pem", "kafka+ssl"),
        ("kafka+ssl://one?ca=/nowhere/ca.pem", "ca="),
        ("kafka+ssl://one?cert=/nowhere/cert.pem", "cert="),
        ("kafka+ssl://one?key=/nowhere/key.pem", "cert="),
        ("kafka+ssl://one?verify=maybe", "verify='maybe'"),
        ("kafka://user:secret@one?acks=1", "'acks'"),
    ],
)
def test_what_a_url_may_not_hold(url: str, named: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        parse(url)
    assert named in str(refused.value)
    assert "secret" not in str(refused.value)


def test_all_clients_agree_on_the_partition() -> None:
    """Written down: messages that are there already stay where they are."""
    assert [partition_of(key, 16) for key in (b"", b"a", b"page", b"\x00")] == [0, 15, 13, 8]
    assert partition_of(b"page", 1) == 0


@given(
    st.integers(0, 40),
    st.dictionaries(st.text(max_size=3), st.lists(st.integers(0, 45), max_size=40), min_size=1, max_size=20),
)
def test_shares_are_even_and_nobody_loses_more_than_it_must(count: int, claims: dict[str, list[int]]) -> None:
    shares = share(range(count), claims)
    assert sorted(number for mine in shares.values() for number in mine) == list(range(count))
    sizes = [len(mine) for mine in shares.values()]
    assert max(sizes) - min(sizes) <= 1
    if sum(len(mine) for mine in claims.values()) == len({one for mine in claims.values() for one in mine}):
        for id, mine in shares.items():
            had = {number for number in claims[id] if number < count}
            assert len(had & set(mine)) == min(len(had), len(mine))


def test_a_topic_with_few_replicas_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """As many as there are brokers are enough, up to three."""

    def found(name: str, *replicas: list[int]) -> dict[str, Any]:
        return {"topic": name, "partitions": [{"replicas": one} for one in replicas]}

    topics = [found("enough", [1, 2, 3]), found("thin", [1, 2, 3], [1]), found("missing")]
    for _ in range(2):
        _warn_of_few_replicas({"brokers": [1], "topics": topics})
    assert not caplog.records
    for _ in range(2):
        _warn_of_few_replicas({"brokers": [1, 2, 3, 4], "topics": topics})
    (line,) = [record.getMessage() for record in caplog.records]
    assert "3 replicas of thin:" in line and "kafka-reassign-partitions" in line


def record(value: bytes | None, headers: tuple[tuple[str, bytes], ...]) -> Any:
    return SimpleNamespace(topic="t", partition=3, offset=7, key=None, value=value, headers=headers)


def test_a_record_holds_the_whole_message() -> None:
    message = Message("id", b"body", {"text": "\udcff", "bytes": b"\xff", "none": None})
    assert message_of(record(b"body", ((HEADER, pack_head(message)),))) == message


@pytest.mark.parametrize("headers", [(), (("other", b"x"),), ((HEADER, b"\xc1"),), ((HEADER, b"\x92\x01\x02"),)])
def test_a_foreign_record_is_a_message_without_headers(headers: tuple[tuple[str, bytes], ...]) -> None:
    one, again = message_of(record(b"value", headers)), message_of(record(b"value", headers))
    assert one == again
    assert (one.body, one.headers, len(one.id)) == (b"value", {}, 32)
    assert message_of(record(None, headers)).body == b""


def test_a_header_that_cannot_travel() -> None:
    with pytest.raises(CodecError):
        pack_head(Message("id", b"", {"bad": object()}))  # type: ignore[dict-item]
