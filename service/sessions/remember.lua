-- Store the list that was recommended to a session, so that append_events.lua can attribute plays and skips to it.
--
-- KEYS  plays (list), facts (hash)
-- ARGV  the release's name and the track ids, each followed by a newline; time in ms and track id of the latest play
--       before the list ('' for none)
--
-- The list expires with the session. Nothing is stored if the session was erased in the meantime, or has a list that
-- followed more plays: another worker may store its list first.
local facts = redis.call('HMGET', KEYS[2], 'appended', 'shown_after')
if not facts[1] then return 0 end
local after = ARGV[3] == '' and 0 or nil -- number of plays before the list
for back = 1, after and 0 or redis.call('LLEN', KEYS[1]) do
  local at, track = string.match(redis.call('LINDEX', KEYS[1], -back), '^%a\t(-?%d*)\t%d*\t(.*)$')
  if at == ARGV[2] and track == ARGV[3] then
    after = tonumber(facts[1]) - back + 1
    break
  end
end
if not after or after < tonumber(facts[2] or 0) then return 0 end
redis.call('HSET', KEYS[2], 'shown', ARGV[1], 'shown_after', after)
return 1
