"""Topics: two kinds, and the names that crawlbus gives them."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = ["LANES", "LANE_WEIGHTS", "Kind", "Topic", "dead_log", "item_log", "lane_of", "request_queue"]

LANES = ("high", "", "bulk")  # priority > 0, 0, < 0
LANE_WEIGHTS = {"high": 8, "": 4, "bulk": 1}
RETENTION_S = 7 * 24 * 3600.0


class Kind(Enum):
    """QUEUE: work, done once, an ack removes it. LOG: a record, kept for its retention; readers hold positions."""

    QUEUE = "queue"
    LOG = "log"


class Topic(NamedTuple):
    """A channel of messages. `retention_s` holds for a LOG only; a QUEUE keeps a message until its ack.

    A QUEUE with `hold_s` is a delay band (`bus.bands`): where the transport `HOLDS`, each of its messages moves by
    itself, `hold_s` after it came, to the queue that its header `to` names, and nobody may subscribe to it.
    """

    name: str
    kind: Kind
    retention_s: float | None = None
    hold_s: int | None = None


def lane_of(priority: int) -> str:
    """The lane of a request's priority."""
    return "high" if priority > 0 else "bulk" if priority < 0 else ""


def request_queue(prefix: str, job: str, lane: str = "") -> Topic:
    """The requests of one job in one lane: `crawlbus.shop.requests.high`."""
    return Topic(f"{prefix}{job}.requests" + (f".{lane}" if lane else ""), Kind.QUEUE)


def item_log(prefix: str, retention_s: float = RETENTION_S) -> Topic:
    """The items of all jobs."""
    return Topic(f"{prefix}items", Kind.LOG, retention_s)


def dead_log(prefix: str, retention_s: float = RETENTION_S) -> Topic:
    """The dead letters of all jobs, and the decisions on them."""
    return Topic(f"{prefix}dead", Kind.LOG, retention_s)
