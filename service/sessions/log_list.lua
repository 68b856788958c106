-- Log a list that was served to a session, for the event log's files.
--
-- KEYS  facts (hash), plays (list), lists (stream): in one slot
-- ARGV  max stream length, session id, position of the next play after the list ('' if older plays may have been
--       dropped), at in ms, time in ms and track id of the latest play before the list, then the other fields of the
--       entry (service/sessions/event_log.py)
-- Returns entries dropped from the full stream
--
-- Lists are logged a moment after they are served, so further plays may be stored by now. If the number of plays before
-- the list is not known, it is found by the latest of them. Nothing is logged if the session was erased in the meantime.
local facts = redis.call('HMGET', KEYS[1], 'started', 'appended')
if not facts[1] then return 0 end
local appended, position = tonumber(facts[2]), tonumber(ARGV[3])
for back = 1, position and 0 or redis.call('LLEN', KEYS[2]) do
  local at, track = string.match(redis.call('LINDEX', KEYS[2], -back), '^%a\t(-?%d*)\t%d*\t(.*)$')
  if at == ARGV[5] and track == ARGV[6] then
    position = appended - back + 1
    break
  end
end
if not position or appended < position then return 0 end
local before = redis.call('XLEN', KEYS[3])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[1], '*', 'session_id', ARGV[2] .. '@' .. facts[1],
  'position', position, 'at', ARGV[4], unpack(ARGV, 7))
return before + 1 - redis.call('XLEN', KEYS[3])
