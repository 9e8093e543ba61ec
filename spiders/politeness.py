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
        self._slots: dict[str, Slot] = {}
        self._workers = 1

    def scale(self, workers: int) -> None:
        """There are so many live workers now. Between changes, AutoThrottle may set what it likes."""
        workers = max(1, workers)
        factor, downloader = workers / self._workers, self._downloader
        for key, slot in downloader.slots.items():
            fresh = self._slots.get(key) is not slot and key in downloader.per_slot_settings
            slot.delay *= workers if fresh else factor  # DOWNLOAD_SLOTS are made with their own delay
        downloader._delay *= factor
        self._slots = dict(downloader.slots)
        self._workers = workers
