"""The memory transport keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.memory.transport import MemorySubscription, MemoryTransport
from bus.testing.transport import Hostile, TransportConformance
from bus.transport import Subscription


class TestMemoryTransport(TransportConformance):
    @pytest.fixture(autouse=True)
    def _bus(self, tmp_path: Path) -> None:
        self.url = f"memory://{tmp_path}"

    async def connect(self) -> MemoryTransport:
        return await MemoryTransport.connect(self.url)

    async def expel(self, subscription: Subscription) -> None:
        assert isinstance(subscription, MemorySubscription)
        subscription._reader.close()


class TestHostileMemoryTransport(Hostile, TestMemoryTransport):
    pass
