// Keys that do what buttons do. They can be turned off, as somebody's voice or hand may press them unawares.

import { byId } from "./show.js";

const OFF_KEY = "segue.keys-off";

/** `actions`: key -> what it does. Not while something is typed, nor with Ctrl, Alt or Meta. */
export function listenToKeys(actions) {
  const wanted = byId("keys-on");
  wanted.checked = localStorage.getItem(OFF_KEY) === null;
  wanted.addEventListener("change", () => {
    if (wanted.checked) localStorage.removeItem(OFF_KEY);
    else localStorage.setItem(OFF_KEY, "1");
  });
  document.addEventListener("keydown", (event) => {
    if (!wanted.checked || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.closest("input:not([type=checkbox]), textarea, select")) return;
    const action = actions[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
