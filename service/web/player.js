// The player: search, play, skip, and watch the next tracks change. Plain modules, no build step, no third-party code.

import { call, keepKey, listenForKeys, listenToTimes, watch } from "./api.js";
import { compareAgain, compareLive, toggleCompare } from "./compare.js";
import { listenToKeys } from "./keys.js";
import { chooseOther, listenToReleases, readLive, showAnswering } from "./live.js";
import { showMap } from "./map.js";
import { firstNext, forgetRanks, nthNext, rememberRanks, showNext } from "./next.js";
import { heard, listenToEnd, showControls, showName, showNow, showQueue, togglePause } from "./now.js";
import { showSession } from "./ribbon.js";
import { asFragment, explained, open, recommendations, remember, replay, report, startAnew, state, streamPath, takeOver, titleOf } from "./session.js";
import { listenToReplay, showShared } from "./shared.js";
import { byId, button, element, sign } from "./show.js";

const SEEDS = 6;
const SEEDS_AMONG = 100; // most played tracks to choose from, so that one artist does not take every place
const FOUND = 12;
const TYPING_MS = 150;
const EXPLAINED_AGAIN_MS = [500, 1000, 2000];

let busy = false;
let waiting = null;
let watching = new AbortController();

/**
 * Run one action at a time. While one runs, only the latest further action waits; it is dropped if the current one fails.
 * An error is shown at the top of the page.
 */
async function act(action) {
  if (busy) {
    waiting = action;
    return;
  }
  busy = true;
  try {
    await action();
    tell("");
  } catch (error) {
    waiting = null;
    tell(error.message);
  } finally {
    busy = false;
    showControls();
  }
  const following = waiting;
  waiting = null;
  if (following) await act(following);
}

function tell(words) {
  byId("error").textContent = words;
  byId("error").hidden = !words;
}

// ---- actions of the listener

const choices = { onPlay: play, onQueue: enqueue };

async function reported(type, track, ms) {
  showAnswer(await report(type, track, ms));
  showSession();
  compareAgain();
}

function showAnswer(answer) {
  showNext(answer, choices);
  showAnswering(answer.release);
}

function play(track) {
  return act(async () => {
    rememberRanks();
    await reported("play", track);
    state.now = track;
    showNow();
    explainNext();
  });
}

function enqueue(track) {
  if (!state.queue.some((one) => one.track_id === track.track_id)) state.queue.push(track);
  showQueue();
  byId("said").textContent = `${titleOf(track)} plays next.`;
}

/** Finish the current track and start the next one: from the queue, or else the first recommendation. */
function goOn(isSkip) {
  return act(async () => {
    if (!state.now) return; // the action before this one has already finished the track
    rememberRanks(); // arrows compare with the list on the screen, across both events
    if (isSkip) await reported("skip", state.now, heard());
    const following = state.queue.shift() ?? firstNext();
    state.now = null;
    if (following) {
      await reported("play", following);
      state.now = following;
    }
    showQueue();
    showNow();
    explainNext();
  });
}

/** Load the reasons after the list, because they take longer to compute. Drop them if the session has changed meanwhile. */
async function explainNext() {
  const plays = state.plays;
  for (const wait of EXPLAINED_AGAIN_MS) {
    const answer = await explained().catch(() => null);
    if (plays !== state.plays || busy) return;
    if (answer) {
      showExplained(answer);
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, wait)); // an overloaded service answers 503 and asks for a retry
  }
}

function showExplained(answer) {
  showAnswer(answer);
  showSession();
  showName(); // the explanation names tracks that were played in another tab
  showMap(answer, choices);
}

async function openSession() {
  await open();
  showSession();
  showNow();
  showQueue();
  showExplained(await explained());
  compareAgain();
  watchSession();
}

/** Follow changes made in another tab or on another device, and reconnect after an outage. */
function watchSession() {
  watching.abort();
  watching = new AbortController();
  if (document.hidden) return; // a browser opens only six connections to a host, shared by all tabs
  watch(streamPath(), {
    session: ({ plays }) => follow(plays),
    away: () => tell("Sessions are unavailable. Retrying…"),
    lost: () => tell("The service does not answer. Retrying…"),
    found: () => tell(""),
  }, watching.signal);
}

function follow(plays) {
  if (busy) return; // the response to the action contains more
  if (!byId("error").hidden) tell("");
  const before = state.now?.track_id;
  if (!takeOver(plays)) return;
  rememberRanks();
  showSession();
  if (state.now?.track_id !== before) showNow();
  explainNext();
  compareAgain();
}

/** Show the list of another release for the same session. Arrows show how it differs from the previous list. */
function switchRelease() {
  return act(async () => {
    rememberRanks();
    showAnswer(await recommendations());
    byId("said").textContent = `${byId("releases").selectedOptions[0]?.text} is selected.`;
    explainNext();
  });
}

async function share() {
  const address = `${location.origin}${location.pathname}${asFragment()}`;
  try {
    await navigator.clipboard.writeText(address);
    byId("said").textContent = "Link copied. It replays this session.";
  } catch {
    history.replaceState(null, "", asFragment()); // replaceState fires no hashchange event
    byId("said").textContent = "Copy the address of this page. It replays this session.";
  }
}

// ---- finding tracks

let typing = 0;
let asked = 0;

async function search() {
  const number = ++asked;
  const words = byId("query").value;
  try {
    const { items: found } = await call(`tracks?${new URLSearchParams({ query: words, limit: words ? FOUND : SEEDS_AMONG })}`);
    if (number !== asked) return; // a newer search has started
    remember(found);
    const items = words ? found : seedsOf(found);
    byId("found-title").textContent = words ? resultsTitle(items.length) : "Popular tracks";
    byId("search-part").dataset.shows = words ? "found" : "seeds";
    byId("found").replaceChildren(...items.map(foundRow));
    if (!items.length) byId("found").append(element("li", "quiet", "No track matches all of these words."));
  } catch (error) {
    tell(error.message);
  }
}

/** The heading of the search results. */
function resultsTitle(count) {
  if (count === FOUND) return `First ${count} results`;
  return count === 1 ? "1 result" : `${count} results`;
}

/** The most played track of each artist first, so that the starting points differ. */
function seedsOf(tracks) {
  const artists = new Set();
  const isNew = ({ artist }) => artist && !artists.has(artist) && artists.add(artist);
  const firsts = tracks.filter(isNew);
  return [...firsts, ...tracks.filter((track) => !firsts.includes(track))].slice(0, SEEDS);
}

function foundRow(track) {
  const chosen = button("", () => play(track), "play");
  chosen.append(element("span", "name", element("span", "title", titleOf(track)), element("span", "artist", track.artist ?? "")));
  const queue = button("", () => enqueue(track), "queue");
  queue.append(sign("+", `Play ${titleOf(track)} next`));
  return element("li", "row", chosen, queue);
}

// ---- wiring

byId("query").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(search, TYPING_MS);
});
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
byId("skip").addEventListener("click", () => goOn(true));
byId("played").addEventListener("click", () => goOn(false));
byId("pause").addEventListener("click", togglePause);
byId("share").addEventListener("click", share);
byId("new-session").addEventListener("click", () => act(async () => {
  startAnew();
  history.replaceState(null, "", location.pathname);
  forgetRanks();
  await openSession();
}));
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(byId("key").value.trim());
  byId("key").value = "";
  byId("key-form").hidden = true;
  start();
});
byId("compare").addEventListener("click", toggleCompare);
document.addEventListener("visibilitychange", watchSession);
listenToKeys({
  "/": () => byId("query").focus(),
  s: () => byId("skip").click(),
  e: () => byId("played").click(),
  p: () => byId("pause").click(),
  m: () => byId("map").focus(),
  c: toggleCompare,
  r: chooseOther,
  ...Object.fromEntries([1, 2, 3, 4, 5, 6, 7, 8, 9].map((rank) => [rank, () => nthNext(rank) && play(nthNext(rank))])),
});
listenForKeys(() => { byId("key-form").hidden = false; });
listenToTimes(({ last, median }) => {
  byId("latency").textContent = `Last response ${last.toFixed(0)} ms, median ${median.toFixed(0)} ms`;
});
listenToEnd(() => goOn(false));
listenToReplay((events) => act(async () => {
  forgetRanks();
  await replay(events);
  await openSession();
}));
addEventListener("hashchange", () => act(showShared));
listenToReleases(switchRelease, (live) => compareLive(live, choices));

function start() {
  act(async () => {
    await readLive();
    await openSession();
    await showShared();
  });
  search();
}
start();
