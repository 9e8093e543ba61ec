"""A power cut: every process ends, and the state is as it was after the last call that waited for the disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.model.explore import Step
from tests.model.stores import Do, Snapshot
from tests.model.world import Process, Setting, World

# What the sqlite state does not wait for; a rule left out adds to it.
HINTS = {"arrive", "retry", "release", "acquire", "drop", "report"}


class PowerCut:
    """Adds it to other steps. `world.saved` is what is on the disk. The bus, which may be elsewhere, loses nothing.

    Word in `setting.rules`: lazy, mark and finish do not wait for the disk.
    """

    def __init__(self, steps: Callable[[Setting, Do], Any], setting: Setting, do: Do) -> None:
        self._setting, self._do = setting, do
        self._hints = HINTS | ({"mark", "finish"} if "lazy" in setting.rules else set())
        self._synced = False
        self._steps = steps(setting, self._noted)

    def _noted(self, before: Snapshot, call: str, *args: Any, **options: Any) -> tuple[Any, Snapshot]:
        answer, after = self._do(before, call, *args, **options)
        self._synced |= call not in self._hints and after != before
        return answer, after

    def __call__(self, world: World) -> Any:
        left = world.left("power")
        self._synced = False
        for step in self._steps(world):
            if left and self._synced:
                step = step._replace(world=step.world._replace(saved=step.world.store))
            yield step
            self._synced = False
        if left and not world.idle:
            yield Step("THE POWER FAILS", self._cut(world), True)

    def _cut(self, world: World) -> World:
        hands = [hand for process in world.processes for hand in process.hands if hand]
        assert world.saved is not None
        return world._replace(
            processes=tuple(Process((None,) * len(process.hands)) for process in world.processes),
            runners=(None,) * len(world.runners),
            store=world.saved._replace(leases=frozenset()),
            saved=None,
            slack=world.slack + sum(self._setting.excuse(hand.message) for hand in hands),
        ).back(*(hand.message for hand in hands if hand.lease)).spend("power")  # fmt: skip
