"""A faulty wrapper still keeps the contract: delays and short reads are allowed to everyone."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.memory.transport import MemoryTransport
from bus.testing.faults import Faults, FaultySubscription, FaultyTransport
from bus.testing.transport import TransportConformance
from bus.transport import Subscription


class TestFaultyTransport(TransportConformance):
    @pytest.fixture(autouse=True)
    def _bus(self, tmp_path: Path) -> None:
        self.url = f"memory://{tmp_path}"

    async def connect(self) -> FaultyTransport:
        inner = await MemoryTransport.connect(self.url)
        return FaultyTransport(inner, seed=1, faults=Faults(delay=0.3, delay_s=0.003, short=0.5))

    async def expel(self, subscription: Subscription) -> None:
        assert isinstance(subscription, FaultySubscription)
        await subscription.lose()
