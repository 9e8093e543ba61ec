"""`BusSpider`: a Scrapy spider whose `follow_all` yields all links of a page at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from scrapy import Spider
from scrapy.http import Response

from spiders.links import Links

if TYPE_CHECKING:
    from parsel import Selector

__all__ = ["BusSpider"]


class BusSpider(Spider):
    """Nothing but `Spider` and a shorter way to `Links`. Any Scrapy spider works on the bus without it.

    `item_key` names the fields that make an item's id, where not the page and its order on it shall: an item found
    on two pages is then stored once.
    """

    item_key: Sequence[str] = ()

    def follow_all(self, response: Response, urls: Iterable[str | Selector], callback: Any = None, **kw: Any) -> Links:
        """All `urls` (strings, or selectors of `a` or `::attr(href)`) as one object; `kw` as for `Links`."""
        return Links(urls, callback, **kw)
