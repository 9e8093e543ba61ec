"""`crawlbus seed` and `crawlbus dedup`: URLs that a person enters, asks for, or takes out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import NamedTuple

from scrapy import Request, Spider
from scrapy.crawler import Crawler
from scrapy.utils.misc import build_from_crawler, load_object

from bus.errors import Misconfigured
from bus.jobs import NO_JOB, the_job
from bus.registry import connect_state, connect_transport
from bus.settings import Settings, state_url
from bus.state import JobStatus, State
from bus.topic import LANES, request_queue
from bus.url import bus_options, missing_file
from spiders.pages import PageIds
from spiders.project import project_settings, spider_class
from spiders.seed import BadLine, read_urls, seed

__all__ = ["Loaded", "check_urls", "forget_urls", "load_seeds", "seen_stats", "warm_urls"]

CHUNK = 10_000


class Loaded(NamedTuple):
    """What became of a file of seeds."""

    job: str
    given: int
    known: int
    bad: list[BadLine]


async def load_seeds(settings: Settings, lines: Iterable[bytes], spider_name: str | None) -> Loaded:
    """Publish and mark each URL. Raises `Misconfigured` if the job is unknown and no spider is named."""
    bad: list[BadLine] = []
    async with _state(settings) as state:
        name = _job(settings)
        status = await state.status(name)
        spider = _spider((status.spider if status is not None else "") or spider_name, name)
        if status is None or not status.spider:
            status = await state.join(name, spider=spider.name)
        transport = await connect_transport(settings.bus)
        try:
            prefix = bus_options(settings.bus).prefix
            await transport.declare(*(request_queue(prefix, name, lane) for lane in LANES))
            pages = _pages(type(spider))
            given, known = await seed(transport, state, settings.bus, status.job, spider, pages, read_urls(lines, bad))
        finally:
            await transport.aclose()
    return Loaded(name, given, known, bad)


async def seen_stats(settings: Settings) -> dict[str, object]:
    """How many pages are known."""
    async with _known(settings) as (_, status):
        return {"job": status.job.name, "seen": status.seen, "open": status.open, "begun": status.begun}


async def check_urls(settings: Settings, urls: Sequence[str]) -> dict[str, bool]:
    """URL -> is it known as seen?"""
    async with _known(settings) as (state, status):
        pages = _ids(status.spider, urls)
        unseen = await state.check(status.job, list(pages.values()))
        return {url: page not in unseen for url, page in pages.items()}


async def forget_urls(settings: Settings, urls: Sequence[str]) -> int:
    """Take URLs out of what is seen; returns how many were there."""
    async with _known(settings) as (state, status):
        return await state.unsee(status.job, list(_ids(status.spider, urls).values()))


async def warm_urls(settings: Settings, lines: Iterable[bytes], spider_name: str) -> tuple[int, int, list[BadLine]]:
    """Enter URLs as seen; creates the job if there is none. Returns (given, new, bad lines)."""
    bad: list[BadLine] = []
    given = new = 0
    async with _state(settings) as state:
        name = _job(settings)
        status = await state.status(name) or await state.join(name, spider=spider_name)
        pages, urls = _pages(_class(status.spider)), read_urls(lines, bad)
        while chunk := list(islice(urls, CHUNK)):
            new += await state.known(status.job, [_id(pages, url) for url in chunk])
            given += len(chunk)
    return given, new, bad


@asynccontextmanager
async def _state(settings: Settings) -> AsyncIterator[State]:
    state = await connect_state(state_url(settings))
    try:
        yield state
    finally:
        await state.aclose()


def _job(settings: Settings) -> str:
    if settings.job is None:
        raise Misconfigured("say which job: set --job")
    return settings.job


@asynccontextmanager
async def _known(settings: Settings) -> AsyncIterator[tuple[State, JobStatus]]:
    """The state and the job of a command that only looks; no file is made by it."""
    if missing_file(state_url(settings)):
        raise Misconfigured(NO_JOB)
    async with _state(settings) as state:
        yield state, await the_job(state, settings.job)


def _class(spider_name: str) -> type[Spider]:
    """The job's spider where it is here, for its fingerprinter; else any will do."""
    try:
        return spider_class(spider_name, project_settings({}))
    except Misconfigured:
        return Spider


def _spider(spider_name: str | None, job: str) -> Spider:
    if not spider_name:
        raise Misconfigured(f"job {job} is not known yet: name its spider with --spider")
    cls = spider_class(spider_name, project_settings({}))
    return cls.__new__(cls)  # its `__init__` may ask for arguments, and only the names of its methods are needed


def _pages(cls: type[Spider]) -> PageIds:
    """Page ids by the project's fingerprinter."""
    settings = project_settings({})
    cls.update_settings(settings)
    crawler = Crawler(cls, settings)
    return PageIds(build_from_crawler(load_object(settings["REQUEST_FINGERPRINTER_CLASS"]), crawler))


def _ids(spider_name: str, urls: Sequence[str]) -> dict[str, bytes]:
    pages = _pages(_class(spider_name))
    return {url: _id(pages, url) for url in urls}


def _id(pages: PageIds, url: str) -> bytes:
    try:
        return pages.of(Request(url), None, root=True, filtered=True)
    except ValueError as error:
        raise Misconfigured(f"{url!r} is no URL: {error}") from None
