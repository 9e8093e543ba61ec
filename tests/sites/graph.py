"""A site whose link graph is known, and which remembers every hit: `with GraphSite(Graph(pages=500)) as site: …`.

The graph follows from its numbers alone, so that the tests compute it again in their own process.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import blake2b
from http.client import HTTPConnection
from typing import NamedTuple

from spiders.demo.server import Reply, ServerProcess, main, reply

__all__ = ["Answer", "Arrival", "EndlessGraph", "Graph", "GraphSite"]

CONTROL = "/-/"  # what the tests ask; neither linked nor counted
_WORDS = "<p>" + "Some words that no crawler needs. " * 10 + "</p>"


class Arrival(NamedTuple):
    """One request at the server; `at` is in seconds since the epoch."""

    at: float
    path: str


class Answer(NamedTuple):
    """What the site says at a path."""

    status: int = 200
    links: Sequence[str] = ()
    location: str | None = None
    delay_s: float = 0.0


@dataclass(frozen=True)
class EndlessGraph:
    """Every page has `links` links, of which `fresh` go to pages that only this page introduces; the others go to
    pages that were linked before it was found, half of them its neighbours and half the pages that `/` links. So the
    share of repeated links is `1 - fresh / links` in whatever order, and however little, it is crawled.
    """

    links: int = 20
    fresh: int = 10

    def answer(self, path: str) -> Answer:
        parts = path.strip("/").split("/")
        if path == "/":
            return Answer(links=self._children("0") + ["/"] * (self.links - self.fresh))
        if len(parts) != 2 or not parts[1].isdecimal() or int(parts[1]) >= self.fresh:
            return Answer(404)
        number = blake2b(path.encode(), digest_size=6).hexdigest()
        old = [*self._children(parts[0])[::2], *self._children("0")[1::2]] * self.links
        return Answer(links=self._children(number) + old[: self.links - self.fresh])

    def _children(self, parent: str) -> list[str]:
        return [f"/{parent}/{each}" for each in range(self.fresh)]


@dataclass(frozen=True)
class Graph:
    """`pages` pages /1 … /N with `links` links each, all found from `/`, and what lies about them.

    Each page is linked by one found before it, all other links point anywhere: with 20 links, 95 % of the links in a
    whole crawl are repeated.
    """

    pages: int = 500
    links: int = 20
    redirects: int = 0  # /redirect/N, each to a page; every second one by way of another
    missing: int = 0  # /missing/N: 404
    broken: int = 0  # /broken/N: 500, for ever
    failing: int = 0  # so many pages answer 503 `failures` times before they answer
    failures: int = 2
    slow: int = 0  # so many pages take `slow_s`
    slow_s: float = 0.2
    unlinked: int = 0  # /unlinked/N: pages that link, and are linked from nowhere
    seed: int = 1

    def targets(self, number: int) -> list[str]:
        """The paths that page `number` links to, in order; 0 is the page `/`."""
        chance = random.Random(f"{self.seed}:{number}")
        found = [_path(child) for child in self._children.get(number, ())]
        found += [_path(chance.randrange(self.pages + 1)) for _ in range(self.links - len(found))]
        found += self._extras.get(number, ())
        chance.shuffle(found)
        return found

    @cached_property
    def _children(self) -> dict[int, list[int]]:
        """A random tree over all pages in which no page has more children than links."""
        chance = random.Random(f"{self.seed}:tree")
        children: dict[int, list[int]] = {}
        room = [0]
        for number in range(1, self.pages + 1):
            index = chance.randrange(len(room))
            parent = room[index]
            children.setdefault(parent, []).append(number)
            if len(children[parent]) == max(1, self.links // 2):
                room[index] = room[-1]
                room.pop()
            room.append(number)
        return children

    @cached_property
    def _extras(self) -> dict[int, list[str]]:
        chance = random.Random(f"{self.seed}:extras")
        extras: dict[int, list[str]] = {}
        for kind, count in (("redirect", self.redirects), ("missing", self.missing), ("broken", self.broken)):
            for number in range(1, count + 1):
                extras.setdefault(chance.randrange(self.pages + 1), []).append(f"/{kind}/{number}")
        return extras

    @cached_property
    def hops(self) -> dict[str, str]:
        """Where each redirect leads, the second hops included."""
        chance = random.Random(f"{self.seed}:hops")
        hops = {}
        for number in range(1, self.redirects + 1):
            target, path = _path(chance.randrange(1, self.pages + 1)), f"/redirect/{number}"
            if number % 2 == 0:
                hops[path], path = f"/hop/{number}", f"/hop/{number}"
            hops[path] = target
        return hops

    @cached_property
    def flaky(self) -> frozenset[str]:
        """The pages that fail at first."""
        return frozenset(self._troubled[: self.failing])

    @cached_property
    def _slow(self) -> frozenset[str]:
        return frozenset(self._troubled[self.failing :])

    @cached_property
    def _troubled(self) -> list[str]:
        numbers = random.Random(f"{self.seed}:trouble").sample(range(1, self.pages + 1), self.failing + self.slow)
        return [_path(number) for number in numbers]

    @cached_property
    def page_paths(self) -> frozenset[str]:
        """All that answers 200 in the end and can be reached from `/`: what a crawl must store, once each."""
        return frozenset(_path(number) for number in range(self.pages + 1))

    @cached_property
    def reachable(self) -> frozenset[str]:
        """All that must be fetched: the pages, the redirects, what is missing and what is broken."""
        gone = {f"/missing/{number}" for number in range(1, self.missing + 1)}
        return self.page_paths | self.hops.keys() | gone | self.broken_paths

    @cached_property
    def broken_paths(self) -> frozenset[str]:
        """What must end as dead letters."""
        return frozenset(f"/broken/{number}" for number in range(1, self.broken + 1))

    def answer(self, path: str) -> Answer:
        if path in self.hops:
            return Answer(301, location=self.hops[path])
        if path in self.broken_paths:
            return Answer(500)
        if path in self.page_paths:
            return Answer(links=self.targets(int(path[1:] or 0)), delay_s=self.slow_s if path in self._slow else 0.0)
        number = path.removeprefix("/unlinked/")
        if number.isdecimal() and 1 <= int(number) <= self.unlinked:
            return Answer(links=["/"])
        return Answer(404)

    def walk(self) -> Iterator[str]:
        """Every path that following links finds, breadth first: the long way to `reachable`, for its test."""
        queue, seen = ["/"], {"/"}
        for path in queue:
            yield path
            answer = self.answer(path)
            for target in [answer.location] if answer.location else answer.links:
                if target not in seen:
                    seen.add(target)
                    queue.append(target)


def _path(number: int) -> str:
    return f"/{number}" if number else "/"


class _Site:
    """The handler of the server's process."""

    def __init__(self, graph: Graph | EndlessGraph) -> None:
        self._graph = graph
        self._log: list[tuple[float, str]] = []
        self._failures: Counter[str] = Counter()
        self._flaky = graph.flaky if isinstance(graph, Graph) else frozenset()
        self._known: dict[str, Reply] = {}
        for path in graph.reachable if isinstance(graph, Graph) else ():
            self._known[path] = _render(path, graph.answer(path))

    def __call__(self, path: str) -> Reply:
        if path.startswith(CONTROL):
            return self._control(path.removeprefix(CONTROL))
        self._log.append((time.time(), path))
        if path in self._flaky and isinstance(self._graph, Graph) and self._failures[path] < self._graph.failures:
            self._failures[path] += 1
            return reply("later\n", status=503)
        return self._known.get(path) or _render(path, self._graph.answer(path))

    def _control(self, name: str) -> Reply:
        if name == "reset":
            self._log.clear()
            self._failures.clear()
            return reply()
        return reply(json.dumps(self._log[int(name.removeprefix("log/")) :]), content_type="application/json")


def _render(path: str, answer: Answer) -> Reply:
    headers = [("Location", answer.location)] if answer.location else []
    if answer.status != 200:
        return reply(f"{answer.status}\n", status=answer.status, headers=headers)
    links = "\n".join(f'<li><a href="{target}">page {target}</a></li>' for target in answer.links)
    head = f"<!doctype html><html><head><title>Page {path}</title></head>"
    return reply(f"{head}<body>\n{_WORDS}\n<ul>\n{links}\n</ul></body></html>\n", delay_s=answer.delay_s)


class GraphSite(ServerProcess):
    """The site in a process of its own, and its memory. `url` has no slash at its end."""

    def __init__(self, graph: Graph | EndlessGraph) -> None:
        super().__init__("tests.sites.graph", type(graph).__name__, json.dumps(asdict(graph)))

    def arrivals(self, since: int = 0) -> list[Arrival]:
        """All requests, in order of arrival, but for the first `since`."""
        return [Arrival(*each) for each in json.loads(self._ask(f"log/{since}"))]

    def hits(self) -> Counter[str]:
        """How often each path was asked for."""
        return Counter(arrival.path for arrival in self.arrivals())

    def reset(self) -> None:
        """Forget all hits, and fail anew."""
        self._ask("reset")

    def _ask(self, name: str) -> bytes:
        connection = HTTPConnection(self.url.removeprefix("http://"), timeout=30)
        try:
            connection.request("GET", CONTROL + name)
            return connection.getresponse().read()
        finally:
            connection.close()


if __name__ == "__main__":
    kinds = {"Graph": Graph, "EndlessGraph": EndlessGraph}
    parser = argparse.ArgumentParser("python -m tests.sites.graph")
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("graph", help='its fields as JSON, as {"pages": 500}')
    main(lambda arguments, _: _Site(kinds[arguments.kind](**json.loads(arguments.graph))), parser)
