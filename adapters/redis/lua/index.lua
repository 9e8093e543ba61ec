-- The names of all jobs, in a key of its own. ARGV: names to add.
for _, name in ipairs(ARGV) do
  redis.call('SADD', KEYS[1], name)
end
return redis.call('SMEMBERS', KEYS[1])
