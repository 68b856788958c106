-- Store the list that was recommended to a session, so that append_events.lua can attribute plays and skips to it.
--
-- KEYS  facts
-- ARGV  the release's name and the track ids, each followed by a newline
--
-- The list expires with the session. Nothing is stored if the session has no plays, or was erased in the meantime.
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'shown', ARGV[1])
end
return 1
