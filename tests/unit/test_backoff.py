"""Pauses grow twofold to the longest, are shortened by up to half, and begin anew once it has answered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.backoff import Backoff


@given(first_s=st.floats(0.001, 10), times=st.integers(1, 40), factor=st.floats(1, 10_000))
def test_pauses_stay_between_half_and_all_of_twice_the_last(first_s: float, times: int, factor: float) -> None:
    longest_s = first_s * factor
    backoff = Backoff(first_s, longest_s)
    for _ in range(2):
        for turn in range(times):
            whole_s = min(first_s * 2**turn, longest_s)
            assert 0.5 * whole_s <= backoff.next_s() <= whole_s
        backoff.reset()


def test_a_fleet_does_not_come_back_in_one_blow() -> None:
    assert len({Backoff().next_s() for _ in range(100)}) > 90
