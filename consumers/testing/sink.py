"""The conformance suite of a sink: what `consumers.sink.Sink` promises, one check a sentence.

A sink's test file is one class. Each `test_…` method is a plain function, run on a fresh object by pytest or unittest:

    class TestMySink(SinkConformance):
        sink_class = MySink

        @pytest.fixture(autouse=True)
        def _target(self, tmp_path):
            self.url = f"mysink:///{tmp_path}/items"

        def rows(self): ...

The other methods of `Target` are optional, each with the checks that need it.
"""

from __future__ import annotations

from consumers.testing.life import LifeChecks
from consumers.testing.processes import ProcessChecks
from consumers.testing.quarantine import QuarantineChecks
from consumers.testing.shares import ShareChecks
from consumers.testing.values import ValueChecks
from consumers.testing.writes import WriteChecks

__all__ = ["SinkConformance"]


class SinkConformance(WriteChecks, ShareChecks, LifeChecks, QuarantineChecks, ValueChecks, ProcessChecks):
    """For every sink."""
