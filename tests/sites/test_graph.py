"""The graph site tells the truth about itself."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest

from tests.sites.graph import EndlessGraph, Graph, GraphSite

FULL = Graph(pages=400, redirects=9, missing=5, broken=3, failing=4, slow=2, slow_s=0.01, unlinked=2)


@pytest.mark.parametrize("graph", [FULL, Graph(pages=50, links=2), Graph(pages=1), Graph(pages=300, seed=7)])
def test_what_is_said_to_be_reachable_is_what_a_walk_finds(graph: Graph) -> None:
    walked = list(graph.walk())
    assert len(walked) == len(set(walked))
    assert set(walked) == graph.reachable


def test_five_percent_of_the_links_of_the_closed_graph_are_new() -> None:
    graph = Graph(pages=2000)
    links = [link for path in graph.page_paths for link in graph.answer(path).links]
    assert len(links) == 2001 * 20
    assert len({*links} - {"/"}) / len(links) == pytest.approx(0.05, abs=0.0001)


@pytest.mark.parametrize("end", [0, -1], ids=["breadth first", "depth first"])
def test_half_of_the_links_of_the_endless_graph_are_new_in_any_order(end: int) -> None:
    graph = EndlessGraph()
    seen, queue = {"/"}, ["/"]
    for _ in range(500):
        links = graph.answer(queue.pop(end)).links
        fresh = dict.fromkeys(link for link in links if link not in seen)
        assert (len(links), len(fresh)) == (20, 10)
        queue += fresh
        seen.update(fresh)


def test_the_server_answers_as_the_graph_says_and_remembers_every_hit() -> None:
    with GraphSite(FULL) as site:
        statuses = Counter(_status(site, path) for path in FULL.reachable)
        assert statuses == {200: 401 - 4, 503: 4, 301: 9 + 4, 404: 5, 500: 3}
        assert site.hits() == Counter(FULL.reachable)
        flaky, *_ = sorted(FULL.flaky)
        assert [_status(site, flaky) for _ in range(3)] == [503, 200, 200]
        site.reset()
        assert site.arrivals() == []
        paths = [flaky, "/broken/1", "/missing/1", "/unlinked/2", "/unlinked/3", "/9999"]
        assert [_status(site, path) for path in paths] == [503, 500, 404, 200, 404, 404]
        assert [arrival.path for arrival in site.arrivals()] == paths
        assert [arrival.path for arrival in site.arrivals(since=5)] == ["/9999"]


def test_slow_pages_are_slow_and_hinder_nobody() -> None:
    graph = Graph(pages=5, slow=1, slow_s=0.5)
    slow = next(path for path in graph.page_paths if graph.answer(path).delay_s)
    with GraphSite(graph) as site, ThreadPoolExecutor() as pool:
        before = time.monotonic()
        answer = pool.submit(_status, site, slow)
        while site.hits()[slow] == 0:
            pass
        assert _status(site, "/") == 200 and not answer.done()
        assert answer.result() == 200 and time.monotonic() - before >= 0.5


def _status(site: GraphSite, path: str) -> int:
    connection = HTTPConnection(site.url.removeprefix("http://"), timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status
