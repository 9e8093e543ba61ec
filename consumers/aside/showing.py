"""How `dead` and `quarantine` show what they hold: nothing in there may steer the terminal, and all of it is JSON."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["card", "listing", "plain", "printable", "when"]

SHOWN_REASONS = 20


def plain(value: Any) -> Any:
    """Any value of a message, made of what JSON has. An integer that is too long for it: in hexadecimal."""
    from consumers.rows import to_json

    try:
        return json.loads(to_json(value))
    except ValueError:
        pass
    if isinstance(value, dict):
        return {str(plain(key)): plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(child) for child in value]
    return hex(value) if isinstance(value, int) else f"a {type(value).__name__}"


def printable(value: object, length: int | None = 300) -> str:
    """The beginning of a text, without what would steer a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(value)[:length])


def when(at_s: float) -> str:
    """A time for people; `at_s` is s since the epoch."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_s)) + " UTC"


def listing(
    what: str, reasons: Counter[str], columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> list[RenderableType]:
    """How many there are by reason, then a row for each that is shown."""
    from rich.table import Table
    from rich.text import Text

    by_reason = Table("reason", what, box=None, pad_edge=False)
    for reason, count in reasons.most_common(SHOWN_REASONS):
        by_reason.add_row(Text(printable(reason)), f"{count:,}")
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    parts: list[RenderableType] = [by_reason]
    if (rest := len(reasons) - SHOWN_REASONS) > 0:
        parts.append(f"… and {rest:,} more reasons")
    parts += ["", table]
    if (rest := reasons.total() - table.row_count) > 0:
        parts.append(f"\n… and {rest:,} more: see --limit")
    return parts


def card(values: Mapping[str, object], length: int | None = None) -> RenderableType:
    """One entry, a line for each of its values."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in values.items():
        lines = str(value).split("\n")
        table.add_row(name, Text("\n".join(printable(line, length) for line in lines)))
    return table
