// The player: search, play, skip, and watch the next tracks move. One module, no build step, nothing from elsewhere.

const NEXT = 15;
const SESSION_KEY = "segue.session";
const API_KEY = "segue.key";
const byId = (id) => document.getElementById(id);

const state = {
  session: localStorage.getItem(SESSION_KEY) ?? newSessionId(),
  plays: [], // as GET /sessions/{id} answers them
  now: null, // the track that is playing
  ranks: new Map(), // track id -> rank in the list that is shown
  names: new Map(), // track id -> track, for tracks seen so far
  busy: false,
};

function newSessionId() {
  const id = `player-${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 8)}`;
  localStorage.setItem(SESSION_KEY, id);
  return id;
}

// ---- talking to the service

async function call(path, options = {}) {
  const key = sessionStorage.getItem(API_KEY); // of this tab: a key is no thing to leave behind in a browser
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The service does not answer. Is it still running?");
  }
  const body = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (answer.status === 401 || answer.status === 403) byId("key-form").hidden = false;
  if (!answer.ok) {
    const error = new Error(body?.detail ? `${body.title}: ${body.detail}` : `The service answered ${answer.status}.`);
    error.status = answer.status;
    throw error;
  }
  return body;
}

const sessionPath = () => `/sessions/${encodeURIComponent(state.session)}`;

/** Run one action at a time; whatever fails is said in words at the top of the page. */
async function act(action) {
  if (state.busy) return;
  state.busy = true;
  try {
    await action();
    byId("error").hidden = true;
  } catch (error) {
    byId("error").textContent = error.message;
    byId("error").hidden = false;
  } finally {
    state.busy = false;
    showControls();
  }
}

async function report(type, track) {
  const event = { type, track_id: track.track_id, at: new Date().toISOString(), event_id: crypto.randomUUID?.() };
  const answer = await call(`${sessionPath()}/events?recommend=${NEXT}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ events: [event] }),
  });
  state.plays = (await call(sessionPath())).plays;
  showSession();
  showNext(answer.recommendations);
}

function play(track) {
  return act(async () => {
    await report("play", track);
    state.now = track;
    showNow();
  });
}

/** The listener is done with the track: what ranks first comes next. */
function goOn(skipped) {
  return act(async () => {
    const before = state.ranks; // movement is told from what was on the screen, over both events
    if (skipped) await report("skip", state.now);
    state.ranks = before;
    const first = byId("next").querySelector("button")?.dataset.track;
    state.now = null;
    if (first !== undefined) {
      const track = state.names.get(first);
      await report("play", track);
      state.now = track;
    }
    showNow();
  });
}

async function openSession() {
  try {
    state.plays = (await call(sessionPath())).plays;
  } catch (error) {
    if (error.status !== 404) throw error;
    state.plays = [];
  }
  await learnNames(state.plays);
  const latest = state.plays.at(-1);
  state.now = latest?.outcome === "played" ? nameOf(latest.track_id) : null;
  showSession();
  showNow();
  const query = new URLSearchParams({ session_id: state.session, k: NEXT });
  showNext(await call(`/recommendations?${query}`));
}

/** Titles of the session's tracks after a reload. */
async function learnNames(plays) {
  const missing = new Set(plays.map((one) => one.track_id).filter((id) => !state.names.has(id)));
  await Promise.all([...missing].slice(-50).map(async (id) => {
    const { items } = await call(`/tracks?${new URLSearchParams({ query: id.slice(0, 200), limit: 20 })}`);
    remember(items.filter((track) => track.track_id === id));
  }));
}

// ---- showing

const remember = (tracks) => tracks.forEach((track) => state.names.set(track.track_id, track));
const nameOf = (id) => state.names.get(id) ?? { track_id: id };
const titleOf = (track) => track.title ?? track.track_id;

function element(tag, className, ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

function trackButton(track, ...columns) {
  const name = element("span", "name", element("span", "title", titleOf(track)), element("span", "artist", track.artist ?? ""));
  const button = element("button", "", name, ...columns);
  button.type = "button";
  button.dataset.track = track.track_id;
  button.addEventListener("click", () => play(track));
  return button;
}

function showFound(tracks) {
  remember(tracks);
  byId("found").replaceChildren(...tracks.map((track) => element("li", "", trackButton(track))));
  if (!tracks.length) byId("found").append(element("li", "quiet", "No track holds all of these words."));
}

function showNow() {
  const shown = state.now
    ? [element("p", "title", titleOf(state.now)), element("p", "quiet", state.now.artist ?? "")]
    : [element("p", "quiet", "Nothing: choose a track.")];
  byId("now").replaceChildren(...shown);
  showControls();
}

function showControls() {
  for (const id of ["skip", "played"]) byId(id).disabled = state.now === null;
}

function showSession() {
  byId("session").replaceChildren(...state.plays.slice(-40).map(({ track_id, outcome }) => {
    const item = element("li", outcome, titleOf(nameOf(track_id)), element("span", "hidden-text", `, ${outcome}`));
    item.title = `${track_id}, ${outcome}`;
    return item;
  }));
}

function movement(id, rank) {
  const before = state.ranks.get(id);
  if (!state.ranks.size || before === rank) return element("span", "move", "");
  const [kind, sign, words] = before === undefined
    ? ["new", "new", "new in the list"]
    : before > rank
      ? ["up", `▲ ${before - rank}`, `up ${before - rank}, was ${before}`]
      : ["down", `▼ ${rank - before}`, `down ${rank - before}, was ${before}`];
  const shown = element("span", `move ${kind}`, sign);
  shown.title = words;
  return shown;
}

function showNext({ items, source, window }) {
  remember(items);
  const list = byId("next");
  const tops = new Map([...list.children].map((item) => [item.dataset.track, item.getBoundingClientRect().top]));
  list.replaceChildren(...items.map((track) => {
    const button = trackButton(track, movement(track.track_id, track.rank), element("span", "score", track.score.toFixed(2)));
    button.prepend(element("span", "rank", String(track.rank)));
    const item = element("li", "", button);
    item.dataset.track = track.track_id;
    return item;
  }));
  slideFrom(tops, list);
  state.ranks = new Map(items.map((track) => [track.track_id, track.rank]));
  byId("source").textContent = source === "model"
    ? `From the model, which saw ${window.plays} played and ${window.skips} skipped.`
    : "The most played tracks: this session has told nothing yet.";
}

/** Let every track that stayed in the list move from where it was. */
function slideFrom(tops, list) {
  for (const item of list.children) {
    const before = tops.get(item.dataset.track);
    if (before === undefined) continue;
    item.style.transition = "none";
    item.style.transform = `translateY(${before - item.getBoundingClientRect().top}px)`;
    requestAnimationFrame(() => {
      item.style.transition = "";
      item.style.transform = "";
    });
  }
}

// ---- wiring

let typing = 0;
let asked = 0;
async function search() {
  const number = ++asked;
  try {
    const query = new URLSearchParams({ query: byId("query").value, limit: 12 });
    const { items } = await call(`/tracks?${query}`);
    if (number === asked) showFound(items); // an older answer may arrive later
  } catch (error) {
    byId("error").textContent = error.message;
    byId("error").hidden = false;
  }
}

byId("query").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(search, 150);
});
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
byId("skip").addEventListener("click", () => goOn(true));
byId("played").addEventListener("click", () => goOn(false));
byId("new-session").addEventListener("click", () => act(async () => {
  state.session = newSessionId();
  state.ranks = new Map();
  await openSession();
}));

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(API_KEY, byId("key").value.trim());
  byId("key").value = "";
  byId("key-form").hidden = true;
  start();
});

function start() {
  act(async () => {
    const release = await call("/releases/current");
    byId("release").textContent = `${release.name}, ${release.tracks.toLocaleString("en")} tracks`;
    await openSession();
  });
  search();
}
start();
