-- The calls of the frontier; their rules are those of bus/frontier.py.
--
-- `seen` and `open` are sets of page ids, each cut into buckets small enough to stay intsets. The buckets grow by linear
-- hashing (W. Litwin, "Linear Hashing: A New Tool for File and Table Addressing", VLDB 1980): as the mean load passes
-- `load`, one more bucket takes half of an old one's members, in the script that added the last.

local RANGE = 4194304 -- 2^22: buckets there can be, and the low bits that choose one
local TEN_DIGITS = 10000000000 % RANGE
local MANY = 1000 -- arguments of one command

local record = record_of_run(ARGV[1] == 'check')
if not record then
  return false
end

local seen, open, begun = key('s'), key('o'), key('begun')
local opened = false
local wide = 1
while wide < record.buckets do
  wide = wide * 2
end

-- A member's low bits, of two's complement. Lua's numbers hold 53 bits, so its digits are read in two halves.
local function low(member)
  local first = 1
  if string.byte(member) == 45 then
    first = 2
  end
  local bits
  if #member < 14 then
    bits = tonumber(string.sub(member, first)) % RANGE
  else
    bits = ((tonumber(string.sub(member, first, -11)) % RANGE) * TEN_DIGITS + tonumber(string.sub(member, -10))) % RANGE
  end
  if first == 2 and bits > 0 then
    return RANGE - bits
  end
  return bits
end

-- The bucket of a member: of twice as many as were there at the last doubling, or of as many.
local function address(member)
  local bits = low(member)
  local bucket = bits % wide
  if bucket >= record.buckets then
    return bits % (wide / 2)
  end
  return bucket
end

local function add_all(to, members)
  for i = 1, #members, MANY do
    redis.call('SADD', to, unpack(members, i, math.min(i + MANY - 1, #members)))
  end
end

-- Both halves are written anew: a bucket that had outgrown its intset is one again.
local function split(set, from, to)
  local stay, go = {}, {}
  for _, member in ipairs(redis.call('SMEMBERS', set .. from)) do
    local half = low(member) % wide == to and go or stay
    half[#half + 1] = member
  end
  redis.call('DEL', set .. from)
  add_all(set .. from, stay)
  add_all(set .. to, go)
end

local function entered()
  record.seen = record.seen + 1
  if record.seen <= record.load * record.buckets or record.buckets == RANGE then
    return
  end
  local to = record.buckets
  if to == wide then
    wide = wide * 2
  end
  record.buckets = to + 1
  split(seen, to - wide / 2, to)
  split(open, to - wide / 2, to)
end

local function enter_open(bucket, member)
  redis.call('SADD', open .. bucket, member)
  record.open = record.open + 1
  opened = true
  entered()
end

local function save()
  if opened and record.state == 'finished' then
    set_running()
  end
  redis.call('HSET', job, 'buckets', record.buckets, 'open', record.open, 'seen', record.seen, 'begun', record.begun)
end

-- Of what has begun a page: attempt, starts, message.
local function entry_of(member)
  local entry = redis.call('HGET', begun, member)
  if not entry then
    return nil
  end
  local attempt, starts, message = string.match(entry, '^(%d+) (%d+) (.*)$')
  return {attempt = tonumber(attempt), starts = tonumber(starts), message = message}
end

local function put(member, message, attempt, starts)
  redis.call('HSET', begun, member, attempt .. ' ' .. starts .. ' ' .. message)
end

local function begin(member, message, attempt, alone)
  local entry, starts = entry_of(member), 1
  if not entry then
    record.begun = record.begun + 1
  elseif entry.message ~= message then
    return 'T'
  elseif entry.attempt > tonumber(attempt) then
    return 'S'
  elseif entry.attempt == tonumber(attempt) then
    if entry.starts > MAX_STARTS then
      return 'X'
    elseif entry.starts == MAX_STARTS and not alone then
      return 'A'
    end
    starts = entry.starts + 1
  end
  put(member, message, attempt, starts)
  return 'F'
end

local function finish(first, last)
  for i = first, last do
    local bucket = address(ARGV[i])
    if redis.call('SREM', open .. bucket, ARGV[i]) == 1 then
      record.open = record.open - 1
    elseif redis.call('SADD', seen .. bucket, ARGV[i]) == 1 then
      entered()
    end
  end
  for i = first, last, MANY do
    record.begun = record.begun - redis.call('HDEL', begun, unpack(ARGV, i, math.min(i + MANY - 1, last)))
  end
end

local calls = {}

-- pages …: a letter for each, '1' where it is not seen
function calls.check()
  local answer = {}
  for i = 4, #ARGV do
    answer[i - 3] = 1 - redis.call('SISMEMBER', seen .. address(ARGV[i]), ARGV[i])
  end
  return table.concat(answer)
end

-- number of pages, pages …, number of finished, finished …, name, count, …
function calls.mark()
  local last = 4 + tonumber(ARGV[4])
  for i = 5, last do
    local bucket = address(ARGV[i])
    if redis.call('SADD', seen .. bucket, ARGV[i]) == 1 then
      enter_open(bucket, ARGV[i])
    end
  end
  local done = last + 1 + tonumber(ARGV[last + 1])
  finish(last + 2, done)
  for i = done + 1, #ARGV, 2 do
    redis.call('HINCRBY', key('counters'), ARGV[i], ARGV[i + 1])
  end
  save()
end

-- page, message, attempt, alone, …: a letter for each
function calls.arrive()
  local verdicts = {}
  for i = 4, #ARGV, 4 do
    local page, verdict = ARGV[i], nil
    local bucket = address(page)
    if redis.call('SISMEMBER', open .. bucket, page) == 0 then
      if redis.call('SADD', seen .. bucket, page) == 0 then
        verdict = 'D'
      else
        enter_open(bucket, page)
      end
    end
    verdicts[#verdicts + 1] = verdict or begin(page, ARGV[i + 1], ARGV[i + 2], ARGV[i + 3] == '1')
  end
  save()
  return table.concat(verdicts)
end

-- page, message, attempt, …
function calls.retry()
  for i = 4, #ARGV, 3 do
    local entry = entry_of(ARGV[i])
    if entry and entry.message == ARGV[i + 1] and entry.attempt < tonumber(ARGV[i + 2]) then
      put(ARGV[i], ARGV[i + 1], ARGV[i + 2], 0)
    end
  end
end

-- page, message, attempt, …
function calls.release()
  for i = 4, #ARGV, 3 do
    local entry = entry_of(ARGV[i])
    if entry and entry.message == ARGV[i + 1] and entry.attempt == tonumber(ARGV[i + 2]) and entry.starts > 0 then
      put(ARGV[i], entry.message, entry.attempt, entry.starts - 1)
    end
  end
end

-- pages …: how many were new
function calls.known()
  local before = record.seen
  for i = 4, #ARGV do
    if redis.call('SADD', seen .. address(ARGV[i]), ARGV[i]) == 1 then
      entered()
    end
  end
  save()
  return record.seen - before
end

-- how many generations, pages …: how many were there
function calls.unsee()
  local before = record.seen
  redis.call('HINCRBY', key('counters'), 'dedup-generation', ARGV[4])
  for i = 5, #ARGV do
    local bucket = address(ARGV[i])
    if redis.call('SISMEMBER', open .. bucket, ARGV[i]) == 0 then
      record.seen = record.seen - redis.call('SREM', seen .. bucket, ARGV[i])
    end
  end
  save()
  return before - record.seen
end

return calls[ARGV[1]]()
