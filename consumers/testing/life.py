"""What a sink promises before it is open, of `open` and `aclose`, and of `compare`."""

from __future__ import annotations

from contextlib import suppress

from bus.errors import Misconfigured, Unsupported
from bus.message import Position
from consumers.sink import Changes, Entry, Fenced
from consumers.testing.scene import Scene, Target, batch_of, raises, record, scene

__all__ = ["LifeChecks"]


class LifeChecks(Target):
    @scene
    async def test_it_is_made_without_touching_the_storage(self, s: Scene) -> None:
        sink = s.sink()
        limits = sink.limits
        assert limits.items > 0 and limits.size_bytes > 0 and limits.seconds > 0
        await sink.aclose()
        await sink.aclose()
        with suppress(NotImplementedError):
            assert self.untouched()

    @scene
    async def test_open_creates_what_is_missing(self, s: Scene) -> None:
        sink = await s.opened()
        assert self.rows() == [] and list(await sink.positions()) == [] and list(await sink.quarantined()) == []
        with suppress(NotImplementedError):
            assert not self.untouched()

    @scene
    async def test_open_twice_is_as_once(self, s: Scene) -> None:
        sink = await s.member()
        await sink.write(batch_of([record(1)]))
        await sink.open("default", "crawlbus.items")
        assert (await sink.hold({0})).keys() == {0}, "it is not in its own way"
        await sink.write(batch_of([record(2)], start=1))
        await sink.open("other", "crawlbus.items")
        assert await sink.hold({0}) == {0: None}
        two = await s.opened()
        assert (await two.hold({0})).keys() == {0}, "what it held as another is free"

    @scene
    async def test_close_frees_what_was_held_and_twice_is_as_once(self, s: Scene) -> None:
        one = await s.member()
        await one.write(batch_of([record(1)]))
        await one.aclose()
        await one.aclose()
        assert (await (await s.opened()).hold({0})).keys() == {0}

    @scene
    async def test_a_close_after_a_take_over_frees_nothing_of_the_others(self, s: Scene) -> None:
        one, two = await s.member({0, 1}), await s.member({0, 1})
        await one.aclose()
        await two.hold({0, 1})
        await two.write(batch_of([record(1)], partition=1))
        await raises(Fenced, (await s.opened()).write(batch_of([record(2)])))
        assert s.numbers() == [1]

    @scene
    async def test_before_there_is_a_sink_nothing_is_created_by_looking(self, s: Scene) -> None:
        with suppress(Misconfigured):
            assert list(await s.sink().quarantined()) == []
        with suppress(Misconfigured):
            assert await s.sink().drop(["0123456789abcdef"]) == 0
        with suppress(NotImplementedError):
            assert self.untouched()

    @scene
    async def test_compare_tells_what_write_would_do(self, s: Scene) -> None:
        entries = [Entry(Position(0, n), record(n)) for n in range(4)]
        sink = s.sink()
        if not self.compares:
            await raises(Unsupported, sink.compare(entries))
        else:
            assert await sink.compare(entries) == Changes(4, 0, 0)
        with suppress(NotImplementedError):
            assert self.untouched()
        if not self.compares:
            return
        await (await s.member()).write(batch_of([record(0), record(1)]))
        before = await s.everything()
        entries[1] = Entry(Position(0, 1), record(1, {"number": 1, "more": [1]}))
        entries[2:2] = [Entry(Position(0, 9), record(2, {"number": 7}))]
        assert await s.sink().compare(entries) == Changes(2, 1, 1), "an id counts once"
        assert await s.everything() == before
