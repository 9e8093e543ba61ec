"""For those who write a transport or a state, and for tests of what is built on them. Needs no test framework."""

from __future__ import annotations

from bus.testing.checks import in_order, no_loss, once_each
from bus.testing.clock import FakeClock
from bus.testing.faults import Faults, FaultyTransport
from bus.testing.state import SharedStateConformance, StateConformance
from bus.testing.transport import Hostile, SharedTransportConformance, TransportConformance, failures

__all__ = [
    "FakeClock",
    "Faults",
    "FaultyTransport",
    "Hostile",
    "SharedStateConformance",
    "SharedTransportConformance",
    "StateConformance",
    "TransportConformance",
    "failures",
    "in_order",
    "no_loss",
    "once_each",
]
