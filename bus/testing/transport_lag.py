"""The checks of `lag`. Some buses count in the background: it may be a few seconds late."""

from __future__ import annotations

import time

from bus.testing.transport_scene import Bus, Stage, staged, until
from bus.transport import Lag

__all__ = ["LagChecks"]


class LagChecks(Bus):
    """What is promised of `lag`."""

    @staged
    async def test_lag_counts(self, stage: Stage) -> None:
        """Ready, unacked and delayed as far as they are told, for every connection; in the end nothing."""
        topic = await stage.queue()
        await shows(stage, topic, ready=0, unacked=0, delayed=0)
        await stage.publish(topic, 5)
        delayed = 2 if stage.can.delays else 0
        if delayed:
            await stage.publish(topic, 2, not_before=time.time() + 3600)
        reader = await stage.reader(topic, prefetch=2)
        held = await stage.take(reader, 2)
        await shows(stage, topic, ready=3, unacked=2, delayed=delayed)
        await reader.ack(held)
        await stage.work(reader, 3)
        await shows(stage, topic, ready=0, unacked=0, delayed=delayed)

    @staged
    async def test_lag_counts_readers(self, stage: Stage) -> None:
        """Those of all connections, where it is told."""
        topic = await stage.queue()
        readers = [await stage.reader(topic, by=by) for by in (stage.one, stage.two)]

        async def told(count: int) -> None:
            async def so() -> bool:
                return (await stage.two.lag(topic)).readers in (count, None)

            await until(so)

        await told(2)
        for left, reader in zip((1, 0), readers, strict=True):
            await reader.aclose()
            await told(left)

    @staged
    async def test_lag_of_a_log(self, stage: Stage) -> None:
        """What the group has not acked; of the empty group, and of a new one, all."""
        topic = await stage.log()
        await stage.publish(topic, 5)
        reader = await stage.reader(topic, group="g")
        await stage.work(reader, 3)
        for group, left in (("g", 2), ("", 5), ("new", 5)):
            await leaves(stage, topic, group, left)
        await stage.work(reader, 2)
        await leaves(stage, topic, "g", 0)


async def shows(stage: Stage, topic: str, *, ready: int, unacked: int, delayed: int) -> None:
    """Soon, for the other connection. Where what is unacked is not told, `ready` may hold it, or not."""

    async def so() -> bool:
        lag = await exact_as_declared(stage, topic)
        readies = {ready, None} | ({ready + unacked} if lag.unacked is None else set())
        return lag.ready in readies and lag.unacked in (unacked, None) and lag.delayed in (delayed, None)

    await until(so)


async def leaves(stage: Stage, topic: str, group: str, left: int) -> None:
    """Soon, for the other connection."""

    async def so() -> bool:
        lag = await stage.two.lag(topic, group=group)
        assert lag.exact <= stage.can.exact_lag, "exact, and that is not declared"
        return lag.ready is None or lag.ready + (lag.unacked or 0) == left

    await until(so)


async def exact_as_declared(stage: Stage, topic: str) -> Lag:
    """Exact, soon, where that is declared, and never where it is not. Only of a QUEUE: the offsets of some logs have
    holes that nobody counts."""
    lag = await stage.two.lag(topic)
    if not stage.can.exact_lag:
        assert not lag.exact, "exact, and that is not declared"
        return lag

    async def exact() -> bool:
        nonlocal lag
        lag = await stage.two.lag(topic)
        return lag.exact

    await until(exact)
    return lag
