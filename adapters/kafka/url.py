"""`kafka://USER:PASSWORD@HOST:PORT,HOST:PORT?…` as what every client of the driver is made with."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from bus.errors import Misconfigured
from bus.url import query, scheme

__all__ = ["Servers", "parse"]

PORT = 9092
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
TLS_OPTIONS = ("ca", "cert", "key", "verify")


@dataclass(frozen=True)
class Servers:
    """Where the cluster is, and how to speak to it."""

    hosts: tuple[tuple[str, int], ...]
    driver: Mapping[str, Any] = field(repr=False)  # holds the password

    def __str__(self) -> str:
        return ",".join(_joined(host, port) for host, port in self.hosts)


def parse(url: str) -> Servers:
    """Options: `mechanism` (PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512) where there is a user; of kafka+ssl `ca`, `cert`
    and `key` (files) and `verify=0` (any certificate will do). Raises `Misconfigured` for anything else."""
    tls = scheme(url) == "kafka+ssl"
    options = query(url)
    known = ("mechanism", *(TLS_OPTIONS if tls else ()))
    for name in options:
        if name in TLS_OPTIONS and not tls:
            raise Misconfigured(f"{name}= of the bus URL is for TLS: write kafka+ssl:// instead of kafka://")
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
        driver["ssl_context"] = _tls(options)
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


def _tls(options: Mapping[str, str]) -> ssl.SSLContext:
    if (verify := options.get("verify", "1")) not in ("0", "1"):
        raise Misconfigured(f"verify={verify} of the bus URL is neither 1 (check the certificate, as always) nor 0")
    if "key" in options and "cert" not in options:
        raise Misconfigured("key= of the bus URL needs cert=, the certificate that it belongs to")
    try:
        context = ssl.create_default_context(cafile=options.get("ca"))
    except (OSError, ssl.SSLError) as error:
        raise Misconfigured(f"ca={options['ca']} of the bus URL is no file of certificates: {_reason(error)}") from None
    if verify == "0":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "cert" in options:
        try:
            context.load_cert_chain(options["cert"], options.get("key"))
        except (OSError, ssl.SSLError) as error:
            raise Misconfigured(
                f"cert={options['cert']} (and key=) of the bus URL cannot be used: {_reason(error)}"
            ) from None
    return context


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
