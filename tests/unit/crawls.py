"""Crawls by Scrapy alone, in a process of their own: a process has one reactor, and it runs once."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Crawl", "plain_crawl"]


class Crawl(NamedTuple):
    """What a crawl came to."""

    items: list[dict[str, Any]]
    stats: dict[str, Any]
    log: str


def plain_crawl(folder: Path, spider: str, settings: dict[str, Any] | None = None, **arguments: str) -> Crawl:
    """Crawl with `spider` ("module:Class") under plain Scrapy; `settings` win. Its files go to `folder`."""
    order = {"spider": spider, "settings": settings or {}, "arguments": arguments}
    run = subprocess.run(
        [sys.executable, "-P", "-m", "tests.unit.crawls", json.dumps(order)],
        cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    return Crawl(items, json.loads(run.stdout.splitlines()[-1]), run.stderr)


def _main(order: dict[str, Any]) -> None:
    from scrapy.crawler import CrawlerProcess
    from scrapy.settings import Settings

    module, _, name = order["spider"].partition(":")
    settings = Settings({"TELNETCONSOLE_ENABLED": False})
    settings.setdict({"FEEDS": {"items.jsonl": {"format": "jsonlines", "overwrite": True}}}, "cmdline")
    settings.setdict(order["settings"], "cmdline")
    process = CrawlerProcess(settings)
    crawler = process.create_crawler(getattr(importlib.import_module(module), name))
    process.crawl(crawler, **order["arguments"])
    process.start()
    assert crawler.stats is not None
    print(json.dumps(crawler.stats.get_stats(), default=str))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
