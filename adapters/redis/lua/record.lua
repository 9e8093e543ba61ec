-- What every script of the state begins with. KEYS[1] is the record of a job, a hash, and all other keys of the job have
-- its hash tag. ARGV: which call, the run it is of, the time ('' is the server's own), and what the call itself takes.

local job, run, now = KEYS[1], ARGV[2], ARGV[3]

if now == '' then
  local time = redis.call('TIME')
  now = time[1] .. '.' .. string.format('%06d', time[2])
end

-- A key of this run of the job.
local function key(name)
  return job .. ':' .. run .. ':' .. name
end

local function server_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

local function set_running()
  redis.call('HSET', job, 'state', 'running', 'unaccounted', 0)
  redis.call('HDEL', job, 'finished_at')
end

-- A server that is not the one the job knows may have lost its last writes: nothing proves an end any more.
local function look_for_loss(known, state)
  local server = server_id()
  if known == server then
    return state
  end
  redis.call('HSET', job, 'server', server, 'suspect', 1)
  if state == 'finished' then
    set_running()
    return 'running'
  end
  return state
end

-- The fields that a frontier call works on; nil for any run but the present one.
local function record_of_run(reads_only)
  local f = redis.call('HMGET', job, 'run', 'listed', 'server', 'state', 'buckets', 'load', 'open', 'seen', 'begun')
  if f[1] ~= run or f[2] ~= '1' then
    return nil
  end
  return {
    state = reads_only and f[4] or look_for_loss(f[3], f[4]),
    buckets = tonumber(f[5]),
    load = tonumber(f[6]),
    open = tonumber(f[7]),
    seen = tonumber(f[8]),
    begun = tonumber(f[9]),
  }
end
