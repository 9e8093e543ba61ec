"""What the code must look like: who imports whom, how long things may get, what is written down twice."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from bus.cli import cli
from bus.settings import reference

HOME = Path(__file__).parent.parent
ROOMS = ("bus", "adapters", "spiders", "consumers")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
BUS_MAY_IMPORT = {"bus", "msgpack", "pydantic", *sys.stdlib_module_names}
TERMINAL = {"click", "rich"}
TEST_TOOLS = {"pytest", "hypothesis"}

SOURCES = sorted(path for room in ROOMS for path in (HOME / room).rglob("*.py"))
NAMES = [str(path.relative_to(HOME)) for path in SOURCES]
every_source = pytest.mark.parametrize("path", SOURCES, ids=NAMES)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """The dotted names of all modules a file imports, at its top or later."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            yield node.module or ""


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def room_of(path: Path) -> str:
    return path.relative_to(HOME).parts[0]


def test_all_rooms_are_looked_at() -> None:
    assert {room_of(path) for path in SOURCES} == set(ROOMS)


@every_source
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    others = set(ROOMS) - {room, "bus"}
    assert not roots(path) & others, "a room imports itself and bus; the registry finds the rest"
    if room == "consumers":
        assert "scrapy" not in roots(path)


@pytest.mark.parametrize("path", [path for path in SOURCES if (HOME / "bus") in path.parents], ids=str)
def test_bus_needs_little(path: Path) -> None:
    more = TERMINAL if path.name.startswith("cli") else TEST_TOOLS if "testing" in path.parts else set()
    assert roots(path) <= BUS_MAY_IMPORT | more


@every_source
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@every_source
def test_modules_say_what_is_public(path: Path) -> None:
    if not tree(path).body[1:] or isinstance(tree(path).body[-1], ast.If):
        return  # only a docstring, or a script
    public = [
        [ast.literal_eval(element) for element in node.value.elts]
        for node in tree(path).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets(node))
        and isinstance(node.value, ast.List | ast.Tuple)
    ]
    assert len(public) == 1, "one __all__, a list; its order is ruff's (RUF022)"
    assert public[0]


def targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


@every_source
def test_a_message_never_names_code(path: Path) -> None:
    assert not roots(path) & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    called = {
        node.func.id
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"eval", "exec"}


def test_no_path_of_one_machine() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=HOME, capture_output=True, text=True, check=False)
    files = [HOME / name for name in tracked.stdout.split("\0") if name] or SOURCES
    private = re.compile(rb"(?<![\w.])/(?:work|root|home/\w+|tmp/v)/")
    mine = Path(__file__)
    found = [
        str(file) for file in files if file != mine and file.is_file() and private.search(file.read_bytes())
    ]
    assert not found


def test_the_wheel_holds_the_four_packages_and_is_typed() -> None:
    project = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))
    assert sorted(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == sorted(ROOMS)
    assert all((HOME / room / "py.typed").is_file() for room in ROOMS)


def test_the_page_of_settings_is_the_table() -> None:
    page = (HOME / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page.endswith(reference()), "run: make docs"


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """(name, help) of a command and all below it."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, click.Context(child, parent=context, info_name=name))


def test_every_help_shows_an_example() -> None:
    helps = dict(commands(cli, click.Context(cli, info_name="crawlbus", **cli.context_settings)))
    assert {"crawlbus crawl", "crawlbus consume", "crawlbus status"} <= helps.keys()
    lacking = [name for name, text in helps.items() if not re.search(rf"Examples?:\n(.*\n)*?.*{name}", text)]
    assert not lacking


def test_help_does_not_import_scrapy() -> None:
    code = "import sys; from bus.cli import main; assert main(['--help']) == 0; assert 'scrapy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
