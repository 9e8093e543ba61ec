"""Delays in a fleet. Until the limiter that the fleet shares, each worker waits as many times the delay as there are
live workers, so that together they keep it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scrapy.core.downloader import Downloader, Slot

__all__ = ["FleetDelay"]


class FleetDelay:
    """Multiplies the delay of every downloader slot, those to come included; a delay of 0 stays 0."""

    def __init__(self, downloader: Downloader) -> None:
        self._downloader = downloader
        self._base_s: float = getattr(downloader, "_delay", 0.0)
        self._slots: dict[str, tuple[Slot, float]] = {}
        self._workers = 1

    def scale(self, workers: int) -> None:
        """There are so many live workers now. Slots made since the last call count as having the delay of then."""
        workers = max(1, workers)
        slots = self._downloader.slots
        for key, slot in slots.items():
            known = self._slots.get(key)
            fresh = slot.delay if key in self._downloader.per_slot_settings else slot.delay / self._workers
            base_s = known[1] if known and known[0] is slot else fresh
            self._slots[key] = (slot, base_s)
            slot.delay = base_s * workers
        if self._base_s:
            self._downloader._delay = self._base_s * workers
        for key in self._slots.keys() - slots.keys():
            del self._slots[key]
        self._workers = workers
