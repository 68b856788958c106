// The session's state: its plays, the current track and the queue. Calls the service and does not touch the page.

import { call, callUntilAnswered, send } from "./api.js";
import { forgetOptions, listOptions } from "./tuning.js";

export const NEXT = 15;
export const REPEAT = "never"; // a radio does not repeat a track of its session
const SESSION_KEY = "segue.session";
const STARTED_KEY = "segue.started";
const RELEASE_KEY = "segue.release";
const GONE = 404; // the status for a release that is no longer live
const MOST_AT_ONCE = 100; // events per request
const MOST_SHARED = 1000; // events in a link
const MOST_SUPPOSED = 500; // events of a hypothetical session
const SUPPOSED = 100; // tracks of a hypothetical list: "would be #60"

export const state = {
  id: localStorage.getItem(SESSION_KEY) ?? newId(),
  plays: [], // in the form of GET /sessions/{id}
  now: null, // the current track
  isStarted: false, // the current track has started, and its outcome is not known and not reported yet
  queue: [], // tracks chosen to play next
  release: sessionStorage.getItem(RELEASE_KEY), // the selected release; null: the one that the service selects for this session
};

const names = new Map(); // track id -> track, for tracks seen so far
const unknown = new Set(); // ids of tracks that the release does not have
export const isUnknown = (id) => unknown.has(id);
/** Remember the names of tracks. An explanation's tracks have no attributes, and must not replace those that are known. */
export const remember = (tracks) => tracks.forEach((track) => {
  if (track.title ?? track.artist) names.set(track.track_id, { ...track, attributes: track.attributes ?? names.get(track.track_id)?.attributes });
});
export const trackOf = (id) => names.get(id) ?? { track_id: id };
export const titleOf = (track) => track.title ?? track.track_id;

function newId() {
  const id = `player-${Date.now().toString(36)}-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
  localStorage.setItem(SESSION_KEY, id);
  return id;
}

const path = (rest = "") => `sessions/${encodeURIComponent(state.id)}${rest}`;
export const streamPath = () => path("/stream");

/** Start a new session in this browser. The service keeps the old one until it expires. */
export function startAnew() {
  Object.assign(state, { id: newId(), plays: [], now: null, queue: [] });
  setStarted(false);
}

/** Remember, over a reload of the page as well, whether the current track has started without a report. */
export function setStarted(isStarted) {
  state.isStarted = isStarted;
  if (isStarted) sessionStorage.setItem(STARTED_KEY, JSON.stringify([state.id, state.plays.length, state.now.track_id]));
  else sessionStorage.removeItem(STARTED_KEY);
}

function restoreStarted() {
  const [id, length, track] = JSON.parse(sessionStorage.getItem(STARTED_KEY) ?? "[]");
  state.isStarted = id === state.id && length === state.plays.length;
  if (state.isStarted) state.now = trackOf(track);
}

/** Request the next tracks from this release; null: from the release that the service selects. */
export function choose(release) {
  state.release = release;
  if (release === null) sessionStorage.removeItem(RELEASE_KEY);
  else sessionStorage.setItem(RELEASE_KEY, release);
}

/** Whether plays differ from those of the page. */
export function areNews(plays) {
  const key = (list) => list.map((play) => `${play.outcome} ${play.track_id}`).join("\n");
  return key(plays) !== key(state.plays);
}

/** Replace the plays by those of the service. Return true if they have changed. */
export function takeOver(plays) {
  const isNews = areNews(plays);
  if (isNews) state.plays = plays; // a new array would discard reasons that are being loaded for these plays
  const latest = plays.at(-1);
  if (isNews || (state.now === null && !state.isStarted)) state.now = latest?.outcome === "played" ? trackOf(latest.track_id) : null;
  if (isNews) state.isStarted = false;
  return isNews;
}

/** Load the session and the names of its tracks from the service. */
export async function open() {
  try {
    takeOver((await call(path())).plays);
  } catch (error) {
    if (error.status !== 404) throw error;
    takeOver([]);
  }
  restoreStarted();
  await nameTracks([...state.plays.map((play) => play.track_id), ...(state.isStarted ? [state.now.track_id] : [])]);
}

/** Load the names of the last 50 unnamed tracks. */
export async function nameTracks(ids) {
  const unnamed = [...new Set(ids)].filter((id) => !names.has(id)).slice(-50);
  await Promise.all(unnamed.map(async (id) => {
    const { fields } = listOptions();
    const { items } = await call(`tracks?${new URLSearchParams({ query: id.slice(0, 200), limit: 20, ...(fields && { fields }) })}`);
    const found = items.filter((track) => track.track_id === id);
    remember(found);
    if (!found.length && id.length <= 200) unknown.add(id);
  }));
}

let giving = new AbortController();

/** Stop sending an event that could not be saved. Its report then fails. */
export function giveUp() {
  giving.abort();
  giving = new AbortController();
}

/**
 * Report an event and return the next tracks. While the service or Redis is away, the same event is sent again with the same
 * id, so it is stored once; `onUnsaved` gets each error. Throws CallFailed if it cannot be stored.
 */
export async function report(type, track, msPlayed, onUnsaved) {
  const event = {
    type,
    track_id: track.track_id,
    at: new Date().toISOString(),
    event_id: crypto.randomUUID?.() ?? `event-${Date.now().toString(36)}-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`,
    ...(msPlayed !== undefined && { ms_played: Math.round(msPlayed) }),
  };
  const post = () => {
    const wanted = new URLSearchParams({ recommend: NEXT, repeat: REPEAT, ...listOptions() });
    return send(path(state.release ? "/events" : `/events?${wanted}`), { events: [event] });
  };
  const answer = await callUntilAnswered(() => withKnownOptions(post), onUnsaved, giving.signal);
  answer.unknown_tracks.forEach((id) => unknown.add(id));
  if (type === "play" || type === "skip") state.plays = playsAfter(type, event).slice(-answer.length); // old plays are dropped
  return answer.recommendations ? remembered(answer.recommendations) : recommendations();
}

function playsAfter(type, { track_id: id, at }) {
  const latest = state.plays.at(-1);
  if (type === "skip" && latest?.outcome === "played" && latest.track_id === id) return [...state.plays.slice(0, -1), { ...latest, outcome: "skipped" }];
  return [...state.plays, { track_id: id, outcome: type === "skip" ? "skipped" : "played", at }];
}

/** Ask with the listener's options. A release without an option's attribute or play head is asked again without the options. */
async function withKnownOptions(ask) {
  try {
    return await ask();
  } catch (error) {
    if (!["Unknown attribute", "No play head"].includes(error.title) || !forgetOptions()) throw error;
    return ask();
  }
}

/** The next tracks with their explanation. */
export async function explained() {
  const answer = await recommendations({ explain: true });
  remember(answer.explanation.plays);
  return answer;
}

/** The next tracks of the selected release; if it is no longer live, of the service's choice. */
export async function recommendations(more = {}) {
  const ask = () => {
    const asked = { session_id: state.id, k: NEXT, repeat: REPEAT, ...listOptions(), ...more, ...(state.release && { release: state.release }) };
    return call(`recommendations?${new URLSearchParams(asked)}`);
  };
  const known = () => withKnownOptions(ask);
  try {
    return remembered(await known());
  } catch (error) {
    if (error.status !== GONE || !state.release) throw error;
    choose(null);
    return remembered(await known());
  }
}

/** The plays with the latest skip as a play; null if nothing was skipped. */
export function hadItBeenPlayed(plays = state.plays) {
  const at = plays.findLastIndex((play) => play.outcome === "skipped");
  return at < 0 ? null : plays.with(at, { ...plays[at], outcome: "played" });
}

/** What a release would recommend after these plays. Nothing is stored. */
export async function supposed(plays, release, k = SUPPOSED) {
  const { caution, max_per_artist: most, artist_gap: gap, fields, filter } = listOptions();
  const answer = await send("recommendations/what-if", {
    events: eventsOf(plays).slice(-MOST_SUPPOSED), k, repeat: REPEAT, release,
    ...(filter && { filter }), ...(fields && { fields: fields.split(",") }),
    ...(caution && { caution: Number(caution) }), ...(most && { max_per_artist: Number(most) }), ...(gap && { artist_gap: Number(gap) }),
  });
  return remembered(answer);
}

/** The events that result in these plays. Alone, a skip would turn an earlier play of its track into a skip. */
const eventsOf = (plays) => plays.flatMap(({ track_id, outcome, at }) => {
  const common = { track_id, ...(at && { at }) };
  return outcome === "skipped" ? [{ type: "play", ...common }, { type: "skip", ...common }] : [{ type: "play", ...common }];
});

/** Continue in a new session with these plays. The service keeps the other session as it is. */
export async function continueWith(plays) {
  await replay(eventsOf(plays));
}

function remembered(answer) {
  remember(answer.items);
  return answer;
}

/** The session as a URL fragment, for others to replay. */
export function asFragment() {
  return `#replay=${state.plays.map((play) => (play.outcome === "skipped" ? "-" : "+") + encodeURIComponent(play.track_id)).join(",")}`;
}

/** The events in a URL fragment; null if it contains none. Throws if it is damaged. */
export function sharedIn(fragment) {
  const text = fragment.match(/^#replay=(.+)$/)?.[1];
  if (!text) return null;
  try {
    return text.split(",", MOST_SHARED).map(eventIn);
  } catch {
    throw new Error("The link is damaged. Copy the whole link and open it again.");
  }
}

function eventIn(part) {
  const id = decodeURIComponent(part.slice(1));
  if (!/^[+-]./.test(part) || !id.trim()) throw new Error("no event");
  return { type: part[0] === "-" ? "skip" : "play", track_id: id };
}

/** Report the events of a shared session as a new session of this browser. */
export async function replay(events) {
  startAnew();
  for (let first = 0; first < events.length; first += MOST_AT_ONCE) {
    await send(path("/events"), { events: events.slice(first, first + MOST_AT_ONCE) });
  }
}
