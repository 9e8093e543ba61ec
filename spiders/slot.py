"""A numbered place in the fleet: the name by which a bus knows a worker and its successors."""

from __future__ import annotations

from itertools import count

from bus.state import Job, State

__all__ = ["take_slot"]


async def take_slot(state: State, job: Job, owner: str) -> str:
    """The lowest number that no live worker has, under a lease; that of a process which is gone is free at once.
    Empty where the job is in another run by now: there is nothing to do for this one."""
    for number in count():
        if await state.acquire(job, f"slot:{number}", owner):
            return str(number)
        if (status := await state.status(job.name)) is None or status.job != job:
            return ""
    raise AssertionError("there is always a free number")
