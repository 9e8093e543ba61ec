"""The Scrapy side: `BusAddon`, `BusSpider`, `Links`."""
