"""A watermark never gives up what is open, never moves back, and in the end gives up all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.watermark import Watermark

OFFSETS = st.sets(st.integers(0, 60), min_size=1, max_size=25).map(sorted)


@given(first=st.integers(0, 10**12), offsets=OFFSETS, window=st.integers(1, 10), data=st.data())
def test_it_never_passes_what_is_open_and_reaches_the_end(
    first: int, offsets: list[int], window: int, data: st.DataObject
) -> None:
    """Nor moves back: with holes, opened and closed in any order that is allowed."""
    mark = Watermark(first, window=window)
    waiting = [first + offset for offset in offsets]
    opened: list[int] = []
    closed: set[int] = set()
    while waiting or len(closed) < len(opened):
        before = mark.next
        still = [offset for offset in opened if offset not in closed]
        if waiting and (not still or data.draw(st.booleans(), "open one")):
            opened.append(waiting.pop(0))
            mark.open(opened[-1])
            assert mark.next == before
        else:
            offset = data.draw(st.sampled_from(still), "close")
            assert mark.close(offset)
            assert not mark.close(offset)
            closed.add(offset)
            assert mark.next == min((one for one in opened if one not in closed), default=opened[-1] + 1)
        still = [offset for offset in opened if offset not in closed]
        assert len(mark) == len(still)
        assert before <= mark.next <= min(still, default=mark.next)
        held = [offset for offset in opened if still and offset >= still[0]]  # from the first open one on
        assert mark.full is (len(held) >= window)
    assert mark.next == opened[-1] + 1


@given(offsets=OFFSETS, below=st.integers(0, 60))
def test_what_was_never_opened_is_not_closed(offsets: list[int], below: int) -> None:
    mark = Watermark(0)
    for offset in offsets:
        mark.open(offset)
    assert mark.close(below) is (below in offsets)
    with pytest.raises(ValueError, match="was opened after"):
        mark.open(min(below, offsets[-1]))


def test_offsets_below_the_first_are_refused() -> None:
    with pytest.raises(ValueError, match="offset 6 was opened after 6"):
        Watermark(7).open(6)
