"""What `jobs.lua` answers, as `JobStatus`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bus.process import is_dead
from bus.state import Job, JobState, JobStatus, WorkerReport

__all__ = ["Known", "known", "report_row"]


class Known(NamedTuple):
    """How a job stands, and the holders of its leases of whom this machine knows that they are gone."""

    status: JobStatus
    gone: frozenset[str]


def known(name: str, reply: Sequence[Any]) -> Known:
    now, server = float(reply[0]), reply[1].decode()
    job, counters, leases, reports = map(_texts, reply[2:])
    state = JobState(job["state"])
    live, gone = _live(leases, now)
    kinds = [lease.partition(":")[0] for lease in live]
    status = JobStatus(
        job=Job(name, int(job["run"])),
        spider=job["spider"],
        state=state,
        open=int(job["open"]),
        seen=int(job["seen"]),
        start_ended=job["start_ended"] == "1",
        loading=kinds.count("seed"),
        forever=kinds.count("forever"),
        suspect=job["suspect"] == "1" or (state is not JobState.FINISHED and job["server"] != server),
        unaccounted=int(job["unaccounted"]),
        created_at=float(job["created_at"]),
        finished_at=float(job["finished_at"]) if "finished_at" in job else None,
        counters={counter: int(n) for counter, n in counters.items()},
        workers=[_report(name, row) for name, row in sorted(reports.items()) if f"worker:{name}" in live],
        begun=int(job["begun"]),
    )
    return Known(status, gone)


def report_row(report: WorkerReport) -> str:
    _, *fields = report._replace(counters=dict(report.counters))
    return json.dumps(fields)


def _report(worker: str, row: str) -> WorkerReport:
    return WorkerReport(worker, *json.loads(row))


def _live(leases: Mapping[str, str], now: float) -> tuple[set[str], frozenset[str]]:
    """The names of the leases that live, and the holders that do not."""
    live, gone = set(), set()
    for name, lease in leases.items():
        expires, holder, _ = lease.split("\n", 2)
        if is_dead(holder):
            gone.add(holder)
        elif float(expires) > now:
            live.add(name)
    return live, frozenset(gone)


def _texts(flat: Sequence[bytes]) -> dict[str, str]:
    texts = [text.decode() for text in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))
