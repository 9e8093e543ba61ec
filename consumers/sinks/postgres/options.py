"""What the URL of a PostgreSQL sink says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from bus.errors import Misconfigured
from bus.url import hide_secrets, query
from consumers.sink import refuse_unknown

__all__ = ["FIXED", "KEYS", "Mode", "Options", "read_url"]

Mode: TypeAlias = Literal["latest", "versions", "append"]

_ITEM = {"id": "text", "job": "text", "spider": "text", "url": "text", "scraped_at": "timestamptz", "data": "jsonb"}
_PLACE = {"topic": "text", "partition": "integer", "offset": "bigint", "item": "integer"}
FIXED: dict[Mode, dict[str, str]] = {
    "latest": _ITEM,
    "versions": {**_ITEM, "hash": "bytea", "last_seen": "timestamptz"},
    "append": {**_ITEM, **_PLACE},
}
KEYS: dict[Mode, tuple[str, ...]] = {"latest": ("id",), "versions": ("id", "scraped_at"), "append": tuple(_PLACE)}

_OURS = frozenset({"table", "mode", "columns", "index", "nul"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")  # a view's name has a few letters more, of at most 63
_TYPE = re.compile(r"[a-z][a-z0-9_. ]*(\(\d+(,\d+)?\)[a-z ]*)?(\[\])?", re.IGNORECASE)
_COMMA = re.compile(r",(?![^(]*\))")  # not the one of numeric(10,2)
_DEFAULTS = {
    "application_name": "crawlbus",
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}


class Options(NamedTuple):
    """`parameters` are libpq's; `name` is the URL as it may be shown; `columns` are types by names."""

    name: str
    parameters: dict[str, str]
    schema: str | None
    table: str
    mode: Mode
    columns: dict[str, str]
    indexes: tuple[str, ...]
    rejects_nul: bool

    @property
    def fixed(self) -> dict[str, str]:
        """The columns that the mode asks for, with their types."""
        return FIXED[self.mode]

    @property
    def key(self) -> tuple[str, ...]:
        return KEYS[self.mode]


def read_url(url: str) -> Options:
    """Raises `Misconfigured` for what cannot be; the server is not asked."""
    given = query(url)
    refuse_unknown(url, given, _OURS | {default.keyword.decode() for default in Conninfo.get_defaults()})
    mode = cast(Mode, _one_of("mode", given.get("mode", "latest"), KEYS))
    nul = _one_of("nul", given.get("nul", "replace"), ("replace", "reject"))
    schema, _, table = given.get("table", "items").rpartition(".")
    for name in (schema or "public", table):
        if _NAME.fullmatch(name) is None or name.lower().startswith("sink_"):
            raise Misconfigured(
                f"?table={given['table']} of the PostgreSQL sink is no name: use at most 48 letters, digits and _,"
                " with a schema and a dot in front or not, and not sink_"
            )
    columns = dict(_column(text, FIXED[mode]) for text in _list(given.get("columns", "")))
    indexes = tuple(_index(name) for name in _list(given.get("index", "")))
    parameters = _DEFAULTS | _parameters(url)
    return Options(
        hide_secrets(url.partition("?")[0]), parameters, schema or None, table, mode, columns, indexes, nul == "reject"
    )


def _parameters(url: str) -> dict[str, str]:
    """What libpq makes of the URL without our own options."""
    base, _, text = url.partition("?")
    kept = [part for part in text.split("&") if part and part.partition("=")[0] not in _OURS]
    try:
        found = conninfo_to_dict(f"{base}?{'&'.join(kept)}")
    except psycopg.Error as error:  # behind its first quote may stand a part of a password
        what = str(error).partition('"')[0].strip(" :\n")
        raise Misconfigured(f"the URL of the sink {hide_secrets(base)} cannot be read: {what}") from None
    return {name: str(value) for name, value in found.items()} | {"client_encoding": "UTF8"}


def _one_of(option: str, given: str, choices: Iterable[str]) -> str:
    if given not in choices:
        raise Misconfigured(f"?{option}={given} of the PostgreSQL sink is not one of {', '.join(choices)}")
    return given


def _list(text: str) -> list[str]:
    return [part.strip() for part in _COMMA.split(text) if part.strip()]


def _column(text: str, fixed: dict[str, str]) -> tuple[str, str]:
    name, _, kind = (part.strip() for part in text.partition(":"))
    if _NAME.fullmatch(name) is None or _TYPE.fullmatch(kind) is None or name in fixed:
        raise Misconfigured(
            f"?columns={text} of the PostgreSQL sink is no column: write a field of the items and a type,"
            f" as in columns=price:numeric,title:text, and none of {', '.join(fixed)}"
        )
    return name, kind


def _index(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise Misconfigured(f"?index={name} of the PostgreSQL sink names no column or field: use letters, digits and _")
    return name
