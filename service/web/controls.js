// Controls of the list: filters, artist spacing, caution, a station and feedback. A control that the service or the release does
// not know is hidden.

import { call, send } from "./api.js";
import { mostPlayed } from "./search.js";
import { state } from "./session.js";
import { byId, button } from "./show.js";
import { change, countChosen, hasField, tuning } from "./tuning.js";

const GENRES = 10;
const NOT_HERE = [404, 405];
const STATION_WEIGHT = 0.5;
const STATION_PATH = "/sessions/{session_id}/station";

const features = { station: false, feedback: false, caution: false };
let handlers = null;
let station = null; // { artist, session }

/** `changed` after a change of options, `stationed` with the artist or null, `failed` with an error. */
export function listenToControls(given) {
  handlers = given;
  for (const [id, name] of [["per-artist", "perArtist"], ["gap", "gap"], ["caution", "caution"]]) {
    byId(id).addEventListener("change", () => changed({ [name]: byId(id).value }));
  }
  byId("clean").addEventListener("change", () => changed({ clean: byId("clean").checked }));
  byId("reset").addEventListener("click", () => changed({ genres: [], clean: false, perArtist: "", gap: "", caution: "" }));
  byId("station").addEventListener("click", toggleStation);
  byId("tune").addEventListener("toggle", loadCaution, { once: true });
  showOptions();
}

function changed(more) {
  change(more);
  showOptions();
  handlers.changed();
}

/** Show the options, with the genres of the most played tracks as chips. */
export function showOptions() {
  const found = hasField("genre") ? mostPlayed().map((track) => track.attributes?.genre).filter(Boolean) : [];
  const genres = [...new Set([...tuning.genres, ...found])].slice(0, GENRES);
  byId("chips").hidden = genres.length < 2;
  const focused = document.activeElement?.dataset?.genre;
  byId("chips").replaceChildren(...["", ...genres].map((genre) => chip(genre)));
  if (focused !== undefined) byId("chips").querySelector(`[data-genre="${CSS.escape(focused)}"]`)?.focus();
  byId("clean-part").hidden = !hasField("explicit");
  byId("caution-part").hidden = !features.caution;
  byId("clean").checked = tuning.clean;
  byId("per-artist").value = tuning.perArtist;
  byId("gap").value = tuning.gap;
  byId("caution").value = tuning.caution;
  byId("tuned").textContent = countChosen() ? `(${countChosen()} set)` : "";
}

function chip(genre) {
  const isOn = genre ? tuning.genres.includes(genre) : !tuning.genres.length;
  const made = button(genre || "All", () => {
    const others = tuning.genres.filter((one) => one !== genre);
    changed({ genres: genre ? (isOn ? others : [...others, genre]) : [] });
  }, "chip");
  made.dataset.genre = genre;
  made.setAttribute("aria-pressed", isOn);
  return made;
}

/** Find out what the service knows beyond the basic calls. */
export async function loadFeatures() {
  const api = await call("openapi.json").catch(() => null);
  features.station = Boolean(api?.paths?.[STATION_PATH]?.put);
  features.feedback = ["like", "ban"].every((type) => api?.components?.schemas?.EventType?.enum?.includes(type));
}

/** Find out whether the release has a play head: without one, it refuses a caution. */
async function loadCaution() {
  features.caution = await send("recommendations/what-if", { events: [], k: 1, caution: 1 }).then(() => true, () => false);
  showOptions();
}

/** `act(type, track)` if the service knows likes and bans; null if not. */
export function feedbackOf(act) {
  byId("feedback").hidden = !features.feedback;
  if (!features.feedback) return null;
  for (const type of ["like", "ban"]) byId(type).onclick = () => state.now && act(type, state.now);
  return act;
}

/** Show the button that starts a station of the current artist, or ends the station. */
export function showStation() {
  const artist = station?.session === state.id ? station.artist : null;
  byId("station").hidden = !features.station || !(artist ?? state.now?.artist);
  byId("station").textContent = artist ? `End radio from ${artist}` : `Radio from ${state.now?.artist ?? "this artist"}`;
}

async function toggleStation() {
  const { id } = state; // another session may begin before the answer
  const artist = station?.session === id ? null : state.now?.artist;
  const path = `sessions/${encodeURIComponent(id)}/station`;
  try {
    const body = JSON.stringify({ artists: [artist], weight: STATION_WEIGHT });
    await call(path, artist ? { method: "PUT", headers: { "Content-Type": "application/json" }, body } : { method: "DELETE" });
    if (id !== state.id) return;
    station = artist && { artist, session: id };
    handlers.stationed(artist);
  } catch (error) {
    if (NOT_HERE.includes(error.status)) features.station = false;
    else handlers.failed(error);
  }
  showStation();
}
