"""Invariants of a bus, as functions that raise `AssertionError` with what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

__all__ = ["in_order", "no_loss", "once_each"]


def no_loss(published: Iterable[str], done: Iterable[str]) -> None:
    """Each id whose publish was confirmed has been done, at least once."""
    if lost := sorted(set(published) - set(done)):
        raise AssertionError(f"{len(lost)} messages were lost: {lost[:5]}")


def once_each(published: Iterable[str], done: Iterable[str]) -> None:
    """Exactly the published ids have been done, each as often as it was published."""
    wanted, found = Counter(published), Counter(done)
    no_loss(wanted, found)
    if surplus := found - wanted:
        raise AssertionError(f"{surplus.total()} deliveries too many: {list(surplus)[:5]}")


def in_order(published: Iterable[str], received: Iterable[str]) -> None:
    """What was received is what was published, in its order."""
    wanted, found = list(published), list(received)
    if wanted != found:
        at = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), len(found))
        raise AssertionError(f"{len(found)} of {len(wanted)} were received; the order differs from number {at} on")
