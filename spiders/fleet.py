"""`Fleet`: N workers and a consumer as children of one command."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence

from bus.state import JobState, JobStatus, State
from spiders.children import Child, ChildFailed
from spiders.sinks import is_behind

__all__ = ["Fleet"]

LOOK_S = 0.25


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

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        look = loop.create_task(self._look())
        consumer = loop.create_task(self._consumer.run()) if self._consumer is not None else None
        try:
            code = await self._run_workers()
            if consumer is not None and self._consumer is not None:
                over = not (code or self._signals) and await self._over()
                if not over:
                    self._consumer.stop()
                code = code or await consumer
                if over and not code and await self._behind():
                    code = await self._consumer.run()
            return 130 if self._signals > 1 else code
        except ChildFailed as failed:
            self._stop()
            raise failed
        finally:
            look.cancel()
            await asyncio.gather(look, *([consumer] if consumer is not None else []), return_exceptions=True)
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def _run_workers(self) -> int:
        tasks = [asyncio.create_task(worker.run()) for worker in self._workers]
        try:
            return max(await asyncio.gather(*tasks), default=0)
        except ChildFailed:
            self._stop()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _over(self) -> bool:
        status = await self._state.status(self._job)
        return status is not None and status.state in (JobState.FINISHED, JobState.STOPPED)

    async def _behind(self) -> bool:
        status = await self._state.status(self._job)
        return status is not None and is_behind(status)

    async def _look(self) -> None:
        while True:
            if (status := await self._state.status(self._job)) is not None:
                self._on_look(status)
            await asyncio.sleep(LOOK_S)

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals > 1:
            for child in self._children:
                child.kill()
        else:
            self._stop()

    def _stop(self) -> None:
        for worker in self._workers:
            worker.stop()

    @property
    def _children(self) -> list[Child]:
        return [*self._workers, *([self._consumer] if self._consumer is not None else [])]
