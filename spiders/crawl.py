"""`crawl`: one command from a spider or a URL to stored items, in this process or with a fleet of children."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from bus.errors import Misconfigured
from bus.jobs import exit_code_of
from bus.registry import connect_state, load
from bus.settings import Settings, job_name, state_url
from bus.shadows import shadows
from bus.state import JobState, JobStatus
from bus.url import hide_secrets, scheme
from spiders.children import Child, ChildFailed, Reached
from spiders.fleet import Fleet
from spiders.project import local_feed, project_settings, spider_class
from spiders.run import run_worker
from spiders.seed import is_url
from spiders.sinks import SinkBeside, consumer_child, is_behind

__all__ = ["Crawl", "CrawlResult"]

DEFAULT_SINK = "sqlite:///crawlbus-items.db"


@dataclass(slots=True)
class CrawlResult:
    """How a crawl went. `status` is None where the job was not even begun, or is not known any more."""

    code: int
    status: JobStatus | None
    errors: str = ""
    elapsed_s: float = 0.0
    pages_before: int = 0
    begun: bool = True


@dataclass(slots=True)
class Crawl:
    """What `crawlbus crawl` was told. `target` is a spider's name or a URL."""

    target: str
    settings: Settings
    workers: int = 1
    forever: bool = False
    restart: bool = False
    arguments: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    as_worker: bool = False  # a child of a fleet: it joins, whatever the job's state, and stores nothing
    on_look: Callable[[JobStatus], None] = lambda status: None

    def __post_init__(self) -> None:
        if self.workers > 1:
            self._refuse_memory()

    def _refuse_memory(self) -> None:
        if scheme(self.settings.bus) == "memory":
            raise Misconfigured("a memory:// bus lives in one process: use --workers 1, or --bus sqlite:///crawlbus.db")
        if scheme(state_url(self.settings)) == "memory":
            raise Misconfigured("a memory:// state lives in one process: use --workers 1, or set --state redis://HOST/0")

    @property
    def is_url(self) -> bool:
        return "://" in self.target

    @property
    def job(self) -> str:
        """The job's name: as told, else the spider's name, for a URL its host and port."""
        if self.settings.job is not None:
            return self.settings.job
        return job_name(urlsplit(self.target).netloc.rpartition("@")[2] if self.is_url else self.target)

    @property
    def sink(self) -> str | None:
        """Where items go: as told; a URL crawled with neither bus nor sink set anywhere has a default."""
        settings = self.settings
        if self.as_worker:
            return None
        bare = self.is_url and settings.origin("bus") == "default"
        return settings.sink or (DEFAULT_SINK if bare else None)

    def run(self) -> CrawlResult:
        """To the job's end, or a signal. Raises `BusError`."""
        if hidden := shadows():
            raise Misconfigured(str(hidden[0]))
        if self.workers > 1 and (feed := local_feed(project_settings(self.overrides))) is not None:
            raise Misconfigured(
                f"FEEDS writes to the local file {feed}, which {self.workers} workers cannot share: use --sink"
            )
        if self.is_url and not is_url(self.target):
            raise Misconfigured(f"{hide_secrets(self.target)!r} cannot be crawled: give a URL of http or https")
        self._refuse_unknown_schemes()
        spider = spider_class("site" if self.is_url else self.target, project_settings({}))
        in_memory = scheme(self.settings.bus) == "memory"
        before = None if in_memory or self.as_worker else asyncio.run(self._prepare())
        if before is not None and before.state is JobState.FINISHED and not self.forever:
            return asyncio.run(self._store_rest(before))
        began_s = time.monotonic()
        if self.workers > 1:
            result = asyncio.run(self._fleet())
        else:
            settings = project_settings(self._scrapy_settings())
            sink = SinkBeside(self.settings.bus, state_url(self.settings), self.sink, self.job) if self.sink else None
            result = CrawlResult(*run_worker(spider, settings, self._spider_arguments(), sink, self.on_look))
        if not (result.code or self.as_worker or result.status is None):
            result.code = exit_code_of(result.status)
        result.elapsed_s = time.monotonic() - began_s
        result.pages_before = before.counters.get("pages", 0) if before is not None else 0
        return result

    def _refuse_unknown_schemes(self) -> None:
        """Before anything is begun: a sink, above all, is asked for only once there are items."""
        load("crawlbus.transports", scheme(self.settings.bus))
        load("crawlbus.states", scheme(state_url(self.settings)))
        if self.sink is not None:
            load("crawlbus.sinks", scheme(self.sink)).from_url(self.sink)

    async def _prepare(self) -> JobStatus | None:
        """How the job stood before, once more from its beginning if so told; None: it is new."""
        state = await connect_state(state_url(self.settings))
        try:
            status = await state.status(self.job)
            return await state.restart(self.job) if status is not None and self.restart else status
        finally:
            await state.aclose()

    async def _store_rest(self, finished: JobStatus) -> CrawlResult:
        """What a command that was killed between the job's end and the consumer's has left in the log."""
        result = CrawlResult(0, finished, begun=False)
        if self.sink is not None and is_behind(finished):
            try:
                result.code = await self._consumer(Reached()).run()
            except ChildFailed as failed:
                result.code, result.errors = failed.code, failed.errors
        return result

    async def _fleet(self) -> CrawlResult:
        state = await connect_state(state_url(self.settings))
        # Before the consumer looks: a job that was stopped goes on now.
        await state.join(self.job, spider="site" if self.is_url else self.target)
        environment = {"CRAWLBUS_BUS": self.settings.bus, "CRAWLBUS_STATE": state_url(self.settings)}
        try:
            arguments, reached, kill_after_s = self._child_arguments(), Reached(), self.settings.grace_s + 10
            workers = [
                Child(arguments, environment, reached, kill_after_s=kill_after_s) for _ in range(self.workers)
            ]
            consumer = self._consumer(reached) if self.sink else None
            fleet = Fleet(workers, consumer, state, self.job, on_look=self.on_look)
            try:
                code, errors = await fleet.run(), ""
            except ChildFailed as failed:
                code, errors = failed.code, failed.errors
            return CrawlResult(code if fleet.last is not None else code or 1, fleet.last, errors=errors)
        finally:
            await state.aclose()

    def _consumer(self, reached: Reached) -> Child:
        assert self.sink is not None
        return consumer_child(self.settings.bus, state_url(self.settings), self.sink, self.job, reached)

    def _child_arguments(self) -> list[str]:
        words = ["crawl", self.target, "--job", self.job, "--as-worker"]
        words += ["--forever"] if self.forever else []
        for letter, values in (("-a", self.arguments), ("-s", self.overrides)):
            for name, value in values.items():
                words += [letter, f"{name}={value}"]
        return words

    def _scrapy_settings(self) -> dict[str, Any]:
        ours = {"BUS_URL": self.settings.bus, "BUS_STATE": state_url(self.settings), "BUS_JOB": self.job}
        return {**self.overrides, **ours, "BUS_FOREVER": self.forever}

    def _spider_arguments(self) -> dict[str, str]:
        return {**({"url": self.target} if self.is_url else {}), **self.arguments}
