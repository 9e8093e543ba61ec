-- Jobs, leases and reports. A lease is a field of a hash: when it runs out, the process that holds it, its owner.

local SWEEP = 500 -- buckets of an earlier run that one step deletes
local FORGET_S = 60 -- after so long, a lease that has run out is deleted

local function present_run()
  return redis.call('HGET', job, 'listed') == '1' and redis.call('HGET', job, 'run')
end

-- All that is known of a job, of whatever run it is in now; nil if it is unknown.
local function status()
  run = present_run()
  if not run then
    return false
  end
  return {
    now,
    server_id(),
    redis.call('HGETALL', job),
    redis.call('HGETALL', key('counters')),
    redis.call('HGETALL', key('leases')),
    redis.call('HGETALL', key('reports')),
  }
end

local function create(number, spider, listed, load)
  redis.call('DEL', job)
  redis.call('HSET', job, 'run', number, 'spider', spider, 'listed', listed, 'created_at', now, 'server', server_id(),
    'state', 'running', 'start_ended', 0, 'suspect', 0, 'unaccounted', 0,
    'buckets', 1, 'load', load, 'open', 0, 'seen', 0, 'begun', 0)
end

local function is_present()
  local record = record_of_run(false)
  return record ~= nil
end

local function lease_of(name)
  local lease = redis.call('HGET', key('leases'), name)
  if not lease then
    return nil
  end
  local expires, process, owner = string.match(lease, '^([^\n]*)\n([^\n]*)\n(.*)$')
  return {expires = tonumber(expires), process = process, owner = owner, lives = tonumber(expires) > tonumber(now)}
end

local function put_lease(name, owner, process, lease_s)
  local expires = string.format('%.17g', tonumber(now) + tonumber(lease_s))
  redis.call('HSET', key('leases'), name, expires .. '\n' .. process .. '\n' .. owner)
end

local function drop_lease(name)
  redis.call('HDEL', key('leases'), name)
  if string.sub(name, 1, 7) == 'worker:' then
    redis.call('HDEL', key('reports'), string.sub(name, 8))
  end
end

-- Leases that ran out long ago: of workers on other machines, which nobody here sees die. One that is renewed after all
-- is made again, if nobody else has it.
local function forget_old()
  for _, name in ipairs(redis.call('HKEYS', key('leases'))) do
    if tonumber(now) - lease_of(name).expires > FORGET_S then
      drop_lease(name)
    end
  end
end

-- Is anybody there who keeps the job from its end?
local function is_kept()
  for _, name in ipairs(redis.call('HKEYS', key('leases'))) do
    if (string.sub(name, 1, 5) == 'seed:' or string.sub(name, 1, 8) == 'forever:') and lease_of(name).lives then
      return true
    end
  end
  return false
end

local calls = {}

calls.status = status

-- spider, load, resume
function calls.join()
  local spider, load, resume = ARGV[4], ARGV[5], ARGV[6]
  local f = redis.call('HMGET', job, 'run', 'listed', 'spider', 'server', 'state')
  if not f[1] then
    create(1, spider, 1, load)
    return status()
  end
  if f[2] ~= '1' or f[3] == '' then
    redis.call('HSET', job, 'listed', 1, 'spider', spider, 'created_at', now)
  elseif spider ~= '' and spider ~= f[3] then
    return f[3]
  end
  if look_for_loss(f[4], f[5]) == 'stopped' and resume == '1' then
    redis.call('HSET', job, 'state', 'running')
  end
  return status()
end

-- listed, load: a new run. What the old one leaves is swept away in steps.
function calls.restart()
  run = present_run()
  if not run then
    return false
  end
  local f = redis.call('HMGET', job, 'buckets', 'spider')
  redis.call('SADD', job .. ':over', run .. ' ' .. f[1])
  redis.call('UNLINK', key('counters'), key('leases'), key('reports'), key('begun'))
  create(tonumber(run) + 1, f[2], ARGV[4], ARGV[5])
  return status() or 1
end

-- One step of deleting what runs that are over have left; 1 while there is more.
function calls.sweep()
  local over = redis.call('SRANDMEMBER', job .. ':over')
  if not over then
    return 0
  end
  local number, buckets = string.match(over, '^(%d+) (%d+)$')
  local left = math.max(tonumber(buckets) - SWEEP, 0)
  for bucket = left, tonumber(buckets) - 1 do
    local prefix = job .. ':' .. number .. ':'
    redis.call('UNLINK', prefix .. 's' .. bucket, prefix .. 'o' .. bucket)
  end
  redis.call('SREM', job .. ':over', over)
  if left > 0 then
    redis.call('SADD', job .. ':over', number .. ' ' .. left)
  end
  return 1
end

-- state
function calls.set_state()
  run = present_run()
  if not run then
    return false
  end
  if record_of_run(false).state ~= 'finished' then
    redis.call('HSET', job, 'state', ARGV[4])
  end
  return status()
end

-- unaccounted, or '' for the quick end
function calls.finish()
  local record = record_of_run(false)
  if not record then
    return false
  end
  local f = redis.call('HMGET', job, 'start_ended', 'suspect')
  local slow = ARGV[4] ~= ''
  if record.state ~= 'running' or f[1] ~= '1' or is_kept() or (not slow and (record.open > 0 or f[2] == '1')) then
    return record.state
  end
  redis.call('HSET', job, 'state', 'finished', 'finished_at', now, 'suspect', 0,
    'unaccounted', math.max(tonumber(ARGV[4]) or 0, record.open))
  return 'finished'
end

-- owner
function calls.end_start()
  local lease = is_present() and lease_of('start')
  if not lease or lease.owner ~= ARGV[4] or not lease.lives then
    return 0
  end
  redis.call('HSET', job, 'start_ended', 1)
  return 1
end

-- name, owner, process, lease_s, a process that is gone: '', or the process that keeps it from us ('-': it is no lease)
function calls.acquire()
  local name, owner, process, lease_s, gone = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
  if not is_present() or (name == 'start' and redis.call('HGET', job, 'start_ended') == '1') then
    return '-'
  end
  local lease = lease_of(name)
  if lease and lease.owner ~= owner and lease.lives and lease.process ~= gone then
    return lease.process
  end
  if not lease or lease.owner ~= owner then
    forget_old()
  end
  put_lease(name, owner, process, lease_s)
  return ''
end

-- name, owner, process, lease_s: also where it has run out, or was lost with the server, unless it is another's
function calls.renew()
  if is_present() then
    local lease = lease_of(ARGV[4])
    if not lease or lease.owner == ARGV[5] then
      put_lease(ARGV[4], ARGV[5], ARGV[6], ARGV[7])
    end
  end
end

-- name, owner
function calls.drop()
  local lease = is_present() and lease_of(ARGV[4])
  if lease and lease.owner == ARGV[5] then
    drop_lease(ARGV[4])
  end
end

-- processes …, all gone
function calls.drop_gone()
  run = present_run()
  for _, name in ipairs(run and redis.call('HKEYS', key('leases')) or {}) do
    for i = 4, #ARGV do
      if lease_of(name).process == ARGV[i] then
        drop_lease(name)
        break
      end
    end
  end
end

-- worker, report
function calls.report()
  if is_present() then
    redis.call('HSET', key('reports'), ARGV[4], ARGV[5])
  end
  return status()
end

return calls[ARGV[1]]()
