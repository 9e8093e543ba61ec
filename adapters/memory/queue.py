"""QUEUE topics: what is ready, what waits for its time, and what a reader holds."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from adapters.memory.bell import Bell
from bus.errors import StaleDelivery, Unsupported
from bus.message import Delivery, Message
from bus.transport import Lag, Seek

__all__ = ["Queue", "QueueReader"]

_owners = itertools.count()


class Queued(NamedTuple):
    """Sorted by its number, which no other message of the queue ever gets."""

    number: int
    message: Message
    deliveries: int = 0


class Queue:
    """All its methods are called with the bus's lock held."""

    def __init__(self) -> None:
        self.bell = Bell()
        self._numbers = itertools.count()
        self._ready: list[Queued] = []
        self._delayed: list[tuple[float, int, Message]] = []
        self._held: dict[int, dict[int, Queued]] = {}  # by owner, by number

    def publish(self, messages: Sequence[Message], now: float) -> None:
        for message in messages:
            number, due = next(self._numbers), message.not_before
            if due is None:
                heapq.heappush(self._ready, Queued(number, message))
            else:
                heapq.heappush(self._delayed, (due, number, message._replace(not_before=None)))
        self._ripen(now)
        self.bell.ring()

    def due_in(self, now: float) -> float | None:
        """Seconds until the next delayed message is ready."""
        return self._delayed[0][0] - now if self._delayed else None

    def take(self, owner: int, room: int, now: float) -> list[Queued]:
        """Hand out the oldest; they are `owner`'s until `done` or `hand_back`."""
        self._ripen(now)
        taken = [heapq.heappop(self._ready) for _ in range(min(room, len(self._ready)))]
        taken = [one._replace(deliveries=one.deliveries + 1) for one in taken]
        self._held[owner].update((one.number, one) for one in taken)
        return taken

    def own(self) -> int:
        """A new owner, which holds nothing."""
        owner = next(_owners)
        self._held[owner] = {}
        return owner

    def held(self, owner: int) -> dict[int, Queued] | None:
        """What `owner` holds; None if all was taken from it."""
        return self._held.get(owner)

    def hand_back(self, owner: int) -> None:
        """Take everything from `owner`: it is ready again, in its old order."""
        for one in self._held.pop(owner, {}).values():
            heapq.heappush(self._ready, one)
        self.bell.ring()

    def lag(self, now: float) -> Lag:
        self._ripen(now)
        unacked = sum(len(held) for held in self._held.values())
        return Lag(len(self._ready), unacked, len(self._delayed), exact=True)

    def _ripen(self, now: float) -> None:
        """What is due goes to the end, where work published now would stand."""
        while self._delayed and self._delayed[0][0] <= now:
            _, _, message = heapq.heappop(self._delayed)
            heapq.heappush(self._ready, Queued(next(self._numbers), message))


class QueueReader:
    """What one subscription knows of a queue. Called with the bus's lock held."""

    def __init__(self, name: str, queue: Queue, prefetch: int) -> None:
        self.bell = queue.bell
        self._name, self._queue, self._prefetch = name, queue, prefetch
        self._owner = queue.own()
        self._given: dict[int, set[int]] = {self._owner: set()}  # by owner it was: what was never acked

    def take(self, max_messages: int, now: float) -> list[Delivery]:
        held = self._queue.held(self._owner)
        if held is None:  # the lease was lost: begin anew
            self._owner = self._queue.own()
            self._given[self._owner], held = set(), {}
        taken = self._queue.take(self._owner, max(0, min(max_messages, self._prefetch - len(held))), now)
        self._given[self._owner].update(one.number for one in taken)
        return [Delivery(one.message, self._name, 0, one.number, one.deliveries - 1, self._owner) for one in taken]

    def due_in(self, now: float) -> float | None:
        return self._queue.due_in(now)

    def ack(self, deliveries: Sequence[Delivery], now: float) -> None:
        stale = []
        for delivery in deliveries:
            given = self._given.get(delivery.token)
            held = self._queue.held(delivery.token) if given is not None else None
            if given is not None and held is not None:
                held.pop(delivery.offset, None)
                given.discard(delivery.offset)
            elif given is None or delivery.offset in given:
                stale.append(delivery)
        self.bell.ring()  # a `receive` may wait for room
        if stale:
            raise StaleDelivery(stale)

    def seek(self, to: Seek, now: float) -> None:
        raise Unsupported(f"{self._name!r} is a QUEUE, which has no positions")

    def close(self) -> None:
        self._queue.hand_back(self._owner)
