"""For those who write a sink, and for tests of what is built on sinks. Needs no test framework."""

from __future__ import annotations

from consumers.testing.hazards import Hazard, hazards
from consumers.testing.scene import TOPIC, Target, batch_of, record
from consumers.testing.sink import SinkConformance

__all__ = ["TOPIC", "Hazard", "SinkConformance", "Target", "batch_of", "hazards", "record"]
