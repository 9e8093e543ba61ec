"""`Through`: a function of the user's, named by `--through`, that makes something else of items."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import blake2b
from importlib import import_module
from operator import attrgetter
from typing import Any

from bus.errors import BusError, Misconfigured
from bus.items import ItemRecord

__all__ = ["Through", "ThroughBroken"]

FIELDS = ("id", "job", "spider", "url", "scraped_at", "data")
FIRST_FAILURES = 100  # one that fails for each of the first so many is broken
MAX_MADE = 1000  # of one item: what is made has a place in the log, and a sink keeps that in 32 bits


class ThroughBroken(BusError):
    """The function takes no item at all."""


class Through:
    """`function(item) -> dict | None | list of dicts`, with an item as a dict of id, job, spider, url, scraped_at
    (a datetime in UTC) and data. What a dict that comes back leaves out stays as it was.

    `mean_s` is how long a call takes, `failed` how many have raised.
    """

    def __init__(self, name: str, function: Callable[[dict[str, Any]], Any]) -> None:
        self.name, self._function = name, function
        self.failed = self._calls = 0
        self._spent_s = 0.0

    @classmethod
    def load(cls, name: str) -> Through:
        """`module:function`, the module also from the current directory. Raises `Misconfigured`."""
        module_name, colon, path = name.partition(":")
        if not (colon and module_name and path):
            raise Misconfigured(f"--through {name!r}: write it as module:function")
        try:
            function = attrgetter(path)(_import(module_name))
        except AttributeError:
            raise Misconfigured(f"--through {name}: the module {module_name} has no {path}") from None
        except (Exception, SystemExit) as error:
            raise Misconfigured(f"--through {name}: {module_name} cannot be loaded: {_said(error)}") from error
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise Misconfigured(f"--through {name}: {path} is no function that takes an item (and not async)")
        return cls(name, function)

    @property
    def mean_s(self) -> float:
        return self._spent_s / self._calls if self._calls else 0.0

    def __call__(self, record: ItemRecord) -> list[ItemRecord] | str:
        """What it makes of an item; where it raises, why. Raises `ThroughBroken`."""
        began = time.perf_counter()
        try:
            return _records(record, self._function(_as_dict(record)))
        except (Exception, SystemExit) as error:
            self.failed += 1
            why = f"--through {self.name}: {_said(error)}"
            if self.failed == self._calls + 1 == FIRST_FAILURES:
                raise ThroughBroken(f"{why}; so it was for each of the first {FIRST_FAILURES} items") from error
            return why
        finally:
            self._calls += 1
            self._spent_s += time.perf_counter() - began


def _import(name: str) -> Any:
    """From here first, as `python -m` does; what it imports later is found here, too."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return import_module(name)
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _as_dict(record: ItemRecord) -> dict[str, Any]:
    at = datetime.fromtimestamp(record.scraped_at, UTC)
    values = (record.id, record.job, record.spider, record.url, at, record.data)
    return dict(zip(FIELDS, values, strict=True))


def _records(record: ItemRecord, made: Any) -> list[ItemRecord]:
    if made is None:
        return []
    if isinstance(made, dict):
        return [_record(record, made)]
    if not isinstance(made, list | tuple):
        raise TypeError(f"it returned a {type(made).__name__}, and not a dict, None or a list of dicts")
    if len(made) > MAX_MADE:
        raise ValueError(f"it returned {len(made):,} dicts for one item, and {MAX_MADE:,} are the most")
    records = [_record(record, one) for one in made]
    ids: dict[str, int] = {}
    for index, one in enumerate(records):  # several of one item: the first keeps its id
        if ids.setdefault(one.id, index) != index:
            id = blake2b(f"{one.id}\0{index}".encode(), digest_size=16).hexdigest()
            records[index] = one._replace(id=id)
    return records


def _record(record: ItemRecord, made: Any) -> ItemRecord:
    if not isinstance(made, dict):
        raise TypeError(f"it returned a list with a {type(made).__name__} in it, and not dicts")
    if unknown := [repr(name) for name in made if name not in FIELDS]:
        raise ValueError(
            f"it returned {', '.join(unknown[:3])} beside {', '.join(FIELDS)}: an item's fields are in data"
        )
    item = record._replace(**{**made, "scraped_at": _seconds(made.get("scraped_at", record.scraped_at))})
    texts = all(isinstance(text, str) and text for text in (item.id, item.job, item.spider))
    if not (texts and isinstance(item.url, str | None) and isinstance(item.data, dict)):
        raise TypeError("it returned an item whose id, job, spider, url or data has another type than it came with")
    return item


def _seconds(at: Any) -> float:
    if isinstance(at, datetime):
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    if isinstance(at, int | float) and not isinstance(at, bool):
        datetime.fromtimestamp(at, UTC)  # NaN and what no calendar holds raise
        return float(at)
    raise TypeError("it returned an item whose scraped_at is no datetime")
