"""`SeenFilter`: in front of the state, the pages this process knows as seen or has in its outbox."""

from __future__ import annotations

__all__ = ["SeenFilter"]


class SeenFilter:
    """A bounded set in two generations. A page in it need not be published again by this process.

    That holds for a page whose link waits in the outbox, too: the outbox marks every batch whatever becomes of the
    deliveries that filled it, and a later page is finished in the same batch or in a later one (ADR 0002).
    """

    def __init__(self, *, size: int = 200_000) -> None:
        self._size = size
        self._new: set[bytes] = set()
        self._old: set[bytes] = set()

    def add(self, page: bytes) -> bool:
        """Enter a page; False if it was there."""
        if page in self._new:
            return False
        known = page in self._old
        if len(self._new) >= self._size:
            self._old, self._new = self._new, set()
        self._new.add(page)
        return not known

    def clear(self) -> None:
        """After `dedup forget`, or in a new run."""
        self._new.clear()
        self._old.clear()
