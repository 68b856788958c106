// Which releases answer, and which of them the list is asked of: the session's own, unless the listener chooses.

import { call } from "./api.js";
import { choose, state } from "./session.js";
import { byId, element } from "./show.js";

let live = []; // as GET /releases/current names them
let chosen = state.release; // as it was when the list of releases was made
const tracks = {}; // release -> how many tracks it has, where that is known
let onLive = () => {};

/** `onChosen` is called once another release is to answer, `listener` with the releases whenever they are read. */
export function listenToReleases(onChosen, listener) {
  onLive = listener;
  byId("releases").addEventListener("change", () => {
    choose(byId("releases").value);
    chosen = state.release;
    onChosen();
  });
}

/** Read what answers now. Throws CallFailed. */
export async function readLive() {
  const current = await call("releases/current");
  live = current.live;
  tracks[current.name] = current.tracks;
  if (!live.some(({ name }) => name === state.release)) choose(null);
  chosen = state.release;
  byId("choice").hidden = live.length < 2;
  byId("releases").replaceChildren(...live.map((release) => {
    const option = element("option", "", nameOf(release));
    option.value = release.name;
    return option;
  }));
  onLive(live);
}

/** Show who has answered; another release may have been swapped in since they were read, or the chosen one be gone. */
export async function showAnswering(name) {
  if (chosen !== state.release || !live.some((release) => release.name === name)) await readLive().catch(() => null);
  const count = tracks[name];
  byId("release").textContent = count === undefined ? name : `${name}, ${count.toLocaleString("en")} tracks`;
  byId("releases").value = state.release ?? name;
}

/** Let the release after the one that is shown answer. */
export function chooseOther() {
  const list = byId("releases");
  if (list.options.length < 2) return;
  list.selectedIndex = (list.selectedIndex + 1) % list.options.length;
  list.dispatchEvent(new Event("change"));
}

/** What sets a release apart, in a word or two. */
export function kindOf({ model, loss }) {
  if (!loss) return model;
  return `${model} ${loss.beta > 0 ? "with" : "without"} the skip loss`;
}

function nameOf(release) {
  const alike = live.filter((other) => kindOf(other) === kindOf(release)).length > 1;
  return alike ? `${kindOf(release)}, ${release.folder}` : kindOf(release);
}
