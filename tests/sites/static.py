"""A folder of files as a site, and what can be reached in it, found without Scrapy."""

from __future__ import annotations

import argparse
import mimetypes
import posixpath
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

import lxml.html  # type: ignore[import-untyped]

from spiders.demo.server import Handler, Reply, ServerProcess, main, reply

__all__ = ["PYTHON_DOCS", "Reachable", "StaticSite", "reachable"]

PYTHON_DOCS = Path("/usr/share/doc/python3.11/html")  # Debian's package python3.11-doc


class Reachable(NamedTuple):
    """Paths as they stand in URLs: files that are there, and targets of links that are not."""

    files: frozenset[str]
    missing: frozenset[str]


class StaticSite(ServerProcess):
    """The site in a process of its own. `url` has no slash at its end."""

    def __init__(self, folder: Path) -> None:
        super().__init__("tests.sites.static", str(folder))


def reachable(folder: Path, start: str = "/index.html") -> Reachable:
    """Follow `a[href]` and `area[href]` from `start`, within the site, queries told apart and fragments dropped."""
    files, missing, queue, known = set(), set(), [start], {start}
    for path in queue:
        file = _file(folder, path)
        if file is None:
            missing.add(path)
            continue
        files.add(path)
        if file.suffix == ".html":
            fresh = dict.fromkeys(found for found in _links(file, path) if found not in known)
            known.update(fresh)
            queue += fresh
    return Reachable(frozenset(files), frozenset(missing))


def _links(file: Path, path: str) -> list[str]:
    document = lxml.html.fromstring(file.read_bytes())
    bases = [base.get("href") for base in document.iter("base") if base.get("href")]
    origin = "http://site"
    base = urljoin(origin + path, bases[0] if bases else "")
    found = []
    for element in document.iter("a", "area"):
        if (href := element.get("href")) is None:
            continue
        parts = urlsplit(urljoin(base, href.strip()))
        if f"{parts.scheme}://{parts.netloc}" == origin:
            found.append(quote(parts.path or "/", safe="/%") + (f"?{parts.query}" if parts.query else ""))
    return found


def _file(folder: Path, path: str) -> Path | None:
    """The file of a path, never outside the folder's own tree of names."""
    name = posixpath.normpath("/" + unquote(path.partition("?")[0]))
    file = folder / name.lstrip("/")
    if file.is_dir():
        file = file / "index.html"
    return file if file.is_file() else None


def _handler(folder: Path) -> Handler:
    def answer(path: str) -> Reply:
        file = _file(folder, path)
        if file is None:
            return reply("nothing here\n", status=404)
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        return reply(file.read_bytes(), content_type=kind)

    return answer


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.sites.static")
    parser.add_argument("folder", type=Path)
    main(lambda arguments, _: _handler(arguments.folder), parser)
