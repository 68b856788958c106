// The player: search, play, skip, and watch the next tracks move. Plain modules, no build step, nothing from elsewhere.

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
const SEEDS_AMONG = 100; // of the most played, so that no artist takes all the places
const FOUND = 12;
const TYPING_MS = 150;
const EXPLAINED_AGAIN_MS = [500, 1000, 2000];

let busy = false;
let waiting = null;
let watching = new AbortController();

/**
 * Run one action at a time; what comes meanwhile waits, the latest alone, and is given up if the one before fails.
 * Whatever fails is said in words at the top of the page.
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

// ---- what the listener does

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

/** The listener is done with the track: the queue, or what ranks first, comes next. */
function goOn(isSkip) {
  return act(async () => {
    if (!state.now) return; // what came before has left nothing to be done with
    rememberRanks(); // movement is told from what was on the screen, over both events
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

/** Reasons cost more than the list, which is there already: they come a moment later, unless it has moved on. */
async function explainNext() {
  const plays = state.plays;
  for (const wait of EXPLAINED_AGAIN_MS) {
    const answer = await explained().catch(() => null);
    if (plays !== state.plays || busy) return;
    if (answer) {
      showExplained(answer);
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, wait)); // a full service refuses, and says to try again
  }
}

function showExplained(answer) {
  showAnswer(answer);
  showSession();
  showName(); // what was played elsewhere has its name from here
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

/** Another tab, another device, or a service that comes back: the page follows. */
function watchSession() {
  watching.abort();
  watching = new AbortController();
  if (document.hidden) return; // a browser has six connections to a service for all of its tabs
  watch(streamPath(), {
    session: ({ plays }) => follow(plays),
    away: () => tell("The service cannot reach its sessions. It tries again by itself."),
    lost: () => tell("The service does not answer. The page tries again by itself."),
    found: () => tell(""),
  }, watching.signal);
}

function follow(plays) {
  if (busy) return; // the action's own answer shows more
  if (!byId("error").hidden) tell("");
  const before = state.now?.track_id;
  if (!takeOver(plays)) return;
  rememberRanks();
  showSession();
  if (state.now?.track_id !== before) showNow();
  explainNext();
  compareAgain();
}

/** Another release is asked about the same session: arrows tell how its list differs from the one before. */
function switchRelease() {
  return act(async () => {
    rememberRanks();
    showAnswer(await recommendations());
    byId("said").textContent = `${byId("releases").selectedOptions[0]?.text} answers now.`;
    explainNext();
  });
}

async function share() {
  const address = `${location.origin}${location.pathname}${asFragment()}`;
  try {
    await navigator.clipboard.writeText(address);
    byId("said").textContent = "A link that replays this session is in the clipboard.";
  } catch {
    history.replaceState(null, "", asFragment()); // no event: it is this session already
    byId("said").textContent = "The address of this page replays this session now: copy it.";
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
    if (number !== asked) return; // an older answer may arrive later
    remember(found);
    const items = words ? found : seedsOf(found);
    byId("found-title").textContent = words ? `${items.length === FOUND ? "The first " : ""}${items.length} found` : "Or one that many play";
    byId("search-part").dataset.shows = words ? "found" : "seeds";
    byId("found").replaceChildren(...items.map(foundRow));
    if (!items.length) byId("found").append(element("li", "quiet", "No track holds all of these words."));
  } catch (error) {
    tell(error.message);
  }
}

/** The most played track of each artist first, so that one can begin anywhere. */
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
  byId("latency").textContent = `Last answer ${last.toFixed(0)} ms, median ${median.toFixed(0)} ms`;
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
