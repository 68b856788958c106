// The current track, played by a simulated clock because there is no audio, and the queue.

import { byId, button, element, sign } from "./show.js";
import { state, titleOf, trackOf } from "./session.js";

const LENGTH_S = 30;
const TICK_MS = 200;

let heardMs = 0;
let runs = true;
let onEnd = () => {};

export const listenToEnd = (listener) => { onEnd = listener; };
export const heard = () => heardMs;

const clock = (seconds) => `0:${String(Math.floor(seconds)).padStart(2, "0")}`;

/** Show the current track and restart its clock. */
export function showNow() {
  heardMs = 0;
  showName();
  showControls();
  showProgress();
}

/** Show the name of the current track, once it is known. */
export function showName() {
  if (state.now) state.now = trackOf(state.now.track_id);
  const shown = state.now
    ? [element("p", "title", titleOf(state.now)), element("p", "artist", state.now.artist ?? "")]
    : [element("p", "title", "Choose a track to start"), element("p", "artist", "Each play and each skip updates the next tracks.")];
  const text = shown.map((line) => line.textContent).join("\n");
  if ([...byId("now").children].map((line) => line.textContent).join("\n") === text) return; // an unchanged text must not be announced again
  byId("now").replaceChildren(...shown);
}

export function showControls() {
  for (const id of ["skip", "played", "pause"]) byId(id).disabled = state.now === null;
  byId("pause").querySelector(".label").textContent = runs ? "Pause" : "Resume";
}

export function togglePause() {
  runs = !runs;
  showControls();
}

function showProgress() {
  byId("progress").value = heardMs / 1000 / LENGTH_S;
  byId("time").textContent = state.now ? `${clock(heardMs / 1000)} of ${clock(LENGTH_S)}` : "";
}

setInterval(() => {
  if (!state.now || !runs || document.hidden) return;
  heardMs += TICK_MS;
  showProgress();
  if (heardMs >= LENGTH_S * 1000) {
    heardMs = 0;
    onEnd();
  }
}, TICK_MS);

/** Show the queue. */
export function showQueue() {
  byId("queue-part").hidden = !state.queue.length;
  byId("queue").replaceChildren(...state.queue.map((track, place) => {
    const remove = button("", () => {
      state.queue.splice(place, 1);
      showQueue();
      (byId("queue").querySelector("button") ?? byId("now-title")).focus();
    }, "queue");
    remove.append(sign("×", `Remove ${titleOf(track)} from the queue`));
    return element("li", "", element("span", "name", titleOf(track)), remove);
  }));
}
