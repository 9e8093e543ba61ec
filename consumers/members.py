"""Who of the members of one consumer holds which partition of the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple

from bus.message import new_id
from bus.process import is_dead, this_holder
from consumers.sink import Fenced

__all__ = ["LEASE_S", "Member", "lives", "lost", "new_member", "to_take"]

LEASE_S = 10.0


class Member(NamedTuple):
    """One run of a consumer. `process` names it on its machine; it is live until `until_s`, by the sink's clock."""

    id: str
    process: str
    until_s: float


def new_member(now_s: float = 0.0) -> Member:
    """This process's, live for a lease from `now_s`."""
    return Member(new_id(), this_holder(), now_s + LEASE_S)


def lives(member: Member, now_s: float) -> bool:
    """Neither has its lease run out, nor is its process known to have died."""
    return member.until_s > now_s and not is_dead(member.process)


def lost(consumer: str, partition: int) -> Fenced:
    """What is raised where another member of the consumer has taken a partition over."""
    return Fenced(f"another consumer named {consumer!r} has taken over partition {partition}")


def to_take(partitions: Set[int], owners: Mapping[int, str], members: Iterable[str], me: str) -> set[int]:
    """The partitions that `me` takes, so that the live `members` share them evenly.

    What is free is taken up to the share, rounded up; from the richest as long as `me` has less than the share,
    rounded down. So one partition never changes hands between two live members.
    """
    live = {*members, me}
    owner_of = {partition: owner for partition, owner in owners.items() if owner in live and partition in partitions}
    held = Counter(owner_of.values())
    least, most = len(partitions) // len(live), -(-len(partitions) // len(live))
    taken: set[int] = set()
    for partition in sorted(partitions - owner_of.keys())[: max(0, most - held[me])]:
        taken.add(partition)
    while held[me] + len(taken) < least:
        richest = max(live - {me}, key=lambda member: (held[member], member))
        partition = max(partition for partition, owner in owner_of.items() if owner == richest)
        del owner_of[partition]
        held[richest] -= 1
        taken.add(partition)
    return taken
