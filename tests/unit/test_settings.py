"""Settings: places, order, origins, and one sentence for each mistake."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from bus.errors import Misconfigured
from bus.settings import Settings, job_name, load, names, state_url


def read(
    cwd: Path, flags: Mapping[str, object] = {}, env: Mapping[str, str] = {}, **scrapy: object
) -> Settings:
    return load(flags, scrapy, env, cwd)


def test_defaults(tmp_path: Path) -> None:
    settings = read(tmp_path)
    assert (settings.bus, settings.workers, settings.state, settings.origin("bus")) == (
        "sqlite:///crawlbus.db", 1, None, "default",
    )  # fmt: skip


def test_the_later_place_wins_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "crawlbus.toml").write_text(
        'bus = "sqlite:///file.db"\njob = "file"\nworkers = 2\nsink = "jsonl:///f"'
    )
    settings = load(
        {"bus": "sqlite:///flag.db", "state": None},
        {
            "BUS_URL": "sqlite:///scrapy.db",
            "BUS_JOB": "scrapy",
            "BUS_WORKERS": "3",
            "BUS_STATE": None,
            "BUS_STOPS": 1,
        },
        {"CRAWLBUS_BUS": "sqlite:///env.db", "CRAWLBUS_JOB": "env", "CRAWLBUS_SINK": ""},
        tmp_path,
    )
    shown = {
        name: (settings.shown(name), settings.origin(name))
        for name in ("bus", "job", "workers", "sink", "state")
    }
    assert shown == {
        "bus": ("sqlite:///flag.db", "--bus"),
        "job": ("env", "CRAWLBUS_JOB"),
        "workers": (3, "BUS_WORKERS"),
        "sink": ("jsonl:///f", "crawlbus.toml"),
        "state": (None, "default"),
    }


def test_scrapys_s_counts_as_a_flag(tmp_path: Path) -> None:
    settings = read(tmp_path, {"BUS_URL": "memory://", "LOG_LEVEL": "INFO"}, {"CRAWLBUS_BUS": "sqlite:///x"})
    assert (settings.bus, settings.origin("bus")) == ("memory://", "-s BUS_URL")


def test_a_project_file_is_read_where_there_is_no_own_one(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.crawlbus]\njob = "shop"\nbatch_seconds = 0.5')
    settings = read(tmp_path)
    assert (settings.job, settings.batch_seconds, settings.origin("job")) == ("shop", 0.5, "pyproject.toml")
    (tmp_path / "crawlbus.toml").write_text("")
    assert read(tmp_path).job is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('buss = "x"', "crawlbus.toml: 'buss' is no setting: did you mean 'bus'?"),
        ("zzz = 1", "crawlbus.toml: 'zzz' is no setting: there are bus, state, job"),
        ("workers = 0", "workers in crawlbus.toml must be a whole number, 1 or more, not 0"),
        ("bus = 5", "bus in crawlbus.toml must be a URL like sqlite:///crawlbus.db, not 5"),
        ("workers = ", "crawlbus.toml cannot be read: "),
        ("\udcff", "crawlbus.toml cannot be read: "),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "crawlbus.toml").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(Misconfigured, match="^" + re.escape(sentence)) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "crawlbus.toml").mkdir()
    with pytest.raises(Misconfigured, match=r"crawlbus\.toml cannot be read: Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"workers": "two"}, "--workers must be a whole number, 1 or more, not 'two'"),
        ({"batch_seconds": "nan"}, "--batch-seconds must be a number, 0 or more, not 'nan'"),
        ({"BUS_GRACE_S": "-1"}, "-s BUS_GRACE_S must be a number, 0 or more, not '-1'"),
        ({"bus": "crawl.db"}, "--bus must be a URL like sqlite:///crawlbus.db, not 'crawl.db'"),
        (
            {"sink": "Redis://u:secret@h"},
            "--sink must be a URL like sqlite:///items.db, not 'Redis://u:***@h'",
        ),
    ],
)
def test_a_wrong_flag_is_named_as_it_was_written(
    tmp_path: Path, flags: dict[str, object], sentence: str
) -> None:
    with pytest.raises(Misconfigured) as caught:
        read(tmp_path, flags)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("shop", True),
        ("0-a", True),
        ("a" * 63, True),
        ("a" * 64, False),
        ("-a", False),
        ("A", False),
        ("a\n", False),
    ],
)
def test_job_names(tmp_path: Path, name: str, good: bool) -> None:
    if good:
        assert read(tmp_path, env={"CRAWLBUS_JOB": name}).job == name
    else:
        with pytest.raises(Misconfigured, match=r"^CRAWLBUS_JOB must be at most 63"):
            read(tmp_path, env={"CRAWLBUS_JOB": name})


def test_a_job_name_is_made_of_any_name() -> None:
    assert job_name("My_Shop") == "my-shop"
    assert job_name("127.0.0.1:8000") == "127-0-0-1-8000"
    assert job_name("x" * 100) == "x" * 63
    assert job_name("a" * 62 + ".b") == "a" * 62
    with pytest.raises(Misconfigured, match="--job"):
        job_name("...")


def test_secrets_are_in_no_repr(tmp_path: Path) -> None:
    settings = read(tmp_path, {"bus": "redis://u:secret@h/0", "state": "redis://h?password=secret"})
    assert "secret" not in f"{settings!r} {settings} {settings.shown('bus')}"
    assert settings.bus == "redis://u:secret@h/0"


@pytest.mark.parametrize("bus", ["memory://", "sqlite:///x.db", "redis://h/0"])
def test_the_state_is_with_the_bus_where_it_can(tmp_path: Path, bus: str) -> None:
    assert state_url(read(tmp_path, {"bus": bus})) == bus
    assert state_url(read(tmp_path, {"bus": bus, "state": "redis://other/1"})) == "redis://other/1"


@pytest.mark.parametrize("bus", ["amqp://h/", "kafka://h"])
def test_a_bus_without_a_store_asks_for_a_state(tmp_path: Path, bus: str) -> None:
    with pytest.raises(Misconfigured, match="CRAWLBUS_STATE"):
        state_url(read(tmp_path, {"bus": bus}))


def test_each_setting_has_its_names() -> None:
    assert names("bus") == ("bus", "BUS_URL", "CRAWLBUS_BUS", "--bus")
    assert names("batch_size") == ("batch_size", "BUS_BATCH_SIZE", "CRAWLBUS_BATCH_SIZE", "--batch-size")
    assert names("grace_s").flag is None
