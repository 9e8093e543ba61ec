"""What a server refuses, as the user of a command sees it: one sentence that names the setting, no secret, no crawl."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.servers import kinds, server, shared_url
from tests.spiders.scene import crawlbus

STATE = ("--state", "sqlite:///state.db")


def refusal(tmp_path: Path, words: Sequence[str], code: int) -> str:
    """The one line that `crawlbus crawl` ends with."""
    ran = crawlbus("crawl", "http://127.0.0.1:1/", *words, cwd=tmp_path)
    assert ran.code == code, ran
    lines = ran.err.splitlines()
    assert lines[-1].startswith("crawlbus: ") and "Traceback" not in ran.err, ran.err
    assert "hush" not in ran.err + ran.out
    return lines[-1]


@pytest.mark.parametrize("kind", kinds("rabbitmq"))
def test_rabbitmq(tmp_path: Path, kind: str) -> None:
    url = shared_url(kind)
    wrong = re.sub("//[^@]*@", "//somebody:hush@", url)
    assert "password" in refusal(tmp_path, ("--bus", wrong, *STATE), 2)
    assert "nowhere" in refusal(tmp_path, ("--bus", url.rstrip("/") + "/nowhere", *STATE), 2)


@pytest.mark.parametrize("setting", ["--bus", "--state"])
def test_redis(tmp_path: Path, setting: str) -> None:
    bus = () if setting == "--bus" else ("--bus", "sqlite:///bus.db")
    with server("redis-7", requirepass="hush", appendonly="no") as locked:
        place = locked.url.partition("://")[2].rpartition("@")[2]
        line = refusal(tmp_path, (*bus, setting, f"redis://:hush-not@{place}"), 2)
        assert "password" in line and place.partition("/")[0] in line
        line = refusal(tmp_path, (*bus, setting, f"redis://:hush@{place}"), 2)
        assert "appendonly yes" in line and "volatile=1" in line


def test_kafka_that_knows_no_users(tmp_path: Path) -> None:
    place = shared_url("kafka-4.1").partition("://")[2]
    line = refusal(tmp_path, ("--bus", f"kafka://somebody:hush@{place}", *STATE), 2)
    assert "CRAWLBUS_BUS" in line
