"""Run one worker in this process, and say how it ended."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any

from scrapy import Spider, signals
from scrapy.crawler import Crawler, CrawlerProcess
from scrapy.settings import Settings as ScrapySettings
from twisted.python.failure import Failure

from bus.errors import BusError
from bus.process import PARENT_FD, is_child
from bus.state import JobStatus
from spiders.addon import addon_of
from spiders.children import OPENED, READY, READY_FD
from spiders.presence import FORGOTTEN
from spiders.sinks import SinkBeside

__all__ = ["run_worker"]


class _Process(CrawlerProcess):
    """The first signal begins the grace time, the second one ends the process."""

    forced = False

    def _signal_shutdown(self, signum: int, _: Any) -> None:
        super()._signal_shutdown(signum, _)
        for crawler in self.crawlers:
            if (worker := addon_of(crawler).worker) is not None:
                worker.begin_grace()

    def _signal_kill(self, signum: int, _: Any) -> None:
        self.forced = True
        super()._signal_kill(signum, _)


class _OneLine(logging.Filter):
    """A download that fails is nobody's bug: the traceback, all of it Scrapy's, becomes its last line."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and str(record.msg).startswith("Error downloading"):
            record.msg, record.args = f"{record.getMessage()}: {record.exc_info[1]}", ()
            record.exc_info = None
        return True


def run_worker(
    cls: type[Spider],
    settings: ScrapySettings,
    arguments: Mapping[str, str],
    sink: SinkBeside | None = None,
    on_look: Callable[[JobStatus], None] | None = None,
) -> tuple[int, JobStatus | None, str]:
    """Crawl until the job ends or a signal comes; returns the exit code, how the job stood then, and what the
    consumer that could not store said.

    Raises `BusError` where it could not begin.
    """
    logging.getLogger().handlers.clear()  # Scrapy brings its own
    process = _Process(settings)
    if settings["LOG_LEVEL"] != "DEBUG":
        logging.getLogger("scrapy.core.scraper").addFilter(_OneLine())
    crawler = process.create_crawler(cls)
    errors: list[BaseException] = []
    crawler.signals.connect(_teller(OPENED), signals.spider_opened, weak=False)
    crawler.signals.connect(_teller(READY), signals.request_reached_downloader, weak=False)
    beside = sink.attach(crawler) if sink is not None else None
    process.crawl(crawler, **arguments).addErrback(_keep(errors))
    if not errors:
        addon_of(crawler).on_look = on_look
    _watch_parent()
    process.start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # all is done, and only the summary is left
    code = 130 if process.forced else _exit_code(crawler, errors)
    worker = addon_of(crawler).worker if not errors else None
    last = worker.last if worker is not None else None
    return (code or beside.code, last, beside.errors) if beside is not None else (code, last, "")


def _exit_code(crawler: Crawler, errors: list[BaseException]) -> int:
    if errors:
        if isinstance(errors[0], BusError):
            raise errors[0]
        raise BusError(f"the spider could not start: {type(errors[0]).__name__}: {errors[0]}") from errors[0]
    worker = addon_of(crawler).worker
    if worker is None:
        return 1
    if worker.failed is not None:
        return worker.failed.exit_code if isinstance(worker.failed, BusError) else 1
    # a child is not started again for it, which would make the job anew: its fleet sees for itself
    return 1 if worker.leaving == FORGOTTEN and not is_child() else 0


def _keep(errors: list[BaseException]) -> Callable[[Failure], None]:
    def kept(failure: Failure) -> None:
        if failure.value is not None:
            errors.append(failure.value)

    return kept


def _teller(word: bytes) -> Callable[..., None]:
    """Says it to the supervisor, once."""
    waiting = [int(fd)] if (fd := os.environ.get(READY_FD)) is not None else []

    def told(**_: Any) -> None:
        if waiting:
            os.write(waiting.pop(), word)

    return told


def _watch_parent() -> None:
    """Leave in good order when the supervisor is gone, whatever killed it."""
    fd = os.environ.get(PARENT_FD)
    if fd is None:
        return

    def watch() -> None:
        os.read(int(fd), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="crawlbus-parent").start()
