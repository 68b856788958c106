// Follow changes of the session that are made in another tab or on another device.

import { isBusy } from "./actions.js";
import { watch } from "./api.js";
import { areNews, state, streamPath } from "./session.js";
import { byId, tell } from "./show.js";

let watching = new AbortController();
let missed = null; // the plays of the latest message during an action
let away = ""; // what was said when the service or Redis went away
let onPlays = null;

/** Call `follow(plays)` with the plays of the session when they may have changed, but not during an action. */
export const listenToSession = (follow) => { onPlays = follow; };

/** Follow the session of the page from now on, and reconnect after an outage. The first message has its plays. */
export function watchSession() {
  const { id } = state;
  watching.abort();
  watching = new AbortController();
  missed = null;
  if (document.hidden) return; // a browser opens only six connections to a host, shared by all tabs
  watch(streamPath(), {
    session: ({ plays }) => { if (id === state.id) take(plays); },
    away: () => tellAway("Sessions are unavailable. Retrying…"),
    lost: () => tellAway("The service does not answer. Retrying…"),
    found: tellBack,
  }, watching.signal);
}

function take(plays) {
  missed = isBusy() ? plays : null;
  if (missed) return; // the response to the action contains more, but for what happens elsewhere at this moment
  tellBack();
  onPlays(plays);
}

/** After an action: ask for what happened elsewhere meanwhile. */
export function catchUp() {
  const plays = missed;
  missed = null;
  if (plays && areNews(plays)) watchSession();
}

function tellAway(words) {
  if (isBusy()) return;
  away = words;
  tell(words);
}

/** Clear what `tellAway` said, and no other error. */
function tellBack() {
  if (away && byId("error").textContent === away) tell("");
}
