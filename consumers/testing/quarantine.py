"""What a sink promises of its quarantine: whole, once, until it is resolved or dropped."""

from __future__ import annotations

from bus.codec import unpack
from bus.items import ItemRecord
from bus.message import Position
from consumers.sink import Batch, Entry, Quarantined, Reject, Sink, Written
from consumers.testing.scene import TOPIC, Scene, Target, batch_of, record, scene

__all__ = ["QuarantineChecks"]

BODY = bytes(range(256)) * 4
UNSTORABLE = record(2, {"number": 2, "v": 10**5000})


def reject(offset: int, reason: str = "not items") -> Reject:
    return Reject(Position(0, offset), reason, f"m{offset}", {"job": "shop", "run": 7, "x": None}, BODY)


async def set_aside(s: Scene, *rejects: Reject) -> tuple[Sink, list[Quarantined]]:
    sink = await s.member()
    await sink.write(Batch(rejects=list(rejects)))
    return sink, list(await sink.quarantined())


def again(found: Quarantined, item: ItemRecord) -> Batch:
    """A retry of what stands in quarantine: without progress."""
    return Batch(entries=[Entry(found.reject.position, item)], resolved=[found.id])


class QuarantineChecks(Target):
    @scene
    async def test_what_cannot_be_stored_is_set_aside_whole_and_the_rest_is_stored(self, s: Scene) -> None:
        batch = batch_of([record(1), UNSTORABLE, record(3)])
        batch.rejects.append(reject(9))
        assert await (await s.member()).write(batch) == Written(2, 2)
        assert s.numbers() == [1, 3] and (await s.positions())[0].next == Position(0, 3)
        item, message = sorted(await s.quarantined(), key=lambda found: found.reject.position)
        assert message.reject == reject(9) and message.at.endswith("Z")
        assert [(each.consumer, each.topic) for each in (item, message)] == [("default", TOPIC)] * 2
        assert "4,300 digits" in item.reject.reason and item.reject.id == UNSTORABLE.id
        assert item.reject.position == Position(0, 1) and item.reject.headers["job"] == "shop"
        assert unpack(item.reject.content) == [UNSTORABLE.id, UNSTORABLE.url, UNSTORABLE.scraped_at, UNSTORABLE.data]

    @scene
    async def test_all_consumers_are_listed_oldest_first_each_thing_once(self, s: Scene) -> None:
        one, _ = await set_aside(s, reject(5), reject(3))
        other = await s.member(consumer="other")
        await other.write(Batch(rejects=[reject(3)]))
        await one.write(Batch(rejects=[reject(5)]))
        found = await s.quarantined()
        assert sorted((each.consumer, each.reject.position.offset) for each in found) == [
            ("default", 3), ("default", 5), ("other", 3),
        ]  # fmt: skip
        assert [each.at for each in found] == sorted(each.at for each in found)
        assert len({each.id for each in found}) == 3

    @scene
    async def test_what_a_retry_stores_leaves_in_the_same_moment(self, s: Scene) -> None:
        _, (first, second) = await set_aside(s, reject(1), reject(2))
        other = await s.opened()  # it holds nothing: a batch without progress needs no partition
        assert await other.write(again(first, record(1))) == Written(1, 0)
        assert s.numbers() == [1] and await s.quarantined() == [second]
        assert await s.positions() == []

    @scene
    async def test_what_fails_again_stays_with_the_new_reason(self, s: Scene) -> None:
        sink = await s.member()
        await sink.write(batch_of([UNSTORABLE]))
        (found,) = await sink.quarantined()
        assert await sink.write(again(found, UNSTORABLE)) == Written(0, 1)
        (still,) = await s.quarantined()
        assert (still.id, still.reject) == (found.id, found.reject)
        worse = found.reject._replace(reason="worse")
        await sink.write(Batch(rejects=[worse], resolved=[found.id]))
        (still,) = await s.quarantined()
        assert (still.id, still.reject) == (found.id, worse)

    @scene
    async def test_any_id_and_reason_can_be_set_aside(self, s: Scene) -> None:
        odd = reject(1)._replace(reason="\0 not \ud800 items", id='\0 m \udfff "\\')
        sink, (found,) = await set_aside(s, odd)
        assert found.reject.id == odd.id and "items" in found.reject.reason and found.reject.content == BODY
        await sink.write(Batch(rejects=[found.reject], resolved=[found.id]))
        assert [each.id for each in await s.quarantined()] == [found.id]

    @scene
    async def test_drop_is_for_good(self, s: Scene) -> None:
        _, found = await set_aside(s, *map(reject, range(4)))
        sink = s.sink()
        assert await sink.drop([found[0].id, found[2].id, "0123456789abcdef"]) == 2
        assert await sink.drop([found[0].id]) == 0 and await sink.drop([]) == 0
        assert await s.quarantined() == [found[1], found[3]]
        assert self.rows() == []

    @scene
    async def test_what_was_dropped_may_come_again(self, s: Scene) -> None:
        """As when the log is read once more."""
        sink, (found,) = await set_aside(s, reject(1))
        await sink.drop([found.id])
        await sink.write(Batch(rejects=[reject(1, "other")]))
        assert [each.reject for each in await s.quarantined()] == [reject(1, "other")]
