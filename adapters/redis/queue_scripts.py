"""The scripts of a QUEUE: each is one atomic step."""

from __future__ import annotations

from adapters.redis.connection import Script

__all__ = ["ACK", "COUNT", "LOOK", "PUT", "RELEASE"]

_CLOCK = """
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

_RING = """
local function ring(bell) redis.call('XADD', bell, 'MAXLEN', 8, '*', 'r', '') end
"""

# KEYS: record, stream, delayed, bell. ARGV: due time (ms), packed, body of each message.
# The record is made again where Redis has lost it. Whoever is due first rings the bell, for the readers to know.
PUT = Script(
    _CLOCK
    + _RING
    + """
redis.call('HSETNX', KEYS[1], 'kind', 'queue')
local now, first
for i = 1, #ARGV, 3 do
  local due = tonumber(ARGV[i])
  if due > 0 then
    now = now or now_ms()
    first = first or tonumber(redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2] or math.huge)
  end
  if due > 0 and due > now then
    local number = redis.call('HINCRBY', KEYS[1], 'delayed', 1)
    local packed, body = ARGV[i + 1], ARGV[i + 2]
    redis.call('ZADD', KEYS[3], ARGV[i], struct.pack('>I8I4', number, #packed) .. packed .. body)
    if due < first then
      first = due
      ring(KEYS[4])
    end
  else
    redis.call('XADD', KEYS[2], '*', 'm', ARGV[i + 1], 'b', ARGV[i + 2])
  end
end
return #ARGV / 3
"""
)

# KEYS: owner, stream. ARGV: group, ids. 0 where the lease is lost: then nothing is changed.
ACK = Script("""
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('XACK', KEYS[2], unpack(ARGV))
redis.call('XDEL', KEYS[2], unpack(ARGV, 2))
return 1
""")

# KEYS: owner, stream, bell. ARGV: group, consumer. What it holds is for the next who looks; the bell makes one look.
RELEASE = Script(
    _RING
    + """
redis.call('DEL', KEYS[1])
local held = redis.pcall('XPENDING', KEYS[2], ARGV[1], '-', '+', 1, ARGV[2])
if held.err then return 0 end
if #held > 0 then
  ring(KEYS[3])
else
  redis.call('XGROUP', 'DELCONSUMER', KEYS[2], ARGV[1], ARGV[2])
end
redis.pcall('XGROUP', 'DELCONSUMER', KEYS[3], ARGV[1], ARGV[2])
return 1
"""
)

# KEYS: stream, bell, delayed.
# ARGV: group, this consumer, beginning of owners' keys, this machine, room, number of rings heard, their ids, number of
# owners whose process is gone, their names, number of entries that it holds or -1, their ids.
# Returns nothing where the lease is lost; else ms until there is more to see to (-1: nobody knows), entries as id,
# fields, how often delivered before, and the other owners of this machine with their processes.
LOOK = Script(
    _CLOCK
    + _RING
    + """
local stream, bell, delayed = KEYS[1], KEYS[2], KEYS[3]
local group, me, prefix, machine, room = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local next_argument = 6
local function arguments()
  local count = tonumber(ARGV[next_argument])
  local list = {unpack(ARGV, next_argument + 1, next_argument + count)}
  next_argument = next_argument + count + 1
  return list, count
end
local rung, gone = arguments(), {}
for _, name in ipairs((arguments())) do gone[name] = true end
local held, unsure = {}, tonumber(ARGV[next_argument]) >= 0
for i = next_argument + 1, #ARGV do held[ARGV[i]] = true end

if redis.call('EXISTS', prefix .. me) == 0 then return {} end
local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, group)
if consumers.err then
  redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
  consumers = {}
end
if redis.pcall('XINFO', 'CONSUMERS', bell, group).err then
  redis.pcall('XGROUP', 'CREATE', bell, group, '0', 'MKSTREAM')
end
for _, id in ipairs(rung) do
  redis.call('XACK', bell, group, id)
  redis.call('XDEL', bell, id)
end

local now = now_ms()
for _, member in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 500)) do
  local _, size, at = struct.unpack('>I8I4', member)
  redis.call('XADD', stream, '*', 'm', string.sub(member, at, at + size - 1), 'b', string.sub(member, at + size))
  redis.call('ZREM', delayed, member)
end
local due = tonumber(redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2])

local entries, owners, claimed, left_over = {}, {}, false, false
local function claim(name)
  local pending = redis.call('XPENDING', stream, group, '-', '+', math.max(1, math.min(room, 1000)), name)
  if room > 0 and #pending > 0 then
    local ids, counts = {}, {}
    for i, one in ipairs(pending) do ids[i], counts[one[1]] = one[1], one[4] end
    for _, entry in ipairs(redis.call('XCLAIM', stream, group, me, 0, unpack(ids))) do
      if entry then entries[#entries + 1] = {entry[1], entry[2], counts[entry[1]]} end
    end
    room, claimed = room - #pending, true
    pending = redis.call('XPENDING', stream, group, '-', '+', 1, name)
  end
  if #pending > 0 then
    left_over = true
  else
    redis.call('XGROUP', 'DELCONSUMER', stream, group, name)
    redis.pcall('XGROUP', 'DELCONSUMER', bell, group, name)
  end
end

if unsure then
  for _, one in ipairs(redis.call('XPENDING', stream, group, '-', '+', 100000, me)) do
    if not held[one[1]] then
      local entry = redis.call('XRANGE', stream, one[1], one[1])[1]
      if entry then entries[#entries + 1] = {entry[1], entry[2], one[4] - 1} end
      room = room - 1
    end
  end
end
for _, consumer in ipairs(consumers) do
  local name = consumer[2]
  if name ~= me then
    local owner = redis.call('GET', prefix .. name)
    if owner and gone[name] then
      redis.call('DEL', prefix .. name)
      owner = false
    end
    if not owner then
      claim(name)
    elseif string.sub(owner, 1, #machine + 1) == machine .. ' ' then
      owners[#owners + 1] = {name, string.sub(owner, #machine + 2)}
    end
  end
end
if claimed and left_over then ring(bell) end
if left_over then due = now end
return {due and math.max(0, due - now) or -1, entries, owners}
"""
)

# KEYS: stream, delayed. ARGV: group, beginning of owners' keys. Returns ready, unacked, delayed.
COUNT = Script(
    _CLOCK
    + """
local unacked = 0
local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
for _, consumer in ipairs(consumers.err and {} or consumers) do
  if redis.call('EXISTS', ARGV[2] .. consumer[2]) == 1 then unacked = unacked + consumer[4] end
end
local due = redis.call('ZCOUNT', KEYS[2], '-inf', now_ms())
return {redis.call('XLEN', KEYS[1]) - unacked + due, unacked, redis.call('ZCARD', KEYS[2]) - due}
"""
)
