"""What a crawl and its consumer print, with a password in the sink's URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from tests.servers import new_database, shared_url
from tests.spiders.scene import Site, crawlbus, links, project
from tests.spiders.test_jobs import SPIDER

BUS = ("--bus", "sqlite:///bus.db")


def test_no_command_prints_the_password_of_its_sink(tmp_path: Path) -> None:
    site = Site({"/": links("/a"), "/a": ""})
    project(tmp_path, SPIDER)
    with site.open() as url, new_database(shared_url("postgres-15")) as sink:
        password = urlsplit(sink).password
        assert password is not None
        crawl = ["crawl", "shop", "-a", f"url={url}/", *BUS]
        for words in (
            [*crawl, "--workers", "2"], [*crawl, "--restart"], [*crawl, "--restart", "--json"], [*crawl, "--json"],
            ["consume", *BUS, "--name", "other", "--until-drained"],
            ["consume", *BUS, "--name", "third", "--until-drained", "--json"],
            ["replay", "--from", "earliest", *BUS, "--dry-run"], ["replay", "--from", "earliest", *BUS],
            ["replay", "--from", "earliest", *BUS, "--job", "shop", "--json"],
            ["quarantine", "list"], ["quarantine", "list", "--json"], ["quarantine", "retry", "--reason", "x", *BUS],
            ["status", *BUS], ["status", *BUS, "--json"], ["doctor", *BUS], ["doctor", *BUS, "--json"],
            ["config", *BUS], ["config", *BUS, "--json"],
        ):  # fmt: skip
            told = crawlbus(*words, cwd=tmp_path, env={"CRAWLBUS_SINK": sink})
            assert told.code in (0, 1), (words, told)
            assert password not in told.out + told.err, words
