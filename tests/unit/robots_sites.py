"""A host with any kind of robots.txt; all else on it is a page."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from spiders.demo.server import Reply, main, reply

HOME = '<a href="/private/x">no</a><a href="/public/x">yes</a>'


class _Host:
    """Answers /robots.txt by the list of (status, headers, body) given, the last of them for ever."""

    def __init__(self, answers: list[tuple[int, dict[str, str], str]], slow_s: float) -> None:
        self._answers, self._slow_s = answers, slow_s
        self._asked: Counter[str] = Counter()

    def __call__(self, path: str) -> Reply:
        if path == "/-/asked":
            return reply(json.dumps(self._asked), content_type="application/json")
        self._asked[path] += 1
        if path != "/robots.txt":
            return self._redirect(path) or reply(HOME)
        status, headers, body = self._answers[min(self._asked[path], len(self._answers)) - 1]
        return reply(body, status=status, headers=headers.items(), content_type="text/plain", delay_s=self._slow_s)

    def _redirect(self, path: str) -> Reply | None:
        """/hop/N leads to /hop/N-1, and /hop/0 is a robots.txt."""
        if not path.startswith("/hop/"):
            return None
        left = int(path.removeprefix("/hop/"))
        if left == 0:
            return reply("User-agent: *\nDisallow: /private", content_type="text/plain")
        return reply(status=301, headers=[("Location", f"/hop/{left - 1}")])


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.unit.robots_sites")
    parser.add_argument("answers", type=Path, help="a file with [[status, headers, body], …] as JSON")
    parser.add_argument("slow_s", type=float)
    main(lambda arguments, _: _Host(json.loads(arguments.answers.read_text()), arguments.slow_s), parser)
