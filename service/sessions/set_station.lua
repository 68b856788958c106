-- Set or remove the station of a session. append_events.lua describes how preferences are stored.
--
-- KEYS  plays (list), facts (hash), event ids (sorted set): all in one slot
-- ARGV  idle gap in ms, the lines of the station, each after a newline ('' to remove it)
-- Returns 1 if there was a station
local plays_key, station = KEYS[1], ARGV[2]
local head = redis.call('LINDEX', plays_key, 0)
local has_head = head and string.byte(head) == 61
local text, found = '', 0
if has_head then
  for line in string.gmatch(head, '\n([^\n]+)') do
    if string.sub(line, 1, 1) == 'S' then found = 1 else text = text .. '\n' .. line end
  end
end
text = text .. station

if text == '' then
  if has_head then redis.call('LPOP', plays_key) end
elseif has_head then
  redis.call('LSET', plays_key, 0, '=' .. text) -- removing the only element would remove the expiry as well
else
  redis.call('LPUSH', plays_key, '=' .. text)
end
if station ~= '' then
  for _, key in ipairs({plays_key, KEYS[2], KEYS[3]}) do
    redis.call('PEXPIRE', key, ARGV[1])
  end
end
return found
