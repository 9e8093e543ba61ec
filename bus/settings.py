"""The settings: one table, four places to set them, and an answer to "where does this value come from?"."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo

from bus.errors import Misconfigured
from bus.registry import EXTRAS
from bus.registry import load as load_class
from bus.url import hide_secrets, scheme

__all__ = ["JOB_NAME", "Names", "Settings", "job_name", "load", "names", "reference", "state_url"]

JOB_NAME = r"[a-z0-9][a-z0-9-]{0,62}"
FILE, PROJECT_FILE = "crawlbus.toml", "pyproject.toml"
OWN_STATE = frozenset({"memory", "redis", "rediss", "sqlite"})


def _setting(meaning: str, must_be: str, *, flag: bool = True, **rules: Any) -> Any:
    return Field(description=meaning, json_schema_extra={"must_be": must_be, "flag": flag}, **rules)


def _url(meaning: str, example: str) -> Any:
    return _setting(meaning, f"a URL like {example}", pattern=r"^[a-z][a-z0-9+.-]*://")


class Settings(BaseModel):
    """What a command, a worker or a consumer was told, checked. Its `repr` hides secrets."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bus: Annotated[str, _url("Where the messages live.", "sqlite:///crawlbus.db")] = "sqlite:///crawlbus.db"
    state: Annotated[
        str | None,
        _url(
            "Where the fleet's shared state lives; by default with the bus, where it can.",
            "redis://localhost/0",
        ),
    ] = None
    job: Annotated[
        str | None,
        _setting(
            "The name of the crawl; by default the spider's name, or the host and port of a URL.",
            "at most 63 lower-case letters, digits and '-', a letter or a digit first",
            pattern=f"^{JOB_NAME}$",
        ),
    ] = None
    sink: Annotated[str | None, _url("Where items are stored.", "sqlite:///items.db")] = None
    workers: Annotated[int, _setting("Worker processes of one command.", "a whole number, 1 or more", ge=1)] = 1
    batch_size: Annotated[
        int | None,
        _setting(
            "Items that a consumer stores in one transaction; by default what the sink does best.",
            "a whole number, 1 or more",
            ge=1,
        ),
    ] = None
    batch_seconds: Annotated[
        float | None,
        _setting(
            "Seconds that a consumer waits for a batch to fill; by default what the sink does best.",
            "a number, 0 or more",
            ge=0,
        ),
    ] = None
    health: Annotated[
        str | None,
        _setting(
            "Where a consumer answers /healthz, /readyz and /metrics.",
            "a port like 9100, or HOST:PORT",
            pattern=r"^([^\s]*:)?[0-9]{1,5}$",
            coerce_numbers_to_str=True,
        ),
    ] = None
    grace_s: Annotated[
        float,
        _setting("Seconds to finish what is in flight on SIGTERM.", "a number, 0 or more", flag=False, ge=0),
    ] = 25.0

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def origin(self, name: str) -> str:
        """Where the value was set, as the user wrote it: `--bus`, `CRAWLBUS_BUS`, `BUS_URL`, a file, `default`."""
        return self._origins.get(name, "default")

    def shown(self, name: str) -> Any:
        """The value as it may be shown."""
        value = getattr(self, name)
        return hide_secrets(value) if isinstance(value, str) else value

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [(name, self.shown(name)) for name in type(self).model_fields]


class Names(NamedTuple):
    """The four names of one setting. `flag` is None where the command line takes it only as `-s NAME=VALUE`."""

    toml: str
    scrapy: str
    environment: str
    flag: str | None


def names(setting: str) -> Names:
    """How a setting is written in each place."""
    scrapy = "BUS_URL" if setting == "bus" else f"BUS_{setting.upper()}"
    flag = f"--{setting.replace('_', '-')}" if _extra(setting)["flag"] else None
    return Names(setting, scrapy, f"CRAWLBUS_{setting.upper()}", flag)


def load(
    flags: Mapping[str, object] | None = None,
    scrapy: Mapping[str, object] | None = None,
    env: Mapping[str, str] = os.environ,
    cwd: Path | None = None,
) -> Settings:
    """The settings from all places. A later one wins: file, Scrapy project, environment, flags.

    `flags` holds settings by name, or by Scrapy name for `-s NAME=VALUE`; None means not given. `scrapy` holds the
    project's settings; names that are not ours are left alone in both. An empty environment variable is not set.
    Raises `Misconfigured`, one sentence that names the setting as the user wrote it.
    """
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for layer in (_file(cwd or Path.cwd()), _scrapy(scrapy or {}), _environment(env), _flags(flags or {})):
        for name, value, origin in layer:
            values[name], origins[name] = value, origin
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        value = values[name]
        given = repr(hide_secrets(value) if isinstance(value, str) else value)
        origin = f"{name} in {origins[name]}" if origins[name] in (FILE, PROJECT_FILE) else origins[name]
        raise Misconfigured(f"{origin} must be {_extra(name)['must_be']}, not {given}") from None
    settings._origins.update(origins)
    return settings


def state_url(settings: Settings) -> str:
    """The URL of the shared state: `state`, else the bus where it can hold one."""
    if settings.state is not None:
        return settings.state
    if (kind := scheme(settings.bus)) not in OWN_STATE:
        if kind not in EXTRAS:
            load_class("crawlbus.transports", kind)  # there is no such bus at all
        raise Misconfigured(
            f"a {kind}:// bus cannot hold the state that workers share: set --state, or CRAWLBUS_STATE, "
            "to a URL like redis://localhost/0"
        )
    return settings.bus


def job_name(text: str) -> str:
    """The job name that follows from a spider's name or from `host:port`: `My_Shop` makes `my-shop`."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].rstrip("-")
    if not name:
        raise Misconfigured(f"no job name can be made of {text!r}: set --job")
    return name


def reference() -> str:
    """The table of `docs/settings.md`."""
    rows = [
        "| `crawlbus.toml` | flag | environment | Scrapy | default | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        toml, scrapy, environment, flag = names(name)
        default = "" if field.default is None else f"`{field.default}`"
        cells = [f"`{toml}`", f"`{flag or f'-s {scrapy}=…'}`", f"`{environment}`", f"`{scrapy}`", default]
        rows.append(f"| {' | '.join(cells)} | {field.description} It must be {_extra(name)['must_be']}. |")
    return "\n".join(rows) + "\n"


_Given = Iterator[tuple[str, object, str]]  # setting, value, origin


def _extra(setting: str) -> dict[str, Any]:
    field: FieldInfo = Settings.model_fields[setting]
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra


def _file(directory: Path) -> _Given:
    """`crawlbus.toml`, or else `[tool.crawlbus]` of `pyproject.toml`."""
    origin = FILE
    table = _read(directory / FILE)
    if table is None:
        origin = PROJECT_FILE
        tool = (_read(directory / PROJECT_FILE) or {}).get("tool", {})
        table = tool.get("crawlbus", {}) if isinstance(tool, dict) else {}
    if not isinstance(table, dict):
        raise Misconfigured(f"{origin}: tool.crawlbus must be a table: write [tool.crawlbus]")
    for name, value in table.items():
        if name not in Settings.model_fields:
            close = difflib.get_close_matches(name, Settings.model_fields, n=1)
            mend = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(Settings.model_fields)}"
            raise Misconfigured(f"{origin}: {name!r} is no setting: {mend}")
        yield name, value, origin


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Misconfigured(f"{path.name} cannot be read: {reason}") from None


def _scrapy(settings: Mapping[str, object]) -> _Given:
    for name in Settings.model_fields:
        written = names(name).scrapy
        if (value := settings.get(written)) is not None:
            yield name, value, written


def _environment(env: Mapping[str, str]) -> _Given:
    for name in Settings.model_fields:
        written = names(name).environment
        if value := env.get(written):
            yield name, value, written


def _flags(flags: Mapping[str, object]) -> _Given:
    for name in Settings.model_fields:
        _, scrapy, _, flag = names(name)
        for key, origin in ((scrapy, f"-s {scrapy}"), (name, flag or name)):
            if (value := flags.get(key)) is not None:
                yield name, value, origin
