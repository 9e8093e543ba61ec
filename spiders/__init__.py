"""The Scrapy side: `BusAddon`, `BusSpider`, `Links`."""

from spiders.addon import BusAddon
from spiders.links import Links
from spiders.spider import BusSpider

__all__ = ["BusAddon", "BusSpider", "Links"]
