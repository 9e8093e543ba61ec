"""Bytes from a broken or hostile producer: every reader answers with a value or `CodecError`, whatever comes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from scrapy import Request, Spider

from bus.codec import pack, unpack
from bus.dead import dead_letter, decision, read_dead
from bus.errors import CodecError
from bus.items import item_messages, pack_item, read_items
from bus.message import Message
from spiders.requests import RequestCodec

ROUNDS = 1_000_000 if os.environ.get("CRAWLBUS_SOAK") else 100_000 if os.environ.get("CI") else 10_000

codec = RequestCodec(Spider("fuzz"), "fuzz", 1)


def samples() -> list[Message]:
    """One valid message of each kind."""
    meta: dict[str, Any] = {"depth": 3, "t": (1, {2}), 5: [None, 2**90, "\ud800"], "d": {"e": b"\xff"}}
    body = codec.encode(Request("http://a.com/x?y=1", method="POST", body=b"b", meta=meta, cookies={"a": "b"}))
    request = codec.message(b"p" * 16, body, source="http://a.com/")
    items = item_messages("fuzz", "fuzz", 1, [pack_item("0" * 32, None, 1.5, meta), pack_item("1", "http://a", 2, {})])
    letter = dead_letter(
        request, reason="callback", detail="why", job="fuzz", spider="fuzz", url="http://a.com", at=1.0, source="q"
    )
    return [request, *items, letter, decision("0" * 32, "drop", job="fuzz", at=2.0)]


def damaged(rng: random.Random, message: Message) -> Message:
    """A few bytes of its body, or a header, are something else."""
    body = bytearray(message.body)
    headers = dict(message.headers)
    for _ in range(rng.randrange(1, 4)):
        match rng.randrange(6):
            case 0 if body:
                body[rng.randrange(len(body))] = rng.randrange(256)
            case 1 if body:
                del body[rng.randrange(len(body)) :]
            case 2:
                body[rng.randrange(len(body) + 1) : 0] = rng.randbytes(rng.randrange(9))
            case 3:
                start = rng.randrange(len(body) + 1)
                body[start:start] = body[start : start + rng.randrange(40)]
            case 4 if headers:
                headers[rng.choice(list(headers))] = rng.choice([None, 5, -1, 1.5, "", b"", True, "x" * 99])
            case _ if headers:
                headers.pop(rng.choice(list(headers)))
    return message._replace(body=bytes(body), headers=headers)


def answers(read: Callable[[Message], object], message: Message) -> bool:
    """Did it read something? Anything but `CodecError` is a bug, and fails."""
    try:
        read(message)
        return True
    except CodecError:
        return False


def test_damaged_messages_are_read_or_refused() -> None:
    rng, read = random.Random(5), 0
    readers = [codec.decode, read_items, read_dead, lambda message: unpack(message.body)]
    valid = samples()
    for _ in range(ROUNDS // len(readers)):
        message = damaged(rng, rng.choice(valid))
        read += sum(answers(reader, message) for reader in readers)
    assert 0 < read < ROUNDS


@pytest.mark.parametrize("at", [10**400, -(10**400), "1", None, True])
def test_a_time_that_is_none_is_refused(at: object) -> None:
    (message,) = item_messages("shop", "shop", 1, [pack(["1", None, at, {}])])
    assert not answers(read_items, message)


def test_random_bytes() -> None:
    rng = random.Random(6)
    for _ in range(ROUNDS // 10):
        answers(lambda message: unpack(message.body), Message("", rng.randbytes(rng.randrange(64))))


def test_what_was_read_can_be_written_again() -> None:
    rng = random.Random(7)
    valid = samples()
    for _ in range(ROUNDS // 20):
        try:
            value = unpack(damaged(rng, rng.choice(valid)).body)
        except CodecError:
            continue
        assert unpack(pack(value)) == value or value != value or "nan" in repr(value)
