-- Apply the events of one request to one session, and log them, in one atomic step. The reference implementation is
-- segue.sessions.apply_event; tests/test_session_semantics.py compares the two.
--
-- KEYS  plays (list), facts (hash), event ids (sorted set), events (stream): all in one slot
-- ARGV  session id, idle gap in ms, max plays, max event ids, max stream length (0: no event log), '1' to return the
--       plays, then five values per event: type, track id, at in ms, ms played, event id ('' for none)
-- Returns number of plays, number of duplicates, list of plays if requested, attributions, entries dropped from the
--         full stream, 1 if the session started, else 0
--
-- An attribution is the outcome of a recommended track, as <kind> TAB <release>. Kinds: P the track was played, S it
-- was skipped, L a play that was already attributed became a skip. remember.lua stores the recommended list.
--
-- A play is stored as <P or S> TAB <at in ms> TAB <ms played or ''> TAB <track id>. Ids contain no control characters.
local plays_key, facts_key, ids_key, stream = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local session, idle_gap_ms = ARGV[1], ARGV[2]
local max_plays, max_ids, stream_length = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local clock = redis.call('TIME')
local now_ms = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000))
local facts = redis.call('HMGET', facts_key, 'started', 'appended', 'reported', 'shown', 'credited')
local started = facts[1] or now_ms
local appended, reported = tonumber(facts[2] or 0), tonumber(facts[3] or 0)
local latest = redis.call('LINDEX', plays_key, -1)
local duplicates = 0
local logged, waiting = 0, stream_length > 0 and redis.call('XLEN', stream) or 0
local recommended = facts[4] -- the latest list: the release and its tracks
local attributed = facts[5] or '' -- the release to which the latest play is attributed, '' for none
local attributions = {}

local function attribute(kind, track)
  if kind ~= 'L' then
    local found = string.find(recommended, '\n' .. track .. '\n', 1, true)
    attributed = found and string.match(recommended, '^[^\n]*') or ''
  end
  if attributed ~= '' then
    table.insert(attributions, kind .. '\t' .. attributed)
  end
end

local function log(outcome, at, ms, track)
  if stream_length > 0 then
    logged = logged + 1
    redis.call('XADD', stream, 'MAXLEN', '~', stream_length, '*', 'session_id', session .. '@' .. started,
      'position', appended - 1, 'track_id', track, 'skipped', outcome == 'S' and 1 or 0, 'at', at, 'ms_played', ms)
  end
end

local function append(outcome, at, ms, track)
  latest = outcome .. '\t' .. at .. '\t' .. ms .. '\t' .. track
  redis.call('RPUSH', plays_key, latest)
  appended = appended + 1
  log(outcome, at, ms, track)
  if recommended then attribute(outcome, track) end
end

local function is_new(event_id)
  if event_id == '' then return true end
  reported = reported + 1
  return redis.call('ZADD', ids_key, 'NX', reported, event_id) == 1
end

for i = 7, #ARGV, 5 do
  local kind, track, at, ms, event_id = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  if at == '' then at = now_ms end
  if not is_new(event_id) then
    duplicates = duplicates + 1
  elseif kind == 'play' then
    append('P', at, ms, track)
  else
    local outcome, began, heard, name = string.match(latest or '', '^(%a)\t(-?%d*)\t(%d*)\t(.*)$')
    if outcome == 'P' and name == track then
      if ms == '' then ms = heard end
      latest = 'S\t' .. began .. '\t' .. ms .. '\t' .. track
      redis.call('LSET', plays_key, -1, latest)
      log('S', began, ms, track)
      if recommended then attribute('L', track) end
    else
      append('S', at, ms, track)
    end
  end
end

redis.call('LTRIM', plays_key, -max_plays, -1)
redis.call('ZREMRANGEBYRANK', ids_key, 0, -(max_ids + 1))
redis.call('HSET', facts_key, 'started', started, 'appended', appended, 'reported', reported)
if recommended then
  redis.call('HSET', facts_key, 'credited', attributed)
end
for _, key in ipairs({plays_key, facts_key, ids_key}) do
  redis.call('PEXPIRE', key, idle_gap_ms)
end

local dropped = stream_length > 0 and waiting + logged - redis.call('XLEN', stream) or 0
return {redis.call('LLEN', plays_key), duplicates, ARGV[6] == '1' and redis.call('LRANGE', plays_key, 0, -1) or {},
  attributions, dropped, facts[1] and 0 or 1}
