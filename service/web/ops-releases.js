// The releases that the service can be swapped to: their list, the question before a swap, and what came of it.

import { call } from "./ops-service.js";
import { byId, count, element, row, when } from "./ops-show.js";

const READ_EVERY_MS = 10_000;
const SWAP_LIMIT_MS = 300_000; // a large release takes its time to be opened and tried

const state = { shown: "", current: "", names: new Map(), readAt: -Infinity, folder: "", swapping: false };

/** Read the list anew where it may have changed. */
export async function readReleases(told) {
  if (told.release.folder === state.folder && performance.now() - state.readAt < READ_EVERY_MS) return;
  const listed = await call("releases");
  state.folder = told.release.folder;
  state.readAt = performance.now();
  show(listed);
}

export function showServed({ release, experiment }) {
  const parts = [`Served is ${release.folder} (${release.name}).`];
  if (experiment) {
    parts.push(`An experiment gives ${(experiment.share * 100).toFixed(1)} % of the sessions ${experiment.folder} (${experiment.release}).`);
  } else parts.push("There is no experiment.");
  if (byId("served").textContent !== parts.join(" ")) byId("served").textContent = parts.join(" ");
}

/** What is focused stays so: the table is made anew only where it has changed. */
function show(listed) {
  const text = JSON.stringify([listed, state.swapping]);
  if (text === state.shown) return;
  state.shown = text;
  state.current = listed.current;
  state.names = new Map(listed.items.map((item) => [item.folder, item.name]));
  const focused = document.activeElement?.dataset?.folder;
  byId("no-swap").hidden = listed.can_swap;
  byId("folder-part").hidden = !listed.can_swap;
  byId("folder").replaceChildren(...listed.items.map((item) => itemRow(item, listed)));
  const before = listed.items.find((item) => item.folder === listed.before && !item.problem);
  const back = byId("roll-back");
  back.hidden = before === undefined;
  back.textContent = `Roll back to ${listed.before}`;
  back.disabled = state.swapping;
  back.onclick = () => ask("Roll back", listed.before);
  if (focused) document.querySelector(`button[data-folder="${CSS.escape(focused)}"]`)?.focus();
}

function itemRow(item, listed) {
  const known = item.name !== null;
  const cells = [
    [item.model ?? "–"],
    [item.name ?? "–"],
    [known ? when(item.created) : "–"],
    [known ? count(item.tracks) : "–", item.tracks],
    [item.validation_hr10 === null ? "–" : item.validation_hr10.toFixed(4), item.validation_hr10],
  ];
  const shown = row(item.folder, cells);
  shown.append(element("td", { className: item.problem ? "bad problem" : "" }, action(item, listed)));
  return shown;
}

function action(item, { current }) {
  if (item.problem) return item.problem;
  if (item.folder === current) return "is served";
  const button = element("button", { type: "button", disabled: state.swapping }, `Swap to ${item.folder}`);
  button.dataset.folder = item.folder;
  button.addEventListener("click", () => ask("Swap", item.folder));
  return button;
}

/** Ask before anything is done; the release is named in question and answer. */
function ask(what, folder) {
  const named = `${folder} (${state.names.get(folder)})`;
  byId("confirm-title").textContent = `${what} to ${folder}?`;
  byId("confirm-text").textContent = `Listeners will get their next tracks from ${named} instead of ${state.current}. `
    + "It is opened and tried first; if it is refused, nothing changes. No request fails.";
  byId("confirm-yes").textContent = `${what} to ${folder}`;
  byId("confirm-yes").onclick = () => {
    byId("confirm").close();
    swap(folder, named);
  };
  byId("confirm").showModal();
}

byId("confirm-no").addEventListener("click", () => byId("confirm").close());

async function swap(folder, named) {
  state.swapping = true;
  tell("outcome", `${named} is being opened and tried. ${state.current} is served meanwhile.`);
  for (const button of document.querySelectorAll("#folder button, #roll-back")) button.disabled = true;
  try {
    const body = JSON.stringify({ name: folder });
    const headers = { "Content-Type": "application/json" };
    const release = await call("releases/current", { method: "PUT", headers, body }, SWAP_LIMIT_MS);
    tell("outcome", `${release.folder} (${release.name}) is served now. Where there are several workers or replicas, each of the `
      + "others opens it by itself and follows within seconds.");
  } catch (error) {
    tell("refusal", error.status
      ? `${named} was refused. ${error.message} What was served before is served on.`
      : `${named}: ${error.message} Whether it is served will be seen here as soon as the service answers again.`);
  } finally {
    state.swapping = false;
    state.folder = ""; // read anew at the next look
    state.shown = "";
    await call("releases").then(show).catch(() => null); // the next look says what is wrong
  }
}

/** Say what came of a swap, as good news or as bad, where the keyboard's focus then is. */
function tell(id, text) {
  for (const other of ["outcome", "refusal"]) byId(other).hidden = other !== id;
  byId(id).textContent = text;
  byId(id).focus();
}
