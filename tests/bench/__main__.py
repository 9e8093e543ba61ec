"""The command `python -m tests.bench`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.idle import idle_pickups, percentile
from tests.bench.machine import machine
from tests.bench.worker import CONTESTANTS, SITES, Measured, WrongCrawl, measure, summary

console = Console(width=None if sys.stdout.isatty() else 110)
FOLDER = click.option(
    "--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=tempfile.gettempdir,
    help="Where the SQLite files go; its disk is part of the figure.  [default: the system's temporary folder]",
)  # fmt: skip


@click.group()
def main() -> None:
    """Figures of crawlbus on this machine. Nothing else should run beside; only ratios travel between machines."""


@main.command()
@click.option("--pages", default=5000, show_default=True, help="Pages of each crawl.")
@click.option("--runs", default=5, show_default=True, help="Runs of each contestant, alternating.")
@click.option("--site", "sites", type=click.Choice([*SITES]), multiple=True, help="Percent of repeated links.  [both]")
@click.option("--only", "contestants", type=click.Choice([*CONTESTANTS]), multiple=True, help="Contestants.  [all]")
@FOLDER
def worker(pages: int, runs: int, sites: Sequence[str], contestants: Sequence[str], folder: Path) -> None:
    """CPU per page of one worker process, side by side with Scrapy.

    scrapy: as shipped, in memory. tuned: in memory, CONCURRENT_ITEMS=8 and uvloop. single: crawlbus on sqlite://, the
    same spider, which yields single Requests. links: crawlbus on sqlite://, with all links of a page as one Links.

    A local site with 20 links a page in a process of its own, 16 requests at once, one small item a page. CPU is that
    of the whole worker process, its start included, as the kernel counts it. A contestant that does not fetch and
    store exactly the pages asked for has no figure: the benchmark ends with exit code 1.

    \b
    Example: python -m tests.bench worker --pages 1000 --runs 3 --site 95
    """
    _print_machine(folder)
    names, chosen = contestants or [*CONTESTANTS], sites or [*SITES]
    measured: list[Measured] = []
    try:
        for each in measure(names, chosen, pages=pages, runs=runs, folder=folder):
            measured.append(each)
            console.print(
                f"run {each.run + 1} of {runs}, {each.site} % repeated, {each.contestant}: "
                f"{each.cpu_ms_per_page:.2f} ms CPU a page, {each.pages_per_s:.0f} pages/s",
                highlight=False,
            )
    except WrongCrawl as wrong:
        raise click.ClickException(str(wrong)) from None
    _print_table(measured)
    console.print(
        f"Medians of {runs} runs of {pages:,} pages. Ratio: times less CPU than tuned Scrapy, run by run.",
        soft_wrap=True,
    )


def _print_table(measured: Sequence[Measured]) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("repeated")
    table.add_column("contestant", no_wrap=True)
    for name in ("CPU ms/page", "from - to", "ratio", "pages/s", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary(measured):
        table.add_row(*row)
    console.print(table)


@main.command()
@click.option("--samples", default=300, show_default=True, help="Seeds, one at a time.")
@FOLDER
def idle(samples: int, folder: Path) -> None:
    """How soon an idle worker picks up a new seed: from the confirmed publish to the request at the server.

    A live `crawlbus crawl --forever` on sqlite://, seeds by the code of `crawlbus seed`, one worker.
    """
    _print_machine(folder)
    found = [value * 1000 for value in idle_pickups(samples, folder)]
    shown = ", ".join(f"p{percent} {percentile(found, percent):.1f} ms" for percent in (50, 90, 99))
    console.print(
        f"Idle pick-up on sqlite://, {samples} seeds: {shown}, the longest {max(found):.1f} ms", soft_wrap=True
    )


def _print_machine(folder: Path) -> None:
    for line in machine(folder):
        console.print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main(prog_name="python -m tests.bench")
