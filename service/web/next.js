// The next tracks: how each moved after the last event, and why it is where it is.

import { byId, button, element, sign } from "./show.js";
import { titleOf, trackOf } from "./session.js";

let ranks = new Map(); // track id -> rank in the list that is shown
let answered = null;
let before = new Map(); // ranks before the last event

/** What is on the screen now is what the next list is compared with. */
export function rememberRanks() {
  before = new Map(ranks);
}

export const firstNext = () => answered?.items[0];
export const nthNext = (rank) => answered?.items[rank - 1];

/** Show an answer; `onPlay` and `onQueue` get the track that was chosen. */
export function showNext(answer, { onPlay, onQueue }) {
  answered = answer;
  const list = byId("next");
  const tops = new Map([...list.children].map((item) => [item.dataset.track, item.getBoundingClientRect().top]));
  const open = new Set([...list.querySelectorAll("details[open]")].map((one) => one.closest("li").dataset.track));
  const focused = list.contains(document.activeElement) ? document.activeElement.closest("li").dataset.track : null;
  const why = reasons(answer);
  list.replaceChildren(...answer.items.map((track) => {
    const item = element("li", "", row(track, why.get(track.track_id), open.has(track.track_id), { onPlay, onQueue }));
    item.dataset.track = track.track_id;
    return item;
  }));
  slideFrom(tops, list);
  ranks = new Map(answer.items.map((track) => [track.track_id, track.rank]));
  if (focused !== null) (list.querySelector(`li[data-track="${CSS.escape(focused)}"] button`) ?? byId("next-title")).focus();
  byId("source").textContent = answer.source === "model"
    ? `From the model, which saw ${answer.window.plays} played and ${answer.window.skips} skipped.`
    : "The most played tracks: this session has told nothing yet.";
}

function row(track, why, isOpen, { onPlay, onQueue }) {
  const artist = element("span", "artist", track.artist ?? "");
  const play = button("", () => onPlay(track), "play");
  play.append(element("span", "rank", String(track.rank)), element("span", "name", element("span", "title", titleOf(track)), artist));
  const facts = element("span", "facts", movement(track), element("span", "score", track.score.toFixed(2)));
  const queue = button("", () => onQueue(track), "queue");
  queue.append(sign("+", `Play ${titleOf(track)} next`));
  const made = element("div", "row", play, facts, queue);
  return why ? withReasons(made, why, isOpen) : made;
}

function movement({ track_id: id, rank }) {
  const was = before.get(id);
  if (!before.size || was === rank) return element("span", "move", "");
  if (was === undefined) return sign("new", "new in the list", "move new");
  return was > rank
    ? sign(`▲ ${was - rank}`, `up ${was - rank}, was ${was}`, "move up")
    : sign(`▼ ${rank - was}`, `down ${rank - was}, was ${was}`, "move down");
}

/** What speaks for and against each track: [play, contribution], the strongest first. */
function reasons({ explanation }) {
  if (!explanation) return new Map();
  return new Map(explanation.items.map((item) => {
    const parts = item.contributions.map((value, place) => ({ ...explanation.plays[place], value }));
    const byStrength = [...parts].sort((one, other) => Math.abs(other.value) - Math.abs(one.value));
    return [item.track_id, { parts: byStrength, withoutSkips: item.rank_without_skips }];
  }).filter(([, why]) => why.parts.length));
}

function withReasons(made, { parts, withoutSkips }, isOpen) {
  const played = parts.find((part) => part.outcome === "played" && part.value > 0);
  const skipped = parts.find((part) => part.outcome === "skipped");
  const told = [];
  if (played) told.push(`close to ${titleOf(trackOf(played.track_id))}`);
  if (skipped && skipped.value < 0) told.push(`pushed away by the skip of ${titleOf(trackOf(skipped.track_id))}`);
  if (skipped && skipped.value > 0) told.push(`lifted by the skip of ${titleOf(trackOf(skipped.track_id))}`);
  const most = Math.abs(parts[0].value) || 1;
  const bars = parts.slice(0, 6).map((part) => {
    const bar = element("span", `bar ${part.value < 0 ? "against" : "for"}`);
    bar.style.width = `${(100 * Math.abs(part.value)) / most}%`;
    const words = `${titleOf(trackOf(part.track_id))}, ${part.outcome}`;
    return element("li", "", element("span", "", words), element("span", "track", bar), element("span", "score", signed(part.value)));
  });
  const details = element("details", "why", element("summary", "", told.join(", ") || "why"), element("ul", "", ...bars));
  if (parts.some((part) => part.outcome === "skipped")) {
    details.append(element("p", "quiet", withoutSkips ? `Without any skip: rank ${withoutSkips}.` : "Without any skip: far down."));
  }
  details.open = isOpen;
  return element("div", "", made, details);
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

/** Let every track that stayed in the list move from where it was. */
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
