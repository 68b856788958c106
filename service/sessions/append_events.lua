-- Apply the events of one request to one session, and log them, in one step. The rule is segue.sessions.apply_event;
-- tests/test_session_semantics.py holds the two together.
--
-- KEYS  plays (list), facts (hash), event ids (sorted set), events (stream): all of one slot
-- ARGV  session id, idle gap in ms, most plays kept, most event ids kept, stream length (0: no log),
--       '1' to return the plays, then five for each event: type, track id, at in ms, ms played, event id ('' for none)
-- Answer: plays kept, duplicates, list of plays if asked for, credits, entries that the full stream dropped,
--         1 if the session began, else 0
--
-- A credit says what became of a track that a release had recommended, as <kind> TAB <release>: P it was played, S it
-- was skipped, L its play, credited before, was later skipped. remember.lua writes what was recommended.
--
-- A play is stored as <P or S> TAB <at in ms> TAB <ms played or nothing> TAB <track id>; ids hold no control characters.
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
local shown, credited = facts[4], facts[5] or '' -- the latest list; the release credited with the latest play
local credits = {}

local function credit(kind, track)
  if kind ~= 'L' then
    credited = string.find(shown, '\n' .. track .. '\n', 1, true) and string.match(shown, '^[^\n]*') or ''
  end
  if credited ~= '' then
    table.insert(credits, kind .. '\t' .. credited)
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
  if shown then credit(outcome, track) end
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
      if shown then credit('L', track) end
    else
      append('S', at, ms, track)
    end
  end
end

redis.call('LTRIM', plays_key, -max_plays, -1)
redis.call('ZREMRANGEBYRANK', ids_key, 0, -(max_ids + 1))
redis.call('HSET', facts_key, 'started', started, 'appended', appended, 'reported', reported)
if shown then
  redis.call('HSET', facts_key, 'credited', credited)
end
for _, key in ipairs({plays_key, facts_key, ids_key}) do
  redis.call('PEXPIRE', key, idle_gap_ms)
end

local dropped = stream_length > 0 and waiting + logged - redis.call('XLEN', stream) or 0
return {redis.call('LLEN', plays_key), duplicates, ARGV[6] == '1' and redis.call('LRANGE', plays_key, 0, -1) or {},
  credits, dropped, facts[1] and 0 or 1}
