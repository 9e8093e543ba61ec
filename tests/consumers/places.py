"""Where a consumer is tested: every bus and every sink, each place a fresh one on servers that are shared."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

from bus.registry import connect_state
from bus.state import JobState
from tests.consumers.verdict import Journal, Verdict
from tests.servers import KINDS, kinds, new_database, shared_url

__all__ = ["BUSES", "SINKS", "Place", "new_place"]

BUSES = ("sqlite", *(kind for kind in KINDS if not kind.startswith("postgres")))
SINKS = ("sqlite", *kinds("postgres"), "jsonl", "parquet")


class Place(NamedTuple):
    """A bus, a sink, and a directory for the rest: the state, what was published, what the consumers have said."""

    directory: Path
    bus: str
    sink: str

    @property
    def state(self) -> str:
        return f"sqlite:///{self.directory / 'state.db'}"

    @property
    def journal(self) -> Journal:
        return Journal(self.directory / "journal")

    @property
    def log(self) -> str:
        """All that was said so far."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def verdict(self) -> Verdict:
        return self.journal.verdict(self.sink)

    def end_job(self) -> None:
        """So that a consumer ends when it has drained the log."""

        async def end() -> None:
            state = await connect_state(self.state)
            try:
                await state.join("shop", spider="shop")
                await state.set_state("shop", JobState.STOPPED)
            finally:
                await state.aclose()

        asyncio.run(end())


@contextmanager
def new_place(bus: str, sink: str, directory: Path) -> Iterator[Place]:
    """One of `BUSES` with one of `SINKS`. Raises `Unavailable`."""
    url = f"sqlite:///{directory / 'bus.db'}" if bus == "sqlite" else f"{shared_url(bus)}?prefix=t{token_hex(4)}."
    if sink.startswith("postgres"):
        with new_database(shared_url(sink)) as database:
            yield Place(directory, url, database)
    else:
        yield Place(directory, url, f"{sink}:///{directory / 'items'}")
