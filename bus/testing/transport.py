"""The conformance suite of a transport: what `bus.transport` promises, one check a sentence.

A transport's test file is one class: subclass `TransportConformance` and say how to connect; of one that processes
share, `SharedTransportConformance` asks more. Each `test_…` method is a plain function, so pytest, unittest or
`failures` can run it, on a fresh object whose `connect` opens a bus that no other check has seen.
"""

from __future__ import annotations

from collections.abc import Callable

from bus.testing.transport_cut import CutChecks
from bus.testing.transport_delay import DelayChecks
from bus.testing.transport_lag import LagChecks
from bus.testing.transport_life import LifeChecks
from bus.testing.transport_log import LogChecks
from bus.testing.transport_queue import QueueChecks
from bus.testing.transport_scene import Bus
from bus.testing.transport_shared import SharedChecks
from bus.testing.transport_verbs import VerbChecks

__all__ = ["Hostile", "SharedTransportConformance", "TransportConformance", "failures"]


class TransportConformance(QueueChecks, DelayChecks, LogChecks, LagChecks, LifeChecks, VerbChecks, CutChecks):
    """For every transport."""


class SharedTransportConformance(TransportConformance, SharedChecks):
    """For a transport with `shared_between_processes`."""


class Hostile(Bus):
    """Mix in, first, to run the suite once more with the smallest settings."""

    prefetch = 1
    batch = 1
    lease_s = 0.2


def failures(make: Callable[[], Bus]) -> dict[str, BaseException]:
    """Run all checks, each on a fresh suite, without any test framework; what failed, by name."""
    failed: dict[str, BaseException] = {}
    for name in dir(make()):
        if name.startswith("test_"):
            try:
                getattr(make(), name)()
            except Exception as error:
                failed[name] = error
    return failed
