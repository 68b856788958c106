-- A small write, as events are written: by a script, to a key of a bucket. Readiness asks whether it is accepted.
--
-- KEYS  the probe's key
-- ARGV  seconds until it expires
redis.call('SET', KEYS[1], '1', 'EX', ARGV[1])
return 1
