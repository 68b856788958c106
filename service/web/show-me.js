// "Show me": a short demonstration in a new session. Three tracks of one kind are played, then a popular track of another kind is
// skipped. It uses the same calls as a listener, and a click or key on another control ends it.

import { call, pause } from "./api.js";
import { mostPlayed } from "./search.js";
import { remember } from "./session.js";
import { byId, isStill } from "./show.js";

const STEP_MS = 1300;
const STILL_STEP_MS = 300;
const LIKED = 3;
const AMONG = 40;

let running = null;

/** `begin`, `play(track)` and `skip` are the actions of the page. */
export function listenToShowMe({ begin, play, skip }) {
  byId("show-me").addEventListener("click", () => (running ? stopShowing() : show({ begin, play, skip })));
}

export function stopShowing() {
  running?.abort();
}

async function show({ begin, play, skip }) {
  running = new AbortController();
  const { signal } = running;
  byId("show-me").textContent = "Stop";
  byId("show-me").setAttribute("aria-pressed", "true");
  try {
    const { liked, other } = await script();
    const steps = [begin, ...liked.map((track) => () => play(track)), () => play(other), skip];
    for (const [at, step] of steps.entries()) {
      if (signal.aborted) return;
      await step();
      if (at && at < steps.length - 1) await pause(isStill() ? STILL_STEP_MS : STEP_MS, signal);
    }
    byId("said").textContent = "The demonstration has ended.";
  } catch (error) {
    byId("said").textContent = error.message;
  } finally {
    running = null;
    byId("show-me").textContent = "Show me";
    byId("show-me").removeAttribute("aria-pressed");
  }
}

/** Three similar tracks to play, and a popular track of another kind to skip. */
async function script() {
  const kindOf = (track) => track.attributes?.genre ?? track.artist;
  const [first] = mostPlayed();
  const { items } = await call(`tracks/${encodeURIComponent(first.track_id)}/similar?${new URLSearchParams({ k: AMONG })}`).catch(() => ({ items: [] }));
  remember(items);
  const known = new Map(mostPlayed().map((track) => [track.track_id, track]));
  const similar = items.map((track) => known.get(track.track_id) ?? track);
  const same = [...mostPlayed().slice(1).filter((track) => kindOf(track) === kindOf(first)), ...similar.filter((track) => track.track_id !== first.track_id)];
  const liked = [first, ...new Map(same.map((track) => [track.track_id, track])).values()].slice(0, LIKED);
  const near = new Set(items.map((track) => track.track_id));
  const other = mostPlayed().find((track) => kindOf(track) !== kindOf(first) && !near.has(track.track_id)) ?? mostPlayed().at(-1);
  return { liked, other };
}
