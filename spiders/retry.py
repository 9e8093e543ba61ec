"""Retries that survive the worker: the same message again, later, with the next attempt."""

from __future__ import annotations

import logging
from random import random
from typing import TYPE_CHECKING

from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.exceptions import NotConfigured
from scrapy.utils.misc import load_object
from scrapy.utils.python import global_object_name
from scrapy.utils.response import response_status_message

from spiders.fetch import Fetch, current_fetch

if TYPE_CHECKING:
    from scrapy import Request
    from scrapy.crawler import Crawler
    from scrapy.http import Response

__all__ = ["BusRetryMiddleware", "retry_delay_s"]

logger = logging.getLogger(__name__)
MIN_DELAY_S, MAX_DELAY_S = 1.0, 60.0


def retry_delay_s(attempt: int) -> float:
    """Seconds before attempt number `attempt` (from 1): exponential backoff with equal jitter, 1 to 60 s.

    Half of the delay is fixed and half random (M. Brooker, "Exponential Backoff And Jitter", 2015), so that no
    retry is at once and those of one outage spread out.
    """
    base_s: float = min(MAX_DELAY_S, 2 * MIN_DELAY_S * 2 ** (attempt - 1))
    return base_s / 2 + random() * base_s / 2


class BusRetryMiddleware:
    """In place of Scrapy's RetryMiddleware; RETRY_ENABLED, RETRY_TIMES, RETRY_HTTP_CODES, RETRY_EXCEPTIONS and the
    meta keys `dont_retry` and `max_retry_times` mean the same. A request that is not from the bus (robots.txt,
    media) is retried at once, as Scrapy does."""

    def __init__(self, crawler: Crawler) -> None:
        settings = crawler.settings
        if not settings.getbool("RETRY_ENABLED"):
            raise NotConfigured
        self._crawler = crawler
        self._times = settings.getint("RETRY_TIMES")
        self._codes = {int(code) for code in settings.getlist("RETRY_HTTP_CODES")}
        self._exceptions = tuple(load_object(cls) for cls in settings.getlist("RETRY_EXCEPTIONS"))

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> BusRetryMiddleware:
        return cls(crawler)

    def process_response(self, request: Request, response: Response) -> Request | Response:
        if response.status not in self._codes or request.meta.get("dont_retry"):
            return response
        return self._retry(request, response_status_message(response.status)) or response

    def process_exception(self, request: Request, exception: Exception) -> Request | None:
        if not isinstance(exception, self._exceptions) or request.meta.get("dont_retry"):
            return None
        return self._retry(request, global_object_name(type(exception)))

    def _retry(self, request: Request, reason: str) -> Request | None:
        fetch, spider = current_fetch.get(), self._crawler.spider
        assert spider is not None
        if fetch is None or fetch.request is not request:
            again: Request | None = get_retry_request(request, reason=reason, spider=spider)
            return again
        times = request.meta.get("max_retry_times", self._times)
        stats = self._crawler.stats
        if fetch.attempt >= times:
            stats.inc_value("retry/max_reached")
            fetch.exhausted = f"{reason} ({_attempts(fetch)})"
            logger.error("Gave up %s after %s: %s", request, _attempts(fetch), reason)
            return None
        stats.inc_value("retry/count")
        stats.inc_value(f"retry/reason_count/{reason}")
        fetch.retry_delay_s = retry_delay_s(fetch.attempt + 1)
        logger.debug("Retrying %s in %.1f s: %s", request, fetch.retry_delay_s, reason)
        return request  # the scheduler knows it by its identity


def _attempts(fetch: Fetch) -> str:
    return "1 attempt" if fetch.attempt == 0 else f"{fetch.attempt + 1} attempts"
