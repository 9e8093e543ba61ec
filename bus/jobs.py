"""What is told of a job: the rows of `crawlbus status`, and which job a command means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from bus.errors import BusError, Misconfigured, TransportError
from bus.state import JobState, JobStatus, State
from bus.topic import LANES, request_queue
from bus.transport import Lag, Transport

__all__ = ["NO_JOB", "STATE_COLOURS", "JobRow", "exit_code_of", "job_row", "the_job"]

NO_JOB = "No job here yet. Start one: crawlbus crawl https://example.com"
STATE_COLOURS = {
    JobState.RUNNING: "green",
    JobState.PAUSED: "yellow",
    JobState.STOPPED: "red",
    JobState.FINISHED: "blue",
}
STORED = "items_stored:"  # a consumer's counter: `items_stored:default`


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job as `status --json` shows it. `open` is exact; `queued` and `delayed` are the broker's, None if unknown."""

    job: str
    spider: str
    state: JobState
    open: int
    queued: int | None
    in_flight: int
    delayed: int | None
    dead: int
    items_published: int
    items_stored: Mapping[str, int]
    workers: int
    waiting: int  # workers that cannot reach the bus
    unaccounted: int

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "state": self.state.value}


async def job_row(status: JobStatus, transport: Transport | None, prefix: str) -> JobRow:
    """One job, with what the bus says of its queues, if it is there."""
    counters = status.counters
    queued = delayed = None
    if transport is not None:
        queued, delayed = await _depth(transport, prefix, status.job.name)
    return JobRow(
        job=status.job.name,
        spider=status.spider,
        state=status.state,
        open=status.open,
        queued=queued,
        in_flight=sum(worker.in_flight for worker in status.workers),
        delayed=delayed,
        dead=counters.get("dead", 0),
        items_published=counters.get("items", 0),
        items_stored={
            name.removeprefix(STORED): count for name, count in counters.items() if name.startswith(STORED)
        },
        workers=len(status.workers),
        waiting=sum(worker.bus_away for worker in status.workers),
        unaccounted=status.unaccounted,
    )


async def _depth(transport: Transport, prefix: str, job: str) -> tuple[int | None, int | None]:
    """Requests that wait to be delivered, and those that wait for their time, over all lanes."""
    lags = [await _lag(transport, request_queue(prefix, job, lane).name) for lane in LANES]
    return _sum([lag.ready for lag in lags]), _sum([lag.delayed for lag in lags])


async def _lag(transport: Transport, queue: str) -> Lag:
    """To look makes no queue: where nobody has declared it nothing waits."""
    try:
        return await transport.lag(queue)
    except TransportError:
        raise
    except BusError:
        return Lag(0, 0, 0, exact=True)


def _sum(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


async def the_job(state: State, name: str | None) -> JobStatus:
    """The job that is meant: the one of that name, or the only one there is. Raises `Misconfigured`."""
    if name is not None and (status := await state.status(name)) is not None:
        return status
    jobs = await state.jobs()
    known = ", ".join(sorted(job.job.name for job in jobs))
    if not jobs:
        raise Misconfigured(
            "there is no job here yet: start one with crawlbus crawl, or set --bus to where it is"
        )
    if name is not None:
        raise Misconfigured(f"there is no job {name!r} here: set --job to one of {known}")
    if len(jobs) > 1:
        raise Misconfigured(f"there are several jobs here: set --job to one of {known}")
    return jobs[0]


def exit_code_of(status: JobStatus) -> int:
    """How a crawl has ended: 5 with pages that nothing is known of, 1 where `start()` raised, else 0."""
    if status.unaccounted:
        return 5
    return 1 if status.counters.get("start-errors") else 0
