-- Set and lift bans of a listener.
--
-- KEYS  bans (sorted set, the latest last), event ids (sorted set): both in one slot
-- ARGV  max bans, max event ids, idle gap (ms), then three values per event: '1' to set or '0' to lift, the ban as <B or
--       A> TAB <track id>, session and event id ('' for none). An event that was applied before has no effect, until the
--       idle gap has passed: then the session id may belong to a new session, which numbers its events again.
local bans_key, ids_key = KEYS[1], KEYS[2]
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + clock[2] / 1000

redis.call('ZREMRANGEBYSCORE', ids_key, '-inf', now_ms - ARGV[3])
for i = 4, #ARGV, 3 do
  local set, ban, event_id = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local now = now_ms + i / 1000 -- the events of a request keep their order
  if event_id == '' or redis.call('ZADD', ids_key, 'NX', now, event_id) == 1 then
    if set == '1' then
      redis.call('ZADD', bans_key, 'NX', now, ban)
    else
      redis.call('ZREM', bans_key, ban)
    end
  end
end
redis.call('ZREMRANGEBYRANK', bans_key, 0, -(ARGV[1] + 1))
redis.call('ZREMRANGEBYRANK', ids_key, 0, -(ARGV[2] + 1))
return 1
