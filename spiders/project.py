"""The Scrapy project around the working directory."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from scrapy import Spider
from scrapy.settings import SETTINGS_PRIORITIES
from scrapy.settings import Settings as ScrapySettings
from scrapy.spiderloader import get_spider_loader
from scrapy.utils.misc import load_object
from scrapy.utils.project import get_project_settings

from bus.errors import Misconfigured
from bus.shadows import scrapy_project

__all__ = ["bus_settings", "local_feed", "project_settings", "spider_class"]

BUILT_IN = {"demo": "spiders.demo.spider.DemoSpider", "site": "spiders.site.SiteSpider"}


def bus_settings() -> dict[str, object]:
    """The project's settings that begin with BUS_."""
    settings = _settings()
    return {name: settings[name] for name in settings if isinstance(name, str) and name.startswith("BUS_")}


def project_settings(overrides: Mapping[str, Any]) -> ScrapySettings:
    """The project's settings with the add-on, and `overrides` as if given by `scrapy -s`."""
    from spiders.addon import BusAddon

    settings = _settings()
    addons = settings.getdict("ADDONS")
    if not any(key is BusAddon or key in ("spiders.BusAddon", "spiders.addon.BusAddon") for key in addons):
        settings.set("ADDONS", {**addons, BusAddon: 500}, priority="cmdline")
    if (settings.getpriority("LOG_LEVEL") or 0) < SETTINGS_PRIORITIES["project"]:
        settings.set("LOG_LEVEL", "WARNING", priority="project")
    for name, value in overrides.items():
        settings.set(name, value, priority="cmdline")
    return settings


def _settings() -> ScrapySettings:
    project = scrapy_project()
    if project is not None and str(project) not in sys.path:
        sys.path.append(str(project))  # Scrapy leaves it out where SCRAPY_SETTINGS_MODULE comes from a parent
    try:
        return get_project_settings()
    except Exception as error:
        raise _broken("settings", error) from error


def _broken(what: str, error: Exception) -> Misconfigured:
    """The user's own code raised while it was imported."""
    return Misconfigured(f"the {what} of this Scrapy project cannot be imported: {type(error).__name__}: {error}")


def local_feed(settings: ScrapySettings) -> str | None:
    """The first local file that FEEDS writes to."""
    feeds = (str(uri) for uri in settings.getdict("FEEDS"))
    return next((uri for uri in feeds if "://" not in uri or uri.startswith("file:")), None)


def spider_class(name: str, settings: ScrapySettings) -> type[Spider]:
    """The spider of that name: the project's, or one that crawlbus brings. Raises `Misconfigured`."""
    try:
        loader = get_spider_loader(settings)
    except Exception as error:
        raise _broken("spiders", error) from error
    try:
        found: type[Spider] = loader.load(name)
    except KeyError:
        if name not in BUILT_IN:
            known = ", ".join(sorted([*loader.list(), *BUILT_IN]))
            raise Misconfigured(
                f"there is no spider {name!r} here (known: {known}): run in the folder with scrapy.cfg, or give a URL"
            ) from None
        found = load_object(BUILT_IN[name])
    return found
