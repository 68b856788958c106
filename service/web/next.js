// The next tracks: how each moved after the last event, and why it has its rank.

import { details, reasonsOf } from "./reasons.js";
import { state, titleOf, trackOf } from "./session.js";
import { byId, button, element, sign } from "./show.js";

const GONE = 3; // removed tracks to name

let ranks = new Map(); // track id -> rank in the current list
let answered = null;
let before = new Map(); // ranks before the last event

/** Compare the next list with the one that is shown now. */
export function rememberRanks() {
  before = new Map(ranks);
}

/** Compare the next list with nothing. */
export function forgetRanks() {
  ranks = new Map();
  rememberRanks();
}

export const firstNext = () => answered?.items[0];
export const nthNext = (rank) => answered?.items[rank - 1];

/** Show a list of recommendations; `onPlay` and `onQueue` receive the clicked track. */
export function showNext(answer, { onPlay, onQueue }) {
  answered = answer;
  const list = byId("next");
  const tops = new Map([...list.children].map((item) => [item.dataset.track, item.getBoundingClientRect().top]));
  const open = new Set([...list.querySelectorAll("details[open]")].map((one) => one.closest("li").dataset.track));
  const focused = list.contains(document.activeElement) ? document.activeElement.closest("li").dataset.track : null;
  const why = reasonsOf(answer);
  list.replaceChildren(...answer.items.map((track) => {
    const item = element("li", "", row(track, answer.source, { onPlay, onQueue }));
    if (why.has(track.track_id)) item.append(details(why.get(track.track_id), open.has(track.track_id)));
    else if (!answer.explanation && answer.source === "model") item.append(roomForReasons(answer.window));
    item.dataset.track = track.track_id;
    return item;
  }));
  slideFrom(tops, list);
  showGone(answer.items);
  ranks = new Map(answer.items.map((track) => [track.track_id, track.rank]));
  if (focused !== null) (list.querySelector(`li[data-track="${CSS.escape(focused)}"] button`) ?? byId("next-title")).focus();
  byId("source").textContent = answer.source === "model"
    ? `Based on ${answer.window.plays} played and ${answer.window.skips} skipped`
    : "The most played tracks, until you play or skip one";
}

function row(track, source, { onPlay, onQueue }) {
  const artist = element("span", "artist", track.artist ?? "");
  const play = button("", () => onPlay(track), "play");
  play.append(element("span", "rank", String(track.rank)), element("span", "name", element("span", "title", titleOf(track)), artist));
  const facts = element("span", "facts", movement(track), scoreOf(track, source));
  const queue = button("", () => onQueue(track), "queue");
  queue.append(sign("+", `Play ${titleOf(track)} next`));
  return element("div", "row", play, facts, queue);
}

/** Name the tracks that left the list with the last event and were not played. */
function showGone(items) {
  const stays = new Set([...items, ...state.plays].map((track) => track.track_id));
  const gone = [...before].filter(([id]) => !stays.has(id)).sort((one, other) => one[1] - other[1]);
  const named = gone.slice(0, GONE).map(([id, rank]) => `${titleOf(trackOf(id))} (was ${rank})`).join(", ");
  const more = gone.length > GONE ? ` and ${gone.length - GONE} more` : "";
  byId("gone").textContent = named ? `Removed: ${named}${more}` : "";
}

/** Reserve the height of the reasons, so that the list does not jump when they arrive. */
function roomForReasons({ skips }) {
  return element("div", skips ? "waiting two" : "waiting");
}

/** The score of a track; for the popularity list, its number of plays. */
function scoreOf({ score }, source) {
  if (source !== "model") return element("span", "score", `${score.toLocaleString("en")} plays`);
  return sign(score.toFixed(2), `score ${score.toFixed(2)}`, "score");
}

function movement({ track_id: id, rank }) {
  const was = before.get(id);
  if (!before.size || was === rank) return element("span", "move", "");
  if (was === undefined) return sign("new", "new in the list", "move new");
  return was > rank
    ? sign(`▲ ${was - rank}`, `up ${was - rank}, was ${was}`, "move up")
    : sign(`▼ ${rank - was}`, `down ${rank - was}, was ${was}`, "move down");
}

/** Animate each remaining track from its previous position. */
function slideFrom(tops, list) {
  for (const item of list.children) {
    const top = tops.get(item.dataset.track);
    if (top === undefined) continue;
    item.style.transition = "none";
    item.style.transform = `translateY(${top - item.getBoundingClientRect().top}px)`;
    requestAnimationFrame(() => {
      item.style.transition = "";
      item.style.transform = "";
    });
  }
}
