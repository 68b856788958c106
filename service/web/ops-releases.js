// The releases that the service can swap to: the list, the confirmation before a swap, and its result.

import { call } from "./ops-service.js";
import { byId, count, element, percent, row, when } from "./ops-show.js";

const READ_EVERY_MS = 10_000;
const SWAP_LIMIT_MS = 300_000; // loading and validating a large release takes minutes

const state = { shown: "", current: "", names: new Map(), readAt: -Infinity, folder: "", swapping: false, release: null, experiment: null };

/** Read the list again if it may have changed. */
export async function readReleases({ release }) {
  if (release.folder === state.folder && performance.now() - state.readAt < READ_EVERY_MS) return;
  const listed = await call("releases");
  state.folder = release.folder;
  state.readAt = performance.now();
  show(listed);
}

export function showServed({ release, experiment }) {
  Object.assign(state, { release, experiment });
  const words = `Live release: ${release.folder} (${release.name}). ${experimentWords(experiment)}`;
  if (byId("served").textContent !== words) byId("served").textContent = words;
}

function experimentWords(experiment) {
  if (!experiment) return "No A/B test is running.";
  const named = `${experiment.folder} (${experiment.release})`;
  const since = when(experiment.since);
  return {
    running: `A/B test: ${percent(experiment.share)} of the sessions get ${named}, the others the live release. Neither release has changed since ${since}.`,
    ended: `The A/B test with ${named} ended on ${since}: ${experiment.reason}. All sessions get the live release.`,
    void: `The A/B test is void since ${since}: ${experiment.reason}. Swap to another release, or remove SEGUE_EXPERIMENT.`,
    idle: `${named} gets no sessions. Requests can select it with release=.`,
  }[experiment.state];
}

/** Whether a swap to a folder would end the running A/B test. The service refuses it then unless it is told to. */
function ends(folder) {
  return state.experiment?.state === "running" && state.names.get(folder) !== state.release.name;
}

/** Render the list. Only after a change, and keep the focus. */
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
  if (item.folder === current) return "live";
  const button = element("button", { type: "button", disabled: state.swapping }, `Swap to ${item.folder}`);
  button.dataset.folder = item.folder;
  button.addEventListener("click", () => ask("Swap", item.folder));
  return button;
}

/** Ask for confirmation. The dialog and the result name the release. */
function ask(what, folder) {
  const named = `${folder} (${state.names.get(folder)})`;
  byId("confirm-title").textContent = `${what} to ${folder}?`;
  const same = state.experiment?.state === "idle" && state.names.get(folder) === state.experiment.release
    ? "The player can no longer compare two releases, because only this one is live then. " : "";
  byId("confirm-text").textContent = `${same}Listeners will get their next tracks from ${named} instead of ${state.current}. `
    + "The service validates it first. If validation fails, the current release stays live. No request fails during the swap.";
  const ending = ends(folder);
  byId("confirm-test").hidden = !ending;
  if (ending) byId("confirm-lost").textContent = lost(folder, state.experiment);
  byId("confirm-end").checked = false;
  byId("confirm-end").onchange = () => { byId("confirm-yes").disabled = !byId("confirm-end").checked; };
  byId("confirm-yes").disabled = ending;
  byId("confirm-yes").textContent = `${what} to ${folder}`;
  byId("confirm-yes").onclick = () => {
    byId("confirm").close();
    swap(folder, named, ending);
  };
  byId("confirm").showModal();
}

/** What a swap that ends the A/B test costs. */
function lost(folder, { folder: second, share, since }) {
  const why = state.names.get(folder) === state.experiment.release
    ? `${folder} is its second release, so both arms would be the same`
    : `${state.current} is its first release`;
  return `An A/B test is running: ${why}. It has compared ${state.current} with ${second} (${percent(share)} of the sessions) since ${when(since)}. `
    + "After the swap all sessions get one release, and no further play compares the two. What was counted so far stays in the metrics. "
    + "A roll back does not start the test again.";
}

byId("confirm-no").addEventListener("click", () => byId("confirm").close());

async function swap(folder, named, ending) {
  state.swapping = true;
  tell("outcome", `Loading and validating ${named}. ${state.current} stays live until it is ready.`);
  for (const button of document.querySelectorAll("#folder button, #roll-back")) button.disabled = true;
  try {
    const body = JSON.stringify({ name: folder, ...(ending && { end_experiment: true }) });
    const headers = { "Content-Type": "application/json" };
    const release = await call("releases/current", { method: "PUT", headers, body }, SWAP_LIMIT_MS);
    tell("outcome", `${release.folder} (${release.name}) is live. Other workers and replicas load it within seconds.`);
  } catch (error) {
    tell("refusal", error.status
      ? `${named} was rejected. ${error.message} The previous release stays live.`
      : `${named}: ${error.message} This page shows whether the swap succeeded when the service answers again.`);
  } finally {
    state.swapping = false;
    state.folder = ""; // read the list again with the next snapshot
    state.shown = "";
    await call("releases").then(show).catch(() => null); // the next snapshot shows the error
  }
}

/** Show the result of a swap, as a status or an error, and move the focus to it. */
function tell(id, text) {
  for (const other of ["outcome", "refusal"]) byId(other).hidden = other !== id;
  byId(id).textContent = text;
  byId(id).focus();
}
