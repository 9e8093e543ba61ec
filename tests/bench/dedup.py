"""What a known URL takes in Redis, beside the set of scrapy-redis."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import redis

from tests.servers import server

__all__ = ["Memory", "memory_of_seen"]

CHUNK = 10_000


class Memory(NamedTuple):
    """After so many URLs."""

    what: str
    urls: int
    used_bytes: int
    seconds: float

    @property
    def bytes_per_url(self) -> float:
        return self.used_bytes / self.urls


def memory_of_seen(kind: str, urls: int, folder: Path) -> Iterator[Memory]:
    """`crawlbus dedup warm`, and a set of 40 hexadecimal digits for each URL: the same URLs, a server of its own for
    each. Raises `Unavailable`."""
    for what, load in (("crawlbus dedup warm", _warm), ("scrapy-redis", _set)):
        with server(kind) as one, redis.Redis.from_url(one.url) as client:
            before, begun = _used(client), time.perf_counter()
            load(one.url, urls, folder)
            seconds = time.perf_counter() - begun
            yield Memory(what, urls, _used(client) - before, seconds)


def _urls(count: int) -> Iterator[str]:
    return (f"https://shop.example/category-{number % 977}/product-{number}.html" for number in range(count))


def _used(client: redis.Redis) -> int:
    """INFO memory, when the server does nothing else."""
    while client.info("persistence")["aof_rewrite_in_progress"]:
        time.sleep(0.1)
    return int(client.info("memory")["used_memory"])


def _warm(url: str, count: int, folder: Path) -> None:
    file = folder / f"urls-{os.getpid()}.txt"
    file.write_text("".join(f"{each}\n" for each in _urls(count)))
    try:
        words = ["dedup", "warm", str(file), "--state", url, "--bus", url, "--job", "bench"]
        subprocess.run(
            [sys.executable, "-P", "-m", "bus.cli", *words], check=True, cwd=folder, stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
    finally:
        file.unlink()


def _set(url: str, count: int, folder: Path) -> None:
    """As its dupefilter does: one SADD of the hexadecimal SHA-1 for each."""
    with redis.Redis.from_url(url) as client:
        urls = _urls(count)
        while chunk := list(islice(urls, CHUNK)):
            pipe = client.pipeline(transaction=False)
            for each in chunk:
                pipe.sadd("bench:dupefilter", hashlib.sha1(each.encode()).hexdigest())
            pipe.execute()
