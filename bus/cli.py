"""The command `crawlbus`: finds the commands of all rooms, hands them their settings, and tells errors in one line.

A room's command is a plain `click.Command` made with `common`; it returns its exit code, or None for 0, and raises
`BusError` for all that the user must know.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bus.errors import BusError
from bus.process import exit_code
from bus.registry import resolve
from bus.shadows import PACKAGES, scrapy_project
from bus.url import hide_secrets

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from bus.settings import Settings

__all__ = ["Call", "Finite", "common", "main", "setting"]

F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger(__name__)

OWN = {
    "status": "bus.cli_status",
    "pause": "bus.cli_jobs",
    "resume": "bus.cli_jobs",
    "stop": "bus.cli_jobs",
    "job": "bus.cli_jobs",
    "config": "bus.cli_config",
    "doctor": "bus.cli_doctor",
}


class Call:
    """One call of a command: what was given on the command line, and how to answer.

    `flags` are the settings among the options; `as_json` and `verbose` are `--json` and `-v`.
    """

    def __init__(self, flags: Mapping[str, object], *, as_json: bool, verbose: bool) -> None:
        self.flags, self.as_json, self.verbose = flags, as_json, verbose

    def settings(self, **more: object) -> Settings:
        """The settings from all places, those of the Scrapy project around us included.

        `more` counts as flags; what is None is not given.
        """
        from bus.settings import load

        given = {name: value for name, value in more.items() if value is not None}
        return load({**self.flags, **given}, scrapy=_project_settings())

    @functools.cached_property
    def console(self) -> Console:
        """Where people read: standard output. Not cut to 80 columns where it is no terminal."""
        from rich.console import Console

        return Console(highlight=False, width=None if sys.stdout.isatty() else 160)

    def answer(self, data: object, *shown: RenderableType) -> None:
        """`data` as one line of JSON if asked for, else what is `shown` to people; a string is shown as it is."""
        if self.as_json:
            click.echo(json.dumps(data, ensure_ascii=False))
        else:
            for part in shown:
                self.console.print(part, markup=False, soft_wrap=isinstance(part, str))


class Finite(click.FloatRange):
    """A number in a range, and neither infinite nor NaN, which stands in no range but is let through by it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value!r} is not a finite number.", param, ctx)


class _SettingOption(click.Option):
    """Its help is read from the table of settings, and only when it is shown: that costs a start nothing."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from bus.settings import Settings

        self.help = Settings.model_fields[str(self.name)].description
        return super().get_help_record(ctx)


def setting(name: str, metavar: str) -> Callable[[F], F]:
    """An option for a setting of the table: `setting("sink", "URL")` is `--sink URL`. `common` hands it to `Call`."""
    return click.option(f"--{name.replace('_', '-')}", name, metavar=metavar, cls=_SettingOption)


def common(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Give a command the options that all have. It is called with a `Call`, then with its own parameters."""

    @setting("bus", "URL")
    @setting("state", "URL")
    @setting("job", "NAME")
    @click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
    @click.option("-v", "--verbose", is_flag=True, help="Log more, and show the traceback of a bug.")
    @functools.wraps(command)
    def called(as_json: bool, verbose: bool, **params: Any) -> int | None:
        from bus.settings import Settings

        flags = {name: params.pop(name) for name in Settings.model_fields if name in params}
        _log_to_stderr(verbose)
        return command(Call(flags, as_json=as_json, verbose=verbose), **params)

    return called


class _Commands(click.Group):
    """Our own commands by name; those of the other rooms, and of anybody else, by entry point when one is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._others, *OWN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in OWN:
            command: click.Command = getattr(import_module(OWN[cmd_name]), cmd_name)
            return command
        return self._others.get(cmd_name)

    @functools.cached_property
    def _others(self) -> dict[str, click.Command]:
        found: dict[str, click.Command] = {}
        for point in entry_points(group="crawlbus.commands"):
            try:
                commands: list[click.Command] = resolve(point)
            except ImportError as error:
                _say(f"a bug: the commands of {point.module} cannot be loaded: {error}")
                continue
            found.update((str(command.name), command) for command in commands)
        return found


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="crawlbus", prog_name="crawlbus")
def cli() -> None:
    """Crawl with Scrapy on a message bus: nothing is lost when a worker dies.

    \b
    Examples:
      crawlbus demo
      crawlbus crawl https://example.com
      crawlbus status --watch
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Whatever goes wrong is one line on standard error."""
    try:
        code = cli.main(arguments, prog_name="crawlbus", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        _say(error.format_message() + (f" See: {context.command_path} --help" if context else ""))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # `crawlbus … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _tell(error)


def _tell(error: Exception) -> int:
    leaves = list(_leaves(error))
    known = next((leaf for leaf in leaves if isinstance(leaf, BusError)), None)
    if known is not None:
        _say(str(known))
    else:
        _say(f"a bug: {type(leaves[0]).__name__}: {leaves[0]} (-v shows the traceback)")
    if log.isEnabledFor(logging.DEBUG):
        click.echo(hide_secrets("".join(traceback.format_exception(error))), err=True)
    return 1 if known is None else exit_code(known)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group of a task group, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _say(sentence: str) -> None:
    click.echo(f"crawlbus: {hide_secrets(' '.join(sentence.split()))}", err=True)


def _log_to_stderr(verbose: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING
    )
    for package in ("crawlbus", *PACKAGES):
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.INFO)


def _project_settings() -> Mapping[str, object]:
    """What the Scrapy project around the working directory sets; the Scrapy side knows how to read it."""
    if scrapy_project() is None:
        return {}
    found: dict[str, object] = {}
    for point in entry_points(group="crawlbus.settings"):
        found.update(resolve(point)())
    return found


if __name__ == "__main__":
    from bus.cli import main as entry  # not this copy of the module, which the rooms would import again

    sys.exit(entry())
