"""The SQLite transport keeps the contract."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from adapters.sqlite.transport import SqliteTransport
from bus.testing.transport import Hostile, SharedTransportConformance
from bus.transport import Subscription


class TestSqliteTransport(SharedTransportConformance):
    blocked_leases = 4.0

    @pytest.fixture(autouse=True)
    def _bus(self, tmp_path: Path) -> None:
        self.path = tmp_path / "bus.db"

    async def connect(self) -> SqliteTransport:
        return await SqliteTransport.connect(f"sqlite:///{self.path}", lease_s=self.lease_s)

    async def expel(self, subscription: Subscription) -> None:
        with closing(sqlite3.connect(self.path, timeout=5)) as file, file:
            file.execute("DELETE FROM bus_owners")
            file.execute("UPDATE bus_queue SET owner = 0")

    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.path.parent.iterdir())


class TestHostileSqliteTransport(Hostile, TestSqliteTransport):
    pass
