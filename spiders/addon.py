"""`BusAddon`: the one line that puts a Scrapy project on the bus."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from scrapy.downloadermiddlewares import cookies
from scrapy.downloadermiddlewares.retry import RetryMiddleware
from scrapy.downloadermiddlewares.robotstxt import RobotsTxtMiddleware
from scrapy.dupefilters import BaseDupeFilter, RFPDupeFilter
from scrapy.settings import SETTINGS_PRIORITIES, BaseSettings
from scrapy.utils.misc import load_object
from scrapy.utils.reactor import is_reactor_installed
from tldextract import TLDExtract

from bus.errors import BusError, Misconfigured
from bus.process import exit_code
from bus.settings import Settings, load
from bus.shadows import shadows

if TYPE_CHECKING:
    from scrapy.crawler import Crawler

    from bus.state import JobStatus
    from spiders.worker import Worker

__all__ = ["BusAddon", "addon_of", "worker_of"]

logger = logging.getLogger(__name__)

SCHEDULER, ITEM_PROCESSOR = "spiders.scheduler.BusScheduler", "spiders.items.BusItemProcessor"
INNERMOST, OUTERMOST = 100_000, -100_000
UVLOOP = "uvloop.Loop"
CHEAP = {"CONCURRENT_ITEMS": 2, "TELNETCONSOLE_ENABLED": False, "REMOTE_CONTROL_ENABLED": False}
_REPLACES = {
    "SCHEDULER": "the scheduler keeps requests in memory or in a store of its own",
    "ITEM_PROCESSOR": "items would not reach the item log",
}


class BusAddon:
    """`ADDONS = {"spiders.BusAddon": 500}` and `BUS_URL`: sets scheduler, item processor and middlewares, and the
    cheap settings where the user has set none. A user's mistake ends the process with one line."""

    worker: Worker | None = None
    settings: Settings
    filters: bool = True
    forever: bool = False
    on_look: Callable[[JobStatus], None] | None = None  # hears how the job stands

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> BusAddon:
        return cls(crawler)

    @classmethod
    def update_pre_crawler_settings(cls, settings: BaseSettings) -> None:
        """The event loop can be set here only; later it ends every crawl with an error. And only here is it early
        enough to tell that a project's package has a name of ours: its spiders would not be found."""
        if hidden := shadows():
            _quit(Misconfigured(str(hidden[0])))
        free = settings.getpriority("ASYNCIO_EVENT_LOOP") in (None, SETTINGS_PRIORITIES["default"])
        if free and not is_reactor_installed() and importlib.util.find_spec("uvloop"):
            settings.set("ASYNCIO_EVENT_LOOP", UVLOOP, priority="addon")

    def update_settings(self, settings: BaseSettings) -> None:
        try:
            flags, project = _ours(settings)
            self.settings = load(flags, project)
            self.forever = settings.getbool("BUS_FOREVER")
            self._take_over(settings)
            _stay_offline()
            self.filters = _filters(settings)
            if settings.get("BUS_COOKIES", "worker") != "worker":
                raise Misconfigured(
                    "delete the line BUS_COOKIES of your settings: this version keeps cookies per worker"
                )
        except BusError as error:
            _quit(error)

    def _take_over(self, settings: BaseSettings) -> None:
        settings.set("SCHEDULER", SCHEDULER, priority="addon")
        settings.set("ITEM_PROCESSOR", ITEM_PROCESSOR, priority="addon")
        for name, path in (("SCHEDULER", SCHEDULER), ("ITEM_PROCESSOR", ITEM_PROCESSOR)):
            if settings[name] != path:
                raise Misconfigured(f"delete the line {name} = {settings[name]!r} of your settings: {_REPLACES[name]}")
        downloader, spider = "DOWNLOADER_MIDDLEWARES", "SPIDER_MIDDLEWARES"
        _replace(settings, downloader, RetryMiddleware, load_object("spiders.retry.BusRetryMiddleware"))
        _replace(settings, downloader, RobotsTxtMiddleware, load_object("spiders.robots.RobotsMiddleware"))
        links, start = (
            load_object("spiders.links.LinksMiddleware"),
            load_object("spiders.start.StartMiddleware"),
        )
        settings.setdefault_in_component_priority_dict(spider, links, INNERMOST)
        settings.setdefault_in_component_priority_dict(spider, start, OUTERMOST)
        self._cheap(settings)

    def _cheap(self, settings: BaseSettings) -> None:
        cheap = dict(CHEAP)
        if _async_pipelines(settings):
            del cheap["CONCURRENT_ITEMS"]
        for name, value in cheap.items():
            settings.set(name, value, priority="addon")
        shown = {name: settings[name] for name in (*cheap, "ASYNCIO_EVENT_LOOP")}
        logger.info("crawlbus settings, where yours do not say otherwise: %s", shown)

    async def guard(self, opening: Coroutine[Any, Any, None]) -> None:
        """Await the worker's opening; a user's mistake ends the process with one line."""
        try:
            await opening
        except BusError as error:
            _quit(error)


def addon_of(crawler: Crawler) -> BusAddon:
    """The add-on of a crawler. Raises `Misconfigured` where there is none."""
    addon = crawler.get_addon(BusAddon)
    if addon is None:
        raise Misconfigured('set ADDONS = {"spiders.BusAddon": 500}: the parts of crawlbus work only together')
    return addon


def worker_of(crawler: Crawler) -> Worker:
    """The worker of a crawler whose spider is open."""
    worker = addon_of(crawler).worker
    assert worker is not None
    return worker


def _ours(settings: BaseSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The BUS_ settings: those of the command line, which are flags, and the project's."""
    flags: dict[str, Any] = {}
    project: dict[str, Any] = {}
    for name in settings:
        if isinstance(name, str) and name.startswith("BUS_"):
            cmdline = (settings.getpriority(name) or 0) >= SETTINGS_PRIORITIES["cmdline"]
            (flags if cmdline else project)[name] = settings[name]
    return flags, project


def _filters(settings: BaseSettings) -> bool:
    """Does the project want duplicates refused? A dupefilter of its own cannot be honoured."""
    cls = load_object(settings["DUPEFILTER_CLASS"])
    if cls in (RFPDupeFilter, BaseDupeFilter):
        return cls is RFPDupeFilter
    raise Misconfigured(
        f"delete the line DUPEFILTER_CLASS = {settings['DUPEFILTER_CLASS']!r} of your settings: the state deduplicates "
        "(scrapy.dupefilters.BaseDupeFilter turns that off)"
    )


def _replace(settings: BaseSettings, name: str, old: type, new: type) -> None:
    """Put ours in the place of Scrapy's; a project that has switched Scrapy's off has none."""
    own = settings.getdict(name)
    for key, order in own.items():
        if load_object(key) is old:
            if order is not None:
                settings.replace_in_component_priority_dict(name, old, new)
            return
    base = settings.getdict(f"{name}_BASE")
    order = next((order for key, order in base.items() if load_object(key) is old), None)
    if order is not None:
        settings.set(name, {**own, old: None, new: order}, priority=settings.getpriority(name) or 0)


def _async_pipelines(settings: BaseSettings) -> bool:
    pipelines = settings.get_component_priority_dict_with_base("ITEM_PIPELINES")
    classes = [load_object(path) for path, order in pipelines.items() if order is not None]
    return any(inspect.iscoroutinefunction(getattr(cls, "process_item", None)) for cls in classes)


def _stay_offline() -> None:
    """At its first cookie, Scrapy's middleware would download the list of public suffixes, and block the event loop
    meanwhile. The list that its library brings along does."""
    if hasattr(cookies, "_split_domain"):
        cookies._split_domain = TLDExtract(include_psl_private_domains=True, suffix_list_urls=())


def _quit(error: BusError) -> None:
    """Nothing has been begun yet; Scrapy would only wrap the sentence in a traceback."""
    sys.stdout.flush()
    print(f"crawlbus: {error}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(exit_code(error))
