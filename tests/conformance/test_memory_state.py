"""The memory state keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.memory.state import MemoryState
from bus.clock import Clock
from bus.testing.state import StateConformance


class TestMemoryState(StateConformance):
    @pytest.fixture(autouse=True)
    def _store(self, tmp_path: Path) -> None:
        self.url = f"memory://{tmp_path}"

    async def connect(self, clock: Clock | None = None) -> MemoryState:
        return await MemoryState.connect(self.url, clock=clock)
