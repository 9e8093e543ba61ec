"""`Backoff`: pauses between attempts to reach what is away."""

from __future__ import annotations

from random import random

__all__ = ["Backoff"]


class Backoff:
    """Pauses from `first_s` to `longest_s`, each twice the one before, and each shortened at random by up to half, so
    that a fleet does not come back in one blow (M. Brooker, "Exponential Backoff and Jitter", AWS, 2015)."""

    __slots__ = ("_first_s", "_longest_s", "_next_s")

    def __init__(self, first_s: float = 0.1, longest_s: float = 15.0) -> None:
        self._first_s = self._next_s = first_s
        self._longest_s = longest_s

    def next_s(self) -> float:
        """How long to wait now."""
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, self._longest_s)
        return pause_s * (0.5 + random() / 2)

    def reset(self) -> None:
        """It answered."""
        self._next_s = self._first_s
