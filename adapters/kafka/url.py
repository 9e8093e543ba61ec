"""`kafka://USER:PASSWORD@HOST:PORT,HOST:PORT?…` as what every client of the driver is made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from bus.errors import Misconfigured
from bus.tls import TLS_OPTIONS, refuse_tls_options, tls_context
from bus.url import query, scheme

__all__ = ["Servers", "parse"]

PORT = 9092
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True)
class Servers:
    """Where the cluster is, and how to speak to it."""

    hosts: tuple[tuple[str, int], ...]
    driver: Mapping[str, Any] = field(repr=False)  # holds the password

    def __str__(self) -> str:
        return ",".join(_joined(host, port) for host, port in self.hosts)


def parse(url: str) -> Servers:
    """Options: `mechanism` (PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512) where there is a user; of kafka+ssl those
    of `tls_context`. Raises `Misconfigured` for anything else."""
    tls = scheme(url) == "kafka+ssl"
    options = query(url)
    known = ("mechanism", *(TLS_OPTIONS if tls else ()))
    if not tls:
        refuse_tls_options(options, "kafka+ssl")
    for name in options:
        if name not in known:
            raise Misconfigured(f"the bus URL has an option {name!r} that {scheme(url)}:// does not know: leave it out")
    place = url.partition("?")[0].partition("://")[2]
    login, _, rest = place.rpartition("@")
    names, _, path = rest.partition("/")
    if path:
        raise Misconfigured(
            "the bus URL names more than hosts: write kafka://HOST:9092,HOST:9092 and ?prefix= for topics"
        )
    hosts = tuple(_host(name) for name in names.split(","))
    driver: dict[str, Any] = {"bootstrap_servers": [_joined(*host) for host in hosts]}
    driver["security_protocol"] = ("SASL_" if login else "") + ("SSL" if tls else "PLAINTEXT")
    if login:
        driver |= _login(login, options)
    elif "mechanism" in options:
        raise Misconfigured("mechanism= of the bus URL needs a user: write kafka://USER:PASSWORD@HOST")
    if tls:
        driver["ssl_context"] = tls_context(options)
    return Servers(hosts, driver)


def _host(text: str) -> tuple[str, int]:
    name, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        name, port = text, str(PORT)
    if not name.strip("[]") or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Misconfigured(f"{text!r} of the bus URL is no host: write kafka://HOST:9092,HOST:9092")
    return name.strip("[]"), int(port)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _login(login: str, options: Mapping[str, str]) -> dict[str, str]:
    user, colon, password = login.partition(":")
    if not user or not colon:
        raise Misconfigured("the bus URL names a user without a password: write kafka://USER:PASSWORD@HOST")
    mechanism = options.get("mechanism", "PLAIN").upper()
    if mechanism not in MECHANISMS:
        raise Misconfigured(f"mechanism={mechanism} of the bus URL is not known: choose {', '.join(MECHANISMS)}")
    return {
        "sasl_mechanism": mechanism,
        "sasl_plain_username": unquote(user),
        "sasl_plain_password": unquote(password),
    }
