"""What `crawlbus doctor` asks a Redis server."""

from __future__ import annotations

import time

from adapters.redis.connection import Server, info_fields
from adapters.redis.errors import RIGHTS
from bus.errors import BusError, Misconfigured
from bus.findings import NOTE, OK, Finding, clock, fault
from bus.message import new_id

__all__ = ["TRIED", "examine"]

TRIED = "{crawlbus:doctor}"
FULL = 0.8  # of `maxmemory`
WRITES = """
local writes = {{'HSET', 'a', 1}, {'SADD', 'a'}, {'ZADD', 1, 'a'}, {'XADD', '*', 'a', 1}}
for _, write in ipairs(writes) do
  redis.call(write[1], KEYS[1], unpack(write, 2))
  redis.call('DEL', KEYS[1])
end
"""


async def examine(server: Server, what: str) -> list[Finding]:
    """`what` is `bus` or `state`."""
    info = info_fields(await server.call("INFO"))
    version = f"Redis {info.get('redis_version', '?')}"
    found = [Finding(what, OK, version), _persistence(what, info), _memory(what, info)]
    before = time.time()
    seconds, micros = await server.call("TIME")
    skew_s = int(seconds) + int(micros) / 1e6 - (before + time.time()) / 2
    return [*found, clock(what, skew_s, version), await _rights(server, what)]


def _persistence(what: str, info: dict[str, str]) -> Finding:
    if info.get("aof_enabled") == "1":
        return Finding(what, OK, "append-only file is on: a killed server loses nothing it has confirmed")
    return Finding(
        what,
        NOTE,
        "there is no append-only file: what happens to the server happens to the crawl",
        "set `appendonly yes`",
    )


def _memory(what: str, info: dict[str, str]) -> Finding:
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    policy = info.get("maxmemory_policy", "noeviction")
    said = f"{used / 2**20:,.0f} MiB in use"
    if not most:
        return Finding(what, OK, f"{said}, no limit set")
    if policy != "noeviction":
        mend = "set `maxmemory-policy noeviction`"
        return Finding(what, NOTE, f"{said} of {most / 2**20:,.0f}, then it drops keys ({policy})", mend)
    full = used > FULL * most
    mend = "give it more memory, or raise `maxmemory`" if full else ""
    return Finding(what, NOTE if full else OK, f"{said} of {most / 2**20:,.0f}", mend)


async def _rights(server: Server, what: str) -> Finding:
    """A key as ours begin, written in all the ways we write, and deleted, by one script."""
    key = f"{TRIED}:{new_id()}" if what == "state" else f"crawlbus:bus:{TRIED}:{new_id()}"
    try:
        await server.call("EVAL", WRITES, 1, key)
    except BusError as error:
        mend = f"give the user of the --{what} URL its rights: ACL SETUSER NAME {RIGHTS}"
        return fault(what, Misconfigured(f"it may not be written: {error}"), mend)
    return Finding(what, OK, "it may be written, and runs scripts")
