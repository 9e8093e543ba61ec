"""`Fleet`: N workers and a consumer as children of one command."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

from bus.state import JobState, JobStatus, State
from spiders.children import Child, ChildFailed
from spiders.patience import insist
from spiders.sinks import is_behind

__all__ = ["Fleet"]

LOOK_S = 0.25
LAST_LOOK_S = 3.0


class Fleet:
    """Starts the children, keeps them alive, and waits for the end of the job.

    `run` returns the exit code: 0 when all workers have left by themselves and the consumer has drained, or after a
    signal; 130 after a second one. A worker that cannot start ends the fleet with its error.
    """

    def __init__(
        self,
        workers: Sequence[Child],
        consumer: Child | None,
        state: State,
        job: str,
        *,
        on_look: Callable[[JobStatus], None] = lambda status: None,
    ) -> None:
        self._workers, self._consumer = workers, consumer
        self._state, self._job, self._on_look = state, job, on_look
        self._signals = 0
        self.last: JobStatus | None = None  # how the job stood when it was last seen
        self._running: asyncio.Task[int] | None = None

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        look = loop.create_task(self._look())
        self._running = loop.create_task(self._run_all())
        try:
            code = await self._running
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_LOOK_S):
                    await self._status()
            return 130 if self._signals > 1 else code
        except asyncio.CancelledError:
            if self._signals < 2:
                raise
            return 130
        finally:
            look.cancel()
            await asyncio.gather(look, return_exceptions=True)
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def _run_all(self) -> int:
        """The workers, then the rest of what the consumer has to store. One that fails ends the others."""
        if self._consumer is None:
            return await self._run_workers()
        consumer = asyncio.create_task(self._consumer.run())
        consumer.add_done_callback(lambda task: self._stop() if task.exception() is not None else None)
        try:
            code = await self._run_workers()
            over = not (code or self._signals) and await self._over()
            if not over:
                self._consumer.stop()
            code = max(code, await consumer)
            if not (code or self._signals) and await self._over() and await self._behind():
                code = await self._consumer.run()
            return code
        except ChildFailed:
            self._consumer.stop()
            await asyncio.gather(consumer, return_exceptions=True)
            raise

    async def _run_workers(self) -> int:
        tasks = [asyncio.create_task(worker.run()) for worker in self._workers]
        try:
            return max(await asyncio.gather(*tasks), default=0)
        except ChildFailed:
            self._stop()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _over(self) -> bool:
        status = await self._status()
        return status is not None and status.state in (JobState.FINISHED, JobState.STOPPED)

    async def _behind(self) -> bool:
        status = await self._status()
        return status is not None and is_behind(status)

    async def _look(self) -> None:
        while True:
            if (status := await self._status()) is not None:
                self._on_look(status)
            await asyncio.sleep(LOOK_S)

    async def _status(self) -> JobStatus | None:
        self.last = await insist(lambda: self._state.status(self._job))
        return self.last

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals > 1:
            for child in self._children:
                child.kill()
            if self._running is not None:  # the state may be away, and never answer
                asyncio.get_running_loop().call_later(LAST_LOOK_S, self._running.cancel)
        else:
            self._stop()

    def _stop(self) -> None:
        for worker in self._workers:
            worker.stop()

    @property
    def _children(self) -> list[Child]:
        return [*self._workers, *([self._consumer] if self._consumer is not None else [])]
