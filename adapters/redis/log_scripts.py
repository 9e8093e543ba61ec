"""The scripts of a LOG: each is one atomic step. The entry of offset n has the id `n-1`; its first field is its time.

KEYS of all: record, stream, groups. Offsets have no gaps, and times (µs) never go back. Whoever trims or deletes the
stream by hand does not tell the record: its length says where it begins.
"""

from __future__ import annotations

from adapters.redis.connection import Script
from bus.transport import GROUP_S

__all__ = ["APPEND", "COMMIT", "COUNT", "FIND_TIME", "REGISTER"]

TRIM_MESSAGES = 10_000  # in one step

_BOUNDS = """
local record, stream, groups = KEYS[1], KEYS[2], KEYS[3]
local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
local function bounds()
  local found = redis.call('HMGET', record, 'first', 'end')
  local first, last = tonumber(found[1] or 0), tonumber(found[2] or 0)
  return math.max(first, last - redis.call('XLEN', stream)), last
end
local function committed(group)
  local offset, seen = string.match(redis.call('HGET', groups, group) or '', '(%d+) (%d+)')
  return tonumber(offset), tonumber(seen)
end
local function commit(group, offset)
  redis.call('HSET', groups, group, string.format('%.0f %.0f', offset, now_us()))
end
local function first_since(low, high, time)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local entry = redis.call('XRANGE', stream, string.format('%.0f-1', middle), '+', 'COUNT', 1)[1]
    if entry and tonumber(entry[2][2]) < time then low = middle + 1 else high = middle end
  end
  return low
end
"""

# Remove, from the front and in bounded steps, what is older than the retention and what every group that is not long
# gone has acked. It looks from time to time only.
_TRIM = (
    _BOUNDS
    + f"""
local GROUP_US, MOST = {GROUP_S * 1e6:.0f}, {TRIM_MESSAGES}
"""
    + """
local function trim()
  local found = redis.call('HMGET', record, 'retention', 'trimmed')
  local retention = tonumber(found[1] or '')
  if not retention then return end
  retention = retention * 1000000
  local now = now_us()
  if now - tonumber(found[2] or 0) < math.min(10000000, retention / 10) then return end
  local first, last = bounds()
  last = math.min(last, first + MOST)
  for _, group in ipairs(redis.call('HKEYS', groups)) do
    local offset, seen = committed(group)
    if seen and seen > now - math.max(GROUP_US, retention) then last = math.min(last, offset) end
  end
  local kept = first_since(first, last, now - retention)
  if kept < first + MOST then redis.call('HSET', record, 'trimmed', string.format('%.0f', now)) end
  if kept > first then
    redis.call('HSET', record, 'first', string.format('%.0f', kept))
    redis.call('XTRIM', stream, 'MINID', string.format('%.0f-0', kept))
  end
end
"""
)

# ARGV: retention, then packed and body of each message. The record is made again where Redis has lost it.
APPEND = Script(
    _TRIM
    + """
if redis.call('HSETNX', record, 'kind', 'log') == 1 then redis.call('HSET', record, 'retention', ARGV[1]) end
local count = (#ARGV - 1) / 2
local first = redis.call('HINCRBY', record, 'end', count) - count
local at = string.format('%.0f', math.max(now_us(), tonumber(redis.call('HGET', record, 'at') or 0)))
redis.call('HSET', record, 'at', at)
for i = 0, count - 1 do
  redis.call('XADD', stream, string.format('%.0f-1', first + i), 't', at, 'm', ARGV[2 * i + 2], 'b', ARGV[2 * i + 3])
end
trim()
return count
"""
)

# ARGV: group. Returns first, end, and the next offset of the group (-1: none), which is registered from now on.
REGISTER = Script(
    _BOUNDS
    + """
local first, last = bounds()
local offset = -1
if ARGV[1] ~= '' then
  offset = committed(ARGV[1]) or first
  commit(ARGV[1], offset)
end
return {first, last, offset}
"""
)

# ARGV: group, offset.
COMMIT = Script(
    _BOUNDS
    + """
commit(ARGV[1], math.max(tonumber(ARGV[2]), committed(ARGV[1]) or 0))
return 1
"""
)

# ARGV: time (µs). Returns the first offset of that time or later.
FIND_TIME = Script(
    _BOUNDS
    + """
local first, last = bounds()
return first_since(first, last, tonumber(ARGV[1]))
"""
)

# ARGV: group. Returns first, end, and the next offset of the group (-1: none).
COUNT = Script(
    _TRIM
    + """
trim()
local first, last = bounds()
return {first, last, committed(ARGV[1]) or -1}
"""
)
