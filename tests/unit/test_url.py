"""URLs: file paths, options of the bus, secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.errors import Misconfigured
from bus.url import bus_options, file_path, hide_secrets, query, scheme, without_bus_options


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///crawl.db", Path("crawl.db")),
        ("sqlite:////tmp/crawl.db?table=x", Path("/tmp/crawl.db")),
        ("jsonl:///a/b c.jsonl", Path("a/b c.jsonl")),
        ("sqlite:///a@b:c.db", Path("a@b:c.db")),
    ],
)
def test_paths_are_written_as_in_sqlalchemy(url: str, path: Path) -> None:
    assert file_path(url) == path


@pytest.mark.parametrize("url", ["sqlite://crawl.db", "sqlite://", "sqlite:///", "sqlite://?table=x"])
def test_a_url_without_a_path_says_how_to_write_one(url: str) -> None:
    with pytest.raises(Misconfigured, match="three slashes"):
        file_path(url)


@pytest.mark.parametrize("url", ["crawl.db", "/tmp/x", "SQLITE:///x", "", "://x"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(Misconfigured, match="is not a URL"):
        scheme(url)


def test_options_of_the_bus_are_kept_from_the_adapter() -> None:
    url = "sqlite:///x.db?prefix=test.&retention=90m&mode=a%20b"
    assert bus_options(url) == ("test.", 5400.0)
    assert query(without_bus_options(url)) == {"mode": "a b"}
    assert without_bus_options("memory://?prefix=x") == "memory://"
    assert bus_options("memory://") == ("crawlbus.", 7 * 24 * 3600.0)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0.0), ("3600", 3600.0), ("1.5h", 5400.0), ("30d", 2592000.0), ("10s", 10.0)]
)
def test_retention_takes_units(text: str, seconds: float) -> None:
    assert bus_options(f"memory://?retention={text}").retention_s == seconds


@pytest.mark.parametrize(
    "options", ["retention=week", "retention=-1", "retention=", "prefix=a/b", "prefix=ä"]
)
def test_a_wrong_option_is_named(options: str) -> None:
    with pytest.raises(Misconfigured, match=options.partition("=")[0]):
        bus_options(f"memory://?{options}")


@pytest.mark.parametrize("url", ["redis://:pa?ss@h/0", "amqp://u:pa/ss@h/", "kafka://u:p/?a/ss@h?x=1",
                                 "postgresql://u:pa@ss@h/db", "postgresql://u:p ss@h/db"])  # fmt: skip
def test_a_password_that_would_be_shown_is_refused(url: str) -> None:
    with pytest.raises(Misconfigured, match=r"%(3F|40)") as refused:
        query(url)
    assert "ss" not in str(refused.value).replace("password", "")


def test_a_file_may_have_any_name() -> None:
    assert query("sqlite:///a@b.db?table=x") == {"table": "x"}


@pytest.mark.parametrize(
    ("shown", "url"),
    [
        ("redis://user:***@host/0", "redis://user:secret@host/0"),
        ("redis://:***@host/0", "redis://:secret@host/0"),
        ("amqp://u:***@host/", "amqp://u:se/cr@et@host/"),
        ("kafka://u:***@a:1,b:2?x=1", "kafka://u:secret@a:1,b:2?x=1"),
        ("kafka://h?sasl_password=***&x=1", "kafka://h?sasl_password=secret&x=1"),
        ("redis://h?PASSWD=***", "redis://h?PASSWD=secret"),
        ("https://h/?x=1&access_token=***#f", "https://h/?x=1&access_token=secret#f"),
        ("cannot reach redis://u:***@h/0: timeout", "cannot reach redis://u:secret@h/0: timeout"),
        ("redis://:***@h/0", "redis://:pa#ss@h/0"),
        ("redis://:***@h/0", "redis://:pa?ss@h/0"),
        ("postgresql://u:***@h/db", "postgresql://u:Se Kret@h/db"),
        ("u:***@h/db", "u:SECRET@h/db"),
        ("http://127.0.0.1:80/x?mail=a@b", "http://127.0.0.1:80/x?mail=a@b"),
        ("sqlite:///a@b.db", "sqlite:///a@b.db"),
        ("http://127.0.0.1:8000/x", "http://127.0.0.1:8000/x"),
    ],
)
def test_secrets_are_hidden_and_nothing_else(shown: str, url: str) -> None:
    assert hide_secrets(url) == shown
