"""`Watermark`: which prefix of a partition is done, for a bus that can only acknowledge a prefix."""

from __future__ import annotations

from collections import deque

__all__ = ["WINDOW", "Watermark"]

WINDOW = 10_000


class Watermark:
    """Offsets are opened in rising order, with holes or without, and closed in any order.

    `next` is the first offset that may not be given up: all below it are closed. It never moves back. `full`: so many
    have been opened from there on that no more should be (`window`); what comes again after a crash is below that.
    """

    __slots__ = ("_last", "_open", "_order", "_window", "next")

    def __init__(self, next_offset: int, *, window: int = WINDOW) -> None:
        self.next = next_offset
        self._last = next_offset - 1
        self._window = window
        self._order: deque[int] = deque()  # from the first open one on
        self._open: set[int] = set()

    def open(self, offset: int) -> None:
        """Delivered. Raises `ValueError` unless it is above all that came before."""
        if offset <= self._last:
            raise ValueError(f"offset {offset} was opened after {self._last}")
        self._last = offset
        self._open.add(offset)
        self._order.append(offset)

    def close(self, offset: int) -> bool:
        """Done. False, and no change, for one that is not open."""
        if offset not in self._open:
            return False
        self._open.remove(offset)
        order = self._order
        while order and order[0] not in self._open:
            order.popleft()
        self.next = order[0] if order else self._last + 1
        return True

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    @property
    def full(self) -> bool:
        return len(self._order) >= self._window
