"""What ends a batch."""

from __future__ import annotations

from bus.message import Delivery
from consumers.batcher import MESSAGES, Batcher
from consumers.reader import LogReader
from consumers.sink import Limits
from tests.consumers.scene import TOPIC, messages


def reader(limits: Limits, job: str | None = None) -> LogReader:
    return LogReader(Batcher(limits), job, lambda gap: False, frozenset())


def deliveries(count: int, job: str) -> list[Delivery]:
    (message,) = messages([1], job=job)
    return [Delivery(message, TOPIC, 0, offset, None) for offset in range(count)]


def test_messages_of_other_jobs_end_a_batch_too() -> None:
    """A bus hands out only so many that are not acknowledged, and an ack comes with a batch."""
    reading = reader(Limits(10, 1 << 20, 60.0), "shop")
    batches = [batch for each in deliveries(30, "books") for batch in reading.take(each, 0.0)]
    assert [batch.progress[0].next.offset for batch in batches] == [10, 20, 30]
    assert not any(batch.entries for batch in batches) and all(batch.acks for batch in batches)


def test_a_large_batch_ends_before_a_bus_runs_dry() -> None:
    reading = reader(Limits(100_000, 1 << 40, 60.0))
    batches = [batch for each in deliveries(MESSAGES + 1, "shop") for batch in reading.take(each, 0.0)]
    assert [len(batch.entries) for batch in batches] == [MESSAGES] and 4 * MESSAGES < 65_536
