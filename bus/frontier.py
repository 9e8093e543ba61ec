"""The rules of a frontier that need no store: every state applies these, so that none drifts (ADR 0002)."""

from __future__ import annotations

from typing import NamedTuple

from bus.errors import Misconfigured
from bus.state import MAX_STARTS, Arrival, Attempt, JobState, JobStatus, Verdict

__all__ = ["Begun", "begin", "check_spider", "ends", "retried", "starts_given_back"]


class Begun(NamedTuple):
    """What is in flight, or waits for a retry: the message that has begun a page, its attempt, its starts."""

    message: str
    attempt: int
    starts: int


def begin(entry: Begun | None, arrival: Arrival) -> tuple[Verdict, Begun | None]:
    """What an arriving message may do with a page that is not done, and the page's entry from then on."""
    if entry is not None:
        if entry.message != arrival.message:
            return Verdict.TAKEN, entry
        if entry.attempt > arrival.attempt:
            return Verdict.SUPERSEDED, entry
        if entry.attempt == arrival.attempt:
            return _start_again(entry, arrival)
    return Verdict.FETCH, Begun(arrival.message, arrival.attempt, 1)


def _start_again(entry: Begun, arrival: Arrival) -> tuple[Verdict, Begun]:
    if entry.starts > MAX_STARTS:
        return Verdict.DEAD, entry
    if entry.starts == MAX_STARTS and not arrival.alone:
        return Verdict.ALONE, entry
    return Verdict.FETCH, entry._replace(starts=entry.starts + 1)


def retried(entry: Begun | None, attempt: Attempt) -> Begun | None:
    """The entry after a retry was published; the same entry where this is not its message's next attempt."""
    if entry is None or entry.message != attempt.message or entry.attempt >= attempt.attempt:
        return entry
    return Begun(attempt.message, attempt.attempt, 0)


def starts_given_back(entry: Begun | None, arrival: Arrival) -> Begun | None:
    """The entry after its message came back in good order: one start fewer, never below nought."""
    if entry is None or (entry.message, entry.attempt) != (arrival.message, arrival.attempt):
        return entry
    return entry._replace(starts=max(entry.starts - 1, 0))


def check_spider(job: str, old: str, new: str) -> None:
    """Raises `Misconfigured` where a job of one spider is joined by another one; '' is any."""
    if old and new and old != new:
        raise Misconfigured(f"job {job} is of spider {old}: choose another --job")


def ends(status: JobStatus, *, slow: bool) -> bool:
    """May this job be finished now? `slow`: the caller has seen an empty bus and idle workers (ADR 0002)."""
    if status.state is not JobState.RUNNING:
        return False
    if slow:
        return status.start_ended and not status.loading and not status.forever
    return status.drained and not status.suspect
