"""Every server behind TLS: who is trusted, who is let in, and what a user is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from bus.errors import BusError, ConnectionLost, Misconfigured
from bus.message import Message, new_id
from bus.registry import connect_state, connect_transport
from bus.topic import Kind, Topic
from tests.servers import free_port, server
from tests.servers.tls import Authority, tls_front

SCHEMES = {"rabbitmq-4.3": ("amqp", "amqps"), "kafka-4.1": ("kafka", "kafka+ssl"), "redis-7": ("redis", "rediss")}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module", params=SCHEMES)
def plain(request: pytest.FixtureRequest) -> Iterator[tuple[str, int, int]]:
    """A server's URL without its port, the port, and the one where it believes that clients reach it."""
    kind, front = request.param, free_port()
    options = {"advertised.listeners": f"PLAINTEXT://127.0.0.1:{front}"} if kind.startswith("kafka") else {}
    with server(kind, **options) as one:
        old, new = SCHEMES[kind]
        yield one.url.replace(f"{old}://", f"{new}://").replace(str(one.port), "{}"), one.port, front


@contextmanager
def secured(
    plain: tuple[str, int, int], authority: Authority, *, address: str = "127.0.0.1", clients: bool = False
) -> Iterator[str]:
    """The server behind TLS; its certificate is for `address`."""
    url, port, front = plain
    with tls_front(front, port, authority.issue("server", address), clients=authority.ca if clients else None):
        yield url.format(front)


def works(url: str) -> None:
    async def run() -> None:
        transport = await connect_transport(url)
        try:
            topic = Topic(f"tls.{new_id()}", Kind.QUEUE)
            await transport.declare(topic)
            sent = Message(new_id(), b"x" * 100_000)
            await transport.publish(topic.name, [sent])
            reader = await transport.subscribe(topic.name)
            (got,) = await reader.receive(max_messages=2, timeout_s=20)
            assert got.message.id == sent.id and got.message.body == sent.body
            await reader.ack([got])
        finally:
            await transport.aclose()

    asyncio.run(run())


def refusal(url: str, error: type[BusError] = Misconfigured) -> str:
    with pytest.raises(error) as refused:
        asyncio.run(connect_transport(url))
    text = str(refused.value)
    assert "\n" not in text and ("--bus" in text or "URL" in text)
    return text


def test_a_server_whose_authority_is_trusted(plain: tuple[str, int, int], authority: Authority) -> None:
    with secured(plain, authority) as url:
        works(f"{url}?ca={authority.ca.cert}")
        assert "ca=" in refusal(url), "nobody knows this authority but us"
        works(f"{url}?verify=0")


def test_a_certificate_of_another_host_is_refused(plain: tuple[str, int, int], authority: Authority) -> None:
    with secured(plain, authority, address="127.0.0.9") as url:
        assert "certificate" in refusal(f"{url}?ca={authority.ca.cert}")
        works(f"{url}?verify=0")


def test_a_server_that_wants_a_certificate_of_ours(plain: tuple[str, int, int], authority: Authority) -> None:
    ours = authority.issue("worker")
    with secured(plain, authority, clients=True) as url:
        works(f"{url}?ca={authority.ca.cert}&cert={ours.cert}&key={ours.key}")
        assert "cert=" in refusal(f"{url}?ca={authority.ca.cert}", ConnectionLost)


def test_the_state_behind_tls(authority: Authority) -> None:
    async def run(url: str) -> None:
        state = await connect_state(url)
        try:
            await state.jobs()
        finally:
            await state.aclose()

    with server("redis-7") as one:
        plain = (one.url.replace("redis://", "rediss://").replace(str(one.port), "{}"), one.port, free_port())
        with secured(plain, authority) as url:
            asyncio.run(run(f"{url}?ca={authority.ca.cert}"))
            with pytest.raises(Misconfigured, match=r"--state.*ca="):
                asyncio.run(run(url))


def test_a_key_with_a_passphrase_is_refused(tmp_path: Path, authority: Authority) -> None:
    ours = authority.issue("locked")
    key = load_pem_private_key(ours.key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hush")))
    for scheme in ("amqps", "kafka+ssl", "rediss"):
        assert "passphrase" in refusal(f"{scheme}://127.0.0.1?cert={ours.cert}&key={locked}")
