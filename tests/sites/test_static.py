"""What can be reached in a folder of files."""

from __future__ import annotations

from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.sites.static import PYTHON_DOCS, Reachable, StaticSite, reachable


def test_links_are_followed_within_the_site(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "index.html").write_text(
        '<a href="in/a.html#x">a</a><area href=" /b.txt "><link href="no.html"><a href="https://other/c.html">'
        '<a href="//other/d.html"><a href="mailto:a@b"><a name="x"><a href="in/a.html?q=1">'
    )
    (tmp_path / "in" / "a.html").write_text(
        '<meta charset="utf-8"><a href="../in/">folder</a><a href="gone.html"><a href="é.html">'
    )
    (tmp_path / "in" / "index.html").write_text('<base href="/"><a href="b.txt">')
    (tmp_path / "b.txt").write_text('<a href="no.html">')
    (tmp_path / "no.html").write_text("")
    assert reachable(tmp_path) == Reachable(
        frozenset({"/index.html", "/in/a.html", "/in/a.html?q=1", "/b.txt", "/in/"}),
        frozenset({"/in/gone.html", "/in/%C3%A9.html"}),
    )
    with StaticSite(tmp_path) as site:
        connection = HTTPConnection(site.url.removeprefix("http://"), timeout=10)
        for path, status in {
            "/": 200,
            "/in/": 200,
            "/b.txt": 200,
            "/in/gone.html": 404,
            "/../../etc/passwd": 404,
        }.items():
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            assert (path, response.status) == (path, status)
        connection.close()


@pytest.mark.skipif(not PYTHON_DOCS.exists(), reason="needs Debian's package python3.11-doc")
def test_the_python_documentation() -> None:
    found = reachable(PYTHON_DOCS)
    assert len(list(PYTHON_DOCS.rglob("*.html"))) == 530
    assert len({path for path in found.files if path.endswith(".html")}) == 526
    assert len({path for path in found.files if path.endswith(".py")}) == 1 == len(found.files) - 526
    assert found.missing == {"/whatsnew/changelog.html"}  # Debian leaves it out
