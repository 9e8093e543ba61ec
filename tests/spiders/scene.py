"""What the crawl tests share: a site made of functions, a spider in a file, and what came of a crawl."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

from bus.dead import DeadLetter
from bus.registry import connect_state, connect_transport
from bus.state import JobStatus
from bus.url import bus_options
from consumers.aside.dead import DeadLetters

Answer = tuple[int, dict[str, str], bytes]


class Site:
    """A site on loopback. `pages` maps a path to what it answers: text, an `Answer`, or a function of the hit."""

    def __init__(self, pages: dict[str, Any]) -> None:
        self.pages, self.hits = pages, Counter[str]()
        self.requests: list[tuple[str, str, bytes, dict[str, str]]] = []
        self._lock = threading.Lock()

    def answer(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        with self._lock:
            self.hits[path] += 1
            hit = self.hits[path]
            self.requests.append((method, path, body, headers))
        page = self.pages.get(path.partition("?")[0], (404, {}, b"nothing here"))
        page = page(hit) if callable(page) else page
        return page if isinstance(page, tuple) else (200, {}, page if isinstance(page, bytes) else page.encode())

    @contextmanager
    def open(self) -> Iterator[str]:
        """Its URL, without a slash at the end."""
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                status, headers, body = site.answer(
                    self.command, self.path, self.rfile.read(length), dict(self.headers.items())
                )
                self.send_response(status)
                for name, value in {"Content-Type": "text/html", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True  # a killed client leaves a thread that reads

            def handle_error(self, *_: object) -> None: ...

        server = Server(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def links(*paths: str) -> str:
    """A page with links."""
    return "<html><body>" + "".join(f'<a href="{path}">x</a>' for path in paths) + "</body></html>"


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def crawlbus(*arguments: str, cwd: Path, timeout_s: float = 60, env: dict[str, str] | None = None) -> Ran:
    """Run the command as a user does."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bus.cli", *arguments], cwd=cwd, capture_output=True, text=True,
        timeout=timeout_s, env=environment(env), check=False,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """Ours, without settings from outside."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CRAWLBUS_", "SCRAPY_"))}
    return {**kept, **(more or {})}


def project(directory: Path, spider: str, settings: str = "") -> Path:
    """A small Scrapy project: `shop.py` holds the spider, `shop_settings.py` the settings."""
    (directory / "scrapy.cfg").write_text("[settings]\ndefault = shop_settings\n")
    (directory / "shop_settings.py").write_text(
        'SPIDER_MODULES = ["shop"]\nBOT_NAME = "shop"\nLOG_LEVEL = "INFO"\nTWISTED_REACTOR_ENABLED = True\n'
        + dedent(settings)
    )
    (directory / "shop.py").write_text("import scrapy\nfrom scrapy import Request\n" + dedent(spider))
    return directory


class Place(NamedTuple):
    """Where a crawl lives: its bus, its state, its job."""

    bus: str
    state: str
    job: str = "shop"

    @property
    def arguments(self) -> list[str]:
        """For the command line."""
        return ["--bus", self.bus, "--state", self.state, "--job", self.job]

    async def left(self) -> tuple[list[DeadLetter], JobStatus]:
        """The dead letters that nothing was decided of, and how the job stands."""
        async with (
            aclosing(await connect_transport(self.bus)) as transport,
            aclosing(await connect_state(self.state)) as state,
        ):
            dead = DeadLetters(transport, bus_options(self.bus).prefix)
            letters = [letter async for letter in dead.undecided()]
            status = await state.status(self.job)
        assert status is not None
        return letters, status


def in_file(directory: Path, job: str = "shop") -> Place:
    """A crawl on one SQLite file."""
    url = f"sqlite:///{directory / 'bus.db'}"
    return Place(url, url, job)


class Crawled(NamedTuple):
    """What came of a crawl."""

    ran: Ran
    items: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    dead: list[DeadLetter]
    status: JobStatus


def crawl(directory: Path, *arguments: str, spider: str = "shop", **kw: Any) -> Crawled:
    """`crawlbus crawl` of a project into a sink, and everything it left."""
    ran = crawlbus(
        "crawl", spider, "--bus", "sqlite:///bus.db", "--sink", "sqlite:///items.db", *arguments, cwd=directory, **kw
    )
    return Crawled(ran, *stored(directory), *asyncio.run(left(directory)))


def stored(directory: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(data of the items, whole rows)."""
    connection = sqlite3.connect(directory / "items.db")
    connection.row_factory = sqlite3.Row
    try:
        rows = [dict(row) for row in connection.execute("SELECT * FROM items ORDER BY rowid")]
    except sqlite3.OperationalError:
        rows = []
    finally:
        connection.close()
    return [json.loads(row["data"]) for row in rows], rows


async def left(directory: Path, job: str = "shop") -> tuple[list[DeadLetter], JobStatus]:
    """The dead letters that nothing was decided of, and how the job stands."""
    return await in_file(directory, job).left()


def wait_until(condition: Callable[[], object], *, timeout_s: float = 30.0) -> None:
    """Wait for a condition; fails after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)
