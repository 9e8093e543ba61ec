"""Processes of one machine: which of them holds a lease, so that the work of one that was killed need not wait for the
lease to run out; and what a command and its children agree on."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from bus.errors import BusError, ConnectionLost

__all__ = [
    "AWAY",
    "PARENT_FD",
    "exit_code",
    "is_child",
    "is_dead",
    "is_gone",
    "machine",
    "this_holder",
    "this_process",
]

PARENT_FD = "CRAWLBUS_PARENT_FD"  # names a pipe that closes when the command that started us dies
AWAY = 75  # a child's exit code where the bus or the state does not answer: EX_TEMPFAIL of sysexits.h


def is_child() -> bool:
    """Was this process started by a command that watches over it?"""
    return PARENT_FD in os.environ


def exit_code(error: BusError) -> int:
    """What to end with: the error's code, or a child's word for a bus or a state that is away."""
    return AWAY if isinstance(error, ConnectionLost) and is_child() else error.exit_code


@functools.cache
def machine() -> str:
    """This machine since it was booted: containers share it, and no copy of its disk has it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return os.urandom(16).hex()  # no other process is known to run here


def this_holder() -> str:
    """A name for this process that no other gets, on whatever machine."""
    return f"{machine()} {this_process()}"


def is_dead(holder: str) -> bool:
    """True only where it is certain: it ran on this machine, and is gone."""
    where, _, process = holder.partition(" ")
    return where == machine() and is_gone(process)


def this_process() -> str:
    """A name for this process that no other on this machine gets: PID namespace, PID, and when it started."""
    return _name(os.getpid())


@functools.lru_cache(maxsize=1)
def _name(pid: int) -> str:
    return f"{_namespace()} {pid} {_started(pid)}"


def is_gone(process: str) -> bool:
    """True only where it is certain: its PID is of our namespace, and free, a zombie's, or another process's now."""
    namespace, _, rest = process.partition(" ")
    pid, _, started = rest.partition(" ")
    if not started or not pid.isdigit() or namespace != _namespace():
        return False
    now = _started(int(pid))
    return now != started if now else not _is_hidden(int(pid))


@functools.cache
def _namespace() -> str:
    """Of two containers that share a file, none can tell whether the other's processes live."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Field 22 of /proc/PID/stat (proc(5)), "ended" for a zombie; empty where there is nothing to read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if fields[0] in "ZX" else fields[19]


def _is_hidden(pid: int) -> bool:
    """It is another user's, and /proc is mounted with `hidepid`."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
