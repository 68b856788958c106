// Two releases side by side: the next tracks of each for the same session, and where they differ.

import { call } from "./api.js";
import { kindOf, readLive } from "./live.js";
import { artOf } from "./art.js";
import { hadItBeenPlayed, NEXT, REPEAT, remember, state, supposed, titleOf, trackOf } from "./session.js";
import { byId, button, element, sign } from "./show.js";
import { listOptions } from "./tuning.js";

let live = []; // the live releases, in the form of GET /releases/current
let asked = 0;
let choices = null;

/** Set the live releases. With two of them, the comparison is available. */
export function compareLive(releases, onChoice) {
  live = releases.slice(0, 2);
  choices = onChoice;
  if (live.length < 2) show(false);
}

export function toggleCompare() {
  if (live.length < 2) return;
  show(byId("compare-part").hidden);
  if (!byId("compare-part").hidden) byId("compare-title").focus();
}

function show(open) {
  byId("compare-part").hidden = !open;
  byId("compare").setAttribute("aria-expanded", open);
  if (open) compareAgain();
}

/** Load both lists for the current session, if the comparison is open. */
export async function compareAgain() {
  if (byId("compare-part").hidden) return;
  const number = ++asked;
  const releases = live; // they may change before the answers
  const questions = releases.map(({ name }) => call(`recommendations?${new URLSearchParams({ session_id: state.id, k: NEXT, repeat: REPEAT, ...listOptions(), release: name })}`));
  const flipped = hadItBeenPlayed();
  const others = flipped ? releases.map(({ name }) => supposed(flipped, name, NEXT)) : [];
  const [answers, alternatives] = await Promise.all([Promise.all(questions), Promise.all(others)]).catch(failed) ?? [];
  if (!answers || number !== asked) return; // the session has moved on
  answers.forEach(({ items }) => remember(items));
  const ranks = answers.map(({ items }) => new Map(items.map((item) => [item.track_id, item.rank])));
  byId("compare-words").textContent = inWords(ranks);
  byId("compare-lists").replaceChildren(...answers.map((answer, at) => listOf(answer, releases[at], ranks[1 - at], alternatives[at])));
}

/** Show the error. After a 404 read the live releases: one may have been swapped out. */
async function failed(error) {
  byId("compare-words").textContent = error.message;
  if (error.status === 404) await readLive().catch(() => null);
}

function inWords([one, other]) {
  const shared = [...one.keys()].filter((id) => other.has(id));
  const same = shared.filter((id) => one.get(id) === other.get(id)).length;
  if (!shared.length) return "The lists have no track in common.";
  if (same === one.size && same === other.size) return "Both lists are identical.";
  return `${shared.length} of ${one.size} tracks are in both lists, ${same} of them at the same rank.`;
}

/** How far the latest skip moves the tracks that are in the list with it and without it, as [element, ...]. */
function placesMoved({ items }, alternative) {
  if (!alternative) return ["Skip a track to see how far the list moves."];
  const was = new Map(alternative.items.map((track) => [track.track_id, track.rank]));
  const stayed = items.filter((track) => was.has(track.track_id));
  const mean = stayed.reduce((sum, track) => sum + Math.abs(was.get(track.track_id) - track.rank), 0) / Math.max(1, stayed.length);
  const left = alternative.items.length - stayed.length;
  const skip = state.plays.findLast((play) => play.outcome === "skipped");
  return [element("b", "", mean.toFixed(1)), ` places moved by the skip of ${titleOf(trackOf(skip.track_id))}${left ? `, ${left} left` : ""}`];
}

function listOf({ items, source }, release, elsewhere, alternative) {
  const list = element("ol", "tracks", ...items.map((track) => row(track, elsewhere.get(track.track_id))));
  const title = element("h3", "", kindOf(release));
  title.id = `compare-${release.name}`;
  list.setAttribute("aria-labelledby", title.id);
  const words = source === "model" ? release.name : `${release.name}: most played tracks`;
  return element("div", "", title, element("p", "number", ...placesMoved({ items }, alternative)), element("p", "quiet", words), list);
}

function row(track, rankThere) {
  const play = button("", () => choices.onPlay(track), "play");
  play.append(
    element("span", "rank", String(track.rank)),
    artOf(trackOf(track.track_id)),
    element("span", "name", element("span", "title", titleOf(track)), element("span", "artist", track.artist ?? "")),
  );
  const item = element("li", rankThere ? "" : "alone", element("div", "row", play, element("span", "facts", difference(track.rank, rankThere))));
  item.dataset.track = track.track_id;
  return item;
}

function difference(rank, there) {
  if (there === undefined) return sign("◆ only here", "in this list only", "move new");
  if (there === rank) return sign("=", "at the same rank in both", "move");
  return there > rank
    ? sign(`▲ ${there - rank}`, `${there - rank} higher than in the other list`, "move up")
    : sign(`▼ ${rank - there}`, `${rank - there} lower than in the other list`, "move down");
}
