// The session as a row of plays and skips, oldest first. Shape and hidden text tell them apart, not colour alone.

import { byId, element, hidden } from "./show.js";
import { state, titleOf, trackOf } from "./session.js";

const SHOWN = 60;

export function showSession() {
  const list = byId("session");
  document.body.classList.toggle("begun", state.plays.length > 0);
  list.replaceChildren(...state.plays.slice(-SHOWN).map(({ track_id: id, outcome }) => {
    const track = trackOf(id);
    const item = element("li", outcome, element("span", "name", titleOf(track)), hidden(`, ${outcome}`));
    item.title = `${titleOf(track)}${track.artist ? `, ${track.artist}` : ""}: ${outcome}`;
    return item;
  }));
  list.scrollLeft = list.scrollWidth;
  const skips = state.plays.filter((play) => play.outcome === "skipped").length;
  byId("tally").textContent = state.plays.length ? `${state.plays.length - skips} played, ${skips} skipped` : "Your plays and skips appear here";
  byId("share").disabled = !state.plays.length;
}
