"""Which class serves a URL: by its scheme, through entry points, so that anybody may add one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeAlias, cast

from bus.bands import Banded
from bus.errors import Misconfigured
from bus.shadows import PACKAGES, shadows
from bus.state import State
from bus.transport import Transport
from bus.url import scheme, without_bus_options

__all__ = ["EXTRAS", "Group", "connect_state", "connect_transport", "known", "load", "resolve"]

Group: TypeAlias = Literal[
    "crawlbus.transports",
    "crawlbus.states",
    "crawlbus.sinks",
    "crawlbus.commands",
    "crawlbus.settings",
    "crawlbus.parts",
]

# The extra that brings the driver of a scheme. One that no entry point serves yet is planned.
EXTRAS: Mapping[str, str] = {
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "kafka": "kafka",
    "kafka+ssl": "kafka",
    "redis": "redis",
    "rediss": "redis",
    "redis+sentinel": "redis",
    "redis+cluster": "redis",
    "postgresql": "postgres",
    "postgres": "postgres",
    "parquet": "parquet",
}


async def connect_transport(url: str) -> Transport:
    """Connect to the bus of a URL; whoever connects closes. `prefix` and `retention` are taken off it before.

    Where it cannot delay by itself, it does so by bands.
    """
    adapter = load("crawlbus.transports", scheme(url))
    transport = cast(Transport, await adapter.connect(without_bus_options(url)))
    return transport if transport.capabilities.delays else Banded(transport)


async def connect_state(url: str) -> State:
    """Connect to the shared state of a URL; whoever connects closes."""
    adapter = load("crawlbus.states", scheme(url))
    return cast(State, await adapter.connect(without_bus_options(url)))


def known(group: Group) -> list[str]:
    """The names that are installed in a group, sorted."""
    return sorted({point.name for point in entry_points(group=group)})


def load(group: Group, name: str) -> Any:
    """What a scheme of a group stands for. Raises `Misconfigured` if it is unknown, or its driver is missing."""
    for point in entry_points(group=group, name=name):
        return resolve(point)
    kind = group.rpartition(".")[2].removesuffix("s")
    choices = ", ".join(f"{choice}://" for choice in known(group)) or "none, as crawlbus is not installed"
    if name in EXTRAS:
        raise Misconfigured(f"this version of crawlbus has no {name}:// {kind} yet: choose one of {choices}")
    raise Misconfigured(f"{name}:// is no {kind} that is known here: choose one of {choices}")


def resolve(point: EntryPoint) -> Any:
    """Import what an entry point names; a driver that is missing is the user's to install, in one sentence."""
    try:
        return point.load()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in PACKAGES:
            if hidden := shadows():
                raise Misconfigured(str(hidden[0])) from None
            raise
        extra = EXTRAS.get(point.name)
        package = f"crawlbus[{extra}]" if extra else missing
        raise Misconfigured(
            f"{point.name}:// needs the Python package {missing}: pip install '{package}'"
        ) from None
