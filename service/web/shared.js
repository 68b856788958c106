// A session from a link: shown first, and reported only after a click.

import { asFragment, nameTracks, sharedIn, titleOf, trackOf } from "./session.js";
import { byId, element, hidden } from "./show.js";

const SHOWN = 20;

let events = null;
let onReplay = () => {};

/** Call `replay(events)` when the listener clicks Replay. */
export function listenToReplay(replay) {
  onReplay = replay;
  byId("shared-replay").addEventListener("click", () => {
    const chosen = events;
    leave();
    if (chosen) onReplay(chosen);
  });
  byId("shared-leave").addEventListener("click", leave);
}

function leave() {
  events = null;
  byId("shared-part").hidden = true;
  history.replaceState(null, "", location.pathname);
}

/** Show the session in the page's address, or that the link is damaged. Report nothing. */
export async function showShared() {
  events = null;
  byId("shared-part").hidden = true;
  let found;
  try {
    found = sharedIn(location.hash);
  } catch (error) {
    showDamage(error.message);
    return;
  }
  if (!found) return;
  events = found;
  show();
  await nameTracks(found.slice(0, SHOWN).map((event) => event.track_id)).catch(() => {}); // without names, ids are shown
  if (events === found) show();
}

function showDamage(words) {
  byId("shared-words").textContent = words;
  byId("shared").replaceChildren();
  byId("shared-replay").hidden = true;
  byId("shared-part").hidden = false;
}

function show() {
  byId("shared-replay").hidden = false;
  byId("shared-words").textContent = `This link contains ${events.length === 1 ? "one event" : `${events.length} events`}. Nothing has been reported. Replaying starts a new session in this browser.`;
  byId("shared").replaceChildren(...events.slice(0, SHOWN).map(({ type, track_id: id }) => {
    const outcome = type === "skip" ? "skipped" : "played";
    return element("li", outcome, element("span", "name", titleOf(trackOf(id))), hidden(`, ${outcome}`));
  }));
  if (events.length > SHOWN) byId("shared").append(element("li", "quiet", `and ${events.length - SHOWN} more`));
  byId("shared-part").hidden = false;
}

/** Copy a link that replays this session. */
export async function share() {
  const address = `${location.origin}${location.pathname}${asFragment()}`;
  try {
    await navigator.clipboard.writeText(address);
    byId("said").textContent = "Link copied. It replays this session.";
  } catch {
    history.replaceState(null, "", asFragment()); // replaceState fires no hashchange event
    byId("said").textContent = "Copy the address of this page. It replays this session.";
  }
}
