"""The spider of the demo. An ordinary Scrapy spider: it runs with and without the bus."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from scrapy import Request, Spider
from scrapy.http import Response, TextResponse

from bus.errors import Misconfigured

__all__ = ["DemoSpider"]


class DemoSpider(Spider):
    """Crawls the demo shop at `url` and yields its products."""

    name = "demo"
    custom_settings = {
        "ROBOTSTXT_OBEY": True,
        "CONCURRENT_REQUESTS_PER_DOMAIN": 16,
        "DOWNLOAD_DELAY": 0,
        "USER_AGENT": "crawlbus-demo",
    }

    def __init__(self, url: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not url:
            raise Misconfigured("the spider demo needs the address of the shop: -a url=http://127.0.0.1:PORT")
        self.url = url

    async def start(self) -> AsyncIterator[Any]:
        yield Request(self.url)

    def parse(self, response: Response) -> Iterator[Any]:
        """A product is an item; every page has links."""
        if not isinstance(response, TextResponse):
            return
        yield from response.follow_all(css="a")
        if sku := response.css(".sku::text").get():
            yield {
                "name": response.css(".name::text").get(),
                "price": _price(response.css(".price::text").get(""), sku),
                "category": response.css(".category::text").get(),
                "sku": sku,
                "url": response.url,
            }


def _price(text: str, sku: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"the price of {sku} is no number: {text!r}") from None
