// The session as a row of plays and skips, oldest first. Shape and hidden text tell them apart, not colour alone.

import { artOf } from "./art.js";
import { byId, element, hidden } from "./show.js";
import { isUnknown, state, titleOf, trackOf } from "./session.js";

const SHOWN = 60;

export function showSession() {
  const list = byId("session");
  document.body.classList.toggle("begun", state.plays.length > 0);
  list.replaceChildren(...state.plays.slice(-SHOWN).map(({ track_id: id, outcome }) => {
    const track = trackOf(id);
    const item = element("li", outcome, artOf(track), element("span", "name", titleOf(track)), hidden(`, ${outcome}`));
    item.title = `${titleOf(track)}${track.artist ? `, ${track.artist}` : ""}: ${outcome}`;
    return item;
  }));
  if (state.isStarted) {
    const track = trackOf(state.now.track_id);
    list.append(element("li", "started", artOf(track), element("span", "name", titleOf(track)), hidden(", playing")));
  }
  list.scrollLeft = list.scrollWidth;
  const skips = state.plays.filter((play) => play.outcome === "skipped").length;
  byId("tally").textContent = state.plays.length ? `${state.plays.length - skips} played, ${skips} skipped.${ignored()}` : "Your plays and skips appear here";
  byId("share").disabled = !state.plays.length;
}

/** Tracks of the session that the release does not have. */
function ignored() {
  const ids = new Set(state.plays.map((play) => play.track_id).filter(isUnknown));
  if (!ids.size) return "";
  return ids.size === 1 ? " 1 track is not in this release and is ignored." : ` ${ids.size} tracks are not in this release and are ignored.`;
}
