"""The demo shop, and its spider under plain Scrapy."""

from __future__ import annotations

import http.client
import os
import re
import socket
import time
from pathlib import Path

import pytest

from spiders.demo.shop import (
    BROKEN,
    FAILING,
    FLAKY,
    FLAKY_FAILURES,
    PRODUCTS,
    SHORT_LINKS,
    WITHDRAWN,
    Shop,
    ShopSite,
)
from tests.unit.crawls import plain_crawl


def test_the_demo_spider_finds_every_product(tmp_path: Path) -> None:
    with Shop() as shop:
        crawl = plain_crawl(tmp_path, "spiders.demo.spider:DemoSpider", url=shop.url)
    skus = [item["sku"] for item in crawl.items]
    assert len(skus) == len(set(skus)) == PRODUCTS - 1
    assert f"S{BROKEN:04d}" not in skus
    assert f"S{FLAKY:04d}" in skus
    assert {type(item["price"]) for item in crawl.items} == {float}
    stats = crawl.stats
    assert stats["spider_exceptions/ValueError"] == 1
    assert f"the price of S{BROKEN:04d} is no number: 'on request'" in crawl.log
    assert stats["downloader/response_status_count/404"] == WITHDRAWN
    assert stats["downloader/response_status_count/500"] == 3 * FAILING
    assert stats["downloader/response_status_count/503"] == FLAKY_FAILURES
    assert stats["downloader/response_status_count/301"] == SHORT_LINKS + 2
    assert stats["downloader/response_status_count/302"] == 1
    assert stats["retry/max_reached"] == FAILING
    assert stats["robotstxt/forbidden"] == PRODUCTS // 10 + 2


def test_the_shop_is_the_same_in_each_run_but_for_its_address() -> None:
    first, second = ShopSite("http://127.0.0.1:1"), ShopSite("http://127.0.0.1:2")
    for path in (
        "/",
        "/category/lamps",
        "/products/0001",
        "/products/0777",
        "/cart/add/10",
        "/reviews/1",
        "/nothing",
    ):
        assert first(path) == second(path)
    assert b"http://127.0.0.1:1/products/0001<" in first("/sitemap.xml").body
    assert first("/sitemap.xml").body.count(b"<loc>") == PRODUCTS + 20 * 3


def test_pages_have_about_twenty_links() -> None:
    site = ShopSite("http://127.0.0.1:1")
    counts = [
        site(f"/products/{number:04d}").body.count(b"<a ") for number in range(1, PRODUCTS + 1) if number != FLAKY
    ]
    assert 17 <= min(counts) <= max(counts) <= 22


def test_the_flaky_product_fails_twice() -> None:
    site = ShopSite("http://127.0.0.1:1")
    heads = [site(f"/products/{FLAKY:04d}").head for _ in range(FLAKY_FAILURES + 1)]
    assert [head.split(b" ")[1] for head in heads] == [b"503", b"503", b"200"]


def test_the_shop_ends_with_its_block_and_with_its_parent() -> None:
    with Shop() as shop:
        pid = shop._child.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with Shop() as shop:
        assert shop._child.stdin is not None
        shop._child.stdin.close()  # as when the parent dies
        assert shop._child.wait(10) == 0


def test_the_server_speaks_http() -> None:
    with Shop() as shop:
        host, _, port = shop.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            for part in (
                b"HEAD / HTTP/1.1\r\nHost: a\r\n",
                b"\r\nGET /s/1 HTTP/1.1\r\n\r\nGET /cart HTTP/1.1\r\n",
            ):
                connection.sendall(part)
                time.sleep(0.02)
            connection.sendall(b"Connection: close\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"301", b"200"]
        assert answer.count(b"</html>") == 1 and answer.endswith(b"</html>\n")
        client = http.client.HTTPConnection(host, int(port), timeout=10)
        client.request("POST", "/cart")
        assert client.getresponse().status == 405
        client.close()
