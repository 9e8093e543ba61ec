"""Requests survive the way over the bus: the cases of Scrapy's own tests/test_request_dict.py, and ours."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from scrapy import Request, Spider
from scrapy.http import FormRequest, JsonRequest, XmlRpcRequest
from scrapy.http.request import NO_CALLBACK
from scrapy.spiders import CrawlSpider, Rule
from scrapy.utils.request import fingerprint

from bus.codec import pack
from bus.errors import CodecError, OverLimit
from bus.message import Message
from spiders.pages import PageIds, is_plain, page_of
from spiders.requests import REQUEST, RequestCodec

PAGE = b"p" * 16


class CustomRequest(Request):
    pass


class ShopRequest(Request):
    attributes = (*Request.attributes, "shop")

    def __init__(self, *args: Any, shop: str = "", **kwargs: Any) -> None:
        self.shop = shop
        super().__init__(*args, **kwargs)


class Mixin:
    def __mixin_callback(self, response: Any) -> None: ...

    def mixin_alias(self) -> Any:
        return self.__mixin_callback


class ShopSpider(Mixin, Spider):
    name = "shop"

    def parse_item(self, response: Any) -> None: ...

    def handle_error(self, failure: Any) -> None: ...

    def __private(self, response: Any) -> None: ...

    def private(self) -> Any:
        return self.__private

    @classmethod
    def parse_class(cls, response: Any) -> None: ...

    parse_alias = parse_item


class Other:
    def process(self, response: Any) -> None: ...


spider = ShopSpider()
codec = RequestCodec(spider, "shop", 1)


def back(request: Request, of: RequestCodec = codec) -> Request:
    return of.decode(of.message(PAGE, of.encode(request), source="test"))


def same(request: Request) -> None:
    other = back(request)
    assert type(other) is type(request)
    for name in type(request).attributes:
        assert getattr(other, name) == getattr(request, name), name


def test_a_plain_request() -> None:
    same(Request("http://www.example.com"))


def test_all_attributes() -> None:
    same(
        Request(
            url="http://www.example.com",
            callback=spider.parse_item,
            errback=spider.handle_error,
            method="POST",
            body=b"some body \x00\xff",
            headers={"content-encoding": "text/html; charset=latin-1", "x-many": ["1", "2"]},
            cookies={"currency": "руб"},
            encoding="latin-1",
            priority=20,
            meta={"a": "b"},
            cb_kwargs={"k": "v"},
            flags=["testFlag"],
            dont_filter=True,
        )
    )


def test_verbose_cookies() -> None:
    same(Request("http://a.com", cookies=[{"name": "a", "value": "b", "domain": "a.com", "secure": True}]))


def test_latin_body() -> None:
    same(Request("http://www.example.com", body=b"some body \xa3"))


@pytest.mark.parametrize(
    "request_",
    [
        FormRequest("http://www.example.com", formdata={"a": "1", "b": ["2", "3"]}),
        JsonRequest("http://www.example.com", data={"k": [1]}, dumps_kwargs={"sort_keys": True}),
        XmlRpcRequest("http://www.example.com", methodname="m", params=(1,)),
        CustomRequest("http://www.example.com"),
        ShopRequest("http://www.example.com", shop="north"),
    ],
    ids=lambda request: type(request).__name__,
)
def test_subclasses(request_: Request) -> None:
    same(request_)


def test_values_are_kept_exactly() -> None:
    values = [
        None, True, 0, -1, 2**200, -(2**64), 1.5, float("inf"), "é", "\ud800", b"\x00\xff", [], [1, [2]], (1, (2,)),
        {1, "a"}, {"a": {(1, 2): None, None: 3, 5: 6, b"b": 7}}, datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
        datetime(2026, 10, 25, 2, 30, fold=1), date(2026, 1, 2), Decimal("1.10"),
    ]  # fmt: skip
    got = back(Request("http://a.com", meta={"values": values}, cb_kwargs={"values": values}))
    assert got.meta["values"] == values == got.cb_kwargs["values"]
    assert [type(v) for v in got.meta["values"]] == [type(v) for v in values]
    assert got.meta["values"][17].fold == 1


@pytest.mark.parametrize(
    "callback", [spider.parse, spider.parse_item, spider.private(), spider.mixin_alias(), spider.parse_class]
)
def test_callbacks_are_methods_of_the_spider(callback: Any) -> None:
    assert back(Request("http://a.com", callback=callback)).callback == callback


def test_an_alias_is_the_same_function() -> None:
    assert back(Request("http://a.com", callback=spider.parse_alias)).callback == spider.parse_item


def test_the_template_spiders_own_callbacks_are_allowed() -> None:
    class Rules(CrawlSpider):
        name = "rules"
        rules = (Rule(callback="parse_item"),)

        def parse_item(self, response: Any) -> None: ...

    rules = Rules()
    of = RequestCodec(rules, "rules", 1)
    request = Request("http://a.com", callback=rules._callback, errback=rules._errback, meta={"rule": 0})
    assert back(request, of).callback == rules._callback


@pytest.mark.parametrize(
    "callback", [lambda response: None, Other().process, ShopSpider().parse_item, Other.process, NO_CALLBACK, print]
)
def test_anything_else_cannot_be_a_callback(callback: Any) -> None:
    with pytest.raises(CodecError, match="is not a method of spider shop"):
        codec.encode(Request("http://a.com", callback=callback))


@pytest.mark.parametrize("name", ["closed", "from_crawler", "log", "__init__", "nothing", "name", "_parse", "", 5])
def test_a_message_names_only_callbacks(name: object) -> None:
    """Not what every Spider inherits, no attribute, nothing private of Python."""
    with pytest.raises(CodecError, match="has no callback"):
        codec.decode(Message("1", pack({"url": "http://a.com", "callback": name}), {"content-type": REQUEST}))


@pytest.mark.parametrize("name", ["os.system", "scrapy.Spider", "nothing.at.All"])
def test_a_message_names_only_request_classes(name: str) -> None:
    with pytest.raises(CodecError, match="no request class"):
        codec.decode(Message("1", pack({"url": "http://a.com", "class": name}), {"content-type": REQUEST}))


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", pack(5), pack({}), pack({"url": 5}), pack({"url": "nothing"}), pack({"url": "http://a", "x": 1})],
)
def test_what_is_no_request_is_a_codec_error(body: bytes) -> None:
    with pytest.raises(CodecError):
        codec.decode(Message("1", body, {"content-type": REQUEST}))


def test_what_cannot_travel_is_named() -> None:
    with pytest.raises(CodecError) as caught:
        codec.encode(Request("http://a.com", callback=spider.parse_item, meta={"a": [{"session": object()}]}))
    assert (
        str(caught.value)
        == "meta.a[0].session: a value of type builtins.object cannot travel (in a request for parse_item())"
    )


def test_limits() -> None:
    with pytest.raises(OverLimit):
        codec.encode(Request("http://a.com", body=b"x" * 9_000_000))
    with pytest.raises(OverLimit):
        codec.encode(Request("http://a.com", meta={"n": list(range(200_000))}))


def test_a_retry_knows_its_attempt() -> None:
    message = codec.message(PAGE, codec.encode(Request("http://a.com", meta={"a": 1})), source="")
    assert codec.decode(message.again(attempt=2)).meta == {"a": 1, "retry_times": 2}


def test_a_template_gives_the_same_request() -> None:
    fields = {"callback": spider.parse_item, "errback": None, "meta": {"depth": 2}, "cb_kwargs": {}, "headers": {},
              "priority": 0}  # fmt: skip
    got = codec.decode(codec.message(PAGE, codec.fill(codec.template(fields), "http://a.com/x"), source=""))
    want = Request("http://a.com/x", callback=spider.parse_item, meta={"depth": 2})
    assert all(getattr(got, name) == getattr(want, name) for name in Request.attributes)


def test_the_cheap_fingerprint_is_scrapys() -> None:
    import random

    from scrapy.utils.request import RequestFingerprinter

    rng, plain = random.Random(1), 0
    pages = PageIds(RequestFingerprinter(), cache_size=100)
    hosts = ["a.com", "a.com:80", "a.com:8080", "x-y.b.org", "127.0.0.1:99", "A.com", "a..b", "localhost:12345"]
    parts = ["/", "/./", "/../", "//", "/a", "b", "c.html", "~", "%20", "?a=1&b", *"abXYZ01/._~-%?=&#:@!,;+ é'()*$[]"]
    for _ in range(20_000):
        url = "http://" + rng.choice(hosts) + "".join(rng.choice(parts) for _ in range(rng.randrange(6)))
        try:
            request = Request(url)
        except ValueError:
            continue
        if is_plain(url):
            plain += 1
            assert request.url == url
        assert pages.of_url(request.url) == page_of(fingerprint(request)), url
    assert plain > 1000
