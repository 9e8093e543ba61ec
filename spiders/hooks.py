"""Where Scrapy tells us how a request ends.

Scrapy has no public signal for it (its issue #7978 asks for `finish_request`), so three bound methods are wrapped on
their instances, and a self-test proves that the engine calls them there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scrapy import Request
from scrapy.exceptions import CloseSpider, IgnoreRequest
from scrapy.http import Response
from scrapy.spidermiddlewares.httperror import HttpError
from twisted.python.failure import Failure

from bus.errors import Unsupported
from spiders.fetch import Fetch, current_fetch

if TYPE_CHECKING:
    from scrapy.core.engine import ExecutionEngine

__all__ = ["Hooks"]


class Hooks:
    """`on_finish(request)` once for each request that leaves the engine; `on_close(reason)` when the spider itself
    raised CloseSpider. What a callback or errback made of a request is entered in its `Fetch`."""

    def __init__(self, engine: ExecutionEngine, on_finish: Callable[[Request], None], on_close: Callable[[str], None]):
        self._engine, self._on_finish, self._on_close = engine, on_finish, on_close

    def install(self) -> None:
        """Raises `Unsupported` where this Scrapy does not have, or does not call, what is wrapped."""
        slot: Any = self._engine._slot
        scraper: Any = self._engine.scraper
        try:
            remove, error, call = slot.remove_request, scraper.handle_spider_error, scraper.call_spider_async
            slot.remove_request = self._wrap_remove(remove)
            scraper.handle_spider_error = self._wrap_error(error)
            scraper.call_spider_async = self._wrap_call(call)
            self._self_test(slot)
        except AttributeError as missing:
            raise Unsupported(
                f"this version of Scrapy cannot be used: {missing}; crawlbus needs 2.18 or 2.19"
            ) from None

    def _self_test(self, slot: Any) -> None:
        """The engine must call the wrapper, through the instance."""
        seen: list[Request] = []
        probe, on_finish = Request("data:,crawlbus-self-test"), self._on_finish
        self._on_finish = seen.append
        try:
            slot.add_request(probe)
            self._engine._remove_request(None, probe)
        finally:
            self._on_finish = on_finish
        if seen != [probe]:
            raise Unsupported("this version of Scrapy cannot be used: it does not tell when a request is done")

    def _wrap_remove(self, original: Callable[[Request], None]) -> Callable[[Request], None]:
        def remove_request(request: Request) -> None:
            try:
                self._on_finish(request)
            finally:
                original(request)

        return remove_request

    def _wrap_error(self, original: Callable[..., None]) -> Callable[..., None]:
        def handle_spider_error(failure: Failure, request: Request, response: Response | Failure) -> None:
            fetch, error = current_fetch.get(), failure.value
            if isinstance(error, CloseSpider):
                self._on_close(error.reason or "cancelled")
            elif fetch is not None:
                fetch.fail(fetch.handler or "callback", _describe(failure))
            original(failure, request, response)

        return handle_spider_error

    def _wrap_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        async def call_spider_async(result: Response | Failure, request: Request) -> Any:
            fetch = current_fetch.get()
            if fetch is None:
                return await original(result, request)
            fetch.handler = "errback" if isinstance(result, Failure) and request.errback else "callback"
            if not isinstance(result, Failure):
                fetch.exhausted = None  # the callback takes the response, whatever its status
                return await original(result, request)
            return await _call_errback(fetch, original, result, request)

        return call_spider_async


async def _call_errback(fetch: Fetch, original: Callable[..., Any], result: Failure, request: Request) -> Any:
    try:
        output = await original(result, request)
    except CloseSpider:
        raise
    except Exception:
        if isinstance(result.value, IgnoreRequest):
            fetch.ignored = not isinstance(result.value, HttpError)
        else:
            fetch.fail("download", _describe(result))
        raise
    fetch.exhausted = None  # the errback took it
    return output


def _describe(failure: Failure) -> str:
    """The exception and the innermost line of it, in one line."""
    text = f"{failure.type.__name__}: {failure.value}" if failure.type else str(failure.value)
    frames = failure.frames
    if frames:
        function, path, line = frames[-1][:3]
        text += f" (in {function}, {path.rpartition('/')[2]}:{line})"
    return text
