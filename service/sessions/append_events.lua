-- Apply the events of one request to one session, and log them, in one atomic step. The reference implementation is
-- segue.sessions.session_of; tests/test_session_semantics.py compares the two.
--
-- KEYS  plays (list), facts (hash), event ids (sorted set), events (stream), preferences (stream): all in one slot
-- ARGV  session id, idle gap in ms, max plays, max event ids, max stream length (0: no event log), '1' to return the
--       plays, listener id ('' for none), max preferences of a kind, then five values per event: type, track id, at in
--       ms, ms played, event id ('' for none)
-- Returns number of plays, number of duplicates, list of plays if requested, attributions, entries dropped from the
--         full streams, 1 if the session started, else 0
--
-- An attribution is the outcome of a recommended track, as <kind> TAB <release>. Kinds: P the track was played, S it
-- was skipped, L a play that was already attributed became a skip. remember.lua stores the recommended list.
--
-- A play is stored as <P or S> TAB <at in ms> TAB <ms played or ''> TAB <track id>. Ids contain no control characters.
-- Preferences, if there are any, are the first element of the list, so that one reply has all of a session. It is '='
-- and lines, each <newline> <kind> TAB <value>. Kinds: U listener id, L liked, D disliked, B banned track, A track whose
-- artist is banned; S... belong to the station (set_station.lua).
local plays_key, facts_key, ids_key, stream, said = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session, idle_gap_ms, listener = ARGV[1], ARGV[2], ARGV[7]
local max_plays, max_ids, stream_length = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local clock = redis.call('TIME')
local now_ms = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000))
local facts = redis.call('HMGET', facts_key, 'started', 'appended', 'reported', 'shown', 'credited')
local started = facts[1] or now_ms
local appended, reported = tonumber(facts[2] or 0), tonumber(facts[3] or 0)

local lines, place = {}, {} -- the preferences, and the index of each line

local function put(line)
  if not place[line] then
    table.insert(lines, line)
    place[line] = #lines
  end
end

local function drop(line)
  place[line] = nil
end

local head = redis.call('LINDEX', plays_key, 0)
if head and string.byte(head) == 61 then
  redis.call('LPOP', plays_key)
  for line in string.gmatch(head, '\n([^\n]+)') do
    if string.sub(line, 1, 2) ~= 'U\t' then
      put(line)
    elseif listener == '' then
      listener = string.sub(line, 3)
    end
  end
end

local latest = redis.call('LINDEX', plays_key, -1)
local duplicates, dropped = 0, 0
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

local function log(outcome, at, ms, track, position)
  if stream_length > 0 then
    logged = logged + 1
    redis.call('XADD', stream, 'MAXLEN', '~', stream_length, '*', 'session_id', session .. '@' .. started,
      'position', position, 'track_id', track, 'skipped', outcome == 'S' and 1 or 0, 'at', at, 'ms_played', ms)
  end
end

local function log_preference(kind, at, track)
  if stream_length > 0 then
    local before = redis.call('XLEN', said)
    redis.call('XADD', said, 'MAXLEN', '~', stream_length, '*', 'session_id', session .. '@' .. started,
      'position', appended - 1, 'type', kind, 'track_id', track, 'at', at)
    dropped = dropped + before + 1 - redis.call('XLEN', said)
  end
end

local function append(outcome, at, ms, track)
  latest = outcome .. '\t' .. at .. '\t' .. ms .. '\t' .. track
  redis.call('RPUSH', plays_key, latest)
  appended = appended + 1
  log(outcome, at, ms, track, appended - 1)
  if recommended then attribute(outcome, track) end
end

-- Change a play to skipped if it is of the track and not yet skipped. `back` 1 is the latest play. Returns whether the
-- play is of the track, and whether it was changed.
local function skip(play, back, track, ms)
  local outcome, began, heard, name = string.match(play, '^(%a)\t(-?%d*)\t(%d*)\t(.*)$')
  if name ~= track or outcome ~= 'P' then return name == track, false end
  if ms == '' then ms = heard end
  play = 'S\t' .. began .. '\t' .. ms .. '\t' .. track
  redis.call('LSET', plays_key, -back, play)
  log('S', began, ms, track, appended - back)
  if back == 1 then
    latest = play
    if recommended then attribute('L', track) end
  end
  return true, true
end

-- What each event other than `play` and `skip` does. `own`: bans are stored with the session, not with its listener.
local own = ARGV[7] == ''
local change = {
  like = function(track) put('L\t' .. track) drop('D\t' .. track) end,
  unlike = function(track) drop('L\t' .. track) end,
  dislike = function(track, ms)
    put('D\t' .. track)
    drop('L\t' .. track)
    local plays = redis.call('LRANGE', plays_key, 0, -1)
    for i = #plays, 1, -1 do
      if skip(plays[i], #plays - i + 1, track, ms) then break end
    end
  end,
  undislike = function(track) drop('D\t' .. track) end,
  ban = function(track)
    drop('L\t' .. track)
    if own then put('B\t' .. track) else drop('B\t' .. track) end
  end,
  unban = function(track) drop('B\t' .. track) end,
  ban_artist = function(track)
    if own then put('A\t' .. track) else drop('A\t' .. track) end
  end,
  unban_artist = function(track) drop('A\t' .. track) end,
}

local function is_new(event_id)
  if event_id == '' then return true end
  reported = reported + 1
  return redis.call('ZADD', ids_key, 'NX', reported, event_id) == 1
end

for i = 9, #ARGV, 5 do
  local kind, track, at, ms, event_id = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  if at == '' then at = now_ms end
  if not is_new(event_id) then
    duplicates = duplicates + 1
  elseif kind == 'play' then
    append('P', at, ms, track)
  elseif kind == 'skip' then
    local _, changed = skip(latest or '', 1, track, ms)
    if not changed then append('S', at, ms, track) end
  else
    change[kind](track, ms)
    log_preference(kind, at, track)
  end
end

redis.call('LTRIM', plays_key, -max_plays, -1)
local length = redis.call('LLEN', plays_key)
local kept, of_kind = {}, {} -- the latest lines of each kind
for i = #lines, 1, -1 do
  if place[lines[i]] == i then
    local kind = string.match(lines[i], '^[^\t]+')
    of_kind[kind] = (of_kind[kind] or 0) + 1
    if string.sub(kind, 1, 1) == 'S' or of_kind[kind] <= tonumber(ARGV[8]) then
      table.insert(kept, 1, '\n' .. lines[i])
    end
  end
end
if listener ~= '' then table.insert(kept, 1, '\nU\t' .. listener) end
if #kept > 0 then redis.call('LPUSH', plays_key, '=' .. table.concat(kept)) end

redis.call('ZREMRANGEBYRANK', ids_key, 0, -(max_ids + 1))
redis.call('HSET', facts_key, 'started', started, 'appended', appended, 'reported', reported)
if recommended then
  redis.call('HSET', facts_key, 'credited', attributed)
end
for _, key in ipairs({plays_key, facts_key, ids_key}) do
  redis.call('PEXPIRE', key, idle_gap_ms)
end

if stream_length > 0 then dropped = dropped + waiting + logged - redis.call('XLEN', stream) end
return {length, duplicates, ARGV[6] == '1' and redis.call('LRANGE', plays_key, 0, -1) or {}, attributions, dropped,
  facts[1] and 0 or 1}
