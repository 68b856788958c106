// The next tracks: how each one moved, and one reason where there is something to say.

import { artOf } from "./art.js";
import { closestPlay, fillReasons, reasonsOf } from "./reasons.js";
import { NEXT, state, titleOf, trackOf } from "./session.js";
import { byId, button, element, isStill, sign } from "./show.js";

const MOVE_MS = 450;
const LEAVE_MS = 700;
const EASING = "cubic-bezier(.2, .7, .2, 1)";

const NOTHING = { kind: "none", ranks: new Map() };
let ranks = new Map(); // track id -> rank in the list that is shown
let answered = null; // the session's list, also while a hypothetical one is shown
let baseline = NOTHING; // what the arrows compare with: `kind` says why, `ranks` has the rank of each track then
let beforeHypothetical = NOTHING;
let ranksIfPlayed = null; // after a skip: the rank of each track, had the track been played; null until it is known
const rows = new Map(); // track id -> its row

/** Compare the next list with the one that is shown now. `kind`: "skip", "play", "release", "options" or "other". */
export function rememberRanks(kind) {
  ranksIfPlayed = null;
  baseline = { kind, ranks: new Map(ranks) };
}

/** Compare a hypothetical list with the session's. `endHypothetical` returns to the comparison before. */
export function compareHypothetical() {
  beforeHypothetical = baseline;
  baseline = { kind: "hypothetical", ranks: ranksOf(answered.items) };
}

export function endHypothetical() {
  baseline = beforeHypothetical;
}

/** Say in each row where its track would be in this list, which the skip prevented. The arrows stay those of the skip. */
export function supposePlayed(items) {
  ranksIfPlayed = ranksOf(items);
}

const ranksOf = (items) => new Map(items.map((track) => [track.track_id, track.rank]));

/** Compare the next list with nothing. */
export function forgetRanks() {
  ranks = new Map();
  ranksIfPlayed = null;
  baseline = NOTHING;
}

/** Mark the row of the current track, if it is in the list: its outcome is not known yet. */
export function markPlaying() {
  for (const [id, item] of rows) item.classList.toggle("playing", state.isStarted && id === state.now?.track_id);
}

/** Rebuild the rows with the next list. */
export const forgetRows = () => rows.clear();

/** The ranks of the list that is shown. */
export const shownRanks = () => new Map(ranks);
export const firstNext = () => answered?.items.find((track) => track.track_id !== state.now?.track_id);
export const nthNext = (rank) => answered?.items[rank - 1];
export const currentAnswer = () => answered;

/**
 * How a list differs from earlier ranks: tracks that left, came in and moved, and by how many places those that stayed moved
 * on average. Tracks of the session are left out of both, so the place of a track that starts is not a change.
 */
export function changeOf(items, earlier) {
  const was = withoutHeard(earlier);
  const shown = new Set(items.map((track) => track.track_id));
  const left = [...was].filter(([id, rank]) => rank <= NEXT && !shown.has(id)).map(([id, rank]) => ({ ...trackOf(id), rank }));
  const came = items.filter((track) => !(was.get(track.track_id) <= NEXT));
  const stayed = items.filter((track) => was.get(track.track_id) <= NEXT);
  const moved = stayed.filter((track) => was.get(track.track_id) !== track.rank);
  const places = stayed.reduce((sum, track) => sum + Math.abs(was.get(track.track_id) - track.rank), 0);
  return { left, came, moved: moved.length, mean: stayed.length ? places / stayed.length : 0 };
}

function withoutHeard(earlier) {
  const heard = new Set(state.plays.map((play) => play.track_id));
  const gone = [...earlier].filter(([id]) => heard.has(id)).map(([, rank]) => rank);
  return new Map([...earlier].filter(([id]) => !heard.has(id)).map(([id, rank]) => [id, rank - gone.filter((other) => other < rank).length]));
}

/** Show a list. `onPlay`, `onQueue` and `onFeedback` receive the clicked track. A hypothetical list does not decide what plays next. */
export function showNext(answer, choices, { hypothetical = false } = {}) {
  if (!hypothetical) answered = answer;
  const list = byId("next");
  const before = new Map([...list.children].map((item) => [item.dataset.track, item.getBoundingClientRect()]));
  const focused = list.contains(document.activeElement) ? document.activeElement.closest("li").dataset.track : null;
  const was = withoutHeard(baseline.ranks);
  const supposed = ranksIfPlayed && withoutHeard(ranksIfPlayed);
  const why = reasonsOf(answer);
  for (const id of rows.keys()) if (!answer.items.some((track) => track.track_id === id)) rows.delete(id);
  const items = answer.items.map((track) => rowOf(track, choices));
  let closest = null;
  answer.items.forEach((track, at) => {
    const close = closestPlay(why.get(track.track_id));
    const reason = baseline.kind === "skip" || baseline.kind === "hypothetical"
      ? difference(track, was, supposed) : close && close !== closest ? `close to ${titleOf(trackOf(close))}` : "";
    closest = close ?? closest;
    fillRow(items[at], track, was, reason, answer.source);
    fillReasons(items[at], why.get(track.track_id), answer);
  });
  const isSameOrder = items.length === list.children.length && items.every((item, at) => list.children[at] === item);
  if (!isSameOrder) {
    list.replaceChildren(...items);
    animate(list, before);
  }
  ranks = new Map(answer.items.map((track) => [track.track_id, track.rank]));
  list.dataset.shown = Number(list.dataset.shown ?? 0) + 1; // measurements and tests wait for it
  if (focused !== null && !list.contains(document.activeElement)) (rows.get(focused)?.querySelector("button") ?? byId("next-title")).focus();
  byId("source").textContent = sourceOf(answer);
}

function sourceOf({ source, window: { plays, skips } }) {
  if (source !== "model") return "The most played tracks, until you play or skip one";
  return `Based on ${plays} played and ${skips} skipped`;
}

/** The row of a track. A row is kept while its track is in the list, with its focus and its open reasons. */
function rowOf(track, { onPlay, onQueue, onFeedback }) {
  const id = track.track_id;
  if (rows.has(id)) return rows.get(id);
  const play = button("", () => onPlay(trackOf(id)), "play");
  play.append(element("span", "rank"), artOf(track),
    element("span", "name", element("span", "title", titleOf(track)), element("span", "artist", track.artist ?? "")));
  const queue = button("", () => onQueue(trackOf(id)), "icon queue");
  queue.append(sign("+", `Add to queue: ${titleOf(track)}`));
  const item = element("li", "", element("div", "row", play, element("span", "reason"), element("span", "move")));
  const tools = element("span", "tools");
  for (const [type, mark, words] of onFeedback ? [["like", "♥", "Like"], ["ban", "⊘", "Never play"]] : []) {
    const told = button("", () => onFeedback(type, trackOf(id)), `icon ${type}`);
    told.append(sign(mark, `${words}: ${titleOf(track)}`));
    tools.append(told);
  }
  tools.append(queue);
  item.firstChild.append(tools);
  item.dataset.track = id;
  rows.set(id, item);
  return item;
}

function fillRow(item, track, was, reason, source) {
  const [kind, ...mark] = movement(track, was);
  item.className = `${kind} ${baseline.kind === "skip" || baseline.kind === "hypothetical" ? "by-skip" : ""}`;
  item.querySelector(".rank").textContent = track.rank;
  item.querySelector(".move").replaceWith(mark.length ? sign(...mark, `move ${kind}`) : element("span", "move"));
  item.querySelector(".reason").textContent = reason;
  item.querySelector(".reason").title = reason;
  if (source !== "model") item.querySelector(".reason").textContent = `${track.score.toLocaleString("en")} plays`;
}

function movement({ track_id: id, rank }, was) {
  const before = was.get(id);
  if (!baseline.ranks.size || before === rank) return ["stayed"];
  if (!(before <= NEXT)) return ["new", "new", "new in the list"];
  const moved = Math.abs(before - rank);
  return before > rank ? ["up", `▲ ${moved}`, `up ${moved}, was ${before}`] : ["down", `▼ ${moved}`, `down ${moved}, was ${before}`];
}

/** Where a track would be had the skipped one been played; empty if it is there now, or if that is not known yet. */
function difference({ track_id: id, rank }, was, supposed) {
  const isHypothetical = baseline.kind === "hypothetical";
  const there = (isHypothetical ? was : supposed)?.get(id);
  if (there === rank || !(isHypothetical || supposed)) return "";
  if (isHypothetical) return there === undefined ? "not in your list" : `#${there} in your list`;
  return there === undefined ? "not in the list had you played it" : `would be #${there} had you played it`;
}

// ---- movement

/** Slide rows from where they were, fade new ones in, and let those that left slide out. */
function animate(list, before) {
  if (isStill()) return;
  const frame = byId("next-frame").getBoundingClientRect();
  for (const item of list.children) {
    const from = before.get(item.dataset.track);
    const down = from ? from.top - item.getBoundingClientRect().top : 0;
    if (from && down) item.animate([{ transform: `translateY(${down}px)` }, { transform: "none" }], { duration: MOVE_MS, easing: EASING });
    if (!from && before.size) item.animate([{ transform: "translateX(3rem)", opacity: 0 }, { transform: "none", opacity: 1 }], { duration: MOVE_MS, easing: EASING });
  }
  const heard = new Set(state.plays.map((play) => play.track_id));
  const ghosts = [...before].filter(([id]) => !rows.has(id) && !heard.has(id)).map(([id, { top, height }]) => {
    const track = trackOf(id);
    const ghost = element("div", `ghost ${baseline.kind === "skip" ? "by-skip" : ""}`, artOf(track), element("span", "title", titleOf(track)));
    ghost.style.top = `${top - frame.top}px`;
    ghost.style.height = `${height}px`;
    ghost.animate([{ opacity: 1, transform: "none" }, { opacity: 0, transform: "translateX(40%)" }], { duration: LEAVE_MS, easing: "ease-in" })
      .finished.then(() => ghost.remove(), () => ghost.remove());
    return ghost;
  });
  byId("leaving").append(...ghosts);
}
