"""The two contracts of crawlbus, `Transport` and `State`, and what is built over any of them.

What an adapter or a consumer of one's own needs can be imported from here; the rest from its module.
"""

from __future__ import annotations

from bus.capabilities import Acks, Capabilities, Durability, SeekBy
from bus.errors import (
    BusError,
    Closed,
    CodecError,
    ConnectionLost,
    Misconfigured,
    OverLimit,
    PositionExpired,
    PublishUnconfirmed,
    StaleDelivery,
    StorageFailed,
    TransportError,
    Unsupported,
)
from bus.message import Delivery, Message, Position
from bus.registry import connect_state, connect_transport
from bus.state import Arrival, Attempt, Job, JobState, JobStatus, State, Verdict, WorkerReport
from bus.topic import Kind, Topic
from bus.transport import Lag, Subscription, Transport

__all__ = [
    "Acks",
    "Arrival",
    "Attempt",
    "BusError",
    "Capabilities",
    "Closed",
    "CodecError",
    "ConnectionLost",
    "Delivery",
    "Durability",
    "Job",
    "JobState",
    "JobStatus",
    "Kind",
    "Lag",
    "Message",
    "Misconfigured",
    "OverLimit",
    "Position",
    "PositionExpired",
    "PublishUnconfirmed",
    "SeekBy",
    "StaleDelivery",
    "State",
    "StorageFailed",
    "Subscription",
    "Topic",
    "Transport",
    "TransportError",
    "Unsupported",
    "Verdict",
    "WorkerReport",
    "connect_state",
    "connect_transport",
]
