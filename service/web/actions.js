// The actions of the page, one at a time.

import { tell } from "./show.js";

let busy = false;
let waiting = null; // what the listener did while an action runs
let due = null; // what a timer asked for while an action runs
let handlers = null;

export const isBusy = () => busy;

/** `ended` after each action, `idle` after the last of them. */
export const listenToActions = (given) => { handlers = given; };

/**
 * Run an action. While one runs, only the latest further action of the listener waits, and the latest of a timer after it. If
 * the current one fails, that of the listener is dropped, and an error is shown at the edge of the window.
 */
export async function act(action, { byTimer = false } = {}) {
  if (busy) {
    if (byTimer) due = action;
    else waiting = action;
    return;
  }
  busy = true;
  try {
    await action();
    if (!byTimer) tell("");
  } catch (error) {
    if (!error.isGivenUp) waiting = null;
    tell(error.isGivenUp ? "" : error.message);
  } finally {
    busy = false;
    handlers.ended();
  }
  const [following, isDue] = [waiting ?? due, !waiting];
  if (isDue) due = null;
  else waiting = null;
  if (following) await act(following, { byTimer: isDue });
  else handlers.idle();
}
