"""What a Redis URL says: where the servers are, who we are, and what the user allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

from bus.errors import Misconfigured
from bus.tls import TLS_OPTIONS, refuse_tls_options, tls_context
from bus.url import query, scheme

__all__ = ["Address", "Host", "Setting", "parse"]

Setting = Literal["bus", "state"]
PORT = 6379
SENTINEL_PORT = 26379
OPTIONS = (*TLS_OPTIONS, "volatile")


class Host(NamedTuple):
    name: str
    port: int

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


@dataclass(frozen=True, slots=True)
class Address:
    """`setting` is what the user would mend: the bus or the state. `service` is a Sentinel's name for its master."""

    scheme: str
    setting: Setting
    hosts: tuple[Host, ...]
    db: int = 0
    service: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    volatile: bool = False
    tls: dict[str, Any] | None = None

    def __str__(self) -> str:
        """Without user and password."""
        path = f"/{self.service}/{self.db}" if self.service else f"/{self.db}"
        return f"{self.scheme}://{','.join(map(str, self.hosts))}{path}"

    @property
    def named(self) -> str:
        """For an error: which setting, and where it leads."""
        return f"--{self.setting} (CRAWLBUS_{self.setting.upper()}) {self}"


def parse(url: str, setting: Setting) -> Address:
    """Raises `Misconfigured`, with no secret in it, for what cannot be read."""
    kind = scheme(url)
    base = url.partition("?")[0].removeprefix(f"{kind}://")
    place, _, path = base.partition("/")
    login, _, hosts = place.rpartition("@")
    username, _, password = login.partition(":")
    options = _options(kind, url, setting)
    service, db = _service_and_db(kind, path.strip("/"), setting)
    return Address(
        scheme=kind,
        setting=setting,
        hosts=_hosts(kind, hosts, setting),
        db=db,
        service=service,
        username=unquote(username) or None,
        password=unquote(password) or None,
        volatile=options.get("volatile", "0") == "1",
        tls=_tls(options, setting) if kind == "rediss" or options.keys() & {*TLS_OPTIONS} else None,
    )


def _options(kind: str, url: str, setting: Setting) -> dict[str, str]:
    options = query(url)
    if kind == "redis":
        refuse_tls_options(options, "rediss", setting)
    for name, value in options.items():
        if name not in OPTIONS:
            raise Misconfigured.of(setting, f"a Redis URL has no option {name!r}: it takes {', '.join(OPTIONS)}")
        if name == "volatile" and value not in ("0", "1"):
            raise Misconfigured.of(setting, f"{name}={value!r} of the URL is neither 0 nor 1")
    return options


def _hosts(kind: str, text: str, setting: Setting) -> tuple[Host, ...]:
    port = SENTINEL_PORT if kind == "redis+sentinel" else PORT
    hosts = tuple(_host(one, port, setting) for one in text.split(",") if one)
    if len(hosts) > 1 and kind in ("redis", "rediss"):
        raise Misconfigured.of(setting, f"{kind}:// takes one host: several are for redis+sentinel:// and redis+cluster://")
    return hosts or (Host("127.0.0.1", port),)


def _host(text: str, port: int, setting: Setting) -> Host:
    name, _, number = text.partition(":")
    if text.startswith("["):
        name, _, rest = text[1:].partition("]")
        number = rest.removeprefix(":")
    if not name or (number and not (number.isdigit() and 0 < int(number) < 65536)):
        raise Misconfigured.of(setting, f"{text!r} is not HOST or HOST:PORT")
    return Host(name, int(number or port))


def _service_and_db(kind: str, path: str, setting: Setting) -> tuple[str, int]:
    service, db = "", path
    if kind == "redis+sentinel":
        service, _, db = path.partition("/")
        if not service:
            raise Misconfigured.of(setting, "name the master: redis+sentinel://HOST,HOST/NAME/DB")
    if db and not db.isdigit():
        raise Misconfigured.of(setting, f"{db!r} is no number of a Redis database: write {kind}://HOST/0")
    if kind == "redis+cluster" and db not in ("", "0"):
        raise Misconfigured.of(setting, "a Redis Cluster has the database 0 only")
    return service, int(db or 0)


def _tls(options: dict[str, str], setting: Setting) -> dict[str, Any]:
    """What redis-py calls it: it makes a context of its own."""
    tls_context(options, setting)
    verify = options.get("verify") != "0"
    tls: dict[str, Any] = {"ssl_cert_reqs": "required" if verify else "none", "ssl_check_hostname": verify}
    names = (("ca", "ssl_ca_certs"), ("cert", "ssl_certfile"), ("key", "ssl_keyfile"))
    return tls | {key: options[name] for name, key in names if name in options}
