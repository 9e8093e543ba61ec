"""`postgresql://`: items, progress and quarantine in one database, a batch in one transaction."""

from __future__ import annotations

from consumers.sinks.postgres.sink import PostgresSink

__all__ = ["PostgresSink"]
