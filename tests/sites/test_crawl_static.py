"""The site spider against a real site: what is stored is what can be reached, found another way."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.sites.static import PYTHON_DOCS, StaticSite, reachable
from tests.spiders.scene import crawlbus


@pytest.mark.skipif(not PYTHON_DOCS.exists(), reason="needs Debian's package python3.11-doc")
def test_the_python_documentation_is_crawled_whole(tmp_path: Path) -> None:
    with StaticSite(PYTHON_DOCS) as site:
        ran = crawlbus("crawl", f"{site.url}/index.html", cwd=tmp_path, timeout_s=110)
        prefix = site.url
    assert ran.code == 0, ran.err
    with closing(sqlite3.connect(tmp_path / "crawlbus-items.db")) as database:
        items = [json.loads(data) for (data,) in database.execute("SELECT data FROM items")]
    status = {item["url"].removeprefix(prefix): item["status"] for item in items}
    expected = reachable(PYTHON_DOCS)
    assert len(items) == len(status)
    assert status == dict.fromkeys(expected.files, 200) | dict.fromkeys(expected.missing, 404)
    for item in items:
        if item["status"] == 200:
            file = PYTHON_DOCS / item["url"].removeprefix(prefix + "/")
            assert item["length"] == file.stat().st_size
            assert (item["title"] is not None) == (file.suffix == ".html")
