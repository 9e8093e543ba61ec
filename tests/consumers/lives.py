"""Lives of a consumer and of a publisher: each a process of its own, forked from one that has imported everything."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import multiprocessing
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bus.message import Message
from bus.registry import connect_transport
from bus.topic import item_log
from bus.url import bus_options
from consumers.options import ConsumeOptions
from consumers.run import consume_urls
from tests.consumers.failpoints import Fate, arm
from tests.consumers.places import Place
from tests.consumers.scene import messages
from tests.consumers.verdict import Verdict, watch

__all__ = ["OPTIONS", "Life", "consuming", "killed", "packs", "publishing"]

Work = Callable[..., Coroutine[Any, Any, None]]

PATIENCE_S = 90.0
PACK = 3  # items in a message, so that batches of 7 begin and end inside of them
OPTIONS = ConsumeOptions(batch_items=7, batch_seconds=0.05)
SHORT = {"CHECK_S": 0.5}  # lives are so short that the log would not be looked at otherwise

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [
        "tests.consumers.lives", "adapters.sqlite.transport", "adapters.kafka.transport", "adapters.redis.transport",
        "adapters.rabbitmq.transport", "adapters.sqlite.state", "consumers.sinks.jsonl", "consumers.sinks.parquet",
        "consumers.sinks.postgres.sink", "pytest",
    ]
)  # fmt: skip


class Life:
    """One process."""

    def __init__(self, place: Place, work: Work, *args: Any) -> None:
        self._place = place
        end, self._told = _processes.Pipe(duplex=False)
        self._process = _processes.Process(target=_live, args=(place, end, work, *args), daemon=True)
        self._process.start()
        end.close()

    @property
    def lives(self) -> bool:
        return self._process.is_alive()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def stands(self) -> bool:
        """It was stopped by SIGSTOP."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def wait(self) -> int:
        """How it ended: its exit code, or the number of the signal, below 0."""
        self._process.join(PATIENCE_S)
        if self._process.exitcode is None:
            self.send(signal.SIGUSR1)  # where it stands goes into the log
            self._process.join(2.0)
            raise AssertionError(f"{self.pid} does not end: {self._place.log[-10_000:]}")
        return self._process.exitcode

    def ends_well(self) -> None:
        assert self.wait() == 0, self._place.log[-5000:]

    def end(self) -> None:
        """In good order, as by SIGTERM."""
        self._told.close()
        self.ends_well()

    def kill(self) -> None:
        self._process.kill()
        self.wait()


def _live(place: Place, end: Connection, work: Work, *args: Any) -> None:
    """In the new process. It is told to end when the other side of `end` is closed, also by the death of the test."""
    log = (place.directory / "log").open("a", buffering=1)
    os.dup2(log.fileno(), 2)
    sys.stderr = log
    faulthandler.register(signal.SIGUSR1, log)
    logging.basicConfig(format=f"{os.getpid()} %(name)s: %(message)s", stream=log, force=True)
    random.seed()
    try:
        asyncio.run(_until_told(end, work, place, *args))
    except Exception:
        traceback.print_exc()
        sys.exit(1)


async def _until_told(end: Connection, work: Work, place: Place, *args: Any) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def on_end() -> None:
        loop.remove_reader(end.fileno())
        stop.set()

    loop.add_reader(end.fileno(), on_end)
    await work(place, stop, *args)


async def _consume(
    place: Place, stop: asyncio.Event, options: ConsumeOptions, fate: Fate | None, constants: dict[str, float]
) -> None:
    for constant, value in constants.items():
        for name, module in list(sys.modules.items()):
            if name.startswith("consumers.") and hasattr(module, constant):
                setattr(module, constant, value)
    if fate is not None:
        arm(fate, place.sink)
    result = await consume_urls(place.bus, place.state, place.sink, options, stop)
    logging.warning("%s", result)


async def _publish(place: Place, stop: asyncio.Event, pause_s: float) -> None:
    """Numbered items, a few messages at a time, from where the last publisher was."""
    prefix = bus_options(place.bus).prefix
    transport = await connect_transport(place.bus)
    await transport.declare(item_log(prefix))
    journal, dice, first = place.journal, random.Random(), place.journal.next
    while not stop.is_set():
        numbers = range(first, first := first + PACK * dice.randrange(1, 6))
        journal.note("+", numbers)
        await transport.publish(f"{prefix}items", packs(numbers))
        journal.note("=", numbers)
        await asyncio.sleep(pause_s)
    await transport.aclose()


def packs(numbers: range) -> list[Message]:
    starts = range(numbers.start, numbers.stop, PACK)
    return [message for first in starts for message in messages(range(first, min(first + PACK, numbers.stop)))]


@contextmanager
def _life(place: Place, work: Work, *args: Any) -> Iterator[Life]:
    life = Life(place, work, *args)
    try:
        yield life
    finally:
        if life.lives:
            life.kill()


def consuming(
    place: Place, fate: Fate | None = None, *, constants: Mapping[str, float] = MappingProxyType({}), **options: Any
) -> AbstractContextManager[Life]:
    """A consumer at work, with what is to happen to it, and constants of the product that are other ones for it."""
    return _life(place, _consume, replace(OPTIONS, **options), fate, dict(constants))


def publishing(place: Place, pause_s: float = 0.05) -> AbstractContextManager[Life]:
    """A publisher at work; ended in good order, all that it has tried is confirmed."""
    return _life(place, _publish, pause_s)


def killed(place: Place, points: list[str], *, seed: int = 0, peers: int = 0) -> Verdict:
    """Consumers that die at these points, one after another, while items arrive from a publisher that is killed now
    and then, beside so many `peers` that are not; then all that is left is stored."""
    dice = random.Random(seed)
    watch(place.sink)
    place.end_job()
    with ExitStack() as stack:
        publisher = stack.enter_context(publishing(place))
        with consuming(place, limit=10) as first:  # the group has a position on the bus
            first.ends_well()
        others = [stack.enter_context(consuming(place, constants=SHORT)) for _ in range(peers)]
        for number, point in enumerate(points):
            with consuming(place, Fate(point, dice.randrange(1, 6)), constants=SHORT) as life:
                assert life.wait() == -signal.SIGKILL, place.log[-5000:]
            if number % 5 == 4:
                publisher.kill()
                publisher = stack.enter_context(publishing(place))
        publisher.end()
        for other in others:
            other.end()
    with consuming(place, constants=SHORT, until_drained=True) as last:
        last.ends_well()
    return place.verdict()
