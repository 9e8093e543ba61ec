"""`Fetch`: one delivery in the hands of this worker, from the ready buffer to its end."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

from bus.dead import Reason
from bus.message import Delivery
from bus.state import Arrival

if TYPE_CHECKING:
    from scrapy import Request

__all__ = ["Fetch", "current_fetch"]

# Whatever Scrapy does for a request (callbacks, errbacks, middlewares, pipelines, children, redirects) runs in the
# context in which `next_request` handed it out, so nothing of ours has to be in `meta`.
current_fetch: ContextVar[Fetch | None] = ContextVar("crawlbus_fetch", default=None)


class Fetch:
    """One request being crawled. It ends exactly once: finished, dead, or given back to the bus as a retry."""

    __slots__ = (
        "alone",
        "attempt",
        "delivery",
        "exhausted",
        "failure",
        "handler",
        "ignored",
        "is_start",
        "items",
        "origin",
        "page",
        "repeats",
        "request",
        "retry_delay_s",
    )  # fmt: skip

    def __init__(self, delivery: Delivery, page: bytes, *, alone: bool = False) -> None:
        headers = delivery.message.headers
        self.delivery = delivery
        self.page = page
        self.alone = alone
        self.attempt = delivery.message.attempt
        origin = headers.get("origin")
        self.origin = origin if isinstance(origin, bytes) else page  # item ids are made from it
        self.is_start = headers.get("start") is True
        self.request: Request | None = None
        self.items = 0  # ordinals given so far
        self.repeats: dict[bytes, int] | None = None  # fingerprint -> how often a `dont_filter` request had it
        self.handler: Literal["callback", "errback"] | None = None  # called already: what comes is a link, no redirect
        self.exhausted: str | None = None  # a status worth a retry came back after the last attempt
        self.ignored = False  # not fetched: robots.txt, offsite, IgnoreRequest
        self.failure: tuple[Reason, str] | None = None
        self.retry_delay_s: float | None = None

    @property
    def message_id(self) -> str:
        return self.delivery.message.id

    @property
    def arrival(self) -> Arrival:
        return Arrival(self.page, self.message_id, self.attempt, self.alone)

    def fail(self, reason: Reason, detail: str) -> None:
        """Remember why this page is dead; the first reason counts."""
        if self.failure is None:
            self.failure = (reason, detail)

    def next_ordinal(self) -> int:
        """The ordinal of the next item within this response."""
        self.items += 1
        return self.items - 1

    def repeat(self, fingerprint: bytes) -> int:
        """How many times this fingerprint came from this page before, as a `dont_filter` request."""
        if self.repeats is None:
            self.repeats = {}
        count = self.repeats.get(fingerprint, 0)
        self.repeats[fingerprint] = count + 1
        return count

    def verdict(self) -> tuple[Reason, str] | None:
        """Why this page is dead, or None: it is finished."""
        if self.failure is None and self.exhausted is not None:
            return "status", self.exhausted
        return self.failure
