"""The contract of a transport: nine methods. `docs/contract.md` says the same in MUST and SHOULD;
`bus.testing.TransportConformance` proves each sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol, TypeAlias

from bus.capabilities import Capabilities
from bus.message import Delivery, Message, Position
from bus.topic import Topic

__all__ = ["GROUP_S", "Lag", "Seek", "Start", "Subscription", "Transport"]

GROUP_S = 7 * 24 * 3600.0  # how long a group that is not seen any more holds a log back, at least

Seek: TypeAlias = Literal["earliest", "latest"] | Sequence[Position] | datetime
Start: TypeAlias = Literal["committed"] | Seek


@dataclass(frozen=True, slots=True)
class Lag:
    """How much work is left for a group. None: the transport cannot tell.

    `ready` may be delivered now, `delayed` waits for its time, `unacked` is in a reader's hands. Of a LOG,
    `first` and `end` hold, for each partition, the first offset kept and the one the next message will get.
    Where `unacked` of a QUEUE is None, so many `readers` may hold some that is not in `ready`; without `readers`,
    `ready` is all that is not acknowledged. `exact` is False where any number is an estimate.
    """

    ready: int | None
    unacked: int | None
    delayed: int | None
    exact: bool
    first: Mapping[int, int] | None = None
    end: Mapping[int, int] | None = None
    readers: int | None = None


class Subscription(Protocol):
    """One reader of one topic. One task at a time reads it; a second one gets `BusError`.

    Where the bus is away, calls raise `ConnectionLost`, at once or after a few seconds, until it is back; the
    subscription connects again by itself, with jittered pauses, and goes on: of a QUEUE what was unacknowledged is
    delivered again and its old deliveries are stale, of a LOG the next message is the one after the last received.
    """

    async def receive(self, *, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        """At most `max_messages`, as soon as there is one; empty after `timeout_s`.

        Never more than `prefetch` unacknowledged. Cancelling loses nothing. What has one key comes in publish order
        on first delivery; of different keys nothing is promised, as they may be in different partitions.
        """
        ...

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Done: not delivered again to this group. Any number, repeating is harmless.

        QUEUE: in any order; with `Acks.PREFIX`, once the reader has ended, what it acked behind a gap may come again,
        and after a kill what it acked in the last second or so. LOG: all up to and including the furthest of each
        partition are done. An ack that goes down with its connection may be lost.
        Where some are stale, the others are acked, then `StaleDelivery` names the stale ones.
        """
        ...

    async def seek(self, to: Seek) -> None:
        """LOG only: the next `receive` starts there. A time means the first message published at or after it.

        Positions count `offset` only; other partitions than theirs are not read any more. Raises `PositionExpired` for
        an offset below the first kept or above the end, `Unsupported` for a QUEUE or where `Capabilities.seek_by` lacks
        it.
        """
        ...

    async def aclose(self) -> None:
        """Always closes, also if called twice. Unacked QUEUE work is handed back at once where
        `releases_on_close`, else when its lease has run out. A `receive` under way ends with `Closed`."""
        ...


class Transport(Protocol):
    """A connection to one bus. `publish`, `declare` and `lag` may be called by many tasks at once.

    Made by the class method `connect(url)`, which raises `ConnectionLost` where nobody answers and `Misconfigured`
    where the server refuses us. Where the bus is away later, calls raise `ConnectionLost` or `PublishUnconfirmed`
    within about 30 s, and the same object works again once it is back. A call never hangs for longer.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    async def declare(self, *topics: Topic) -> None:
        """Make sure that the topics exist: idempotent. Raises `Misconfigured` where one exists as another kind."""
        ...

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        """Return only when the bus has confirmed all. Raises `PublishUnconfirmed` where it is not known,
        `BusError` for a topic that was not declared. There is no faster, unconfirmed way."""
        ...

    async def subscribe(
        self, topic: str, *, group: str = "", prefetch: int = 256, start: Start = "committed", member: str = ""
    ) -> Subscription:
        """A QUEUE has one group, whose readers compete. Each group of a LOG sees every message.

        `start` is for a LOG, and as in `seek`; `committed` is where the group's last ack left off, or `earliest` for a
        new group. A group is registered by subscribing: a LOG that can tell keeps what it has not acked, past its
        retention, until the group has neither subscribed nor acked for 7 days, or for the retention if that is longer.
        The empty group is never registered and has no committed position.
        Leases live while the subscription is open and the event loop is not blocked for longer than `lease_s`.
        `member` is a name that no other live reader of this QUEUE has, and that the successor of a dead one takes
        over: it gets that one's work at once where the bus would otherwise wait for a lease. Others ignore it.
        """
        ...

    async def lag(self, topic: str, *, group: str = "") -> Lag: ...

    async def aclose(self) -> None:
        """Always closes, also if called twice; closes its subscriptions."""
        ...
