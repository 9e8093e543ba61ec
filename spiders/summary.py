"""What a person reads while a crawl runs, and when it has ended."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bus.state import JobStatus
from bus.url import hide_secrets

__all__ = ["Bar", "facts", "print_summary"]


class Bar:
    """A progress bar over the pages known so far; silent where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} pages · {task.fields[items]:,} items"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("crawling", total=1, items=0)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, status: JobStatus) -> None:
        """Where the job stands now."""
        self._progress.update(
            self._task,
            description=status.job.name,
            completed=status.seen - status.open,
            total=max(1, status.seen),
            items=status.counters.get("items", 0),
        )


def print_summary(
    console: Console, status: JobStatus, *, elapsed_s: float, pages_before: int, sink: str | None
) -> None:
    """Pages, items, duplicates refused, retries, dead letters with their reasons; pages/s of this command."""
    counts = status.counters
    pages = counts.get("pages", 0)
    rate = (pages - pages_before) / max(elapsed_s, 0.001)
    rows = [
        ("pages", f"{pages:,}", f"{rate:,.0f} pages/s in {elapsed_s:.1f} s"),
        ("items", f"{counts.get('items', 0):,}", f"in {hide_secrets(sink)}" if sink else "in the item log"),
        ("duplicates refused", f"{counts.get('duplicates', 0):,}", "links to pages known already"),
        ("retries", f"{counts.get('retries', 0):,}", ""),
        ("dead letters", f"{counts.get('dead', 0):,}", _reasons(counts)),
    ]
    if counts.get("ignored"):
        rows.insert(1, ("not fetched", f"{counts['ignored']:,}", "robots.txt, offsite"))
    if counts.get("start-errors"):
        rows.append(("start() failed", f"{counts['start-errors']:,}", "times: not all of it was crawled"))
    if counts.get("dropped"):
        rows.append(("items dropped", f"{counts['dropped']:,}", "by pipelines"))
    if status.unaccounted:
        rows.append(("unaccounted", f"{status.unaccounted:,}", "pages that nothing is known of"))
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(justify="right", style="cyan")
    table.add_column(style="dim")
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(f"[bold]{status.job.name}[/bold]: {status.state.value}")
    console.print(table)


def facts(status: JobStatus, *, elapsed_s: float, sink: str | None) -> dict[str, object]:
    """The same for a program."""
    names = ("pages", "items", "duplicates", "retries", "dead", "ignored", "dropped")
    return {
        "job": status.job.name, "spider": status.spider, "state": status.state.value,
        **{name: status.counters.get(name, 0) for name in names},
        "unaccounted": status.unaccounted, "elapsed_s": round(elapsed_s, 3), "sink": sink and hide_secrets(sink),
    }  # fmt: skip


def _reasons(counts: Mapping[str, int]) -> str:
    found = {name.removeprefix("dead."): number for name, number in counts.items() if name.startswith("dead.")}
    return ", ".join(f"{number} {name}" for name, number in sorted(found.items(), key=lambda pair: -pair[1]))
