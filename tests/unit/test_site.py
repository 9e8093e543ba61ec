"""The site spider: what it reads from a response, and whole crawls of small sites."""

from __future__ import annotations

import gzip
import json
import sqlite3
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from scrapy.crawler import Crawler
from scrapy.exceptions import CloseSpider
from scrapy.http import HtmlResponse, Request, Response, TextResponse, XmlResponse

from bus.errors import Misconfigured
from spiders.links import Links
from spiders.site import SiteSpider, is_loopback, links, site_of, title, visible_text
from tests.spiders.scene import Site, crawlbus
from tests.spiders.scene import links as page

PAGE = """<html><head><title> A\n title </title><base href="/base/"><script>var a = 1</script></head><body>
<svg><title>not this</title></svg><h1>Shown\u00a0text,</h1><!-- not --><script>no()</script> and <b>mo</b>re
<noscript>no</noscript><style>no {}</style><template><p>no</p></template> tail
<a href=" one#here ">1</a><a href="one">1</a><a>-</a><a href="#top">-</a><area href="/two?q=1"><link href="no"><a
href="http://[bad">-</a><a href="mailto:a@b">-</a><a href="https://example.com/three">3</a></body></html>"""


def _html(body: str, url: str = "http://example.com/x/y.html", **more: Any) -> HtmlResponse:
    return HtmlResponse(url, body=body.encode(), encoding="utf-8", request=Request(url), **more)


def test_links_are_absolute_each_once_and_without_fragments() -> None:
    assert list(links(_html(PAGE))) == [
        "http://example.com/base/one", "http://example.com/two?q=1", "mailto:a@b", "https://example.com/three",
    ]  # fmt: skip


def test_visible_text_is_that_of_the_body_without_hidden_parts() -> None:
    assert visible_text(_html(PAGE)) == "not thisShown text, and more tail 11----3"
    assert title(_html(PAGE)) == "A title"
    assert visible_text(_html("")) == "" and title(_html("<p>x")) is None
    text = TextResponse("http://example.com/", body=b" a\n\n  b ", encoding="utf-8")
    assert visible_text(text) == "a b"


def test_the_item_of_a_page() -> None:
    response = _html(PAGE, status=404, headers={"Content-Type": "text/html; charset=utf-8"})
    response.meta["depth"] = 3
    item = next(SiteSpider("http://example.com").parse(response))
    assert item == {
        "url": "http://example.com/x/y.html", "status": 404, "title": "A title", "depth": 3,
        "content_type": "text/html; charset=utf-8", "length": len(PAGE.encode()),
        "text_sha256": sha256(visible_text(response).encode()).hexdigest(),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "has_text"), [(Response, False), (TextResponse, True), (XmlResponse, True), (HtmlResponse, True)]
)
def test_the_item_of_anything_else(kind: type[Response], has_text: bool) -> None:
    url = "http://example.com/file"
    found = list(SiteSpider("http://example.com").parse(kind(url, body=b"a b", request=Request(url))))
    assert len(found) == 1
    assert found[0]["title"] is None and found[0]["content_type"] is None and found[0]["length"] == 3
    assert found[0]["text_sha256"] == (sha256(b"a b").hexdigest() if has_text else None)


@pytest.mark.parametrize(
    ("url", "site"),
    [
        ("http://example.com", ("example.com", None)),
        ("https://EXAMPLE.com:443/a", ("example.com", None)),
        ("https://example.com:80/", ("example.com", 80)),
        ("http://example.com:8080/", ("example.com", 8080)),
        ("http://user:secret@example.com/", ("example.com", None)),
        ("http://[::1]:1/", ("::1", 1)),
        ("http://bücher.example/", ("xn--bcher-kva.example", None)),
        ("ftp://example.com/", None),
        ("mailto:a@b", None),
        ("http://[bad", None),
        ("http://example.com:x/", None),
    ],
)
def test_the_same_host_and_port_are_one_site_whatever_the_scheme(url: str, site: Any) -> None:
    assert site_of(url) == site


def test_loopback_is_known() -> None:
    yes = ["http://127.0.0.1:1/", "http://127.9.9.9/", "http://[::1]/", "http://localhost:8000/", "http://a.localhost/"]
    no = [
        "http://128.0.0.1/",
        "http://10.0.0.1/",
        "http://localhost.example.com/",
        "http://example.com/",
        "http://[::2]/",
    ]
    assert [is_loopback(url) for url in yes + no] == [True] * len(yes) + [False] * len(no)


def test_links_that_leave_the_site_or_are_not_wanted_are_not_followed() -> None:
    spider = SiteSpider("https://example.com", allow="/(two|three|base)", deny="q=")
    _, followed = spider.parse(_html(PAGE))
    assert isinstance(followed, Links)
    assert followed.urls == ["http://example.com/base/one", "https://example.com/three"]


def test_the_budget_ends_the_job_after_the_links() -> None:
    spider = SiteSpider("http://example.com", pages="2")
    assert len(list(spider.parse(_html(PAGE)))) == 2
    outputs = spider.parse(_html(PAGE))
    assert isinstance(next(outputs), dict) and isinstance(next(outputs), Links)
    with pytest.raises(CloseSpider):
        next(outputs)


@pytest.mark.parametrize(
    "arguments",
    [
        {}, {"url": "example.com"}, {"url": "ftp://example.com"}, {"url": "http://"}, {"url": "http://a", "depth": "x"},
        {"url": "http://a", "pages": "-1"}, {"url": "http://a", "allow": "("}, {"url": "http://a", "deny": "*"},
        {"url": "http://a", "sitemap": "yes"},
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_refused_by_name(arguments: dict[str, str]) -> None:
    with pytest.raises(Misconfigured, match=f"-a {[*arguments, 'url'][-1 if len(arguments) < 2 else 1]}="):
        SiteSpider(**arguments)


XMLNS = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'


def _sitemap(kind: str, *urls: str) -> bytes:
    tag = "url" if kind == "urlset" else "sitemap"
    return f"<{kind} {XMLNS}>{''.join(f'<{tag}><loc> {url} </loc></{tag}>' for url in urls)}</{kind}>".encode()


def _read(body: bytes, level: int = 1, **arguments: str) -> list[Any]:
    url = "http://example.com/sitemap.xml"
    response = XmlResponse(url, body=body, request=Request(url, meta={"depth": 2}))
    return list(SiteSpider("http://example.com", **arguments).parse_sitemap(response, level))[1:]


def test_sitemaps_plain_packed_and_nested() -> None:
    listed = _sitemap("urlset", "http://example.com/a", "/b", "http://other.com/c", "https://example.com/d")
    for body in (listed, gzip.compress(listed)):
        assert [found.urls for found in _read(body)] == [
            ["http://example.com/a", "http://example.com/b", "https://example.com/d"]
        ]
    assert _read(listed, depth="0") == []
    index = _sitemap("sitemapindex", "/one.xml.gz", "http://other.com/two.xml")
    for level in (1, 2):
        (request,) = _read(index, level)
        assert (request.url, request.cb_kwargs) == ("http://example.com/one.xml.gz", {"level": level + 1})
    assert _read(index, 3) == []


def test_a_sitemap_holds_at_most_50_000_urls() -> None:
    found = _read(_sitemap("urlset", *(f"/{number}" for number in range(50_010))))
    assert sum(len(each.urls) for each in found) == 50_000
    assert max(len(each.urls) for each in found) == 1_000


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"no sitemap", b"\x1f\x8b\x08broken", b"<html><body>x</body></html>", gzip.compress(b" " * (51 << 20)),
     b"<urlset>" + b" " * (51 << 20)],
    ids=["empty", "blank", "text", "bad gzip", "html", "bomb", "huge"],
)  # fmt: skip
def test_a_sitemap_that_cannot_be_read_is_none(body: bytes) -> None:
    assert _read(body) == []


def _crawl(folder: Path, url: str, *arguments: str) -> tuple[dict[str, dict[str, Any]], str]:
    """The stored items by path, and the log."""
    ran = crawlbus("crawl", url, *arguments, cwd=folder)
    assert ran.code == 0, ran.err
    with sqlite3.connect(folder / "crawlbus-items.db") as database:
        rows = [(row[0], json.loads(row[1])) for row in database.execute("select url, data from items")]
    database.close()
    assert all(url == data["url"] for url, data in rows)
    found = {data["url"].split("/", 3)[3]: data for _, data in rows}
    assert len(found) == len(rows)
    return found, ran.err


def test_a_crawl_stores_every_response_of_the_site_once(tmp_path: Path) -> None:
    other = Site({"/": page("/deep")})
    with other.open() as elsewhere:
        site = Site({
            "/": page("a", "/old", "/gone", "/broken", "/image.png", "/away", elsewhere + "/", "/hidden/x", "a#b"),
            "/a": page("/", "/a?b=1"),
            "/old": (301, {"Location": "/new"}, b""),
            "/new": page("/a"),
            "/broken": (500, {}, b"no"),
            "/image.png": (200, {"Content-Type": "image/png"}, b"\x89PNG\r\n\x1a\n\x00"),
            "/away": (302, {"Location": elsewhere + "/deep"}, b""),
            "/robots.txt": (200, {"Content-Type": "text/plain"}, b"User-agent: *\nDisallow: /hidden"),
        })  # fmt: skip
        with site.open() as url:
            found, _ = _crawl(tmp_path, url, "-s", "RETRY_TIMES=0")
    assert {path: (item["status"], item["depth"]) for path, item in found.items()} == {
        "": (200, 0), "a": (200, 1), "a?b=1": (200, 2), "new": (200, 1), "gone": (404, 1), "broken": (500, 1),
        "image.png": (200, 1),
    }  # fmt: skip
    assert found["image.png"]["text_sha256"] is None and found["image.png"]["length"] == 9
    assert not other.hits and site.hits["/hidden/x"] == 0 and site.hits["/old"] == 1


def test_a_crawl_ends_at_a_depth(tmp_path: Path) -> None:
    with Site({f"/{'x' * depth}": page(f"/{'x' * (depth + 1)}") for depth in range(6)}).open() as url:
        found, _ = _crawl(tmp_path, url, "-a", "depth=3")
    assert set(found) == {"", "x", "xx", "xxx"}


def test_a_crawl_by_sitemap_finds_what_nothing_links(tmp_path: Path) -> None:
    pages: dict[str, Any] = {"/": page(), "/orphan": page("/child"), "/child": page()}
    site = Site(pages)
    with site.open() as url:
        xml = {"Content-Type": "application/xml"}
        pages["/sitemap.xml"] = (200, xml, _sitemap("sitemapindex", f"{url}/more.xml.gz"))
        pages["/more.xml.gz"] = (
            200,
            {"Content-Type": "application/gzip"},
            gzip.compress(_sitemap("urlset", f"{url}/orphan")),
        )
        found, _ = _crawl(tmp_path, url, "-a", "sitemap=1", "-a", "depth=1")
    assert {path: item["depth"] for path, item in found.items()} == {
        "": 0,
        "sitemap.xml": 0,
        "more.xml.gz": 1,
        "orphan": 1,
    }


def test_a_start_that_leads_to_another_site_is_said(tmp_path: Path) -> None:
    with Site({}).open() as elsewhere, Site({"/": (301, {"Location": elsewhere + "/x"}, b"")}).open() as url:
        found, log = _crawl(tmp_path, url)
    assert found == {}
    assert f"{url}/ redirects to {elsewhere}/x, which is another site: crawl that one" in log


def test_a_start_that_robots_txt_forbids_is_said(tmp_path: Path) -> None:
    with Site({"/robots.txt": (200, {}, b"User-agent: *\nDisallow: /")}).open() as url:
        found, log = _crawl(tmp_path, url)
    assert found == {}
    assert f"WARNING: Forbidden by robots.txt: <GET {url}/>" in log


@pytest.mark.parametrize(
    ("url", "delay_s", "at_once"), [("https://example.com", 1, 1), ("http://127.0.0.2:8000", 0, 16)]
)
def test_one_request_a_second_unless_it_is_this_machine(url: str, delay_s: float, at_once: int) -> None:
    crawler = Crawler(SiteSpider)
    SiteSpider.from_crawler(crawler, url)
    assert crawler.settings.getfloat("DOWNLOAD_DELAY") == delay_s
    assert crawler.settings.getint("CONCURRENT_REQUESTS_PER_DOMAIN") == at_once
    assert crawler.settings.getbool("ROBOTSTXT_OBEY")
