"""The commands of the Scrapy side: crawl, seed, dedup, demo."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bus.cli import Call, common, setting
from bus.errors import Misconfigured

if TYPE_CHECKING:
    from spiders.crawl import Crawl, CrawlResult

__all__ = ["commands"]


def _pairs(_: click.Context, option: click.Parameter, values: Iterable[str]) -> dict[str, str]:
    found = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} must be NAME=VALUE")
        found[name] = text
    return found


@click.command()
@click.argument("target", metavar="SPIDER|URL")
@setting("sink", "URL")
@setting("workers", "N")
@click.option("--until-drained", "ending", flag_value="drained", default="drained", help="End with the job (default).")
@click.option("--forever", "ending", flag_value="forever", help="Stand by for seeds after the job has drained.")
@click.option("--restart", is_flag=True, help="Crawl a finished job anew; the item log is kept.")
@click.option("-a", "arguments", multiple=True, callback=_pairs, metavar="K=V", help="An argument of the spider.")
@click.option("-s", "overrides", multiple=True, callback=_pairs, metavar="K=V", help="A Scrapy setting.")
@click.option("--as-worker", is_flag=True, hidden=True)
@common
def crawl(
    call: Call, target: str, ending: str, restart: bool, arguments: dict[str, str], overrides: dict[str, str],
    as_worker: bool,
) -> int:  # fmt: skip
    """Crawl with a spider of this project, or a whole site by its URL.

    \b
    Examples:
      crawlbus crawl https://example.com
      crawlbus crawl shop --workers 4 --sink sqlite:///items.db
    """
    from spiders.crawl import Crawl
    from spiders.summary import Bar

    settings = call.settings(**{name: value for name, value in overrides.items() if name.startswith("BUS_")})
    levels = {"LOG_LEVEL": "DEBUG"} if call.verbose else {}
    workers = 1 if as_worker else settings.workers
    plan = Crawl(
        target, settings, workers=workers, forever=ending == "forever", restart=restart, arguments=arguments,
        overrides={**levels, **overrides}, as_worker=as_worker,
    )  # fmt: skip
    if as_worker:
        return plan.run().code
    with Bar(call.console) as bar:
        plan.on_look = bar.show
        result = plan.run()
    _tell(call, plan, result)
    return result.code


def _tell(call: Call, plan: Crawl, result: CrawlResult) -> None:
    from spiders.summary import facts, print_summary

    if result.errors:
        click.echo(result.errors, err=True)
    if result.errors or result.status is None:
        return
    if call.as_json:
        call.answer(facts(result.status, elapsed_s=result.elapsed_s, sink=plan.sink))
    elif not result.begun:
        finished = _time(result.status.finished_at)
        call.console.print(f"job {plan.job} finished {finished}; to crawl it anew: add --restart")
    else:
        print_summary(
            call.console, result.status, elapsed_s=result.elapsed_s, pages_before=result.pages_before, sink=plan.sink
        )
        if plan.sink and plan.settings.sink is None:
            call.console.print(f"\nitems are in {plan.sink} (choose with --sink)")


def _time(seconds: float | None) -> str:
    from datetime import UTC, datetime

    return "" if seconds is None else f"at {datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


@click.command()
@click.argument("file", metavar="FILE|-")
@click.option("--spider", "spider_name", metavar="NAME", help="The spider, if the job is not known yet.")
@common
def seed(call: Call, file: str, spider_name: str | None) -> int:
    """Put the URLs of a file, one a line, in the queue of a job.

    A bad line is refused with its number, the rest is loaded.

    \b
    Examples:
      crawlbus seed urls.txt --job shop
      zcat urls.gz | crawlbus seed - --job shop --spider shop
    """
    from spiders.seeding import load_seeds

    loaded = asyncio.run(load_seeds(call.settings(), _lines(file), spider_name))
    for line in loaded.bad[:20]:
        click.echo(f"crawlbus: line {line.number} is no http or https URL: {line.text!r}", err=True)
    if len(loaded.bad) > 20:
        click.echo(f"crawlbus: {len(loaded.bad) - 20:,} more lines are no URL", err=True)
    new = loaded.given - loaded.known
    call.answer(
        {"job": loaded.job, "loaded": new, "known": loaded.known, "bad": len(loaded.bad)},
        f"job {loaded.job}: {new:,} loaded, {loaded.known:,} known already, {len(loaded.bad):,} bad lines",
    )
    return 2 if loaded.bad and not loaded.given else 0


def _lines(file: str) -> Iterable[bytes]:
    if file == "-":
        return sys.stdin.buffer
    try:
        return Path(file).open("rb")
    except OSError as error:
        raise Misconfigured(f"{file} cannot be read: {error.strerror}") from None


@click.group()
def dedup() -> None:
    """What a job knows as seen.

    \b
    Example:
      crawlbus dedup check https://example.com/a --job example-com
    """


@dedup.command()
@common
def stats(call: Call) -> int:
    """How many pages are known, and how many of them are not finished.

    \b
    Example:
      crawlbus dedup stats --job shop
    """
    from spiders.seeding import seen_stats

    facts = asyncio.run(seen_stats(call.settings()))
    call.answer(facts, f"job {facts['job']}: {facts['seen']:,} pages known, {facts['open']:,} of them open")
    return 0


@dedup.command()
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@common
def check(call: Call, urls: tuple[str, ...]) -> int:
    """Is a URL known? Exit code 1 if any is not.

    \b
    Example:
      crawlbus dedup check https://example.com/a --job shop
    """
    from spiders.seeding import check_urls

    seen = asyncio.run(check_urls(call.settings(), urls))
    call.answer(seen, *(f"{'seen' if known else 'new '}  {url}" for url, known in seen.items()))
    return 0 if all(seen.values()) else 1


@dedup.command()
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@common
def forget(call: Call, urls: tuple[str, ...]) -> int:
    """Forget that URLs were seen, so that they are crawled again when a link or a seed leads to them.

    \b
    Example:
      crawlbus dedup forget https://example.com/a --job shop
    """
    from spiders.seeding import forget_urls

    count = asyncio.run(forget_urls(call.settings(), urls))
    call.answer({"forgotten": count}, f"{count:,} forgotten")
    return 0


@dedup.command()
@click.argument("file", metavar="FILE|-")
@click.option("--spider", "spider_name", metavar="NAME", default="", help="The spider, if the job is not known yet.")
@common
def warm(call: Call, file: str, spider_name: str) -> int:
    """Enter the URLs of a file as seen: they will not be crawled.

    \b
    Example:
      crawlbus dedup warm crawled-before.txt --job shop
    """
    from spiders.seeding import warm_urls

    given, new, bad = asyncio.run(warm_urls(call.settings(), _lines(file), spider_name))
    for line in bad[:20]:
        click.echo(f"crawlbus: line {line.number} is no http or https URL: {line.text!r}", err=True)
    call.answer({"given": given, "new": new, "bad": len(bad)}, f"{given:,} given, {new:,} new, {len(bad):,} bad lines")
    return 0


@click.command()
@common
def demo(call: Call) -> int:
    """Crawl a small local shop with two workers into demo.sqlite, and show what happened. No server is needed.

    Writes demo.sqlite (items), demo.db (the bus) and demo.log in this directory, over those of an earlier demo.

    \b
    Example:
      crawlbus demo
    """
    from spiders.demo.command import run_demo

    return run_demo(call)


commands: list[click.Command] = [crawl, seed, dedup, demo]
