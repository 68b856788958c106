-- Erase one session: its keys and its events in the streams. A mark makes the event log's writer erase its logged plays.
--
-- KEYS  plays, facts, event ids, events (stream), preferences (stream), lists (stream), erasures (set), erasure marker
--       (string): all in one slot
-- ARGV  session id, '1' if events are logged
--
-- A mark is <session>@<now in ms>. It covers all sessions with that id that started before. Marks are in a set, not
-- in the stream: a full stream drops its oldest entries, and an erasure must not be lost.
local erasures, session = KEYS[7], ARGV[1]
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])

-- Several sessions may have used the same id. Entries name them <id>@<start in ms>. Session ids contain no '@'.
local prefix = session .. '@'
for _, stream in ipairs({KEYS[4], KEYS[5], KEYS[6]}) do
  local from = '-'
  repeat
    local entries = redis.call('XRANGE', stream, from, '+', 'COUNT', 500)
    for _, entry in ipairs(entries) do
      local fields = entry[2]
      if string.sub(fields[2], 1, #prefix) == prefix then
        redis.call('XDEL', stream, entry[1])
      end
      from = '(' .. entry[1]
    end
  until #entries < 500
end

-- The append-only file still contains the session: request a rewrite (service/sessions/privacy.py).
redis.call('SET', KEYS[8], '1', 'EX', 172800)

if ARGV[2] == '1' then
  local clock = redis.call('TIME')
  redis.call('SADD', erasures, prefix .. string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000)))
end
return 1
