// The live releases, and the one whose list is shown: the service selects it unless the listener does.

import { call } from "./api.js";
import { choose, state } from "./session.js";
import { byId, element } from "./show.js";

let live = []; // in the form of GET /releases/current
let chosen = state.release; // when the list of releases was last rendered
const tracks = {}; // release -> number of tracks, if known
let onLive = () => {};

/** Call `onChosen` when the listener selects a release, and `listener` with the releases whenever they are read. */
export function listenToReleases(onChosen, listener) {
  onLive = listener;
  byId("releases").addEventListener("change", () => {
    choose(byId("releases").value);
    chosen = state.release;
    onChosen();
  });
}

/** Read the live releases. Throws CallFailed. */
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

/** Show the release of the latest list. Read the live releases again if it or the selection is not among them. */
export async function showAnswering(name) {
  if (chosen !== state.release || !live.some((release) => release.name === name)) await readLive().catch(() => null);
  const count = tracks[name];
  byId("release").textContent = count === undefined ? name : `${name}, ${count.toLocaleString("en")} tracks`; // a line of its own: its length moves nothing
  byId("releases").value = state.release ?? name;
}

/** Select the next release of the list. */
export function chooseOther() {
  const list = byId("releases");
  if (list.options.length < 2) return;
  list.selectedIndex = (list.selectedIndex + 1) % list.options.length;
  list.dispatchEvent(new Event("change"));
}

/** The model of a release, and whether it was trained with the skip loss. */
export function kindOf({ model, loss }) {
  if (!loss) return model;
  return `${model} ${loss.beta > 0 ? "with" : "without"} the skip loss`;
}

function nameOf(release) {
  const alike = live.filter((other) => kindOf(other) === kindOf(release)).length > 1;
  return alike ? `${kindOf(release)}, ${release.folder}` : kindOf(release);
}
