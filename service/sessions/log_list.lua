-- Log a list that was served to a session, for the event log's files.
--
-- KEYS  facts (hash), lists (stream): in one slot
-- ARGV  max stream length, session id, plays that the list followed (-1: all), at in ms, then the other fields of the
--       entry (service/sessions/event_log.py)
-- Returns entries dropped from the full stream
--
-- Nothing is logged if the session was erased in the meantime. `position` is that of the next play after the list.
local facts = redis.call('HMGET', KEYS[1], 'started', 'appended')
local plays = tonumber(ARGV[3])
if not facts[1] or tonumber(facts[2]) < plays then return 0 end
local before = redis.call('XLEN', KEYS[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], '*', 'session_id', ARGV[2] .. '@' .. facts[1],
  'position', plays < 0 and facts[2] or ARGV[3], 'at', ARGV[4], unpack(ARGV, 5))
return before + 1 - redis.call('XLEN', KEYS[2])
