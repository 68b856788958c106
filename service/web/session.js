// The session's state: its plays, the current track and the queue. Calls the service and does not touch the page.

import { call, send } from "./api.js";

export const NEXT = 15;
export const REPEAT = "never"; // a radio does not repeat a track of its session
const SESSION_KEY = "segue.session";
const RELEASE_KEY = "segue.release";
const GONE = 404; // the status for a release that is no longer live
const MOST_AT_ONCE = 100; // events per request
const MOST_SHARED = 1000; // events in a link

export const state = {
  id: localStorage.getItem(SESSION_KEY) ?? newId(),
  plays: [], // in the form of GET /sessions/{id}
  now: null, // the current track
  queue: [], // tracks chosen to play next
  release: sessionStorage.getItem(RELEASE_KEY), // the selected release; null: the one that the service selects for this session
};

const names = new Map(); // track id -> track, for tracks seen so far
export const remember = (tracks) => tracks.forEach((track) => { if (track.title ?? track.artist) names.set(track.track_id, track); });
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
}

/** Request the next tracks from this release; null: from the release that the service selects. */
export function choose(release) {
  state.release = release;
  if (release === null) sessionStorage.removeItem(RELEASE_KEY);
  else sessionStorage.setItem(RELEASE_KEY, release);
}

/** Replace the plays by those of the service. Return true if they have changed. */
export function takeOver(plays) {
  const key = (list) => list.map((play) => `${play.outcome} ${play.track_id}`).join("\n");
  const isNews = key(plays) !== key(state.plays);
  if (isNews) state.plays = plays; // a new array would discard reasons that are being loaded for these plays
  const latest = plays.at(-1);
  if (isNews || state.now === null) state.now = latest?.outcome === "played" ? trackOf(latest.track_id) : null;
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
  await nameTracks(state.plays.map((play) => play.track_id));
}

/** Load the names of the last 50 unnamed tracks. */
export async function nameTracks(ids) {
  const unnamed = [...new Set(ids)].filter((id) => !names.has(id)).slice(-50);
  await Promise.all(unnamed.map(async (id) => {
    const { items } = await call(`tracks?${new URLSearchParams({ query: id.slice(0, 200), limit: 20 })}`);
    remember(items.filter((track) => track.track_id === id));
  }));
}

/** Report a play or a skip and return the next tracks. */
export async function report(type, track, msPlayed) {
  const event = {
    type,
    track_id: track.track_id,
    at: new Date().toISOString(),
    event_id: crypto.randomUUID?.() ?? newId(),
    ...(msPlayed !== undefined && { ms_played: Math.round(msPlayed) }),
  };
  const answer = await send(path(state.release ? "/events" : `/events?recommend=${NEXT}&repeat=${REPEAT}`), { events: [event] });
  const latest = state.plays.at(-1);
  if (type === "skip" && latest?.outcome === "played" && latest.track_id === track.track_id) state.plays = [...state.plays.slice(0, -1), { ...latest, outcome: "skipped" }];
  else state.plays = [...state.plays, { track_id: track.track_id, outcome: type === "skip" ? "skipped" : "played", at: event.at }];
  return answer.recommendations ? remembered(answer.recommendations) : recommendations();
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
    const asked = { session_id: state.id, k: NEXT, repeat: REPEAT, ...more, ...(state.release && { release: state.release }) };
    return call(`recommendations?${new URLSearchParams(asked)}`);
  };
  try {
    return remembered(await ask());
  } catch (error) {
    if (error.status !== GONE || !state.release) throw error;
    choose(null);
    return remembered(await ask());
  }
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
