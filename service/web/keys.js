// Keyboard shortcuts. The listener can turn them off, because speech input or a tremor may trigger them (WCAG 2.1.4).

import { byId } from "./show.js";

const OFF_KEY = "segue.keys-off";

const BUTTONS = { s: "skip", e: "played", p: "pause", u: "undo", w: "what-if" }; // that a key clicks

/** `others` maps a key to a function. Ignored while the listener types and with Ctrl, Alt or Meta. */
export function listenToKeys(others) {
  const actions = { "/": () => byId("query").focus(), m: () => byId("map").focus(), ...others };
  for (const [key, id] of Object.entries(BUTTONS)) actions[key] = () => byId(id).click();
  const enabled = byId("keys-on");
  const showHints = () => document.body.classList.toggle("keys-off", !enabled.checked);
  enabled.checked = localStorage.getItem(OFF_KEY) === null;
  showHints();
  enabled.addEventListener("change", () => {
    showHints();
    if (enabled.checked) localStorage.removeItem(OFF_KEY);
    else localStorage.setItem(OFF_KEY, "1");
  });
  document.addEventListener("keydown", (event) => {
    if (!enabled.checked || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.closest("input:not([type=checkbox]), textarea, select")) return;
    const action = actions[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
