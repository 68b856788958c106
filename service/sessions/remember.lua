-- Remember what was recommended to a session, so that append_events.lua can credit the release with what becomes of it.
--
-- KEYS  facts
-- ARGV  the release's name and the tracks' ids, a newline after each
--
-- It goes with the session: nothing is remembered of one that holds no plays, or was erased while the list was made.
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'shown', ARGV[1])
end
return 1
