-- Log a list that was served to a session, for the event log's files.
--
-- KEYS  facts (hash), plays (list), lists (stream): in one slot
-- ARGV  max stream length, session id, position of the next play after the list ('' if older plays may have been
--       dropped), at in ms, time in ms and track id of the latest play before the list, then the other fields of the
--       entry (service/sessions/event_log.py)
-- Returns entries dropped from the full stream
--
-- Lists are logged a moment after they are served. By then further plays may be stored, or the session may be erased
-- and another may have its id. So the latest play before the list is looked for, and nothing is logged without it.
local facts = redis.call('HMGET', KEYS[1], 'started', 'appended')
if not facts[1] then return 0 end
local appended, position = tonumber(facts[2]), tonumber(ARGV[3])
local first, last = 1, redis.call('LLEN', KEYS[2]) -- places of plays, from the end
if position then
  first = appended - position + 1
  last = math.min(first, last)
  if first < 1 then return 0 end
end
for back = first, last do
  local at, track = string.match(redis.call('LINDEX', KEYS[2], -back) or '', '^%a\t(-?%d*)\t%d*\t(.*)$')
  if at == ARGV[5] and track == ARGV[6] then
    local before = redis.call('XLEN', KEYS[3])
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[1], '*', 'session_id', ARGV[2] .. '@' .. facts[1],
      'position', appended - back + 1, 'at', ARGV[4], unpack(ARGV, 7))
    return before + 1 - redis.call('XLEN', KEYS[3])
  end
end
return 0
