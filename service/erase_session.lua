-- Erase one session: its keys, its events in the stream, and, by a marker that the log's writer finds, its logged plays.
--
-- KEYS  plays, facts, event ids, events (stream): all of one slot
-- ARGV  session id, stream length (0: no log)
local stream, session, stream_length = KEYS[4], ARGV[1], tonumber(ARGV[2])
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])

-- One id may have named several sessions: <id>@<start of the session in ms>. '@' is in no session id.
local prefix = session .. '@'
local from = '-'
repeat
  local entries = redis.call('XRANGE', stream, from, '+', 'COUNT', 500)
  for _, entry in ipairs(entries) do
    local fields = entry[2]
    if fields[1] == 'session_id' and string.sub(fields[2], 1, #prefix) == prefix then
      redis.call('XDEL', stream, entry[1])
    end
    from = '(' .. entry[1]
  end
until #entries < 500

if stream_length > 0 then
  redis.call('XADD', stream, 'MAXLEN', '~', stream_length, '*', 'erased', session)
end
return 1
