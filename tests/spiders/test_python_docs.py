"""A real site, by two workers: what is stored is what another parser finds by following links from index.html."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from spiders.crawl import DEFAULT_SINK
from tests.sites.static import PYTHON_DOCS, StaticSite
from tests.spiders.places import BUSES, new_place
from tests.spiders.scene import crawlbus


class Hrefs(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("a", "area"):
            self.found += [value for name, value in attrs if name == "href" and value]


@cache
def statuses(start: str) -> dict[str, int]:
    """path -> status of all that can be reached."""
    queue, found = [start], {start: 0}
    for path in queue:
        file = PYTHON_DOCS / unquote(path).lstrip("/")
        found[path] = 200 if file.is_file() else 404
        for href in Hrefs(file.read_text()).found if found[path] == 200 and file.suffix == ".html" else ():
            parts = urlsplit(urljoin("http://site" + path, href.strip()))
            if (parts.scheme, parts.netloc) == ("http", "site") and parts.path not in found:
                found[parts.path] = 0
                queue.append(parts.path)
    return found


@pytest.mark.skipif(not PYTHON_DOCS.exists(), reason="needs Debian's package python3.11-doc")
@pytest.mark.parametrize("bus", BUSES)
def test_the_python_documentation_by_two_workers(tmp_path: Path, bus: str) -> None:
    expected = statuses("/index.html")
    assert sum(path.endswith(".html") and status == 200 for path, status in expected.items()) == 526
    where = ["--sink", DEFAULT_SINK, *new_place(bus, tmp_path).arguments] if bus != "sqlite" else []
    with StaticSite(PYTHON_DOCS) as site:
        ran = crawlbus("crawl", f"{site.url}/index.html", "--workers", "2", *where, cwd=tmp_path, timeout_s=100)
        start = len(site.url)
    assert ran.code == 0 and "Traceback" not in ran.err, ran.out + ran.err
    with closing(sqlite3.connect(tmp_path / "crawlbus-items.db")) as database:
        items = [json.loads(data) for (data,) in database.execute("SELECT data FROM items")]
    assert len(items) == len(expected), "once each"
    assert {item["url"][start:]: item["status"] for item in items} == expected
