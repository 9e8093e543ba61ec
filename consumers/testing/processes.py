"""What a sink promises of other processes: one that has died is not waited for, one that has slept too long is fenced,
and a kill at any moment leaves rows and progress together."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from consumers.sink import Progress, Sink
from consumers.testing.scene import PATIENCE_S, Scene, Target, batch_of, record, scene

__all__ = ["ProcessChecks"]

FOUR = frozenset(range(4))
KILLS = 4


class ProcessChecks(Target):
    """Each check starts processes of its own, and ends them."""

    @asynccontextmanager
    async def child(self, deed: str, *more: str) -> AsyncIterator[Process]:
        where = f"{self.sink_class.__module__}:{self.sink_class.__qualname__}"
        command = [sys.executable, "-m", "consumers.testing.child", where, self.url, deed, *more]
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    @scene
    async def test_the_share_of_a_process_that_has_died_is_free_at_once(self, s: Scene) -> None:
        sink = await s.opened()
        async with self.child("hold") as child:
            assert await hear(child) == "4"
            assert len(await sink.hold(FOUR)) == 2
            child.kill()
            await child.wait()
            assert (await sink.hold(FOUR)).keys() == FOUR

    @scene
    async def test_one_that_slept_past_its_lease_is_fenced(self, s: Scene) -> None:
        sink = await s.opened()
        async with self.child("sleep", "1.0") as child:
            assert await hear(child) == "4"
            child.send_signal(signal.SIGSTOP)
            await until_held(sink)
            await sink.write(batch_of([record(1)], start=1))
            before = await s.everything()
            child.send_signal(signal.SIGCONT)
            assert child.stdin is not None
            child.stdin.write(b"go on\n")
            assert await hear(child) == "fenced"
            assert await s.everything() == before
        assert s.numbers() == [0, 1]

    @scene
    async def test_kills_lose_nothing_and_store_nothing_twice(self, s: Scene) -> None:
        chance, stored = random.Random(6), 0
        for _ in range(KILLS):
            async with self.child("fill") as child:
                for _ in range(chance.randrange(1, 4)):
                    heard = int(await hear(child))
                await asyncio.sleep(chance.random() * 0.02)
                child.kill()
            before, stored = stored, _count(await s.positions())
            assert stored >= heard > before, "what was said to be stored is"
            assert s.numbers() == list(range(stored))


def _count(positions: list[Progress]) -> int:
    return positions[0].next.offset if positions else 0


async def hear(child: Process) -> str:
    assert child.stdout is not None
    line = await asyncio.wait_for(child.stdout.readline(), PATIENCE_S)
    assert line, "the child has ended"
    return line.decode().strip()


async def until_held(sink: Sink) -> None:
    """All, once the lease of who holds them has run out."""
    give_up = time.monotonic() + PATIENCE_S
    while (await sink.hold(FOUR)).keys() != FOUR:
        assert time.monotonic() < give_up, "the lease does not run out"
        await asyncio.sleep(0.05)
