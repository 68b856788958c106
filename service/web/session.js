// What has happened in the session, what plays, what waits. Knows the service, and nothing of the page.

import { call, send } from "./api.js";

export const NEXT = 15;
const SESSION_KEY = "segue.session";
const RELEASE_KEY = "segue.release";
const GONE = 404; // what a release is that is live no more
const MOST_AT_ONCE = 100; // events of one request
const MOST_SHARED = 1000; // events of a link

export const state = {
  id: localStorage.getItem(SESSION_KEY) ?? newId(),
  plays: [], // as GET /sessions/{id} answers them
  now: null, // the track that is playing
  queue: [], // tracks that the listener wants next
  release: sessionStorage.getItem(RELEASE_KEY), // whose list is shown; null for the one that answers this session
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

/** Forget the session here; the service keeps it until its idle gap is over. */
export function startAnew() {
  Object.assign(state, { id: newId(), plays: [], now: null, queue: [] });
}

/** Ask this release for the next tracks, whatever answers the session by itself; null to leave it to the service. */
export function choose(release) {
  state.release = release;
  if (release === null) sessionStorage.removeItem(RELEASE_KEY);
  else sessionStorage.setItem(RELEASE_KEY, release);
}

/** Take over what the service says of the session. Whether that was news. */
export function takeOver(plays) {
  const key = (list) => list.map((play) => `${play.outcome} ${play.track_id}`).join("\n");
  const isNews = key(plays) !== key(state.plays);
  if (isNews) state.plays = plays; // else reasons that are on their way would be taken for old ones
  const latest = plays.at(-1);
  if (isNews || state.now === null) state.now = latest?.outcome === "played" ? trackOf(latest.track_id) : null;
  return isNews;
}

/** Read the session from the service, and the names of its tracks. */
export async function open() {
  try {
    takeOver((await call(path())).plays);
  } catch (error) {
    if (error.status !== 404) throw error;
    takeOver([]);
  }
  await nameTracks(state.plays.map((play) => play.track_id));
}

/** Read the names of the latest of these tracks from the service. */
export async function nameTracks(ids) {
  const unnamed = [...new Set(ids)].filter((id) => !names.has(id)).slice(-50);
  await Promise.all(unnamed.map(async (id) => {
    const { items } = await call(`tracks?${new URLSearchParams({ query: id.slice(0, 200), limit: 20 })}`);
    remember(items.filter((track) => track.track_id === id));
  }));
}

/** Report a play or a skip; the answer has the tracks that come next. */
export async function report(type, track, msPlayed) {
  const event = {
    type,
    track_id: track.track_id,
    at: new Date().toISOString(),
    event_id: crypto.randomUUID?.() ?? newId(),
    ...(msPlayed !== undefined && { ms_played: Math.round(msPlayed) }),
  };
  const answer = await send(path(state.release ? "/events" : `/events?recommend=${NEXT}`), { events: [event] });
  const latest = state.plays.at(-1);
  if (type === "skip" && latest?.outcome === "played" && latest.track_id === track.track_id) state.plays = [...state.plays.slice(0, -1), { ...latest, outcome: "skipped" }];
  else state.plays = [...state.plays, { track_id: track.track_id, outcome: type === "skip" ? "skipped" : "played", at: event.at }];
  return answer.recommendations ? remembered(answer.recommendations) : recommendations();
}

/** What comes next, and why. */
export async function explained() {
  const answer = await recommendations({ explain: true });
  remember(answer.explanation.plays);
  return answer;
}

/** What comes next, by the release that was chosen as long as it is live. */
export async function recommendations(more = {}) {
  const ask = () => {
    const asked = { session_id: state.id, k: NEXT, ...more, ...(state.release && { release: state.release }) };
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

/** The session as the part of an address behind `#`, for others to replay. */
export function asFragment() {
  return `#replay=${state.plays.map((play) => (play.outcome === "skipped" ? "-" : "+") + encodeURIComponent(play.track_id)).join(",")}`;
}

/** The events that the part of an address behind `#` holds; null where it holds none. Throws where it is damaged. */
export function sharedIn(fragment) {
  const text = fragment.match(/^#replay=(.+)$/)?.[1];
  if (!text) return null;
  try {
    return text.split(",", MOST_SHARED).map(eventIn);
  } catch {
    throw new Error("The link is damaged: it holds no session. Copy all of it.");
  }
}

function eventIn(part) {
  const id = decodeURIComponent(part.slice(1));
  if (!/^[+-]./.test(part) || !id.trim()) throw new Error("no event");
  return { type: part[0] === "-" ? "skip" : "play", track_id: id };
}

/** Report the events of a shared session, as a new one of this listener. */
export async function replay(events) {
  startAnew();
  for (let first = 0; first < events.length; first += MOST_AT_ONCE) {
    await send(path("/events"), { events: events.slice(first, first + MOST_AT_ONCE) });
  }
}
