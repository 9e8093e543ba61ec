"""Who is live, and who takes what."""

from __future__ import annotations

import os
import subprocess
import sys

from bus.process import machine, this_holder
from consumers.members import Member, lives, to_take


def test_a_process_of_another_machine_lives_until_its_lease_is_over() -> None:
    """Its number may well be free here, and the number of the PID namespace is the same on every machine."""
    _, namespace, *_ = this_holder().split()
    other = Member("m", f"another-boot {namespace} 4194300 1", 10.0)
    assert lives(other, 9.9) and not lives(other, 10.0)


def test_one_of_this_machine_is_dead_at_once() -> None:
    program = "from bus.process import this_holder; print(this_holder())"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=os.getcwd())
    assert ran.stdout.startswith(machine()) and not lives(Member("m", ran.stdout.strip(), 1e12), 0.0)


def test_shares_are_even_and_do_not_move_without_need() -> None:
    four = frozenset(range(4))
    assert to_take(four, {}, [], "a") == four
    assert to_take(four, dict.fromkeys(four, "a"), ["a"], "b") == {2, 3}
    assert to_take(four, {0: "a", 1: "a", 2: "b", 3: "b"}, ["a", "b"], "c") == {3}
    assert to_take(four, {0: "a", 1: "a", 2: "b", 3: "b"}, ["a", "b"], "b") == set()
    assert to_take(frozenset({0}), {0: "a"}, ["a"], "b") == set()
    assert to_take(four, {0: "a", 1: "gone", 2: "b", 3: "gone"}, ["a", "b"], "b") == {1}
