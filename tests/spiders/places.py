"""The buses that a crawl is tested on, each with its state; every place is a fresh one on servers that are shared."""

from __future__ import annotations

from pathlib import Path
from secrets import token_hex
from urllib.parse import urlsplit

from tests.servers import shared_url
from tests.spiders.scene import Place, in_file

__all__ = ["BUSES", "SERVERS", "new_place"]

# The server of the bus, and that of the state: the bus's own, or another one.
SERVERS = {
    "redis-7": "redis-7",
    "redis-8": "redis-8",
    "rabbitmq-3.10": "redis-7",
    "rabbitmq-4.3": "redis-8",
    "kafka-4.1": "redis-7",
}
BUSES = ("sqlite", *SERVERS)


def new_place(bus: str, directory: Path) -> Place:
    """A prefix and a job of its own. Redis 7 keeps its state with the messages, Redis 8 in another database."""
    if bus == "sqlite":
        return in_file(directory)
    name = f"t{token_hex(4)}"
    state = shared_url(SERVERS[bus])
    if bus == "redis-8":
        state = urlsplit(state)._replace(path="/1").geturl()
    return Place(f"{shared_url(bus)}?prefix={name}.", state, name)
