"""Packages of the user's that share a name with one of crawlbus's four: one of the two cannot be imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["PACKAGES", "Shadow", "scrapy_project", "shadows"]

PACKAGES = ("adapters", "bus", "consumers", "spiders")
HOME = Path(__file__).resolve().parent.parent


class Shadow(NamedTuple):
    """`theirs` is the file or directory that has the name of our package `ours`; `hides` tells who wins."""

    ours: Path
    theirs: Path
    hides: bool

    def __str__(self) -> str:
        first, second = (self.theirs, self.ours) if self.hides else (self.ours, self.theirs)
        return (
            f"{first} hides {second}: rename your package {self.ours.name!r}, crawlbus has one of that name"
        )


def scrapy_project(directory: Path | None = None) -> Path | None:
    """The nearest directory upwards that holds a `scrapy.cfg`, which Scrapy puts on the import path."""
    start = (directory or Path.cwd()).resolve()
    return next((path for path in (start, *start.parents) if (path / "scrapy.cfg").is_file()), None)


def shadows() -> list[Shadow]:
    """All such packages on the import path and in the Scrapy project around the working directory."""
    project = scrapy_project()
    path = list(dict.fromkeys(Path(entry or ".").resolve() for entry in sys.path))
    if project is not None and project not in path:
        path.append(project)
    home = path.index(HOME) if HOME in path else len(path)
    return [
        Shadow(HOME / name, theirs, place < home)
        for place, directory in enumerate(path)
        if directory != HOME
        for name in PACKAGES
        for theirs in _modules(directory, name)
    ]


def _modules(directory: Path, name: str) -> Iterator[Path]:
    if (file := directory / f"{name}.py").is_file():
        yield file
    elif (package := directory / name).is_dir() and next(package.glob("*.py"), None):
        yield package
