"""`crawlbus config`: every setting, its value, and where it comes from."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from bus.cli import Call, common

__all__ = ["config"]


@click.command()
@common
def config(call: Call) -> None:
    """Show each setting, its value and where it was set. Secrets are hidden.

    \b
    Example:
      CRAWLBUS_JOB=shop crawlbus config
    """
    settings = call.settings()
    fields = type(settings).model_fields
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("setting", "value", "source"):
        table.add_column(column)
    for name in fields:
        value = settings.shown(name)
        table.add_row(name, Text("-" if value is None else str(value)), Text(settings.origin(name)))
    call.answer(
        {name: {"value": settings.shown(name), "source": settings.origin(name)} for name in fields}, table
    )
