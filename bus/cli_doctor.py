"""`crawlbus doctor`: is everything that the settings name there and in order? If not: what mends it."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol, cast

import click
from rich.table import Table
from rich.text import Text

from bus.cli import Call, common, setting
from bus.errors import BusError, Misconfigured
from bus.findings import CONFIGURATION, FAULT, NOT_REACHABLE, NOTE, OK, Examined, Finding, clock, fault
from bus.registry import EXTRAS, connect_state, connect_transport, known, load
from bus.settings import Settings, state_url
from bus.shadows import shadows
from bus.url import bus_options, file_path, hide_secrets, missing_file, scheme

__all__ = ["doctor"]

CONNECT_S = 20.0
FREE_BYTES = 1 << 30
FILE_SCHEMES = {"sqlite", "jsonl", "parquet"}
DRIVERS = {  # extra: distribution
    "rabbitmq": "aio-pika",
    "kafka": "aiokafka",
    "redis": "redis",
    "postgres": "psycopg",
    "parquet": "pyarrow",
}


class _Closes(Protocol):
    async def aclose(self) -> None: ...


@click.command()
@setting("sink", "URL")
@common
def doctor(call: Call) -> int:
    """Check that all is in order, and say how to mend what is not.

    Looks at settings, bus, state, sink, directories, disk, clock, packages and drivers.
    Exit code 2: a setting is wrong. 3: a system is not reachable.

    \b
    Example:
      crawlbus doctor --bus sqlite:///crawlbus.db --sink sqlite:///items.db
    """
    findings = list(_findings(call))
    table = Table(box=None, pad_edge=False, show_header=False)
    colours = {OK: "green", NOTE: "yellow", FAULT: "red"}
    for finding in findings:
        text = Text(finding.found)
        if finding.mend:
            text.append(f"\n→ {finding.mend}", style="bold")
        table.add_row(Text(finding.verdict, style=colours[finding.verdict]), finding.what, text)
    checks = [{"what": f.what, "verdict": f.verdict, "found": f.found, "mend": f.mend} for f in findings]
    call.answer({"checks": checks}, table)
    return max(finding.exit_code for finding in findings)


def _findings(call: Call) -> Iterator[Finding]:
    yield _versions()
    try:
        settings = call.settings()
    except Misconfigured as error:
        yield Finding("settings", FAULT, str(error), exit_code=CONFIGURATION)
        settings = None
    if settings is not None:
        yield from _systems(settings)
    hidden = shadows()
    for shadow in hidden:
        yield Finding("packages", FAULT, str(shadow), f"rename {shadow.theirs}", CONFIGURATION)
    if not hidden:
        yield Finding("packages", OK, "no other package is named adapters, bus, consumers or spiders")
    yield from _drivers()


def _versions() -> Finding:
    python, sqlite = platform.python_version(), sqlite3.sqlite_version
    parts = [f"{name} {version(name)}" for name in ("crawlbus", "scrapy")]
    return Finding("versions", OK, ", ".join([*parts, f"Python {python}", f"SQLite {sqlite}", platform.platform()]))


def _systems(settings: Settings) -> Iterator[Finding]:
    """The bus, the state and the sink, and the directories of those that are files."""
    yield from _reach("bus", settings.bus, connect_transport)
    try:
        state = state_url(settings)
    except Misconfigured as error:
        yield Finding("state", FAULT, str(error), exit_code=CONFIGURATION)
        state = settings.bus
    else:
        yield from _reach("state", state, connect_state)
        yield from _together(settings, state)
    if settings.sink is None:
        yield Finding("sink", NOTE, "no sink is set", "give --sink, for example sqlite:///items.db")
    else:
        yield from _sink(settings.sink)
    urls = [url for url in (settings.bus, state, settings.sink) if url and scheme(url) in FILE_SCHEMES]
    try:
        paths = [file_path(url).absolute() for url in urls]
    except Misconfigured:
        return  # said above
    for directory in dict.fromkeys(path if path.is_dir() else path.parent for path in paths):
        yield from _directory(directory)


def _reach(what: str, url: str, connect: Callable[[str], Awaitable[_Closes]]) -> Iterator[Finding]:
    """Does it answer, and what does it say of itself?"""
    shown = hide_secrets(url)

    async def once() -> Sequence[Finding]:
        async with asyncio.timeout(CONNECT_S), aclosing(await connect(url)) as part:
            return await part.examine(bus_options(url).prefix) if isinstance(part, Examined) else []

    try:
        if missing_file(url):
            yield Finding(what, OK, f"{shown}: the file is not there yet and will be made")
            return
        more = asyncio.run(once())
    except TimeoutError:
        found = f"{shown} has not answered in {CONNECT_S:.0f} s"
        yield Finding(what, FAULT, found, f"start it, or set --{what}", NOT_REACHABLE)
    except BusError as error:
        finding = fault(what, error, f"see {shown}, or set --{what}")
        yield replace(finding, found=hide_secrets(finding.found))
    else:
        yield Finding(what, OK, f"{shown} answers")
        yield from more


def _together(settings: Settings, state: str) -> Iterator[Finding]:
    """Settings that are right alone, and not together."""
    bus, sink, kinds = settings.bus, settings.sink, (scheme(settings.bus), scheme(state))
    if "memory" in kinds and settings.workers > 1:
        found = f"what is in memory:// lives in one process, and there are to be {settings.workers} workers"
        yield Finding("settings", FAULT, found, "set --workers 1, or --bus sqlite:///crawlbus.db", CONFIGURATION)
    if kinds.count("memory") == 1:
        found = "one of bus and state is memory:// and ends with its process, the other stays and waits for it"
        yield Finding("settings", NOTE, found, "put both where they stay, for example --bus sqlite:///crawlbus.db")
    elif kinds[0] not in FILE_SCHEMES and kinds[1] in FILE_SCHEMES:
        found = "the state is a file, so that only workers of this machine share one job"
        yield Finding("settings", NOTE, found, "for a fleet of several machines set --state redis://HOST/0")
    if sink is not None and any(_one_file(url, sink) for url in (bus, state)):
        found = f"a {scheme(sink)}:// sink would write into the file of the bus or the state"
        yield Finding("settings", FAULT, found, "set --sink to another file", CONFIGURATION)


def _one_file(url: str, sink: str) -> bool:
    """Only SQLite shares one."""
    kinds = {scheme(url), scheme(sink)}
    try:
        return len(kinds) == 2 and kinds <= FILE_SCHEMES and file_path(url).absolute() == file_path(sink).absolute()
    except Misconfigured:
        return False  # no path at all: said elsewhere


def _sink(url: str) -> Iterator[Finding]:
    """A sink that has a server is asked; one that is a file is not opened, as that would make it."""
    shown = hide_secrets(url)
    try:
        sink = load("crawlbus.sinks", scheme(url)).from_url(url)
    except BusError as error:
        yield Finding("sink", FAULT, hide_secrets(str(error)), "set --sink", CONFIGURATION)
        return
    if not isinstance(sink, Examined):
        yield Finding("sink", OK, f"{shown} is a sink that is known here")
        return

    async def made(_: str) -> _Closes:
        return cast(_Closes, sink)

    yield from _reach("sink", url, made)


def _directory(directory: Path) -> Iterator[Finding]:
    """May we write there, is there room, and does the file system's clock agree with ours?"""
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".crawlbus-") as probe:
            skew_s = os.fstat(probe.fileno()).st_mtime - time.time()
    except OSError as error:
        mend = "make yourself able to write there" if directory.is_dir() else "make it"
        found = f"{directory} cannot be written: {error.strerror}"
        yield Finding("directory", FAULT, found, f"{mend}, or choose another place", NOT_REACHABLE)
        return
    yield Finding("directory", OK, f"{directory} can be written")
    free_bytes = shutil.disk_usage(directory).free
    found = f"{free_bytes / (1 << 30):,.1f} GiB free in {directory}"
    low = free_bytes < FREE_BYTES
    yield Finding("disk", NOTE if low else OK, found, "make room: a full disk stops the crawl" if low else "")
    yield clock("clock", skew_s, str(directory))


def _drivers() -> Iterator[Finding]:
    """Those that are there, and those that only other buses, states and sinks need."""
    served = {*known("crawlbus.transports"), *known("crawlbus.states"), *known("crawlbus.sinks")}
    there: list[str] = []
    missing: dict[str, str] = {}
    for extra, distribution in DRIVERS.items():
        used = sorted(served & {name for name, needs in EXTRAS.items() if needs == extra})
        try:
            there.append(f"{distribution} {version(distribution)}")
        except PackageNotFoundError:
            if used:
                missing[extra] = f"{distribution} (for {', '.join(f'{name}://' for name in used)})"
    if there:
        yield Finding("drivers", OK, ", ".join(there))
    if missing:
        found = f"not installed: {', '.join(missing.values())}"
        yield Finding("drivers", NOTE, found, f"where one is wanted: pip install 'crawlbus[{','.join(missing)}]'")
