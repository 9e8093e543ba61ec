"""The registry: schemes to classes, and what it says where there is none."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bus.errors import Misconfigured
from bus.registry import connect_state, connect_transport, known, load
from bus.shadows import HOME, Shadow, scrapy_project, shadows

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package of somebody else: one module, and entry points to it."""

    def put(name: str, code: str, points: str) -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points)
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, name, raising=False)

    return put


def test_our_own_are_known() -> None:
    assert {"memory", "sqlite"} <= set(known("crawlbus.transports")) & set(known("crawlbus.states"))
    assert {"jsonl", "sqlite"} <= set(known("crawlbus.sinks"))


def test_a_transport_of_somebody_else_is_found_and_connected(install: Install) -> None:
    code = (
        "from adapters.memory.transport import MemoryTransport\n"
        "class Pigeon(MemoryTransport):\n    @classmethod\n    async def connect(cls, url):\n        cls.url = url\n"
        "        return await super().connect('memory://pigeon')\n"
    )
    install("pigeonpost", code, "[crawlbus.transports]\npigeon = pigeonpost:Pigeon\n")

    async def connect() -> object:
        transport = await connect_transport("pigeon://roof?prefix=a&speed=2&retention=1d")
        await transport.aclose()
        return vars(type(transport))["url"]

    assert asyncio.run(connect()) == "pigeon://roof?speed=2"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("foo://h", r"^foo:// is no transport that is known here: choose one of .*memory://, .*sqlite://"),
        ("redis+cluster://h", r"^this version of crawlbus has no redis\+cluster:// transport yet"),
        ("crawl.db", r"^'crawl.db' is not a URL"),
    ],
)
def test_an_unknown_scheme_is_one_sentence_with_the_known_ones(url: str, sentence: str) -> None:
    with pytest.raises(Misconfigured, match=sentence):
        asyncio.run(connect_transport(url))


def test_an_unknown_state_and_sink_say_what_they_are() -> None:
    with pytest.raises(Misconfigured, match="foo:// is no state"):
        asyncio.run(connect_state("foo://"))
    with pytest.raises(Misconfigured, match="no kafka:// sink yet"):
        load("crawlbus.sinks", "kafka")


@pytest.mark.parametrize(
    ("scheme", "mend"),
    [("amqp", "pip install 'crawlbus[rabbitmq]'"), ("pigeon", "pip install 'no_such_driver'")],
)
def test_a_missing_driver_names_what_to_install(install: Install, scheme: str, mend: str) -> None:
    install(
        "lackingdriver", "import no_such_driver.aio", f"[crawlbus.transports]\n{scheme} = lackingdriver:Bus\n"
    )
    with pytest.raises(Misconfigured) as caught:
        load("crawlbus.transports", scheme)
    assert str(caught.value) == f"{scheme}:// needs the Python package no_such_driver: {mend}"


def test_a_missing_module_of_our_own_is_no_mistake_of_the_user(install: Install) -> None:
    install(
        "strangeone", "import spiders.no_such_module", "[crawlbus.transports]\nstrange = strangeone:Bus\n"
    )
    with pytest.raises(ModuleNotFoundError, match=r"spiders\.no_such_module"):
        load("crawlbus.transports", "strange")


def test_a_package_with_one_of_our_names_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shadows() == []
    (tmp_path / "spiders").mkdir()
    (tmp_path / "bus").mkdir()  # no package: nothing to import in it
    (tmp_path / "spiders" / "__init__.py").write_text("")
    (tmp_path / "consumers.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    ours, theirs = HOME / "spiders", tmp_path / "spiders"
    assert shadows() == [
        Shadow(HOME / "consumers", tmp_path / "consumers.py", hides=True),
        Shadow(ours, theirs, hides=True),
    ]
    assert (
        str(shadows()[1])
        == f"{theirs} hides {ours}: rename your package 'spiders', crawlbus has one of that name"
    )


def test_the_scrapy_project_around_us_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "shop" / "data"
    inner.mkdir(parents=True)
    (tmp_path / "bus.py").write_text("")
    monkeypatch.chdir(inner)
    assert (scrapy_project(), shadows()) == (None, [])
    (tmp_path / "scrapy.cfg").write_text("")
    assert scrapy_project() == tmp_path
    assert shadows() == [Shadow(HOME / "bus", tmp_path / "bus.py", hides=False)]
