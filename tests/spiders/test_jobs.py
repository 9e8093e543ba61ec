"""A job's life from outside: joined, paused, stopped, resumed, ended by signals, and crawled anew."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bus.process import PARENT_FD
from bus.state import JobStatus
from tests.spiders.scene import Ran, Site, crawlbus, environment, left, links, project, stored, wait_until

SPIDER = """
class Shop(scrapy.Spider):
    name = "shop"

    def __init__(self, url):
        super().__init__()
        self.start_urls = [url]

    def parse(self, response):
        yield {"url": response.url}
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href, self.parse)
"""
BUS, SINK = ("--bus", "sqlite:///bus.db"), ("--sink", "sqlite:///items.db")


class Gate:
    """A page that answers only once the gate is open."""

    def __init__(self, page: str) -> None:
        self._page, self._open = page, threading.Event()

    def __call__(self, hit: int) -> str:
        assert self._open.wait(30)
        return self._page

    def open(self) -> None:
        self._open.set()


def gated_site() -> tuple[Site, Gate]:
    """/ leads to /gate and what is behind: a crawl that stands at the gate has nothing else to do."""
    gate = Gate(links("/b"))
    site = Site({"/": links("/gate"), "/gate": gate, "/b": links("/c", "/d"), "/c": links("/"), "/d": links("/b")})
    return site, gate


ALL = {"/": 1, "/gate": 1, "/b": 1, "/c": 1, "/d": 1}


class Crawling(subprocess.Popen[str]):
    """A crawl in the background."""

    def __init__(self, directory: Path, url: str, *arguments: str) -> None:
        self._log = directory / f"{os.urandom(4).hex()}.log"
        words = ["-m", "bus.cli", "crawl", "shop", "-a", f"url={url}/", *BUS, *SINK, *arguments]
        with self._log.open("w") as log:
            super().__init__(
                [sys.executable, "-P", *words], cwd=directory, env=environment(), stdout=log, stderr=log, text=True
            )

    @property
    def out(self) -> str:
        return self._log.read_text()

    def closes(self, workers: int = 1) -> None:
        """Wait until so many of its workers have begun to close: they begin nothing more."""
        wait_until(lambda: self.out.count("INFO: Closing spider") == workers)


@contextmanager
def crawling(directory: Path, url: str, *arguments: str) -> Iterator[Crawling]:
    process = Crawling(directory, url, *arguments)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ends(process: Crawling, code: int = 0) -> str:
    process.wait(timeout=40)
    assert process.returncode == code and "Traceback" not in process.out, process.out
    return process.out


def crawl(directory: Path, url: str, *arguments: str) -> Ran:
    ran = crawlbus("crawl", "shop", "-a", f"url={url}/", *BUS, *SINK, *arguments, cwd=directory)
    assert ran.code == 0 and "Traceback" not in ran.err, ran.out + ran.err
    return ran


def tell(directory: Path, *words: str) -> Ran:
    ran = crawlbus(*words, *BUS, cwd=directory)
    assert ran.code == 0, ran.err
    return ran


def status(directory: Path) -> JobStatus:
    return asyncio.run(left(directory))[1]


def paths(directory: Path) -> list[str]:
    return sorted("/" + row["url"].split("/", 3)[3] for row in stored(directory)[1])


def test_a_finished_job_says_so_and_is_crawled_anew_only_when_told(tmp_path: Path) -> None:
    site = Site({"/": links("/a"), "/a": links("/b"), "/b": ""})
    project(tmp_path, SPIDER)
    with site.open() as url:
        crawl(tmp_path, url)
        again = crawl(tmp_path, url)
        assert "finished at 20" in again.out and "--restart" in again.out and site.hits["/"] == 1
        again = crawl(tmp_path, url, "--workers", "2", "--json")
        assert json.loads(again.out)["state"] == "finished" and site.hits["/"] == 1
        crawl(tmp_path, url, "--restart")
    assert set(site.hits.values()) == {2} and status(tmp_path).job.run == 2
    assert paths(tmp_path) == ["/", "/a", "/b"]
    told = tell(tmp_path, "consume", "--sink", "sqlite:///again.db", "--until-drained", "--json")
    assert json.loads(told.out)["stored"] == 2 * 3, "the log keeps the items of both runs"


def test_what_is_left_in_the_log_of_a_finished_job_is_stored(tmp_path: Path) -> None:
    site = Site({"/": links("/a"), "/a": ""})
    project(tmp_path, SPIDER)
    with site.open() as url:
        ran = crawlbus("crawl", "shop", "-a", f"url={url}/", *BUS, cwd=tmp_path)  # as if killed before it stored them
        assert ran.code == 0 and not (tmp_path / "items.db").exists(), ran.err
        assert "finished at 20" in crawl(tmp_path, url).out
    assert paths(tmp_path) == ["/", "/a"]


def test_a_running_job_is_joined(tmp_path: Path) -> None:
    site, gate = gated_site()
    project(tmp_path, SPIDER)
    with site.open() as url, crawling(tmp_path, url) as first:
        wait_until(lambda: site.hits["/gate"])
        with crawling(tmp_path, url) as second:
            wait_until(lambda: len(status(tmp_path).workers) == 2)
            gate.open()
            ends(first), ends(second)
    assert site.hits == ALL and paths(tmp_path) == sorted(ALL)


def test_a_paused_job_waits_for_resume_only(tmp_path: Path) -> None:
    site, gate = gated_site()
    project(tmp_path, SPIDER)
    with site.open() as url, crawling(tmp_path, url) as first:
        wait_until(lambda: site.hits["/gate"])
        assert "paused" in tell(tmp_path, "pause").out
        wait_until(lambda: status(tmp_path).state.value == "paused")
        threading.Event().wait(1.5)  # a busy worker looks every half second
        gate.open()
        wait_until(lambda: status(tmp_path).counters.get("pages") == 2)
        with crawling(tmp_path, url) as second:
            wait_until(lambda: len(status(tmp_path).workers) == 2)
            threading.Event().wait(1)
            assert first.poll() is None and second.poll() is None
            assert "/b" not in site.hits and status(tmp_path).open == 1
            tell(tmp_path, "resume")
            ends(first), ends(second)
    assert site.hits == ALL and paths(tmp_path) == sorted(ALL)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stopped_job_is_resumed_by_crawl(tmp_path: Path, workers: str) -> None:
    site, gate = gated_site()
    project(tmp_path, SPIDER)
    with site.open() as url:
        with crawling(tmp_path, url, "--workers", workers) as first:
            wait_until(lambda: site.hits["/gate"] and len(status(tmp_path).workers) == int(workers))
            assert "stopped" in tell(tmp_path, "stop").out
            first.closes(int(workers))
            gate.open()
            assert "stopped" in ends(first)
        assert "/c" not in site.hits and paths(tmp_path) == ["/", "/gate"]
        assert "finished" in crawl(tmp_path, url, "--workers", workers).out
    assert site.hits == ALL and paths(tmp_path) == sorted(ALL)


def test_close_spider_stops_two_workers(tmp_path: Path) -> None:
    spider = (
        SPIDER + "        if response.url.endswith('/b'):\n            raise scrapy.exceptions.CloseSpider('enough')\n"
    )
    site, gate = gated_site()
    site.pages["/b"] = lambda hit: links("/c")
    project(tmp_path, spider)

    def last(hit: int) -> str:  # the other worker may have begun it before the job is stopped, and must not end it
        wait_until(lambda: stopped.is_set() or status(tmp_path).state.value == "stopped")
        return links("/")

    stopped = threading.Event()
    site.pages["/c"] = last
    gate.open()
    with site.open() as url:
        assert "stopped" in crawl(tmp_path, url, "--workers", "2").out
        stopped.set()
        assert status(tmp_path).state.value == "stopped"
        assert "finished" in crawl(tmp_path, url).out
    assert site.hits == {name: hits for name, hits in ALL.items() if name != "/d"}


def test_a_worker_that_starts_late_does_not_undo_a_stop(tmp_path: Path) -> None:
    site, gate = gated_site()
    project(tmp_path, SPIDER)
    with site.open() as url:
        with crawling(tmp_path, url) as first:
            wait_until(lambda: site.hits["/gate"])
            tell(tmp_path, "stop")
            first.closes()
            gate.open()
            ends(first)
        words = ["-m", "bus.cli", "crawl", "shop", "-a", f"url={url}/", *BUS, "--as-worker"]
        read_end, write_end = os.pipe()
        try:
            late = subprocess.run(
                [sys.executable, "-P", *words], cwd=tmp_path, env=environment({PARENT_FD: str(read_end)}),
                pass_fds=[read_end], capture_output=True, text=True, timeout=40, check=False,
            )  # fmt: skip
        finally:
            for end in (read_end, write_end):
                os.close(end)
        assert late.returncode == 0 and "Traceback" not in late.stderr, late.stderr
        assert status(tmp_path).state.value == "stopped" and "/b" not in site.hits
        assert "finished" in crawl(tmp_path, url).out
    assert site.hits == ALL


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_graceful(tmp_path: Path, workers: str, number: signal.Signals) -> None:
    site, gate = gated_site()
    project(tmp_path, SPIDER)
    with site.open() as url:
        with crawling(tmp_path, url, "--workers", workers) as first:
            wait_until(lambda: site.hits["/gate"])
            first.send_signal(number)
            threading.Event().wait(0.8)
            gate.open()
            ends(first)
        now = status(tmp_path)
        assert "/b" not in site.hits and now.counters["pages"] == 2, "what was in flight is finished"
        assert now.state.value == "running" and not now.workers and now.open == 1 and now.begun == 0
        crawl(tmp_path, url, "--workers", workers)
    assert site.hits == ALL and paths(tmp_path) == sorted(ALL)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_second_interrupt_ends_at_once_and_loses_nothing(tmp_path: Path, workers: str) -> None:
    site, gate = gated_site()
    project(tmp_path, SPIDER)
    with site.open() as url:
        with crawling(tmp_path, url, "--workers", workers) as first:
            wait_until(lambda: site.hits["/gate"])
            first.send_signal(signal.SIGINT)
            threading.Event().wait(0.8)
            first.send_signal(signal.SIGINT)
            ends(first, 130)
        gate.open()
        crawl(tmp_path, url, "--workers", workers)
    assert site.hits == ALL | {"/gate": 2} and paths(tmp_path) == sorted(ALL)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("after_s", [0.05, 0.8])
def test_a_signal_while_it_starts(tmp_path: Path, workers: str, after_s: float) -> None:
    site, gate = gated_site()
    gate.open()
    project(tmp_path, SPIDER)
    with site.open() as url:
        with crawling(tmp_path, url, "--workers", workers) as first:
            threading.Event().wait(after_s)
            first.send_signal(signal.SIGTERM)
            first.wait(timeout=40)
            assert first.returncode in (0, -signal.SIGTERM) and "Traceback" not in first.out, first.out
        crawl(tmp_path, url, "--workers", workers)
    assert site.hits == ALL and paths(tmp_path) == sorted(ALL)


def test_a_standing_fleet_takes_seeds(tmp_path: Path) -> None:
    site = Site({"/": "x", "/a": links("/b"), "/b": "x", "/c": "x"})
    project(tmp_path, SPIDER)
    with site.open() as url, crawling(tmp_path, url, "--forever") as fleet:
        wait_until(lambda: (tmp_path / "bus.db").exists() and site.hits["/"])
        text = f"{url}/a\n\n# a remark\nnot a url\n{url}/\nftp://x/y\nhttp://\n{url}/c\n".encode() + b"\xff\xfe\n"
        (tmp_path / "urls.txt").write_bytes(text)
        told = crawlbus("seed", "urls.txt", "--job", "shop", *BUS, cwd=tmp_path)
        assert told.code == 0, told.err
        assert [line.split(" is no")[0] for line in told.err.splitlines()] == [
            f"crawlbus: line {n}" for n in (4, 6, 7, 9)
        ]
        assert told.out == "job shop: 2 loaded, 1 known already, 4 bad lines\n"
        wait_until(lambda: site.hits["/b"] and site.hits["/c"])
        wait_until(lambda: status(tmp_path).open == 0)
        assert fleet.poll() is None and status(tmp_path).state.value == "running"
        fleet.send_signal(signal.SIGTERM)
        ends(fleet)
    assert set(site.hits.values()) == {1} and paths(tmp_path) == ["/", "/a", "/b", "/c"]


def test_seeds_of_an_unknown_job(tmp_path: Path) -> None:
    site = Site({"/": "x", "/a": links("/b"), "/b": "x"})
    project(tmp_path, SPIDER)
    with site.open() as url:
        (tmp_path / "urls.txt").write_text(f"{url}/a\n")
        told = crawlbus("seed", "urls.txt", "--job", "mine", *BUS, cwd=tmp_path)
        assert told.code == 2 and "--spider" in told.err and told.err.count("\n") == 1
        told = crawlbus("seed", "urls.txt", "--job", "mine", "--spider", "shop", *BUS, cwd=tmp_path)
        assert told.code == 0, told.err
        (tmp_path / "bad.txt").write_text("nothing\n")
        assert crawlbus("seed", "bad.txt", "--job", "mine", *BUS, cwd=tmp_path).code == 2
        crawl(tmp_path, url, "--job", "mine")
        assert site.hits == {"/": 1, "/a": 1, "/b": 1}
        tell(tmp_path, "seed", "urls.txt", "--job", "mine")
        assert "finished" in crawl(tmp_path, url, "--job", "mine").out and site.hits["/a"] == 1


def test_what_is_known_can_be_warmed_checked_and_forgotten(tmp_path: Path) -> None:
    site = Site({"/": links("/a", "/b"), "/a": "x", "/b": "x"})
    project(tmp_path, SPIDER)
    with site.open() as url:

        def dedup(*words: str, code: int = 0) -> Any:
            ran = crawlbus("dedup", *words, "--job", "shop", "--json", *BUS, cwd=tmp_path)
            assert ran.code == code, ran.err
            return json.loads(ran.out)

        (tmp_path / "known.txt").write_text(f"{url}/b\nnothing\n{url}/b\n")
        assert dedup("warm", "known.txt", "--spider", "shop") == {"given": 2, "new": 1, "bad": 1}
        assert dedup("check", f"{url}/b") == {f"{url}/b": True}
        crawl(tmp_path, url)
        assert site.hits == {"/": 1, "/a": 1} and paths(tmp_path) == ["/", "/a"]
        assert dedup("check", f"{url}/a", f"{url}/new", code=1) == {f"{url}/a": True, f"{url}/new": False}
        stats = dedup("stats")
        assert (stats["seen"], stats["open"]) == (3, 0)
        assert dedup("forget", f"{url}/a", f"{url}/b", f"{url}/new") == {"forgotten": 2}
        (tmp_path / "again.txt").write_text(f"{url}/a\n{url}/\n{url}/b\n")
        assert json.loads(tell(tmp_path, "seed", "again.txt", "--job", "shop", "--json").out)["loaded"] == 2
        crawl(tmp_path, url)
    assert site.hits == {"/": 1, "/a": 2, "/b": 1} and paths(tmp_path) == ["/", "/a", "/b"]
