"""The URLs that choose a bus, a state and a sink."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

from bus.errors import Misconfigured
from bus.topic import RETENTION_S

__all__ = [
    "BusOptions",
    "bus_options",
    "file_path",
    "hide_secrets",
    "missing_file",
    "query",
    "scheme",
    "without_bus_options",
]

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
_PREFIX = re.compile(r"[A-Za-z0-9._-]{0,64}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BUS_KEYS = ("prefix", "retention")
_PASSWORD = re.compile(r"(://[^\s/?#:@]*):(?:[^\s?#]*|[^\s/]*)@")
_WHOLE = re.compile(r"^((?:[a-z][a-z0-9+.-]*://)?[^\s/?#:@]*):[^/?#@]*@(?=[^\s@]*$)")  # a space in it, or no scheme
_SECRET_NAMES = "passw|passphrase|pwd|secret|token|api_?key"
_SECRET_VALUE = re.compile(rf"([?&][^\s=&]*(?:{_SECRET_NAMES})[^\s=&]*=)[^\s&#]+", re.IGNORECASE)


class BusOptions(NamedTuple):
    """What crawlbus itself reads of a bus URL: `?prefix=` of the topics, `?retention=` of the logs."""

    prefix: str = "crawlbus."
    retention_s: float = RETENTION_S


def scheme(url: str) -> str:
    """`sqlite` of `sqlite:///crawlbus.db`. Raises `Misconfigured` for what is no URL."""
    match = _SCHEME.match(url)
    if match is None:
        raise Misconfigured(f"{hide_secrets(url)!r} is not a URL: write it like sqlite:///crawlbus.db")
    return match[1]


def query(url: str) -> dict[str, str]:
    """The values after the question mark; the last one of a name counts. Raises `Misconfigured` for a bare / ? @ or
    space in a password: what is read as a host, a path or an option is shown in errors."""
    place, _, options = url.partition("?")
    found = dict(parse_qsl(options, keep_blank_values=True))
    host, _, path = place.partition("://")[2].partition("/")
    if any("@" in name for name in found) or (host and "@" in path):
        raise Misconfigured("a URL has an @ behind its host: write / and ? of a password as %2F and %3F, @ as %40")
    if host.count("@") > 1 or any(map(str.isspace, host)):
        raise Misconfigured("a URL has two @ or a space before its path: write @ of a password as %40, a space as %20")
    return found


def file_path(url: str) -> Path:
    """The path of a file URL, as in SQLAlchemy: `sqlite:///a.db` is relative, `sqlite:////tmp/a.db` absolute."""
    kind = scheme(url)
    host, slash, path = url.partition("?")[0].removeprefix(f"{kind}://").partition("/")
    if host or not path:
        meant = "FILE" if "@" in host or not host + path else host + slash + path
        raise Misconfigured(
            f"{hide_secrets(url)!r} names no file: write {kind}:///{meant} with three slashes "
            "for a path in this directory, four for an absolute one"
        )
    return Path(path)


def missing_file(url: str) -> bool:
    """Is this a SQLite file that is not there? Who only looks can tell without making it."""
    return scheme(url) == "sqlite" and not file_path(url).exists()


def bus_options(url: str) -> BusOptions:
    """The prefix (default `crawlbus.`) and the retention (default 7 days; `3600`, `90m`, `12h` or `30d`)."""
    given, options = query(url), BusOptions()
    if (prefix := given.get("prefix")) is not None:
        if not _PREFIX.fullmatch(prefix):
            raise Misconfigured(
                f"prefix={prefix!r} of the bus URL is not made of letters, digits, '.', '_' and '-'"
            )
        options = options._replace(prefix=prefix)
    if (retention := given.get("retention")) is not None:
        match = _DURATION.fullmatch(retention)
        if match is None:
            raise Misconfigured(
                f"retention={retention!r} of the bus URL is no duration: write 3600, 90m, 12h or 30d"
            )
        options = options._replace(retention_s=float(match[1]) * _SECONDS[match[2]])
    return options


def without_bus_options(url: str) -> str:
    """The URL as an adapter gets it: `prefix` and `retention` are crawlbus's own."""
    base, _, text = url.partition("?")
    kept = [(name, value) for name, value in parse_qsl(text, keep_blank_values=True) if name not in _BUS_KEYS]
    return f"{base}?{urlencode(kept)}" if kept else base


def hide_secrets(text: str) -> str:
    """A URL, or a text with URLs in it, that may be shown: passwords, tokens and their like are `***`."""
    text = _WHOLE.sub(r"\1:***@", text)
    return _SECRET_VALUE.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))
