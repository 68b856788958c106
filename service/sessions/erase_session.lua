-- Erase one session: its keys, its events in the stream, and, by a mark that the log's writer finds, its logged plays.
--
-- KEYS  plays, facts, event ids, events (stream), erasures (set), marker of erasures: all of one slot
-- ARGV  session id, '1' where events are logged
--
-- A mark is <session>@<now in ms>, and concerns what that id named until then. It lies in a set of its own and not in
-- the stream, which drops its oldest entries while nobody reads it: an erasure waits for as long as it takes.
local stream, erasures, session = KEYS[4], KEYS[5], ARGV[1]
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])

-- One id may have named several sessions: <id>@<start of the session in ms>. '@' is in no session id.
local prefix = session .. '@'
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

-- For the append-only file, which still holds the session (service/sessions/privacy.py).
redis.call('SET', KEYS[6], '1', 'EX', 172800)

if ARGV[2] == '1' then
  local clock = redis.call('TIME')
  redis.call('SADD', erasures, prefix .. string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000)))
end
return 1
