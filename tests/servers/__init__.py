"""Real servers for the tests: one the environment names, one in a container, or a process of this machine."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache

from tests.servers.base import Kind, Server, Unavailable, free_port, reaper
from tests.servers.container import ContainerServer
from tests.servers.engine import answering, leave, own
from tests.servers.images import image_at_hand, image_for
from tests.servers.kafka import Kafka
from tests.servers.postgres import Postgres, new_database
from tests.servers.process import ProcessServer
from tests.servers.rabbitmq import RabbitMQ
from tests.servers.redis import Redis

__all__ = [
    "KINDS",
    "Server",
    "Unavailable",
    "free_port",
    "kinds",
    "new_database",
    "prepare",
    "server",
    "shared_url",
    "variable",
]

_KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        RabbitMQ("3.10", "bookworm"),
        RabbitMQ("4.3", "forky"),
        Kafka("4.1"),
        Redis("7", "bookworm"),
        Redis("8", "trixie"),
        Postgres("15", "bookworm"),
        Postgres("17", "trixie"),
    )
}
KINDS = tuple(_KINDS)
_shared: dict[str, Future[str]] = {}
_running: list[Server] = []
_lock = threading.Lock()


def kinds(name: str) -> list[str]:
    """All versions of the server of that name."""
    return [kind for kind in KINDS if kind.startswith(f"{name}-")]


@contextmanager
def server(kind: str, **options: str) -> Iterator[Server]:
    """A started server for one test alone, to be stopped, killed and frozen. `options` are lines of its configuration,
    such as `appendfsync="always"` or `**{"log.retention.ms": "1000"}`. Raises `Unavailable`."""
    one = _make(kind, options)
    try:
        one.start()
        yield one
    finally:
        one.close()


def shared_url(kind: str) -> str:
    """Of a server that all tests of this process share, started at first use. Raises `Unavailable`.

    Tests keep out of each other's way by prefixes, vhosts, database numbers or a `new_database`.
    """
    with _lock:
        future = _shared.get(kind)
        if first := future is None:
            future = _shared[kind] = Future()
    if first:
        try:
            future.set_result(_from_environment(kind) or _started(kind))
        except BaseException as error:
            future.set_exception(error)
    return future.result()


def prepare(kind: str) -> None:
    """Fetch and build what it needs, where it is not there yet. Raises `Unavailable`."""
    if not _from_environment(kind):
        _make(kind, {}).close()


def variable(kind: str) -> str:
    """`CRAWLBUS_TEST_REDIS_8_URL`; `CRAWLBUS_TEST_REDIS_URL` stands for all versions that have none."""
    return f"CRAWLBUS_TEST_{kind.upper().replace('-', '_').replace('.', '')}_URL"


def _from_environment(kind: str) -> str | None:
    return os.environ.get(variable(kind)) or os.environ.get(variable(kind.partition("-")[0]))


def _started(kind: str) -> str:
    one = _make(kind, {})
    _running.append(one)
    one.start()
    return one.url


@atexit.register
def _close() -> None:
    while _running:
        _running.pop().close()
    leave()
    reaper().close()


def _make(kind: str, options: dict[str, str]) -> Server:
    """In a container if there is an engine that has the image; else here; else in a container all the same."""
    one = _KINDS[kind]
    if (engine := _engine()) and (image := image_at_hand(one, engine)):
        return ContainerServer(one, options, engine, image)
    try:
        return ProcessServer(one, options)
    except Unavailable as error:
        if not one.image:
            raise
        try:
            engine = engine or own()
        except Unavailable as too:
            raise Unavailable(f"{error}; {too}") from None
        return ContainerServer(one, options, engine, image_for(one, engine))


_engine = cache(answering)
