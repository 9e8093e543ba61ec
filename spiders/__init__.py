"""The Scrapy side: `BusAddon`, `BusSpider`, `Links`. They are loaded when asked for: a command that needs no Scrapy
starts without it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spiders.addon import BusAddon
    from spiders.links import Links
    from spiders.spider import BusSpider

__all__ = ["BusAddon", "BusSpider", "Links"]

_HOMES = {"BusAddon": "spiders.addon", "BusSpider": "spiders.spider", "Links": "spiders.links"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'spiders' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
