"""LOG topics: a list that is trimmed from the front, and how far each group has come."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from datetime import UTC, datetime

from adapters.memory.bell import Bell
from bus.errors import PositionExpired, Unsupported
from bus.message import Delivery, Message, Position
from bus.transport import GROUP_S, Lag, Seek, Start

__all__ = ["Log", "LogReader"]


class Log:
    """All its methods are called with the bus's lock held."""

    def __init__(self, name: str, retention_s: float | None) -> None:
        self.bell = Bell()
        self.name, self.retention_s = name, retention_s
        self.first = 0
        self.groups: dict[str, int] = {}  # the offset after the last one acked
        self.seen: dict[str, float] = {}  # when a group has last subscribed or acked
        self._messages: list[Message] = []
        self._times: list[float] = []  # never going back

    @property
    def end(self) -> int:
        return self.first + len(self._messages)

    def publish(self, messages: Sequence[Message], now: float) -> None:
        if any(message.not_before is not None for message in messages):
            raise Unsupported(f"{self.name!r} is a LOG, which delays nothing: only a QUEUE knows not_before")
        self._messages.extend(messages)
        self._times.extend([max([now, *self._times[-1:]])] * len(messages))
        self.trim(now)
        self.bell.ring()

    def trim(self, now: float) -> None:
        """Remove what is older than the retention and acked by every group that is not long gone."""
        if self.retention_s is None:
            return
        old = bisect_left(self._times, now - self.retention_s)
        gone_at = now - max(GROUP_S, self.retention_s)
        held = (offset for group, offset in self.groups.items() if self.seen[group] > gone_at)
        acked = min(held, default=self.end) - self.first
        if (gone := min(old, acked)) > 0:
            del self._messages[:gone], self._times[:gone]
            self.first += gone

    def read(self, offset: int, count: int) -> list[Message]:
        """Raises `PositionExpired` where the log was trimmed past `offset`."""
        self.check(Position(0, offset))
        return self._messages[offset - self.first : offset - self.first + count]

    def check(self, position: Position) -> None:
        if position.partition != 0 or not self.first <= position.offset <= self.end:
            raise PositionExpired(position, Position(0, self.first), Position(0, self.end))

    def offset_of(self, to: Seek | Start) -> int:
        if to == "latest":
            return self.end
        if isinstance(to, datetime):
            at = (to if to.tzinfo else to.replace(tzinfo=UTC)).timestamp()
            return self.first + bisect_left(self._times, at)
        offset = self.first
        for position in () if to == "earliest" else to:
            assert isinstance(position, Position)
            self.check(position)
            offset = position.offset
        return offset

    def lag(self, group: str, now: float) -> Lag:
        """`ready` is what the group has not acked; nobody knows here which of it a reader has in hand."""
        self.trim(now)
        ready = self.end - max(self.first, self.groups.get(group, 0))
        return Lag(ready, 0, 0, exact=True, first={0: self.first}, end={0: self.end})


class LogReader:
    """What one subscription knows of a log. Called with the bus's lock held."""

    def __init__(self, name: str, log: Log, group: str, prefetch: int, start: Start, now: float) -> None:
        self.bell = log.bell
        self._name, self._log, self._group, self._prefetch = name, log, group, prefetch
        log.trim(now)
        if group:
            log.groups.setdefault(group, log.first)
            log.seen[group] = now
        self._next = log.groups.get(group, log.first) if start == "committed" else log.offset_of(start)
        self._floor = self._next  # all below is acked, or was passed over by a seek

    def take(self, max_messages: int, now: float) -> list[Delivery]:
        self._log.trim(now)
        room = max(0, min(max_messages, self._prefetch - (self._next - self._floor)))
        messages = self._log.read(self._next, room)
        deliveries = [Delivery(m, self._name, 0, self._next + i, None) for i, m in enumerate(messages)]
        self._next += len(deliveries)
        return deliveries

    def due_in(self, now: float) -> float | None:
        return None

    def ack(self, deliveries: Sequence[Delivery], now: float) -> None:
        done = max((delivery.offset + 1 for delivery in deliveries), default=0)
        self._floor = max(self._floor, min(done, self._next))
        if self._group:
            self._log.groups[self._group] = max(self._log.groups[self._group], done)
            self._log.seen[self._group] = now
        self.bell.ring()  # a `receive` may wait for room

    def seek(self, to: Seek, now: float) -> None:
        self._log.trim(now)
        self._next = self._floor = self._log.offset_of(to)
        self.bell.ring()

    def close(self) -> None:
        self.bell.ring()
