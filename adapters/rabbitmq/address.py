"""`Address`: what a bus URL says of the brokers, the user, the virtual host, and how to trust them."""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Mapping
from typing import NamedTuple, Self
from urllib.parse import quote, unquote

from bus.errors import Misconfigured
from bus.url import query, scheme

__all__ = ["Address"]

OPTIONS = ("ca", "cert", "heartbeat", "key", "verify")
PORTS = {"amqp": 5672, "amqps": 5671}
LONGEST_HEARTBEAT_S = 600
SHORTEST_HEARTBEAT_S = 2  # with 1, an event loop that is busy for two seconds loses all its work
MISSED = 3  # the broker gives a silent connection up after 2 to 3 heartbeats
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+)(?::(?P<port>\d{1,5}))?")


class Address(NamedTuple):
    """`amqp(s)://USER:PASSWORD@HOST:PORT,HOST2/VHOST?OPTIONS`; no path, or `/`, is the virtual host `/`.

    Options: `heartbeat` (whole seconds); of amqps `ca`, `cert`, `key` (files), and `verify=0`, to trust anybody.
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
            _tls(options, kind),
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


def _tls(options: Mapping[str, str], kind: str) -> ssl.SSLContext | None:
    if kind == "amqp":
        if given := sorted(set(options) - {"heartbeat"}):
            raise Misconfigured(f"the bus URL has {given[0]}=, which is of use with amqps:// only: write amqps://")
        return None
    if (verify := options.get("verify", "1")) not in ("0", "1"):
        raise Misconfigured(f"verify={verify!r} of the bus URL is neither 0 nor 1")
    if "key" in options and "cert" not in options:
        raise Misconfigured("the bus URL has key= without cert=: give both")
    try:
        context = ssl.create_default_context(cafile=options.get("ca"))
        if "cert" in options:
            context.load_cert_chain(options["cert"], options.get("key"), password=_no_password)
    except OSError as error:
        names = ", ".join(f"{name}={options[name]}" for name in ("ca", "cert", "key") if name in options)
        raise Misconfigured(f"{names} of the bus URL cannot be used: {error.strerror or error}") from None
    if verify == "0":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _no_password() -> str:
    raise Misconfigured("the file of key= of the bus URL is encrypted: give one without a passphrase")
