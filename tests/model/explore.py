"""Breadth-first search of all states that steps can reach; a trace it reports is a shortest one."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

W = TypeVar("W")


class Step(NamedTuple, Generic[W]):
    label: str
    world: W
    is_fault: bool = False


class Judgement(NamedTuple):
    """The letters of the invariants that are broken here; is everything at rest; is there nothing beyond it."""

    broken: str
    at_rest: bool
    is_end: bool


class Finding(NamedTuple):
    states: int
    broken: dict[str, list[str]]  # letter -> trace
    seconds: float

    @property
    def verdict(self) -> str:
        return "".join(sorted(self.broken)) or "ok"


class Model(NamedTuple, Generic[W]):
    first: W
    steps: Callable[[W], Iterable[Step[W]]]
    judge: Callable[[W], Judgement]
    key: Callable[[W], Hashable]  # equal for worlds that differ in nothing that matters


def explore(model: Model[W], *, until: str | None = None, max_states: int = 5_000_000) -> Finding:
    """Visit every state. S is broken where no state of rest can be reached any more without a further fault.

    `until`: stop as soon as all these letters have been found. Keeps a 64-bit hash of each state.
    """
    began = time.perf_counter()
    index = {hash(model.key(model.first)): 0}
    parents, broken, rest = array("i", [-1]), dict[str, int](), list[int]()
    edges_from, edges_to = array("i"), array("i")
    level = [(0, model.first)]
    while level and not (until and set(until) <= broken.keys()):
        after = []
        for at, world in level:
            letters, at_rest, is_end = model.judge(world)
            for letter in letters:
                broken.setdefault(letter, at)
            if at_rest:
                rest.append(at)
            for step in () if is_end else model.steps(world):
                key = hash(model.key(step.world))
                to = index.setdefault(key, len(parents))
                if to == len(parents):
                    parents.append(at)
                    after.append((to, step.world))
                if not step.is_fault:
                    edges_from.append(at)
                    edges_to.append(to)
        level = after
        assert len(parents) <= max_states, "this setting is too large"
    if not level and (stuck := _first_stuck(len(parents), rest, edges_from, edges_to)) is not None:
        broken["S"] = stuck
    traces = {letter: _trace(model, index, parents, at) for letter, at in broken.items()}
    return Finding(len(parents), traces, time.perf_counter() - began)


def _first_stuck(n: int, rest: list[int], edges_from: array[int], edges_to: array[int]) -> int | None:
    count = array("i", bytes(4 * (n + 1)))
    for to in edges_to:
        count[to + 1] += 1
    for i in range(n):
        count[i + 1] += count[i]
    fill, before = array("i", count), array("i", bytes(4 * len(edges_to)))
    for at, to in zip(edges_from, edges_to, strict=True):
        before[fill[to]] = at
        fill[to] += 1
    good = bytearray(n)
    for at in rest:
        good[at] = 1
    while rest:
        at = rest.pop()
        for i in before[count[at] : count[at + 1]]:
            if not good[i]:
                good[i] = 1
                rest.append(i)
    stuck = good.find(0)
    return None if stuck < 0 else stuck


def _trace(model: Model[W], index: dict[int, int], parents: array[int], at: int) -> list[str]:
    path = []
    while at:
        path.append(at)
        at = parents[at]
    labels, world = [], model.first
    for at in reversed(path):
        step = next(step for step in model.steps(world) if index.get(hash(model.key(step.world))) == at)
        labels.append(step.label)
        world = step.world
    return labels
