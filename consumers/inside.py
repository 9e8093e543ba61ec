"""The consumer inside of a worker's process, for a bus that lives in that process only."""

from __future__ import annotations

import asyncio
import logging

from bus.errors import BusError
from consumers.options import ConsumeOptions, Ended
from consumers.run import consume_urls

__all__ = ["consume_inside"]

log = logging.getLogger(__name__)


async def consume_inside(bus: str, state: str, sink: str, job: str, stop: asyncio.Event) -> int:
    """Store the items of one job until it has ended and all is stored, or `stop` is set; returns an exit code.

    `bus`, `state` and `sink` are URLs. An error is logged in one sentence and gives its exit code.
    """
    options = ConsumeOptions(job=job, until_drained=True, wait_s=3600.0)
    try:
        result = await consume_urls(bus, state, sink, options, stop)
    except BusError as error:
        log.error("%s", error)
        return error.exit_code
    return 4 if result.ended is Ended.NO_JOB else 0
