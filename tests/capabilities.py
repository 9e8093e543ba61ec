"""Writes the table of `docs/transports.md` from what the transports declare: `python -m tests.capabilities`."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import aclosing
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

from bus.capabilities import Capabilities
from bus.registry import connect_transport, known
from tests.servers import shared_url

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).parent.parent / "docs" / "transports.md"
HEADING = "## Capabilities\n"
SERVERS = {"redis": "redis-7", "amqp": "rabbitmq-4.3", "kafka": "kafka-4.1"}
URLS = {"memory": "memory://", "sqlite": "sqlite:///{folder}/bus.db"}
ALIASES = {"rediss": "redis", "amqps": "amqp", "kafka+ssl": "kafka"}  # the same with TLS
MEANINGS = {
    "queue_durability": "what survives once `publish` to a QUEUE has returned",
    "log_durability": "the same of a LOG",
    "acks": "`individual`: each ack stands alone; `prefix`: a reader commits what is done without gaps",
    "lease_s": "seconds after which the work of a frozen or cut-off reader comes back; none: it dies with the bus",
    "counts_redeliveries": "a delivery says how often it was delivered before",
    "releases_on_close": "`aclose` hands unacknowledged work back at once",
    "delay": "how a QUEUE honours `not_before`: `native` at its time, `bands` at most about a second late",
    "seek_by": "what `seek` takes besides `earliest` and `latest`",
    "exact_lag": "`lag` of a QUEUE counts, and does not estimate",
    "shared_between_processes": "processes of one machine may share it: `--workers` above 1",
    "shared_between_hosts": "machines may share it",
    "hides_s": "for so long a delayed message that cannot be moved on may be in no count of `lag`",
}
DURABILITY = """
Durability: `process` survives nothing beyond its process; `page cache` a killed process or server; `fsync` a power cut;
`replicated` the loss of a machine.
"""


def page() -> str:
    """The page, with the table as it is now."""
    return PAGE.read_text(encoding="utf-8").partition(HEADING)[0] + table()


def table() -> str:
    """From the heading to the end."""
    asked = {name: asyncio.run(_ask(name)) for name in [*URLS, *SERVERS]}
    lines = [
        HEADING,
        "What each transport declares, and production code reads. Asking for what is absent raises `Unsupported`.",
        "Written by `make docs`.",
        "",
        f"| | {' | '.join(f'`{name}://`' for name in asked)} | meaning |",
        "|---" * (len(asked) + 2) + "|",
    ]
    for field in fields(Capabilities):
        cells = [_text(getattr(capabilities, field.name)) for capabilities in asked.values()]
        lines.append(f"| `{field.name}` | {' | '.join(cells)} | {MEANINGS[field.name]} |")
    return "\n".join(lines) + "\n" + DURABILITY


async def _ask(name: str) -> Capabilities:
    with tempfile.TemporaryDirectory() as folder:
        url = URLS[name].format(folder=folder) if name in URLS else shared_url(SERVERS[name])
        async with aclosing(await connect_transport(url)) as transport:
            return transport.capabilities


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, frozenset):
        return ", ".join(sorted(member.value for member in value)) or "nothing"
    if isinstance(value, Enum):
        return str(value.value)
    return "none" if value is None else f"{value:g}"


if __name__ == "__main__":
    missing = set(known("crawlbus.transports")) - {*URLS, *SERVERS, *ALIASES}
    if missing:
        raise SystemExit(f"say in {__file__} how to connect to {', '.join(sorted(missing))}")
    PAGE.write_text(page(), encoding="utf-8")
