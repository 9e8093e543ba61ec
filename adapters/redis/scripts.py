"""The Lua of the state. Each script is atomic, and is sent in full only where the server does not know it."""

from __future__ import annotations

from pathlib import Path

from adapters.redis.connection import Script
from bus.state import MAX_STARTS

__all__ = ["FRONTIER", "INDEX", "JOBS"]

_LUA = Path(__file__).parent / "lua"


def _script(*names: str) -> Script:
    constants = f"local MAX_STARTS = {MAX_STARTS}\n"
    return Script(constants + "".join((_LUA / name).read_text() for name in names))


FRONTIER = _script("record.lua", "frontier.lua")
JOBS = _script("record.lua", "jobs.lua")
INDEX = _script("index.lua")
