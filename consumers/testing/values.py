"""What a sink does with hazardous items: each is stored or set aside, and none harms its neighbours."""

from __future__ import annotations

import json
import math
from typing import Any

from bus.items import ItemRecord
from consumers.rows import clean_text, to_json
from consumers.sink import Batch, Entry
from consumers.testing.hazards import hazards
from consumers.testing.scene import Scene, Target, batch_of, record, scene

__all__ = ["ValueChecks"]


def alike(one: Any, two: Any) -> bool:
    """Equal as JSON: a number is a number, however it is written."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(alike(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(alike, one, two))
    if isinstance(one, float) != isinstance(two, float) and not isinstance(one, bool | str | None):
        return math.isclose(float(one), float(two), rel_tol=1e-15)
    return type(one) is type(two) and bool(one == two)


class ValueChecks(Target):
    @scene
    async def test_each_hazard_is_stored_or_set_aside_and_its_batch_is_intact(self, s: Scene) -> None:
        items = [item for n, hazard in enumerate(hazards()) for item in (hazard.item, record(n))]
        batch = batch_of(items)
        sink = await s.member()
        written = await sink.write(batch)
        aside = {found.reject.position.offset: found.reject for found in await sink.quarantined()}
        rows = {row["id"]: row for row in self.rows()}
        assert (await sink.positions())[0].next.offset == len(items)
        assert (written.stored, written.quarantined) == (len(items) - len(aside), len(aside))
        assert len(self.rows()) == len(rows) == written.stored, "no two of them have one id"
        assert all(n % 2 == 0 for n in aside), [aside[n].reason for n in aside if n % 2]
        for n, item in enumerate(items):
            if n not in aside:
                self._check_row(rows.get(self._stored(item.id)), item, hazards()[n // 2].name)
            else:
                assert aside[n].reason and aside[n].content and aside[n].id == item.id
        if self.compares:
            changes = await sink.compare(batch.entries)
            assert (changes.changed, changes.same) == (0, written.stored)

    def _check_row(self, row: dict[str, Any] | None, item: ItemRecord, name: str) -> None:
        assert row is not None, f"neither stored nor set aside: {name}"
        assert row["job"] == self._stored(item.job), name
        assert row["url"] == (None if item.url is None else self._stored(item.url)), name
        assert alike(row["data"], self.as_stored(json.loads(to_json(item.data)))), name

    def _stored(self, text: str) -> Any:
        return self.as_stored(clean_text(text))

    @scene
    async def test_a_hazard_alone_harms_nothing(self, s: Scene) -> None:
        """A batch of one has no neighbours to take it for; the sink goes on behind it."""
        sink, count = await s.member(), len(hazards())
        for n, hazard in enumerate(hazards()):
            batch = batch_of([hazard.item], start=n)
            written = await sink.write(batch)
            assert written.stored + written.quarantined == 1, hazard.name
        assert len(self.rows()) + len(await sink.quarantined()) == count
        assert (await s.positions())[0].next.offset == count

    @scene
    async def test_what_is_set_aside_can_be_resolved(self, s: Scene) -> None:
        sink = await s.member()
        await sink.write(batch_of([hazard.item for hazard in hazards()]))
        found = list(await sink.quarantined())
        entries = [Entry(each.reject.position, record(n)) for n, each in enumerate(found)]
        await sink.write(Batch(entries=entries, resolved=[each.id for each in found]))
        assert await s.quarantined() == []
