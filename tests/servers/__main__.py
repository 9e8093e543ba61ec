"""`python -m tests.servers [KIND ...]` runs one of each until Ctrl-C, and prints what tells tests of them.
`python -m tests.servers prepare` only fetches and builds what they need, once."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from tests.servers import KINDS, Unavailable, prepare, shared_url, variable

__all__: list[str] = []


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.servers", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="prepare, or of " + ", ".join(KINDS))
    asked = parser.parse_args().kinds
    only_prepare = asked == ["prepare"]
    if unknown := set(asked) - set(KINDS) - {"prepare"}:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    with ThreadPoolExecutor() as pool:
        for line in pool.map(
            partial(_line, prepare if only_prepare else shared_url), asked * (not only_prepare) or KINDS
        ):
            print(line, file=sys.stderr if line.startswith("#") else sys.stdout, flush=True)
    if not only_prepare:
        with suppress(KeyboardInterrupt):
            signal.pause()


def _line(what: Callable[[str], str | None], kind: str) -> str:
    try:
        url = what(kind)
    except Unavailable as error:
        return f"# {kind}: {error}"
    return f"export {variable(kind)}={url}" if url else f"# {kind}: ready"


if __name__ == "__main__":
    main()
