"""One run of one contestant, in a process of its own: `python -m tests.bench.contestant ORDER` (JSON)."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

from scrapy import Request, Spider
from scrapy.crawler import Crawler, CrawlerProcess
from scrapy.exceptions import CloseSpider, IgnoreRequest
from scrapy.http import Response, TextResponse
from scrapy.settings import Settings

from spiders import BusSpider

__all__ = ["CONTESTANTS", "Budget", "LinksSpider", "SingleSpider"]

CONCURRENCY = 16
COMMON = {
    "LOG_LEVEL": "INFO",  # a line for each page would be most of the work, for all of them
    "CONCURRENT_REQUESTS": CONCURRENCY,
    "CONCURRENT_REQUESTS_PER_DOMAIN": CONCURRENCY,
    "DOWNLOAD_DELAY": 0,
}
TUNED = {"CONCURRENT_ITEMS": 8, "ASYNCIO_EVENT_LOOP": "uvloop.Loop"}
BUS = {"ADDONS": {"spiders.BusAddon": 500}}
SCRAPY_REDIS = {
    "SCHEDULER": "scrapy_redis.scheduler.Scheduler",
    "DUPEFILTER_CLASS": "scrapy_redis.dupefilter.RFPDupeFilter",
    "ITEM_PIPELINES": {"scrapy_redis.pipelines.RedisPipeline": 300},
}


class SingleSpider(Spider):
    """One small item per page, and every link as a Request."""

    name = "bench"

    def __init__(self, url: str, pages: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.url, self.pages, self.done = url, pages, 0

    async def start(self) -> AsyncIterator[Any]:
        yield Request(self.url)

    def parse(self, response: Response) -> Iterator[Any]:
        assert isinstance(response, TextResponse)
        yield {"url": response.url, "title": response.css("title::text").get()}
        yield from self.links(response, response.css("a::attr(href)").getall())
        self.done += 1
        if self.done == self.pages:
            raise CloseSpider("enough")

    def links(self, response: TextResponse, hrefs: list[str]) -> Iterator[Any]:
        yield from response.follow_all(hrefs)


class LinksSpider(SingleSpider, BusSpider):
    """The same with all links of a page as one object."""

    def links(self, response: TextResponse, hrefs: list[str]) -> Iterator[Any]:
        yield BusSpider.follow_all(self, response, hrefs)


class Budget:
    """Lets exactly so many requests through to the site, so that all contestants fetch the same number of pages."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler, self._begun = crawler, 0

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Budget:
        return cls(crawler)

    def process_request(self, request: Request) -> None:
        spider = self._crawler.spider
        assert isinstance(spider, SingleSpider)
        if self._begun == spider.pages:
            raise IgnoreRequest("enough")
        self._begun += 1


CONTESTANTS: dict[str, tuple[type[SingleSpider], dict[str, Any]]] = {
    "scrapy": (SingleSpider, {}),
    "tuned": (SingleSpider, TUNED),
    "single": (SingleSpider, BUS),
    "links": (LinksSpider, BUS),
    "scrapy-redis": (SingleSpider, SCRAPY_REDIS),
    "scrapy-redis-tuned": (SingleSpider, {**SCRAPY_REDIS, **TUNED}),
}


def main(order: dict[str, Any]) -> None:
    """Crawl, and print the number of items scraped."""
    spider, own = CONTESTANTS[order["contestant"]]
    settings = Settings({**COMMON, **own, "DOWNLOADER_MIDDLEWARES": {Budget: 1000}})
    if own is BUS:
        settings.update({"BUS_URL": order["bus"], "BUS_STATE": order["state"], "BUS_JOB": order["job"]}, "project")
    elif "scrapy_redis" in own.get("SCHEDULER", ""):
        keys = {"SCHEDULER_QUEUE_KEY": "requests", "SCHEDULER_DUPEFILTER_KEY": "dupefilter", "REDIS_ITEMS_KEY": "items"}
        own_keys = {name: f"{order['job']}:{key}" for name, key in keys.items()}
        settings.update({"REDIS_URL": order["state"], **own_keys}, "project")
    process = CrawlerProcess(settings)
    crawler = process.create_crawler(spider)
    process.crawl(crawler, url=order["url"], pages=order["pages"])
    process.start()
    assert crawler.stats is not None
    print(json.dumps({"items": crawler.stats.get_value("item_scraped_count", 0)}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
