// The current track, played by a simulated clock because there is no audio, and the queue.

import { artOf } from "./art.js";
import { showStation } from "./controls.js";
import { byId, button, element, sign } from "./show.js";
import { state, titleOf, trackOf } from "./session.js";

const LENGTH_S = 30;
const COUNTED_S = 10; // a track that starts by itself counts as played after so long
const TICK_MS = 200;

let heardMs = 0;
let runs = true;
let isSkipped = false; // the track was skipped, and the next one starts in a moment
let handlers = null;

/** `counted` when a started track has been heard long enough to count as played, `ended` at the end of a track. */
export const listenToClock = (given) => { handlers = given; };
export const heard = () => heardMs;

const clock = (seconds) => `0:${String(Math.floor(seconds)).padStart(2, "0")}`;

/** Show the current track and restart its clock. */
export function showNow() {
  heardMs = 0;
  isSkipped = false;
  showName();
  showControls();
  showProgress();
}

/** Show that the current track was skipped, and which one starts next. */
export function showSkipped(track, following) {
  isSkipped = true;
  byId("now-part").classList.add("skipped");
  byId("now-title").textContent = "Skipped";
  byId("now").replaceChildren(element("p", "title", titleOf(track)), element("p", "artist", following ? `Next: ${titleOf(following)}` : ""));
  showControls();
  byId("progress").value = 0;
  byId("time").textContent = "";
}

/** Show the name of the current track, once it is known. */
export function showName() {
  if (isSkipped) return;
  if (state.now) state.now = trackOf(state.now.track_id);
  const shown = state.now
    ? [element("p", "title", titleOf(state.now)), element("p", "artist", state.now.artist ?? "")]
    : [element("p", "title", "Choose a track to start"), element("p", "artist", "Each play and each skip updates the next tracks.")];
  const text = shown.map((line) => line.textContent).join("\n");
  byId("now-part").classList.remove("skipped");
  byId("now-title").textContent = "Now playing";
  byId("now-art").replaceChildren(...(state.now ? [artOf(state.now, "art large")] : []));
  showStation();
  if ([...byId("now").children].map((line) => line.textContent).join("\n") === text) return; // an unchanged text must not be announced again
  byId("now").replaceChildren(...shown);
}

export function showControls() {
  for (const id of ["skip", "played"]) byId(id).disabled = state.now === null && !isSkipped;
  for (const id of ["pause", "like", "ban"]) byId(id).disabled = state.now === null;
  byId("pause").querySelector(".label").textContent = runs ? "Pause" : "Resume";
}

export function togglePause() {
  runs = !runs;
  showControls();
}

function showProgress() {
  byId("progress").value = heardMs / 1000 / LENGTH_S;
  byId("time").textContent = state.now ? `${clock(heardMs / 1000)} of ${clock(LENGTH_S)}` : "";
  byId("time").title = state.isStarted ? `Counts as played after ${COUNTED_S} seconds` : "";
}

setInterval(() => {
  if (!state.now || !runs || document.hidden) return;
  heardMs += TICK_MS;
  showProgress();
  if (state.isStarted && heardMs >= COUNTED_S * 1000 && heardMs < COUNTED_S * 1000 + TICK_MS) handlers.counted();
  if (heardMs >= LENGTH_S * 1000) {
    heardMs = 0;
    handlers.ended();
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
