"""The command `python -m tests.bench`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.buses import BUSES
from tests.bench.connect import ConnectSink
from tests.bench.dedup import memory_of_seen
from tests.bench.drain import PATHS, Drained, drain
from tests.bench.drain import rows as rows_of_drain
from tests.bench.idle import idle_pickups, percentile
from tests.bench.machine import machine
from tests.bench.replay import replay_of
from tests.bench.transport import BATCH, CALLS, Cost, exchange, rows
from tests.bench.worker import KINDS, SITES, Measured, WrongCrawl, contestants, measure, summary
from tests.servers import Unavailable, kinds, shared_url

console = Console(width=None if sys.stdout.isatty() else 140)
FOLDER = click.option(
    "--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=tempfile.gettempdir,
    help="Where the SQLite files go; its disk is part of the figure.  [default: the system's temporary folder]",
)  # fmt: skip
RUNS = click.option("--runs", default=5, show_default=True, help="Runs of each, alternating.")


def bus_option(*default: str) -> Callable[[click.decorators.FC], click.decorators.FC]:
    return click.option(
        "--bus", "buses", type=click.Choice(BUSES), multiple=True, default=default, show_default=True,
        help="Once for each; the test suite's own server is started.",
    )  # fmt: skip


@click.group()
def main() -> None:
    """Figures of crawlbus on this machine. Nothing else should run beside; only ratios travel between machines."""


@main.command()
@bus_option(*BUSES)
@click.option("--messages", default=20_000, show_default=True, help="Messages of each run.")
@RUNS
@FOLDER
def transport(buses: Sequence[str], messages: int, runs: int, folder: Path) -> None:
    """What a message costs on a queue, beside the bare driver doing the same: aio-pika, aiokafka, redis-py.

    A body of 300 bytes, one message of ours in one of the broker's, 64 in flight: two calls at once of 32 messages
    each. CPU is that of the client's process. Ours carries a request's headers, too.
    """
    _print_machine(folder)
    costs: list[Cost] = []
    for bus in buses:
        with _or_skip(bus):
            costs += exchange(bus, messages=messages, runs=runs, folder=folder)
            console.print(f"{bus}: {runs} runs done", highlight=False)
    table = _table("bus", "", "per s", "CPU us", "bare per s", "CPU us", "ratio", "difference")
    for row in rows(costs):
        table.add_row(*row)
    console.print(table)
    console.print(
        f"Medians of {runs} runs of {messages:,} messages, {CALLS} calls of {BATCH} at once. "
        "Ratio: of the rates. Difference: of the CPU, in us a message.",
        soft_wrap=True,
    )


@main.command()
@bus_option("sqlite", "redis-7", "rabbitmq-3.10", "kafka-4.1")
@click.option("--pages", default=5000, show_default=True, help="Pages of each crawl.")
@RUNS
@click.option("--site", "sites", type=click.Choice([*SITES]), multiple=True, help="Percent of repeated links.  [both]")
@click.option("--only", "only", type=click.Choice([*KINDS]), multiple=True, help="Contestants.  [all]")
@FOLDER
def worker(
    buses: Sequence[str], pages: int, runs: int, sites: Sequence[str], only: Sequence[str], folder: Path
) -> None:
    """CPU per page of one worker process, side by side with Scrapy and scrapy-redis.

    scrapy: as shipped, in memory. tuned: in memory, CONCURRENT_ITEMS=8 and uvloop. scrapy-redis: as shipped, with its
    item pipeline; and with the same two settings. single: crawlbus on each bus, the same spider, which yields single
    Requests. links: crawlbus, with all links of a page as one Links. RabbitMQ and Kafka have their state in Redis.

    A local site with 20 links a page in a process of its own, 16 requests at once, one small item a page. CPU is that
    of the whole worker process, its start included, as the kernel counts it. A contestant that does not fetch and
    store exactly the pages asked for has no figure: the benchmark ends with exit code 1.

    \b
    Example: python -m tests.bench worker --pages 1000 --runs 3 --site 95 --bus kafka-4.1
    """
    _print_machine(folder)
    measured: list[Measured] = []
    try:
        ordered = contestants(only or KINDS, buses)
        for each in measure(ordered, sites or [*SITES], pages=pages, runs=runs, folder=folder):
            measured.append(each)
            console.print(
                f"run {each.run + 1} of {runs}, {each.site} % repeated, {each.contestant}: "
                f"{each.cpu_ms_per_page:.2f} ms CPU a page, {each.pages_per_s:.0f} pages/s",
                highlight=False,
            )
    except (WrongCrawl, Unavailable) as wrong:
        raise click.ClickException(str(wrong)) from None
    table = _table("repeated", "contestant", "CPU ms/page", "from - to", "x tuned", "x scrapy-redis", "pages/s", "MB")
    for row in summary(measured):
        table.add_row(*row)
    console.print(table)
    console.print(
        f"Medians of {runs} runs of {pages:,} pages. x: times less CPU than tuned Scrapy, and than scrapy-redis as "
        "shipped, run by run.",
        soft_wrap=True,
    )


@main.command()
@bus_option(*BUSES[1:])
@click.option("--samples", default=300, show_default=True, help="Seeds, one at a time.")
@FOLDER
def idle(buses: Sequence[str], samples: int, folder: Path) -> None:
    """How soon an idle worker picks up a new seed: from the confirmed publish to the request at the server.

    A live `crawlbus crawl --forever` on each bus, seeds by the code of `crawlbus seed`, one worker.
    """
    _print_machine(folder)
    for bus in buses:
        with _or_skip(bus):
            found = [value * 1000 for value in idle_pickups(bus, samples, folder)]
            shown = ", ".join(f"p{percent} {percentile(found, percent):.1f} ms" for percent in (50, 90, 99))
            console.print(
                f"Idle pick-up on {bus}, {samples} seeds: {shown}, the longest {max(found):.1f} ms", soft_wrap=True
            )


@main.command()
@click.option("--urls", default=1_000_000, show_default=True, help="URLs to be known.")
@click.option("--redis", "kind", type=click.Choice(kinds("redis")), default=kinds("redis")[0], show_default=True)
@FOLDER
def dedup(urls: int, kind: str, folder: Path) -> None:
    """What a known URL takes in Redis after `crawlbus dedup warm`, beside a set as scrapy-redis keeps it."""
    _print_machine(folder)
    with _or_skip(kind):
        for each in memory_of_seen(kind, urls, folder):
            console.print(
                f"{kind}, {each.what}, {each.urls:,} URLs: {each.bytes_per_url:.2f} bytes a URL, {each.seconds:.0f} s",
                soft_wrap=True,
                highlight=False,
            )


@main.command()
@click.option("--path", "paths", type=click.Choice([*PATHS]), multiple=True, help="From which bus to where.  [all]")
@click.option("--items", default=200_000, show_default=True, help="Items of each run, ten in a message.")
@click.option("--connect/--no-connect", default=True, help="Kafka Connect beside, for kafka-postgres.  [connect]")
@RUNS
@FOLDER
def consumer(paths: Sequence[str], items: int, connect: bool, runs: int, folder: Path) -> None:
    """Items per second from the log into storage, beside the bare drivers, and beside Kafka Connect with Debezium's
    JDBC sink.

    driver reads: the log read by its driver alone. driver stores: COPY and upsert (SQLite: executemany, Parquet:
    write_table) alone, from the same Python dicts, their JSON encoding included. Ratio: to the slower of the two, run
    by run. One process each; CPU is its own, not that of the servers.
    """
    _print_machine(folder)
    found: list[Drained] = []
    for path in paths or PATHS:
        with _or_skip(path):
            found += drain(path, items=items, runs=runs, folder=folder)
            console.print(f"{path}: {runs} runs done", highlight=False)
    table = _table("path", "items/s", "CPU us", "driver reads", "CPU us", "driver stores", "CPU us", "ratio")
    for row in rows_of_drain(found):
        table.add_row(*row)
    console.print(table)
    if connect and any(each.path == "kafka-postgres" for each in found):
        with _or_skip("Kafka Connect"), ConnectSink(shared_url("kafka-4.1"), shared_url("postgres-15")) as peer:
            for run in range(runs):
                for tasks, tuned in ((2, False), (1, True), (2, True)):
                    cost = peer.copy(items, tasks, tuned=tuned)
                    console.print(
                        f"run {run + 1}, Kafka Connect {'tuned' if tuned else 'as shipped'}, tasks: {tasks}: "
                        f"{cost.per_s:,.0f} rows/s, {cost.cpu_us:.0f} us CPU a row", highlight=False,
                    )  # fmt: skip


@main.command()
@bus_option("sqlite")
@click.option("--items", default=1_000_000, show_default=True, help="Items in the log, ten in a message.")
@FOLDER
def replay(buses: Sequence[str], items: int, folder: Path) -> None:
    """`crawlbus replay` of a whole log into SQLite, interrupted in the middle and told to go on."""
    _print_machine(folder)
    for bus in buses:
        with _or_skip(bus):
            found = replay_of(bus, items, folder)
            console.print(
                f"{bus}, {items:,} items: the first row after {found.first_row_s:.2f} s, after the interrupt "
                f"{found.again_s:.2f} s; {found.items_per_s:,.0f} items/s, {found.cpu_us_per_item:.0f} us CPU an item",
                soft_wrap=True,
                highlight=False,
            )


@contextmanager
def _or_skip(what: str) -> Iterator[None]:
    """A server that this machine cannot have is said, and the others are measured."""
    try:
        yield
    except Unavailable as error:
        console.print(f"{what} is left out: {error}", highlight=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
    return table


def _print_machine(folder: Path) -> None:
    for line in machine(folder):
        console.print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main(prog_name="python -m tests.bench")
