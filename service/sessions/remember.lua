-- Store the list that was recommended to a session, so that append_events.lua can attribute plays and skips to it.
--
-- KEYS  facts
-- ARGV  the release's name and the track ids, each followed by a newline; the number of stored plays before the list
--
-- The list expires with the session. Nothing is stored if the session was erased in the meantime, or has a list that
-- followed more plays: another worker may store its list first.
local facts = redis.call('HMGET', KEYS[1], 'appended', 'shown_after')
local plays = tonumber(ARGV[2])
if facts[1] and plays <= tonumber(facts[1]) and plays >= tonumber(facts[2] or 0) then
  redis.call('HSET', KEYS[1], 'shown', ARGV[1], 'shown_after', plays)
end
return 1
