"""`JobsTold`: what a consumer asks of the shared state, and tells it. Nothing waits for it while it is away."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from bus.errors import BusError, ConnectionLost
from bus.state import Job, JobStatus, State

__all__ = ["JobsTold"]

log = logging.getLogger(__name__)


class JobsTold:
    """The state seen by the consumer `name`; without one, nothing is told."""

    def __init__(self, state: State | None, name: str) -> None:
        self._state, self._name = state, name
        self._away = False

    async def ask(self, job: str | None) -> Sequence[JobStatus] | None:
        """The jobs whose end is waited for: all, or one; None while the state cannot be asked."""
        assert self._state is not None
        try:
            if job is None:
                jobs: Sequence[JobStatus] = await self._state.jobs()
            else:
                status = await self._state.status(job)
                jobs = [] if status is None else [status]
        except ConnectionLost as error:
            self._say_away(error)
            return None
        self._say_back()
        return jobs

    async def tell(self, stored: Mapping[Job, int]) -> None:
        """That so many items are stored. For display only."""
        if self._state is None:
            return
        try:
            for job, count in stored.items():
                await self._state.mark(job, (), counts={f"items_stored:{self._name}": count})
        except ConnectionLost as error:
            self._say_away(error)
        except (BusError, ValueError) as error:  # a name that no state can hold
            log.debug("the state was not told the progress: %s", error)
        else:
            if stored:
                self._say_back()

    def _say_away(self, error: ConnectionLost) -> None:
        if not self._away:
            log.warning("the state is away, items are stored all the same: %s", error)
        self._away = True

    def _say_back(self) -> None:
        if self._away:
            log.warning("the state is back")
        self._away = False
