"""The sqlite state keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.sqlite.state import SqliteState
from bus.clock import Clock
from bus.testing.state import SharedStateConformance


class TestSqliteState(SharedStateConformance):
    @pytest.fixture(autouse=True)
    def _store(self, tmp_path: Path) -> None:
        self.url = f"sqlite:///{tmp_path}/state.db"

    async def connect(self, clock: Clock | None = None) -> SqliteState:
        return await SqliteState.connect(self.url, clock=clock)

    def url_of_store(self) -> tuple[str, str]:
        return "adapters.sqlite.state:SqliteState", self.url
