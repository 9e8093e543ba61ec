"""`Address`: what a bus URL says of the brokers, the user, the virtual host, and how to trust them."""

from __future__ import annotations

import math
import re
import ssl
from typing import NamedTuple, Self
from urllib.parse import quote, unquote

from bus.errors import Misconfigured
from bus.tls import TLS_OPTIONS, refuse_tls_options, tls_context
from bus.url import query, scheme

__all__ = ["Address"]

OPTIONS = ("heartbeat", *TLS_OPTIONS)
PORTS = {"amqp": 5672, "amqps": 5671}
LONGEST_HEARTBEAT_S = 600
SHORTEST_HEARTBEAT_S = 2  # with 1, an event loop that is busy for two seconds loses all its work
MISSED = 3  # the broker gives a silent connection up after 2 to 3 heartbeats
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+)(?::(?P<port>\d{1,5}))?")


class Address(NamedTuple):
    """`amqp(s)://USER:PASSWORD@HOST:PORT,HOST2/VHOST?OPTIONS`; no path, or `/`, is the virtual host `/`.

    Options: `heartbeat` (whole seconds); of amqps those of `tls_context`.
    """

    hosts: tuple[str, ...]  # host:port
    urls: tuple[str, ...]  # for the driver, one for each host, with the password
    user: str
    vhost: str
    heartbeat_s: int
    tls: ssl.SSLContext | None

    @classmethod
    def parse(cls, url: str, lease_s: float) -> Self:
        """Raises `Misconfigured`, in one sentence without the password."""
        kind, options = scheme(url), query(url)
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise Misconfigured(
                f"the bus URL has an option {unknown[0]!r} that {kind}:// does not know: choose of {', '.join(OPTIONS)}"
            )
        if kind == "amqp":
            refuse_tls_options(options, "amqps")
        place, _, path = url.partition("://")[2].partition("?")[0].partition("/")
        login, _, names = place.rpartition("@")
        user, _, password = login.partition(":")
        user, password = unquote(user) or "guest", unquote(password) or "guest"
        hosts = tuple(_host(name, kind) for name in names.split(","))
        vhost = unquote(path) or "/"
        heartbeat_s = _heartbeat(options.get("heartbeat"), lease_s)
        tail = f"{quote(vhost, safe='')}?heartbeat={heartbeat_s}"
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return cls(
            hosts,
            tuple(f"{kind}://{login}@{host}/{tail}" for host in hosts),
            user,
            vhost,
            heartbeat_s,
            tls_context(options) if kind == "amqps" else None,
        )

    @property
    def lease_s(self) -> float:
        """After so long the broker has given up a process that is silent."""
        return float(MISSED * self.heartbeat_s)

    def __str__(self) -> str:
        return ", ".join(self.hosts)


def _host(name: str, kind: str) -> str:
    match = _HOST.fullmatch(name)
    if match is None:
        raise Misconfigured(f"the bus URL names no host that can be understood: write it like {kind}://host:5672/")
    port = int(match["port"] or PORTS[kind])
    if not 0 < port < 65536:
        raise Misconfigured(f"port {port} of the bus URL is not between 1 and 65535")
    return f"{match['host']}:{port}"


def _heartbeat(given: str | None, lease_s: float) -> int:
    if given is None:
        return min(LONGEST_HEARTBEAT_S, max(SHORTEST_HEARTBEAT_S, math.ceil(lease_s / MISSED)))
    if not given.isdecimal() or not SHORTEST_HEARTBEAT_S <= int(given) <= LONGEST_HEARTBEAT_S:
        raise Misconfigured(
            f"heartbeat={given!r} of the bus URL is not a number of seconds from {SHORTEST_HEARTBEAT_S}"
            f" to {LONGEST_HEARTBEAT_S}"
        )
    return int(given)
