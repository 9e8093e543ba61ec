"""What the readers of one QUEUE share: who has which partition, and what of it is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

from bus.watermark import Watermark

__all__ = ["Keep", "Part", "share"]

VERSION = 0


class Part:
    """One partition in the hands of one reader, from an assignment until it is lost: the token of its deliveries."""

    __slots__ = ("buffer", "committed", "held", "mark", "number", "owner", "position")

    def __init__(self, owner: object, number: int) -> None:
        self.owner, self.number = owner, number
        self.held = True
        self.buffer: deque[Any] = deque()  # records that were fetched, and not yet handed out
        self.position: int | None = None  # what comes next from Kafka
        self.mark: Watermark | None = None  # from the first delivery on
        self.committed = -1

    def add(self, records: Iterable[Any]) -> None:
        for record in records:
            if self.position is None or record.offset >= self.position:
                self.position = record.offset + 1
                self.buffer.append(record)

    def deliver(self, count: int) -> list[Any]:
        """The next so many records of the buffer."""
        records = [self.buffer.popleft() for _ in range(count)]
        if self.mark is None:
            self.mark = Watermark(records[0].offset)
            self.committed = records[0].offset
        for record in records:
            self.mark.open(record.offset)
        return records

    @property
    def full(self) -> bool:
        return self.mark is not None and self.mark.full

    @property
    def to_commit(self) -> int | None:
        """All below it is done, where that is news."""
        return self.mark.next if self.mark is not None and self.mark.next > self.committed else None


class Keep(AbstractPartitionAssignor):  # type: ignore[misc]  # the driver has no types
    """Even shares, and everybody keeps what it had as far as that goes: what stays need not be delivered again."""

    name = "crawlbus-keep"

    def __init__(self, held: Callable[[], Collection[int]]) -> None:
        self._held = held

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        claims = ",".join(str(number) for number in sorted(self._held()))
        return ConsumerProtocolMemberMetadata(VERSION, list(topics), claims.encode())

    def assign(
        self, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        (topic,) = {topic for member in members.values() for topic in member.subscription}
        claims = {id: _claims(member.user_data) for id, member in members.items()}
        shares = share(sorted(cluster.partitions_for_topic(topic) or ()), claims)
        return {id: ConsumerProtocolMemberAssignment(VERSION, [(topic, mine)], b"") for id, mine in shares.items()}

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        pass


def _claims(data: bytes | None) -> list[int]:
    return [int(text) for text in (data or b"").decode("ascii", "replace").split(",") if text.isdecimal()]


def share(partitions: Collection[int], claims: Mapping[str, Collection[int]]) -> dict[str, list[int]]:
    """Divide the partitions evenly; whoever claims most is the one to have one more than others."""
    least, more = divmod(len(partitions), len(claims))
    left = set(partitions)
    shares: dict[str, list[int]] = {}
    room: dict[str, int] = {}
    for rank, id in enumerate(sorted(claims, key=lambda id: (-len(claims[id]), id))):
        quota = least + (rank < more)
        shares[id] = [number for number in sorted(set(claims[id])) if number in left][:quota]
        left.difference_update(shares[id])
        room[id] = quota - len(shares[id])
    rest = sorted(left)
    for id, count in room.items():
        shares[id] += rest[:count]
        del rest[:count]
    return {id: sorted(mine) for id, mine in shares.items()}
