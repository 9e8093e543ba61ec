"""What a sink promises of `write` and `positions`: rows and progress together, all or nothing, once each."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from bus.errors import TransportError
from bus.message import Position
from consumers.sink import Batch, Fenced, Gap, Progress, Reject, SinkUnavailable, Written
from consumers.testing.scene import TOPIC, Scene, Target, batch_of, raises, record, scene

__all__ = ["WriteChecks"]


def full_batch() -> Batch:
    """With a row, a reject and a gap."""
    batch = batch_of([record(1)])
    batch.rejects.append(Reject(Position(0, 7), "not items", "m7", {"job": "shop"}, b"body"))
    batch.gaps.append(Gap(Position(0, 3), Position(0, 8), Position(0, 12)))
    return batch


class WriteChecks(Target):
    @scene
    async def test_rows_and_progress_are_there_for_the_next_one(self, s: Scene) -> None:
        sink = await s.member({0, 3})
        batch = batch_of([record(1), record(2, {"number": 2, "name": "ü", "price": None})._replace(url=None)])
        batch.progress[3] = Progress(Position(3, 7, 2), "half")
        assert await sink.write(batch) == Written(2, 0)
        first, second = sorted(self.rows(), key=lambda row: str(row["scraped_at"]))
        assert first == {
            "id": record(1).id, "job": "shop", "spider": "shop", "url": "https://shop.example/1",
            "scraped_at": "2027-01-15T08:00:01.000000Z", "data": {"number": 1},
        }  # fmt: skip
        assert (second["url"], second["data"]) == (None, {"number": 2, "name": "ü", "price": None})
        stored = [Progress(Position(0, 2), "m1"), Progress(Position(3, 7, 2), "half")]
        assert await s.positions() == stored
        await sink.aclose()
        assert await (await s.opened()).hold({0, 3}) == {0: stored[0], 3: stored[1]}

    @scene
    async def test_each_consumer_and_topic_has_progress_of_its_own(self, s: Scene) -> None:
        await (await s.member(consumer="a")).write(batch_of([record(1)]))
        assert await s.positions("b") == [] and await s.positions("a", "other.items") == []
        other = await s.opened("b")
        assert await other.hold({0}) == {0: None}, "two consumers are not in each other's way"
        await other.write(batch_of([record(2)], start=8))
        topic = await s.opened("a", "other.items")
        assert await topic.hold({0}) == {0: None}
        await topic.write(batch_of([record(3)], start=4))
        found = [(await s.positions(*whose))[0].next.offset for whose in (("a",), ("b",), ("a", "other.items"))]
        assert found == [1, 9, 5] and s.numbers() == [1, 2, 3]

    @scene
    async def test_the_id_of_a_message_comes_back_as_it_was(self, s: Scene) -> None:
        """By it, a log is recognised."""
        sink = await s.member()
        for id in ("", "plain", "\0 and \ud800", "Tür \\ud800 \"'", "x" * 5000):
            await sink.write(Batch(progress={0: Progress(Position(0, 1), id)}))
            assert await sink.positions() == [Progress(Position(0, 1), id)]

    @scene
    async def test_a_table_holds_an_id_once_with_its_last_values(self, s: Scene) -> None:
        if not self.once_each:
            return
        sink = await s.member()
        await sink.write(batch_of([record(1, {"v": 0}), record(2), record(1, {"v": 1})]))
        assert sorted(row["data"].get("v", 9) for row in self.rows()) == [1, 9]
        await sink.write(batch_of([record(1, {"v": 2})._replace(url=None)], start=3))
        assert sorted((row["data"].get("v", 9), row["url"] is None) for row in self.rows()) == [(2, True), (9, False)]

    @scene
    async def test_progress_moves_without_rows(self, s: Scene) -> None:
        sink = await s.member()
        assert await sink.write(Batch()) == Written(0, 0)
        assert await sink.write(Batch(progress={0: Progress(Position(0, 9), "")})) == Written(0, 0)
        assert await s.positions() == [Progress(Position(0, 9), "")] and self.rows() == []

    @scene
    async def test_a_repeated_write_is_harmless(self, s: Scene) -> None:
        """Who has not heard whether it was stored writes it again."""
        sink, batch = await s.member(), full_batch()
        assert await sink.write(batch) == Written(1, 1)
        before = await s.everything()
        assert await sink.write(batch) == Written(1, 1)
        after = await s.everything()
        assert (after.rows, after.positions) == (before.rows, before.positions)
        assert [found.reject for found in after.quarantined] == batch.rejects
        with suppress(NotImplementedError):
            assert self.gaps() == [("0/3", "0/8", "0/12")]

    @scene
    async def test_what_is_not_held_is_fenced_and_changes_nothing(self, s: Scene) -> None:
        sink = await s.member({0})
        await sink.write(full_batch())
        before = await s.everything()
        batch = batch_of([record(5)], start=1)
        batch.rejects.append(Reject(Position(0, 1), "not items", "m1", {}, b""))
        batch.gaps.append(Gap(Position(0, 1), Position(0, 2), Position(0, 3)))
        batch.resolved = [entry.id for entry in await sink.quarantined()]
        batch.progress[1] = Progress(Position(1, 1), "")
        await raises(Fenced, sink.write(batch))
        await raises(Fenced, (await s.opened()).write(batch))
        assert await s.everything() == before
        with suppress(NotImplementedError):
            assert len(self.gaps()) == 1
        del batch.progress[1]
        assert await sink.write(batch) == Written(1, 1)

    @scene
    async def test_a_gap_is_recorded(self, s: Scene) -> None:
        sink = await s.member({0, 1})
        gaps = [Gap(Position(n, 3, 1), Position(n, 8), Position(n, 12)) for n in (0, 1)]
        await sink.write(Batch(gaps=gaps, progress={gap.first.partition: Progress(gap.first, "") for gap in gaps}))
        with suppress(NotImplementedError):
            assert self.gaps() == [("0/3.1", "0/8", "0/12"), ("1/3.1", "1/8", "1/12")]

    @scene
    async def test_a_write_that_fails_changes_nothing(self, s: Scene) -> None:
        sink = await s.member()
        await sink.write(batch_of([record(0)]))
        before, batch = await s.everything(), batch_of([record(n) for n in range(1, 50)], start=1)
        batch.rejects.append(Reject(Position(0, 50), "not items", "m50", {}, b"body"))
        try:
            with self.broken():
                await raises(TransportError, sink.write(batch))
        except NotImplementedError:
            return
        assert await s.everything() == before
        assert await sink.write(batch) == Written(49, 1)
        assert s.numbers() == list(range(50)) and len(await s.quarantined()) == 1

    @scene
    async def test_storage_that_cannot_be_written_now_is_unavailable(self, s: Scene) -> None:
        sink = await s.member()
        await sink.write(batch_of([record(0)]))
        before = await s.everything()
        try:
            with self.blocked():
                await raises(SinkUnavailable, sink.write(batch_of([record(1)], start=1)))
        except NotImplementedError:
            return
        assert await s.everything() == before
        assert await sink.write(batch_of([record(1)], start=1)) == Written(1, 0)
        assert s.numbers() == [0, 1]

    @scene
    async def test_overlapping_calls_run_one_after_another(self, s: Scene) -> None:
        sink = await s.member()
        batches = [batch_of([record(n)], start=n) for n in range(10)]
        await asyncio.gather(
            *(sink.write(batch) for batch in batches), sink.positions(), sink.hold({0}), sink.quarantined()
        )
        assert s.numbers() == list(range(10)) and len(await sink.positions()) == 1

    @scene
    async def test_a_cancelled_write_is_whole_or_not_at_all(self, s: Scene) -> None:
        sink = await s.member()
        for n in range(5):
            call = asyncio.create_task(sink.write(batch_of([record(n), record(n + 100)], start=2 * n)))
            for _ in range(n):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            held = (await sink.hold({0}))[0]
            stored = held is not None and held.next.offset == 2 * n + 2
            if not stored:
                assert n not in s.numbers()
                await sink.write(batch_of([record(n), record(n + 100)], start=2 * n))
        assert s.numbers() == [*range(5), *range(100, 105)]
        assert (await s.positions(topic=TOPIC))[0].next.offset == 10
