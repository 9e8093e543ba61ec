"""What the pages say is there, is there; and what is there, the pages say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from inspect import getmembers, isclass
from pathlib import Path
from typing import get_args

import click
import pytest
from scrapy import Spider

from bus import errors
from bus.capabilities import Capabilities
from bus.cli import cli
from bus.codec import MAX_BYTES, MAX_DEPTH, MAX_VALUES, SCHEMA
from bus.dead import DeadLetter, Reason, dead_letter, decision, read_dead
from bus.items import item_messages, pack_item
from bus.jobs import JobRow
from bus.message import Message
from bus.registry import EXTRAS, Group, known
from bus.settings import Settings, names
from bus.state import Job, State
from bus.transport import Subscription, Transport
from consumers.aside.dead import _again
from spiders.requests import RequestCodec
from tests.capabilities import ALIASES, PAGE, SERVERS, URLS, page

HOME = Path(__file__).parent.parent
DOCS = HOME / "docs"
PAGES = sorted([HOME / "README.md", HOME / "CONTRIBUTING.md", HOME / "CHANGELOG.md", *DOCS.rglob("*.md")])
every_page = pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(HOME)) for path in PAGES])

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SHELL = {"", "sh", "console"}


def text(name: str) -> str:
    return (HOME / name).read_text(encoding="utf-8")


def code(name: str) -> set[str]:
    """All that stands between backticks on a page."""
    return set(re.findall(r"`([^`\n]+)`", text(name)))


def anchors(path: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    context = click.Context(group, **group.context_settings)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def quoted(path: Path) -> Iterator[list[str]]:
    """The words after `crawlbus` of each command in the code blocks of a page."""
    for language, block in _BLOCK.findall(path.read_text(encoding="utf-8")):
        if language in _SHELL:
            for line in block.splitlines():
                for part in re.split(r"\||&&", line.partition(" #")[0]):
                    words = shlex.split(part.replace("…", "NAME"))
                    while words and "=" in words[0]:  # VARIABLE=value before the command
                        words.pop(0)
                    if words[:1] == ["crawlbus"]:
                        yield words[1:]


def parse(words: list[str]) -> None:
    """As the command line would, but nothing is run."""
    command: click.Command = cli
    context = click.Context(cli, **cli.context_settings)
    while isinstance(command, click.Group):
        name, words = words[0], words[1:]
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command = found
    command.make_context(command.name, list(words), parent=context)


def test_some_commands_are_looked_at() -> None:
    assert sum(len(list(quoted(path))) for path in PAGES) > 30


@every_page
def test_commands_in_the_pages_parse(path: Path) -> None:
    for words in quoted(path):
        try:
            parse(words)
        except click.ClickException as error:
            raise AssertionError(f"crawlbus {shlex.join(words)}: {error.format_message()}") from None


@every_page
def test_relative_links_lead_somewhere(path: Path) -> None:
    for link in _LINK.findall(path.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        there = path.parent / target if target else path
        assert there.exists(), f"{link} in {path.name}"
        assert not anchor or anchor in anchors(there), f"{link} in {path.name}: there is no such heading"


@every_page
def test_pages_are_of_no_one_machine(path: Path) -> None:
    assert not re.search(r"/(tmp|root|work|home)/", path.read_text(encoding="utf-8"))


def test_every_page_is_in_the_index() -> None:
    linked = {(DOCS / link).resolve() for link in _LINK.findall(text("docs/README.md"))}
    assert {path for path in DOCS.rglob("*.md") if path != DOCS / "README.md"} <= linked


def test_every_command_has_a_section_with_an_example() -> None:
    page = text("docs/commands.md")
    for words in commands(cli):
        name = " ".join(("crawlbus", *words))
        section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
        assert section, f"no section of {name}"
        assert re.search(rf"^(?:[^\n]*\| )?{name}\b", section[1], re.MULTILINE), f"no example of {name}"


def test_no_command_is_made_up() -> None:
    sections = re.findall(r"^### crawlbus (.+)$", text("docs/commands.md"), re.MULTILINE)
    assert sorted(sections) == sorted(" ".join(words) for words in commands(cli))


def test_every_setting_is_described_by_its_four_names() -> None:
    described = code("docs/settings.md")
    for setting in Settings.model_fields:
        toml, scrapy, environment, flag = names(setting)
        assert {toml, scrapy, environment, flag or f"-s {scrapy}=…"} <= described


def test_every_error_is_in_the_contract_with_its_exit_code() -> None:
    classes = [cls for _, cls in getmembers(errors, isclass) if issubclass(cls, errors.BusError)]
    assert len(classes) > 10
    for cls in classes:
        row = re.search(rf"^\| `{cls.__name__}` \|.*\| (\d) \|$", text("docs/contract.md"), re.MULTILINE)
        assert row, f"{cls.__name__} is not described"
        assert int(row[1]) == cls.exit_code, cls.__name__


@pytest.mark.parametrize("protocol", [Transport, Subscription, State])
def test_every_method_is_in_the_contract(protocol: type) -> None:
    contract = text("docs/contract.md")
    for name in vars(protocol):
        if not name.startswith("_") and callable(getattr(protocol, name)):
            assert re.search(rf"`{name}[(`]", contract), f"{protocol.__name__}.{name} is not described"


def test_capabilities_are_as_declared() -> None:
    assert {*URLS, *SERVERS, *ALIASES} == set(known("crawlbus.transports"))
    assert PAGE.read_text(encoding="utf-8") == page(), "run: make docs"
    assert {field.name for field in fields(Capabilities)} <= code("docs/transports.md")


def a_letter(message: Message) -> Message:
    return dead_letter(message, reason="callback", detail="", job="shop", spider="shop", url=None, at=0.0)


def test_every_header_is_described() -> None:
    codec = RequestCodec(Spider("shop"), "shop", 1)
    request = codec.message(b"p" * 16, b"", source="start", start=True).again(attempt=1)
    letter = a_letter(request)
    dead = read_dead(letter)
    assert isinstance(dead, DeadLetter)
    messages = [
        request,
        letter,
        _again(dead, Job("shop", 2)),
        decision("1", "drop", job="shop", at=0.0),
        *item_messages("shop", "shop", 1, [pack_item("1", None, 0.0, {})]),
    ]
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| ([^|]+) \|", text("docs/messages.md"), re.MULTILINE))
    used = {name for message in messages for name in message.headers}
    assert used <= set(rows)
    assert set(rows) - used == {"item"}  # of an item that could not be sent: inside of its letter


def test_limits_and_schema_are_as_described() -> None:
    page = text("docs/messages.md")
    assert f"({MAX_BYTES:,} bytes)" in page and f"depth {MAX_DEPTH}" in page and f"{MAX_VALUES:,} values" in page
    assert f"version of the format, {SCHEMA} " in page


def test_every_reason_of_a_dead_letter_is_described() -> None:
    section = text("docs/guarantees.md").partition("## What is dead")[2].partition("\n## ")[0]
    found = {reason for row in re.findall(r"^\| (`[^|]+) \|", section, re.M) for reason in re.findall(r"`(\w+)`", row)}
    assert found == set(get_args(Reason))


def test_every_field_of_status_is_described() -> None:
    section = text("docs/guarantees.md").partition("## `crawlbus status`")[2].partition("\n## ")[0]
    described = {name for row in re.findall(r"^\| (`[^|]+) \|", section, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert described == {field.name for field in fields(JobRow)}


@pytest.mark.parametrize("group", ["crawlbus.transports", "crawlbus.sinks"])
def test_the_readme_tells_what_is_there_and_what_is_not(group: Group) -> None:
    kind = {"crawlbus.transports": "bus", "crawlbus.sinks": "sink"}[group]
    table = text("README.md").partition(f"| {kind} | |\n")[2].partition("\n\n")[0]
    there: set[str] = set()
    planned: set[str] = set()
    for row in table.splitlines():
        (planned if "not in this version yet" in row else there).update(re.findall(r"`([a-z+]+)://", row))
    assert there == set(known(group))
    assert planned <= set(EXTRAS)
