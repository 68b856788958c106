// One sentence above the list: what the last skip or play changed.

import { titleOf } from "./session.js";
import { byId, element } from "./show.js";

const NAMED = 6;

export const tracks = (count) => `${count} ${count === 1 ? "track" : "tracks"}`;

/**
 * Say what changed. `kind` is "skip", "play" or "other", `lead` what happened, `change` that of changeOf. `actions` are the
 * ids of the buttons to offer.
 */
export function tellStory(kind, lead, change, actions = []) {
  const story = byId("story");
  story.dataset.kind = kind;
  story.hidden = false;
  const counts = [
    ["left", change.left.length, change.left.length === 1 ? "track left the list" : "tracks left the list"],
    ["came", change.came.length, "came in"],
    ["moved", change.moved, "moved"],
  ].filter(([, count]) => count);
  byId("story-words").replaceChildren(element("span", "lead", ...lead), element("span", "counts", ...counted(counts)));
  showDetails(change);
  byId("story-which").closest("details").hidden = !counts.length;
  for (const id of ["undo", "what-if"]) byId(id).hidden = !actions.includes(id);
}

function counted(counts) {
  if (!counts.length) return [": the list stays."];
  return counts.flatMap(([kind, count, words], at) => [at ? ", " : ": ", element("span", `count ${kind}`, element("b", "", String(count)), ` ${words}`)]).concat(".");
}

function showDetails({ left, came, mean }) {
  const named = (list) => list.slice(0, NAMED).map((track) => titleOf(track)).join(", ") + (list.length > NAMED ? ` and ${list.length - NAMED} more` : "");
  const lines = [
    left.length && ["Left", left.slice(0, NAMED).map((track) => `${titleOf(track)} (was ${track.rank})`).join(", ") + (left.length > NAMED ? ` and ${left.length - NAMED} more` : "")],
    came.length && ["Came in", named(came)],
    ["Average move", `${mean.toFixed(1)} places, of the tracks that stayed`],
  ].filter(Boolean);
  byId("story-which").replaceChildren(...lines.flatMap(([name, words]) => [element("dt", "", name), element("dd", "", words)]));
}

export const quoted = (track) => element("b", "", titleOf(track));

export function hideStory() {
  byId("story").hidden = true;
}
