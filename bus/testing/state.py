"""The conformance suite of a state: what `bus.state.State` promises, one check a sentence.

A state's test file is one class: subclass `StateConformance` and say how to connect. A runner calls every
`test_…` method on a fresh object whose `connect` opens a store that no other check has seen.
"""

from __future__ import annotations

from bus.testing.state_frontier import FrontierChecks
from bus.testing.state_jobs import JobChecks
from bus.testing.state_leases import LeaseChecks
from bus.testing.state_processes import ProcessChecks

__all__ = ["SharedStateConformance", "StateConformance"]


class StateConformance(FrontierChecks, JobChecks, LeaseChecks):
    """For every state; of one that processes share, `SharedStateConformance` asks more."""


class SharedStateConformance(StateConformance, ProcessChecks):
    """For a state that is shared between processes."""
