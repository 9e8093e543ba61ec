"""What `crawlbus doctor` finds: lines that the parts of a bus say of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bus.errors import BusError

__all__ = ["CONFIGURATION", "FAULT", "NOTE", "NOT_REACHABLE", "OK", "SKEW_S", "Examined", "Finding", "clock", "fault"]

OK, NOTE, FAULT = "ok", "note", "fault"
CONFIGURATION, NOT_REACHABLE = 2, 3
SKEW_S = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the answer. `exit_code` is 0 unless it is a fault."""

    what: str
    verdict: str
    found: str
    mend: str = ""
    exit_code: int = 0


@runtime_checkable
class Examined(Protocol):
    """A transport, a state or a sink that knows more of its server than whether it answers."""

    async def examine(self, prefix: str = "") -> Sequence[Finding]:
        """Version, rights, clock, and settings of the server that do not go together with ours.

        `prefix` is how the names of topics begin; a state and a sink have none. A sink is not opened for it."""
        ...


def fault(what: str, error: BusError, mend: str = "") -> Finding:
    """A call that should have worked did not."""
    code = NOT_REACHABLE if error.exit_code == NOT_REACHABLE else CONFIGURATION
    return Finding(what, FAULT, str(error), mend, code)


def clock(what: str, skew_s: float, where: str) -> Finding:
    """Do two clocks agree? `skew_s`: how far `where` is ahead of this machine."""
    if abs(skew_s) > SKEW_S:
        return Finding(what, NOTE, f"the clock of {where} differs by {skew_s:+.0f} s", "set both clocks by NTP")
    return Finding(what, OK, f"the clock of {where} agrees with ours")
