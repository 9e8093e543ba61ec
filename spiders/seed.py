"""Enter URLs in a job by hand: `crawlbus seed`, and `dedup warm`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

from scrapy import Request, Spider

from bus.message import new_id
from bus.state import Job, State
from bus.topic import request_queue
from bus.transport import Transport
from bus.url import bus_options
from spiders.batch import Link
from spiders.outbox import Outbox, OutboxTopics
from spiders.pages import PageIds
from spiders.requests import RequestCodec

__all__ = ["BadLine", "is_url", "read_urls", "seed"]

logger = logging.getLogger(__name__)

CHUNK = 1000
MAX_URL_CHARS = 8192


class BadLine(NamedTuple):
    """A line of a file that is no URL. Lines count from 1."""

    number: int
    text: str


def read_urls(lines: Iterable[bytes], bad: list[BadLine]) -> Iterator[str]:
    """One http(s) URL per line; empty lines and lines that begin with # are skipped, bad ones collected."""
    for number, line in enumerate(lines, 1):
        text = line.decode("utf-8", errors="replace").strip()
        if not text or text.startswith("#"):
            continue
        if is_url(text):
            yield text
        else:
            bad.append(BadLine(number, text[:80]))


def is_url(text: str) -> bool:
    """Can it be crawled?"""
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and len(text) <= MAX_URL_CHARS
            and "�" not in text
        )
    except ValueError:
        return False


async def seed(
    transport: Transport, state: State, bus_url: str, job: Job, spider: Spider, pages: PageIds, urls: Iterable[str]
) -> tuple[int, int]:
    """Publish and mark each URL under a `seed` lease, so that the job cannot end before they are loaded.

    Returns how many were given and how many of these were known already. Repeating it changes nothing.
    """
    owner = new_id()
    await state.acquire(job, f"seed:{owner}", owner)
    outbox = _outbox(transport, state, bus_url, job, spider)
    given = 0
    try:
        for url in urls:
            request = Request(url)
            page = pages.of(request, None, root=True, filtered=True)
            outbox.link(page, Link(url, 0, "seed", start=True, request=request))
            given += 1
            if given % CHUNK == 0:
                await outbox.send()
        await outbox.send()
    finally:
        await state.drop(job, f"seed:{owner}", owner)
    return given, given - outbox.published


def _outbox(transport: Transport, state: State, bus_url: str, job: Job, spider: Spider) -> Outbox:
    prefix = bus_options(bus_url).prefix
    lanes = {lane: request_queue(prefix, job.name, lane).name for lane in ("high", "", "bulk")}

    class Nobody:
        async def ack(self, deliveries: object) -> None:
            raise AssertionError("a seed holds no deliveries")

    def failed(error: BaseException) -> None:
        raise error

    topics = OutboxTopics(lanes, f"{prefix}items", f"{prefix}dead")
    codec = RequestCodec(spider, job.name, job.run)
    return Outbox(
        transport, state, Nobody(), codec, topics, job, spider.name, on_ended=lambda count: None, on_failure=failed
    )
