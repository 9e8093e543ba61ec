"""Requests as messages, and back. Nothing in a message names code to import."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
from scrapy import Request, Spider

from bus.codec import SCHEMA, pack, unpack
from bus.errors import CodecError
from bus.message import Headers, Message, new_id

__all__ = ["REQUEST", "RequestCodec"]

REQUEST = "crawlbus/request"
SOURCE_CHARS = 500
_DEFAULTS: dict[str, Any] = {
    "method": "GET", "headers": {}, "body": b"", "cookies": {}, "meta": {}, "encoding": "utf-8", "priority": 0,
    "dont_filter": False, "flags": [], "cb_kwargs": {},
}  # fmt: skip
_HANDLERS = ("callback", "errback")


class RequestCodec:
    """Encodes and decodes the requests of one spider in one run of its job."""

    def __init__(self, spider: Spider, job: str, run: int) -> None:
        self._spider = spider
        self._methods = dict(_own_methods(type(spider)))
        self._names = {function: name for name, function in self._methods.items()}
        self._names |= {function: name for name, function in self._methods.items() if function.__name__ == name}
        self._classes: dict[str, type[Request]] = {}
        self._headers: Headers = {
            "content-type": REQUEST, "schema": SCHEMA, "job": job, "spider": spider.name, "run": run,
        }  # fmt: skip

    def message(self, page: bytes, body: bytes, *, source: str, start: bool = False) -> Message:
        """A new message for a page. `source` is where the link was found."""
        headers = {**self._headers, "page": page, "first-seen": time.time(), "source": source[:SOURCE_CHARS]}
        if start:
            headers["start"] = True
        return Message(new_id(), body, headers, page)

    def encode(self, request: Request) -> bytes:
        """The body of a request's message. Raises `CodecError` naming the key and the callback at fault."""
        fields: dict[str, Any] = {"url": request.url}
        for name in _HANDLERS:
            if (handler := getattr(request, name)) is not None:
                fields[name] = self.name_of(handler)
        for name, default in _DEFAULTS.items():
            value = getattr(request, name)
            if value != default:
                fields[name] = dict(value) if name == "headers" else value
        if type(request) is not Request:
            self._add_subclass(request, fields)
        try:
            return pack(fields)
        except CodecError as error:
            callback = fields.get("callback", "parse")
            raise type(error)(f"{error.reason} (in a request for {callback}())", error.path) from None

    def template(self, fields: dict[str, Any]) -> tuple[int, bytes]:
        """All but the URL of many requests alike, encoded once: (number of fields, bytes)."""
        for name in _HANDLERS:
            if fields.get(name) is not None:
                fields[name] = self.name_of(fields[name])
        kept = {name: value for name, value in fields.items() if value is not None and value != _DEFAULTS.get(name)}
        packed = pack(kept)
        return len(kept), packed[len(_map_header(len(kept))) :]

    @staticmethod
    def fill(template: tuple[int, bytes], url: str) -> bytes:
        """The body of one of those requests."""
        count, rest = template
        return b"".join((_map_header(count + 1), b"\xa3url", pack(url), rest))

    def decode(self, message: Message) -> Request:
        """The request of a message; a retry has `retry_times` in its meta. Raises `CodecError`."""
        if message.headers.get("content-type") != REQUEST:
            raise CodecError(f"not a request: content-type {message.headers.get('content-type')!r}")
        fields = unpack(message.body)
        if not isinstance(fields, dict) or not isinstance(fields.get("url"), str):
            raise CodecError("not a request: no map with a url")
        for name in _HANDLERS:
            if name in fields:
                fields[name] = self._method(fields[name])
        cls = self._class(fields.pop("class")) if "class" in fields else Request
        try:
            if message.attempt:
                fields["meta"] = {**fields.get("meta", {}), "retry_times": message.attempt}
            return cls(**fields)
        except Exception as error:  # a class of the project's may raise anything
            raise CodecError(f"not a request: {error}") from None

    def name_of(self, handler: Callable[..., Any]) -> str:
        """The name by which a callback travels. Raises `CodecError` for what is no method of this spider."""
        function = getattr(handler, "__func__", None)
        owner = getattr(handler, "__self__", None)
        name = self._names.get(function) if owner is self._spider or owner is type(self._spider) else None
        if name is None:
            shown = getattr(handler, "__qualname__", repr(handler))
            raise CodecError(f"{shown} is not a method of spider {self._spider.name}, and only such can be callbacks")
        return name

    def _method(self, name: object) -> Any:
        if not isinstance(name, str) or name not in self._methods:
            raise CodecError(f"spider {self._spider.name} has no callback {name!r}")
        return getattr(self._spider, name)

    def _add_subclass(self, request: Request, fields: dict[str, Any]) -> None:
        cls = type(request)
        fields["class"] = f"{cls.__module__}.{cls.__qualname__}"
        for name in cls.attributes:
            if name not in _DEFAULTS and name not in fields and name not in _HANDLERS:
                fields[name] = getattr(request, name)

    def _class(self, name: object) -> type[Request]:
        """Looked up among the subclasses of Request already loaded, never imported."""
        if not isinstance(name, str):
            raise CodecError("not a request: its class has no name")
        if name not in self._classes:
            found = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in _subclasses(Request)}
            self._classes.update(found)
        if name not in self._classes:
            raise CodecError(f"no request class {name} is loaded")
        return self._classes[name]


def _own_methods(cls: type[Spider]) -> Iterator[tuple[str, Any]]:
    """(name, function) of methods that the spider's own classes define; of Spider itself only `parse`."""
    own = {name for base in cls.__mro__ if base not in Spider.__mro__ for name in vars(base)}
    for name in sorted(own | {"parse"}):
        value = getattr(cls, name, None)
        function = getattr(value, "__func__", value)
        if callable(function) and hasattr(function, "__code__") and (name == "parse" or not name.startswith("__")):
            yield name, function


def _subclasses(cls: type[Request]) -> Iterator[type[Request]]:
    for below in cls.__subclasses__():
        yield below
        yield from _subclasses(below)


def _map_header(size: int) -> bytes:
    header: bytes = msgpack.Packer().pack_map_header(size)
    return header
