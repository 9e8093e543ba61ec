"""Whatever a user, a disk or another version gets wrong: one clear line, the documented exit code, nothing lost."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from bus.codec import SCHEMA, pack
from bus.message import Message, new_id
from bus.registry import connect_state, connect_transport
from bus.topic import request_queue
from bus.transport import Lag
from tests.spiders.scene import Ran, Site, crawl, crawlbus, environment, left, links, project, stored, wait_until

SPIDER = """
class Shop(scrapy.Spider):
    name = "shop"

    def __init__(self, url):
        super().__init__()
        self.start_urls = [url]

    def parse(self, response):
        yield {"url": response.url}
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href, self.parse)
"""
QUEUE = request_queue("crawlbus.", "shop")


def told(ran: Ran, code: int) -> str:
    """The one line of an error of the user's, which is all there is on stderr."""
    assert ran.code == code, ran
    assert ran.err.startswith("crawlbus: ") and ran.err.count("\n") == 1, ran.err
    return ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("crawl", "shop", "--bus", "carrier-pigeon://x"), 2, ("carrier-pigeon", "sqlite")),
        (("crawl", "shop", "--bus", "bus.db"), 2, ("--bus", "sqlite:///crawlbus.db", "'bus.db'")),
        (("crawl", "shop", "--bus", "redis://:geheim@127.0.0.1:1/0"), 3, ("CRAWLBUS_STATE", "127.0.0.1:1")),
        (("crawl", "shop", "--bus", "amqp://user:geheim@127.0.0.1/"), 2, ("amqp://", "CRAWLBUS_STATE")),
        (("crawl", "shop", "--bus", "kafka://user:geheim@127.0.0.1"), 2, ("kafka://", "CRAWLBUS_STATE")),
        (("crawl", "shop", "--bus", "amqp://u:geheim@127.0.0.1:1/", "--state", "sqlite:///s.db"), 3, ("127.0.0.1:1",)),
        (("crawl", "shop", "--bus", "kafka://u:geheim@127.0.0.1:1", "--state", "sqlite:///s.db"), 3, ("127.0.0.1:1",)),
        (("crawl", "shop", "--bus", "amqp://h:geheim", "--state", "sqlite:///s.db"), 2, ("host",)),
        (("crawl", "shop", "--bus", "kafka://h?colour=1", "--state", "sqlite:///s.db"), 2, ("colour",)),
        (("status", "--bus", "redis://:geheim@127.0.0.1:1/0"), 3, ("127.0.0.1:1",)),
        (("crawl", "shop", "--sink", "carrier-pigeon://x"), 2, ("carrier-pigeon", "jsonl")),
        (("crawl", "shop", "--sink", "carrier-pigeon://x", "--workers", "2"), 2, ("carrier-pigeon", "jsonl")),
        (("crawl", "shop", "--sink", "mysql://u:geheim@localhost/db"), 2, ("mysql://", "jsonl://")),
        (("crawl", "shop", "--job", "Not A Name"), 2, ("--job", "lower-case")),
        (("crawl", "shop", "--workers", "none"), 2, ("--workers", "whole number")),
        (("crawl", "shop", "-a", "colour"), 2, ("'colour'", "NAME=VALUE")),
        (("crawl", "nobody"), 2, ("'nobody'", "shop", "scrapy.cfg")),
        (("crawl", "nobody", "--workers", "2", "--sink", "sqlite:///items.db"), 2, ("'nobody'", "shop")),
        (("crawl", "ftp://example.com/"), 2, ("ftp://example.com/", "http")),
        (("crawl", "http://"), 2, ("'http://' cannot be crawled",)),
        (("crawl", "http://[x"), 2, ("'http://[x' cannot be crawled",)),
        (("crawl", "shop", "--sink", "sqlite:///items.db?speed=9"), 2, ("speed",)),
        (("crawl", "http://127.0.0.1:9/", "-a", "depth=deep"), 2, ("depth=deep", "whole number")),
        (("crawl", "http://127.0.0.1:9/", "-a", "allow=("), 2, ("allow=(", "regular expression")),
        (("seed", "none.txt", "--job", "shop", "--spider", "shop"), 2, ("none.txt", "No such file")),
        (("seed", ".", "--job", "shop", "--spider", "shop"), 2, (". cannot be read", "directory")),
        (("seed", "none.txt"), 2, ("none.txt",)),
        (("dedup", "warm", "none.txt", "--job", "shop", "--spider", "shop"), 2, ("none.txt",)),
        (("dedup", "check", "http://x/", "--job", "shop"), 2, ("No job here",)),
        (("pause", "--job", "shop"), 2, ("--bus",)),
        (("crawl", "shop", "--bus", "sqlite:///no/where/bus.db"), 3, ("no/where/bus.db", "make its directory")),
        (("crawl", "shop", "--bus", "sqlite:///shop.py"), 3, ("shop.py", "not an SQLite database")),
        (("crawl", "shop", "--bus", "sqlite:///shop.py", "--workers", "2"), 3, ("shop.py", "not an SQLite database")),
        (("crawl", "shop", "--bus", "sqlite:///folder"), 3, ("folder",)),
        (("crawl", "shop", "--bus", "sqlite:////proc/bus.db"), 3, ("/proc/bus.db", "right")),
        (("seed", "shop.py", "--job", "shop", "--spider", "shop", "--bus", "sqlite:////proc/bus.db"), 3, ("/proc",)),
        (("status", "--bus", "sqlite:///shop.py"), 3, ("shop.py", "not an SQLite database")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) and isinstance(value[0], str) else None,
)
def test_a_users_mistake(tmp_path: Path, arguments: tuple[str, ...], code: int, words: tuple[str, ...]) -> None:
    project(tmp_path, SPIDER, 'LOG_LEVEL = "WARNING"')
    (tmp_path / "folder").mkdir()
    before = (tmp_path / "shop.py").read_text()
    more = ("-a", "url=http://127.0.0.1:9/") if arguments[:2] == ("crawl", "shop") and "-a" not in arguments else ()
    line = told(crawlbus(*arguments, *more, cwd=tmp_path), code)
    assert all(word in line for word in words), line
    assert "geheim" not in line
    assert (tmp_path / "shop.py").read_text() == before


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_sink_that_cannot_be_written_loses_nothing(tmp_path: Path, workers: str) -> None:
    project(tmp_path, SPIDER)
    (tmp_path / "notes.txt").write_text("no database, and long enough to look like none\n" * 50)
    site = Site({"/": links("/a"), "/a": "x"})
    with site.open() as url:
        arguments = ("crawl", "shop", "-a", f"url={url}/", "--bus", "sqlite:///bus.db", "--workers", workers)
        ran = crawlbus(*arguments, "--sink", "sqlite:///notes.txt", cwd=tmp_path)
        assert ran.code == 3 and "Traceback" not in ran.err, ran
        assert "crawlbus: the sink notes.txt cannot be written: file is not a database" in ran.err
        ran = crawlbus(*arguments, "--sink", "sqlite:///items.db", cwd=tmp_path)
        assert ran.code == 0, ran
    assert [item["url"].removeprefix(url) for item in stored(tmp_path)[0]] == ["/", "/a"]


# messages that another program, or another version, has put in the queue


def message(body: bytes, **headers: Any) -> Message:
    page = blake2b(new_id().encode(), digest_size=16).digest()
    fixed = {"content-type": "crawlbus/request", "schema": SCHEMA, "job": "shop", "spider": "shop", "run": 1}
    return Message(new_id(), body, {**fixed, "page": page, **headers})


def put(directory: Path, *messages: Message) -> None:
    """Publish and mark, as a worker does; but what names no page and run."""

    async def run() -> None:
        url = f"sqlite:///{directory / 'bus.db'}"
        transport, state = await connect_transport(url), await connect_state(url)
        await transport.declare(QUEUE)
        job = (await state.join("shop", spider="shop")).job
        await transport.publish(QUEUE.name, messages)
        known = [each.headers["page"] for each in messages if each.headers["run"] == 1]
        await state.mark(job, [page for page in known if isinstance(page, bytes) and len(page) == 16])
        await transport.aclose()
        await state.aclose()

    asyncio.run(run())


async def lag(directory: Path) -> Lag:
    transport = await connect_transport(f"sqlite:///{directory / 'bus.db'}")
    await transport.declare(QUEUE)
    try:
        return await transport.lag(QUEUE.name)
    finally:
        await transport.aclose()


GOOD = {"url": "http://127.0.0.1:9/x"}


UNREADABLE: list[tuple[bytes, dict[str, Any], str, str]] = [
    (b"\xc1 no msgpack", {}, "decode", "not a message"),
    (pack([1, 2]), {}, "decode", "no map with a url"),
    (pack({**GOOD, "callback": "__init__"}), {}, "decode", "no callback '__init__'"),
    (pack({**GOOD, "callback": "closed"}), {}, "decode", "no callback 'closed'"),
    (pack({**GOOD, "class": "subprocess.Popen"}), {}, "decode", "no request class subprocess.Popen"),
    (pack({**GOOD, "url": "no url"}), {}, "decode", "Missing scheme"),
    (pack({**GOOD, "meta": 5}), {}, "decode", "not a request"),
    (pack({**GOOD, "priority": "high"}), {}, "decode", "not a request"),
    (pack({**GOOD, "colour": "red"}), {}, "decode", "colour"),
    (pack({**GOOD, "meta": 5}), {"attempt": 1}, "decode", "not a request"),
    (pack({**GOOD, "encoding": "nope", "body": "x"}), {}, "decode", "nope"),
    (pack({**GOOD, "meta": {"download_slot": []}}), {"attempt": 2**63}, "decode", "unhashable"),
    (pack(GOOD), {"content-type": "text/html"}, "decode", "text/html"),
    (b"\xc6\x00\x90\x00\x00" + b"x" * 0x900000, {}, "limit", "8,388,608"),
    (b"\x91" * 100 + b"\x90", {}, "limit", "deeper than 64"),
    (pack(GOOD), {"page": b"short"}, "decode", "no page"),
    (pack(GOOD), {"page": None}, "decode", "no page"),
    (pack(GOOD), {"run": "one"}, "decode", "no page and run"),
]


def test_messages_that_cannot_be_read(tmp_path: Path) -> None:
    sent = [(message(body, **headers), reason, detail) for body, headers, reason, detail in UNREADABLE]
    put(tmp_path, *(each for each, _, _ in sent))
    site = Site({"/": links("/a"), "/a": "x"})
    with site.open() as url:
        done = crawl(project(tmp_path, SPIDER), "-a", f"url={url}/")
    assert done.ran.code == 0 and "Traceback" not in done.ran.err, done.ran
    assert (done.status.state.value, done.status.open, done.status.unaccounted) == ("finished", 0, 0)
    letters = {letter.message.id: letter for letter in done.dead}
    assert len(letters) == len(done.dead) == len(sent)
    for each, reason, detail in sent:
        letter = letters[each.id]
        assert letter.reason == reason and detail in letter.detail, letter
        assert not letter.whole and letter.message.body == each.body[:4096]
    errors = [line for line in done.ran.err.splitlines() if " ERROR: " in line]
    assert len(errors) == 2, "the first of each kind: an unreadable body, and unreadable headers"
    assert [item["url"].removeprefix(url) for item in done.items] == ["/", "/a"]


def test_a_message_whose_headers_are_damaged_on_the_disk(tmp_path: Path) -> None:
    put(tmp_path, message(pack(GOOD), page=b"unmarked"), message(pack(GOOD), page=b"unmarked"))
    with closing(sqlite3.connect(tmp_path / "bus.db")) as database, database:
        database.execute("UPDATE bus_queue SET headers = x'c1' WHERE seq = 1")
        database.execute("UPDATE bus_queue SET headers = x'9101' WHERE seq = 2")
    site = Site({"/": "x"})
    with site.open() as url:
        done = crawl(project(tmp_path, SPIDER), "-a", f"url={url}/")
    assert done.ran.code == 0 and "Traceback" not in done.ran.err, done.ran
    assert [letter.reason for letter in done.dead] == ["decode", "decode"] and len(done.items) == 1


def test_a_link_that_cannot_travel_is_said_once(tmp_path: Path) -> None:
    spider = SPIDER.replace("self.parse)", "self.parse, meta={'session': object()})")
    site = Site({"/": links("/a", "/b")})
    with site.open() as url:
        done = crawl(project(tmp_path, spider), "-a", f"url={url}/")
    (line,) = [line for line in done.ran.err.splitlines() if " ERROR: " in line]
    assert "meta.session" in line and "parse()" in line and "crawlbus dead list" in line
    assert [letter.reason for letter in done.dead] == ["encode", "encode"] and done.ran.code == 0


def test_a_message_of_a_newer_version_is_put_back_and_kept(tmp_path: Path) -> None:
    newer = message(pack({"all": "new"}), schema=SCHEMA + 1)
    put(tmp_path, newer)
    site = Site({"/": links("/a"), "/a": "x"})
    with site.open() as url:
        command = [sys.executable, "-P", "-m", "bus.cli", "crawl", "shop", "-a", f"url={url}/"]
        process = subprocess.Popen(
            [*command, "--bus", "sqlite:///bus.db"], cwd=project(tmp_path, SPIDER), env=environment(),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            wait_until(lambda: site.hits["/a"] and asyncio.run(lag(tmp_path)).delayed == 1)
            wait_until(lambda: asyncio.run(left(tmp_path))[1].open == 1)
            assert process.poll() is None, "its page is open"
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 0 and "newer version" in err
    letters, status = asyncio.run(left(tmp_path))
    assert not letters and (status.open, status.counters["pages"]) == (1, 2)
    assert asyncio.run(lag(tmp_path)).delayed == 1


@pytest.mark.skipif(not os.environ.get("CRAWLBUS_SOAK"), reason="takes more than a minute; make soak runs it")
def test_a_page_that_nothing_is_known_of_ends_the_job_with_code_5(tmp_path: Path) -> None:
    """Its message cannot be read, so that nobody knows what it was for; but it was marked."""
    put(tmp_path, message(pack(GOOD)))
    lost = message(pack(GOOD), page=b"short")

    async def spoil() -> None:
        transport = await connect_transport(f"sqlite:///{tmp_path / 'bus.db'}")
        await transport.declare(QUEUE)
        reader = await transport.subscribe(QUEUE.name)
        await reader.ack(await reader.receive(max_messages=1, timeout_s=1))
        await transport.publish(QUEUE.name, [lost])
        await transport.aclose()

    asyncio.run(spoil())
    site = Site({"/": "x"})
    with site.open() as url:
        done = crawl(project(tmp_path, SPIDER), "-a", f"url={url}/", timeout_s=150)
    assert done.ran.code == 5 and (done.status.state.value, done.status.unaccounted) == ("finished", 1)
    assert [letter.reason for letter in done.dead] == ["decode"] and len(done.items) == 1


# disks


def fan(pages: int) -> Site:
    """Enough to write that a small disk is full before it is crawled."""
    filler = "<p>" + "x" * 6000
    paths = [f"/{number}" for number in range(pages)]
    return Site({"/": links(*paths), **dict.fromkeys(paths, filler)})


BIG = SPIDER.replace('{"url": response.url}', '{"url": response.url, "body": response.text}')


def is_crawled_on(directory: Path, url: str, site: Site, bus: str) -> None:
    """Now that there is room again."""
    ran = crawlbus("crawl", "shop", "-a", f"url={url}/", "--bus", bus, "--sink", "sqlite:///items.db", cwd=directory)
    assert ran.code == 0, ran
    rows = stored(directory)[1]
    assert {row["url"].removeprefix(url) for row in rows} == set(site.pages) and len(rows) == len(site.pages)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_that_may_not_grow(tmp_path: Path, workers: str) -> None:
    """A quota, told by the kernel as a file that is too large."""
    site, limit = fan(60), 200_000
    project(tmp_path, BIG)
    with site.open() as url:
        command = [sys.executable, "-P", "-m", "bus.cli", "crawl", "shop", "-a", f"url={url}/"]
        ran = subprocess.run(
            [*command, "--bus", "sqlite:///bus.db", "--workers", workers], cwd=tmp_path, env=environment(),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ran.returncode == 3 and "Traceback" not in ran.stderr, ran
        assert "bus.db" in ran.stderr and ("disk" in ran.stderr), ran.stderr
        is_crawled_on(tmp_path, url, site, "sqlite:///bus.db")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """One megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk(tmp_path: Path, small_disk: Path, workers: str) -> None:
    site = fan(150)
    project(tmp_path, BIG)
    bus = f"sqlite:///{small_disk}/bus.db"
    with site.open() as url:
        ran = crawlbus("crawl", "shop", "-a", f"url={url}/", "--bus", bus, "--workers", workers, cwd=tmp_path)
        assert ran.code == 3 and "Traceback" not in ran.err, ran
        assert "bus.db: the disk is full: free some space" in ran.err, ran.err
        subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
        is_crawled_on(tmp_path, url, site, bus)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_read_only_directory(tmp_path: Path, small_disk: Path, workers: str) -> None:
    site = fan(3)
    project(tmp_path, BIG, 'LOG_LEVEL = "WARNING"')
    bus = f"sqlite:///{small_disk}/bus.db"
    (tmp_path / "urls.txt").write_text("http://127.0.0.1:9/\n")
    warm = ("dedup", "warm", "urls.txt", "--job", "shop", "--spider", "shop", "--bus", bus)
    assert crawlbus(*warm, cwd=tmp_path).code == 0
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with site.open() as url:
        ran = crawlbus("crawl", "shop", "-a", f"url={url}/", "--bus", bus, "--workers", workers, cwd=tmp_path)
        line = told(ran, 3)
        assert "bus.db" in line and ("read-only" in line or "right" in line)
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        is_crawled_on(tmp_path, url, site, bus)
