"""`crawlbus demo`: the shop, two workers, a consumer, and a summary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bus.errors import Misconfigured
from spiders.crawl import Crawl
from spiders.demo.shop import Shop
from spiders.summary import Bar, facts, print_summary

if TYPE_CHECKING:
    from bus.cli import Call

__all__ = ["run_demo"]

BUS, ITEMS, LOG = "demo.db", "demo.sqlite", "demo.log"


def run_demo(call: Call) -> int:
    """Crawl the shop into `demo.sqlite`; returns the exit code of the crawl."""
    _make_room()
    settings = call.settings(bus=f"sqlite:///{BUS}", state=f"sqlite:///{BUS}", job="demo", sink=f"sqlite:///{ITEMS}")
    console = call.console
    with Shop() as shop, Bar(console) as bar:
        if not call.as_json:
            console.print(f"a small shop is open at {shop.url}; two workers crawl it, a consumer stores the products")
        crawl = Crawl(
            "demo",
            settings,
            workers=2,
            arguments={"url": shop.url},
            overrides={"LOG_FILE": LOG},
            on_look=bar.show,
        )
        result = crawl.run()
    if result.errors:
        raise Misconfigured(result.errors.removeprefix("crawlbus: "))
    if result.status is not None:
        if call.as_json:
            call.answer(facts(result.status, elapsed_s=result.elapsed_s, sink=f"sqlite:///{ITEMS}"))
            return result.code
        print_summary(console, result.status, elapsed_s=result.elapsed_s, pages_before=0, sink=ITEMS)
        console.print(f"\nwhy pages ended as dead letters:  [bold]crawlbus dead list --bus sqlite:///{BUS}[/bold]")
        console.print("crawl a site of your own:         [bold]crawlbus crawl https://example.com[/bold]")
    return result.code


def _make_room() -> None:
    """Take away what an earlier demo left."""
    for name in (BUS, ITEMS, LOG):
        for path in Path().glob(f"{name}*"):
            if path.name.removeprefix(name) in ("", "-wal", "-shm"):
                try:
                    path.unlink()
                except OSError as error:
                    raise Misconfigured(f"{path} is in the way and cannot be removed: {error.strerror}") from None
