-- A small write by the same means as events: a script that writes a key of a bucket. The readiness check runs it.
--
-- KEYS  the probe's key
-- ARGV  seconds until it expires
redis.call('SET', KEYS[1], '1', 'EX', ARGV[1])
return 1
