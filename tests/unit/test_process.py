"""Only a process that is certainly gone is taken for gone."""

from __future__ import annotations

import subprocess
import sys

from bus.process import is_gone, this_process


def test_this_process_is_here() -> None:
    assert not is_gone(this_process())


def test_a_process_that_ended_is_gone_reaped_or_not() -> None:
    code = "from bus.process import this_process; print(this_process(), flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    assert child.stdout is not None and child.stdin is not None
    name = child.stdout.readline().strip()
    assert name and not is_gone(name)
    child.kill()
    while not is_gone(name):  # a zombie first
        pass
    child.wait()
    assert is_gone(name)
    child.stdout.close()
    child.stdin.close()


def test_a_reused_pid_is_another_process() -> None:
    namespace, pid, started = this_process().split()
    assert is_gone(f"{namespace} {pid} {int(started) - 1}")


def test_of_another_namespace_nothing_is_known() -> None:
    _, pid, _ = this_process().split()
    assert not is_gone(f"pid:[1] {int(pid) + 1} 5")
    assert not is_gone("")
    assert not is_gone("nonsense")
