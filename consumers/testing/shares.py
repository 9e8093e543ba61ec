"""What a sink promises of `hold`: members share partitions evenly, and who has lost one is fenced."""

from __future__ import annotations

from collections.abc import Iterable

from consumers.sink import Fenced, Sink
from consumers.testing.scene import Scene, Target, batch_of, raises, record, scene

__all__ = ["ShareChecks"]

FOUR = frozenset(range(4))


async def shares(members: Iterable[Sink]) -> list[list[int]]:
    """What each holds, once all have asked as often as it takes."""
    members = list(members)
    for _ in members:
        held = [sorted(await member.hold(FOUR)) for member in members]
    assert sorted(partition for each in held for partition in each) == sorted(FOUR), "each is held once"
    return held


class ShareChecks(Target):
    @scene
    async def test_opening_takes_nothing_over(self, s: Scene) -> None:
        two = await s.opened()
        one = await s.opened()
        assert (await one.hold({0})).keys() == {0}, "free is what nobody has asked for"
        await one.write(batch_of([record(1)]))
        assert len(await two.positions()) == 1
        await raises(Fenced, two.write(batch_of([record(2)], start=1)))
        await one.write(batch_of([record(3)], start=1))
        assert s.numbers() == [1, 3]

    @scene
    async def test_one_member_holds_all(self, s: Scene) -> None:
        one = await s.opened()
        assert await one.hold(FOUR) == dict.fromkeys(FOUR)
        await one.write(batch_of([record(1)], partition=2))
        held = await one.hold(FOUR)
        assert held.keys() == FOUR and [n for n in FOUR if held[n] is not None] == [2], "and keeps it"

    @scene
    async def test_two_share_and_who_was_taken_from_is_fenced(self, s: Scene) -> None:
        one, two = await s.member(FOUR), await s.opened()
        taken = (await two.hold(FOUR)).keys()
        assert len(taken) == 2
        for partition in FOUR:
            batch = batch_of([record(partition)], partition=partition)
            if partition in taken:
                await raises(Fenced, one.write(batch))
                await two.write(batch)
            else:
                await raises(Fenced, two.write(batch))
                await one.write(batch)
        assert (await one.hold(FOUR)).keys() == FOUR - taken and s.numbers() == [0, 1, 2, 3]
        assert await one.positions() == await two.positions() != [], "positions are of all members"
        assert len(await one.positions()) == 4

    @scene
    async def test_what_one_has_stored_the_next_goes_on_from(self, s: Scene) -> None:
        one = await s.member(FOUR)
        for partition in FOUR:
            await one.write(batch_of([record(partition)], partition=partition, start=partition))
        held = await (await s.opened()).hold(FOUR)
        assert held == {p.next.partition: p for p in await one.positions() if p.next.partition in held} != {}

    @scene
    async def test_three_share_evenly_and_close_the_gap_that_one_leaves(self, s: Scene) -> None:
        one, two, three = [await s.opened() for _ in range(3)]
        assert sorted(map(len, await shares([one, two, three]))) == [1, 1, 2]
        assert await shares([one, two, three]) == await shares([one, two, three]), "what is even stays"
        await two.aclose()
        assert sorted(map(len, await shares([one, three]))) == [2, 2]
        await one.aclose()
        assert (await three.hold(FOUR)).keys() == FOUR

    @scene
    async def test_of_two_on_one_partition_the_second_stands_by(self, s: Scene) -> None:
        one, two = await s.member(), await s.opened()
        for _ in range(3):
            assert await two.hold({0}) == {} and (await one.hold({0})).keys() == {0}
        await one.write(batch_of([record(1)]))
        await raises(Fenced, two.write(batch_of([record(2)], start=1)))
        await one.aclose()
        held = (await two.hold({0}))[0]
        assert held is not None and held.next.offset == 1, "what was held is free at once"
        await two.write(batch_of([record(3)], start=1))
        assert s.numbers() == [1, 3]

    @scene
    async def test_a_partition_that_was_lost_and_won_again_begins_anew(self, s: Scene) -> None:
        one, two = await s.member(FOUR), await s.opened()
        (lost, *_) = await two.hold(FOUR)
        await two.write(batch_of([record(1)], partition=lost, start=7))
        await two.aclose()
        await raises(Fenced, one.write(batch_of([record(2)], partition=lost)))
        await raises(Fenced, one.hold(FOUR))  # the other one that it had lost
        held = (await one.hold(FOUR))[lost]
        assert held is not None and held.next.offset == 8
        await one.write(batch_of([record(3)], partition=lost, start=8))
        assert s.numbers() == [1, 3]

    @scene
    async def test_what_was_lost_and_is_free_again_is_not_held_on_in_silence(self, s: Scene) -> None:
        one, two = await s.member(FOUR), await s.opened()
        (taken, *_) = await two.hold(FOUR)
        await two.write(batch_of([record(1)], partition=taken, start=7))
        await two.aclose()
        await raises(Fenced, one.hold(FOUR))
        held = (await one.hold(FOUR))[taken]
        assert held is not None and held.next.offset == 8

    @scene
    async def test_a_partition_that_comes_later_is_taken_too(self, s: Scene) -> None:
        one = await s.member({0})
        assert (await one.hold({0, 1, 2})).keys() == {0, 1, 2}
        two = await s.opened()
        assert len(await two.hold({0, 1, 2})) == 1 and len(await one.hold({0, 1, 2})) == 2
