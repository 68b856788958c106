// The player: play, skip, and watch the next tracks change. Plain modules, no build step, no third-party code.

import { act, isBusy, listenToActions } from "./actions.js";
import { callUntilAnswered, keepKey, listenForKeys, listenToTimes } from "./api.js";
import { compareAgain, compareLive, toggleCompare } from "./compare.js";
import { feedbackOf, listenToControls, loadFeatures, showOptions, showStation } from "./controls.js";
import { catchUp, listenToSession, watchSession } from "./follow.js";
import { listenToKeys } from "./keys.js";
import { chooseOther, listenToReleases, readLive, showAnswering } from "./live.js";
import { changeOf, compareHypothetical, currentAnswer, endHypothetical, firstNext, forgetRanks, forgetRows, markPlaying, nthNext, rememberRanks, shownRanks, showNext, supposePlayed } from "./next.js";
import { heard, listenToClock, showControls, showName, showNow, showQueue, showSkipped, togglePause } from "./now.js";
import { showSession } from "./ribbon.js";
import { listenToSearch, loadPopular } from "./search.js";
import { continueWith, explained, giveUp, hadItBeenPlayed, NEXT, open, recommendations, replay, report, setStarted, startAnew, state, supposed, takeOver, titleOf } from "./session.js";
import { listenToReplay, share, showShared } from "./shared.js";
import { listenToShowMe, stopShowing } from "./show-me.js";
import { byId, isStill, tell } from "./show.js";
import { hideStory, quoted, tellStory } from "./story.js";

const HOLD_MS = 1500; // how long "Skipped" is shown before the next track starts
const EXPLAINED_AGAIN_MS = [500, 1000, 2000];

let opened = state.id; // the session that was opened, or could not be opened
let listed = null; // the session whose list is shown
let explaining = 0; // number of the latest request for reasons
let starts = 0; // number of tracks started
let held = null; // { track, timer }: the track that starts in a moment, after a skip
let skipped = null; // { track, before }: the latest skip, until the next action; `before` are the plays before it
let supposing = false; // whether the list of "what if you had played it?" is shown

// ---- actions of the listener

const choices = { onPlay: (track) => { stopShowing(); return play(track); }, onQueue: enqueue, onFeedback: null };

async function reported(type, track, ms) {
  let isUnsaved = false;
  const answer = await report(type, track, ms, (error) => {
    isUnsaved = true;
    tell(`Your ${type} of ${titleOf(track)} is not saved yet. Sending it again… (${error.message})`);
  });
  if (isUnsaved) tell("");
  showAnswer(answer);
  showSession();
  compareAgain();
  return answer;
}

function showAnswer(answer) {
  listed = state.id;
  supposing = false;
  showSupposing();
  showNext(answer, choices);
  markPlaying();
  showAnswering(answer.release);
}

/** Play a track that the listener chose. It counts as played at once. */
function play(track) {
  return act(async () => {
    dropHeld();
    skipped = null;
    await countPlay(track, ["You played ", quoted(track)]);
    state.now = track;
    starts++;
    showNow();
    explainNext();
  });
}

/** Report that a track was played, and say what that changed. */
async function countPlay(track, lead) {
  const before = shownRanks();
  rememberRanks("play");
  setStarted(false);
  const { items } = await reported("play", track);
  tellStory("play", lead, changeOf(items, before));
}

/**
 * Start a track without a report: its outcome is not known yet. It counts as played after ten seconds or at its end, and as
 * skipped if it is skipped, so each change of the list has one cause.
 */
function startTrack(track) {
  state.now = track ?? null;
  starts++;
  setStarted(Boolean(track));
  showQueue();
  showNow();
  showSession();
  markPlaying();
}

function enqueue(track) {
  if (!state.queue.some((one) => one.track_id === track.track_id)) state.queue.push(track);
  showQueue();
  byId("said").textContent = `${titleOf(track)} plays next.`;
}

/** Skip the current track and show what that changes. The next track starts in a moment. */
function skip() {
  const pressed = { track: state.now?.track_id, ms: heard() }; // a skip that waits reports the time of the press
  return act(async () => {
    startHeld();
    if (!state.now) return; // the action before this one has already finished the track
    const [track, before, latest] = [state.now, shownRanks(), state.plays.at(-1)];
    // A single skip would turn an earlier play of the same track into a skip.
    if (state.isStarted && latest?.outcome === "played" && latest.track_id === track.track_id) await reported("play", track);
    const plays = state.isStarted ? [...state.plays, { track_id: track.track_id, outcome: "played" }] : state.plays;
    rememberRanks("skip");
    setStarted(false);
    const { items } = await reported("skip", track, pressed.track === track.track_id ? pressed.ms : heard());
    skipped = { track, before: plays };
    state.now = null;
    held = { track: state.queue.shift() ?? firstNext() };
    tellStory("skip", ["You skipped ", quoted(track)], changeOf(items, before), ["undo", "what-if"]);
    showQueue();
    showSkipped(track, held.track);
    if (isStill()) startHeld();
    else startLater(held);
    explainNext();
  });
}

/** Finish the current track as played and start the next one: from the queue, or else the first recommendation. */
function finish({ byTimer = false } = {}) {
  const ended = starting();
  return act(async () => {
    if (byTimer && starting() !== ended) return; // the listener was faster
    startHeld();
    const track = state.now;
    if (!track) return;
    skipped = null;
    if (state.isStarted) await countPlay(track, ["You played ", quoted(track)]);
    else {
      rememberRanks("play"); // the list stays, so no row has a mark
      showAnswer(currentAnswer());
      tellStory("play", [quoted(track), " ended"], changeOf(currentAnswer().items, shownRanks()));
    }
    startTrack(state.queue.shift() ?? firstNext());
    explainNext();
  }, { byTimer });
}

/** The current track was heard for so long that it counts as played. */
function count() {
  const heardLong = starting();
  return act(async () => {
    if (!state.isStarted || starting() !== heardLong) return;
    skipped = null;
    await countPlay(state.now, ["You are listening to ", quoted(state.now)]);
    explainNext();
  }, { byTimer: true });
}

/** What tells one start of a track from another. */
const starting = () => `${starts} ${state.now?.track_id}`;

/** Start this held track in a moment, if it is still held then. */
function startLater(track) {
  track.timer = setTimeout(() => act(() => { if (held === track) startHeld(); }, { byTimer: true }), HOLD_MS);
}

/** Start the track that follows a skip. */
function startHeld() {
  if (!held) return;
  const { track } = held;
  dropHeld();
  startTrack(track);
}

function dropHeld() {
  clearTimeout(held?.timer);
  held = null;
}

/** Continue in a copy of the session without the latest skip: no event takes a skip back. */
function undo() {
  if (!skipped) return undefined;
  return act(async () => {
    if (!skipped) return;
    dropHeld();
    const { before, track } = skipped;
    skipped = null;
    const ranks = shownRanks();
    rememberRanks("other");
    await continueWith(before);
    await openSession();
    tellStory("other", ["Undone: this is a copy of the session in which you did not skip ", quoted(track)], changeOf(currentAnswer().items, ranks));
  });
}

/** Show the list had the skipped track been played, or return to the session's list. */
function toggleSupposed() {
  if (!skipped) return undefined;
  return act(async () => {
    if (!skipped) return;
    if (supposing) {
      endHypothetical();
      showAnswer(currentAnswer());
      explainNext();
      return;
    }
    const answer = await supposed(hadItBeenPlayed(), currentAnswer().release, NEXT);
    compareHypothetical();
    supposing = true;
    showNext(answer, choices, { hypothetical: true });
    showSupposing();
  });
}

function showSupposing() {
  document.body.classList.toggle("supposing", supposing);
  byId("what-if").setAttribute("aria-pressed", supposing);
  byId("what-if").querySelector(".label").textContent = supposing ? "Back to your session" : "What if you had played it?";
  byId("next-title").textContent = supposing && skipped ? `Next tracks, had you played ${titleOf(skipped.track)}` : "Next tracks";
}

/**
 * Load the reasons after the list, because they take longer to compute. After a skip, load the list had the track been played
 * first, for the words of the rows. Drop both if the session has changed meanwhile.
 */
async function explainNext() {
  const { plays } = state;
  const number = ++explaining; // a change of release, options or station leaves the plays as they are
  const isOld = () => number !== explaining || plays !== state.plays || supposing;
  if (skipped) {
    const answer = await supposed(hadItBeenPlayed(), currentAnswer().release).catch(() => null);
    if (isOld()) return;
    if (answer) {
      supposePlayed(answer.items);
      showAnswer(currentAnswer());
    }
  }
  for (const wait of EXPLAINED_AGAIN_MS) {
    const answer = await explained().catch(() => null);
    if (isOld() || isBusy()) return;
    if (answer) {
      showExplained(answer);
      if (skipped) onMap(({ showMove }) => showMove(skipped?.track ?? null));
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, wait)); // an overloaded service answers 503 and asks for a retry
  }
}

function showExplained(answer) {
  showAnswer(answer);
  showSession();
  showName(); // the explanation names tracks that were played in another tab
  onMap(({ showMap }) => showMap(answer, choices, skipped?.track));
}

/** The map is the largest part and is drawn last, so its code is loaded after the first list. */
function onMap(draw) {
  import("./map.js").then(draw, () => {
    byId("map-part").hidden = false;
    byId("map-about").textContent = "The map cannot be loaded. Load the page again to see it.";
  });
}

async function openSession() {
  await open();
  showOpened();
  showExplained(await explained());
  compareAgain();
  opened = state.id;
}

/** Show the session, and follow it from now on. */
function showOpened() {
  showSession();
  showNow();
  showQueue();
  watchSession();
}

/** Take over what happened elsewhere. */
function follow(plays) {
  const before = state.now?.track_id;
  if (!takeOver(plays) && listed === state.id) return;
  dropHeld();
  skipped = null;
  hideStory();
  rememberRanks("other");
  showSession();
  if (state.now?.track_id !== before) showNow();
  explainNext();
  compareAgain();
}

/** Request the list again after a change of release, options or station. Arrows show how it differs from the one before. */
function listAgain(kind, lead, words) {
  return act(async () => {
    const before = shownRanks();
    skipped = null;
    rememberRanks(kind);
    const answer = await recommendations();
    showAnswer(answer);
    tellStory("other", [lead], changeOf(answer.items, before));
    byId("said").textContent = words ?? "";
    compareAgain();
    explainNext();
  });
}

/** Report a like or a ban, where the service knows them. */
function giveFeedback(type, track) {
  return act(async () => {
    const before = shownRanks();
    skipped = null;
    rememberRanks("other");
    const { items } = await reported(type, track);
    tellStory(type === "ban" ? "skip" : "play", [type === "ban" ? "You banned " : "You like ", quoted(track)], changeOf(items, before));
    explainNext();
  });
}

/** Open another session: the one that `begin` makes. */
async function newSession(begin = startAnew) {
  dropHeld();
  skipped = null;
  forgetRanks();
  hideStory();
  onMap(({ showMove }) => showMove(null));
  await begin();
  history.replaceState(null, "", location.pathname);
  await openSession();
}

/** A click ends the demonstration; its own steps do not. */
const byHand = (action) => () => { stopShowing(); return action(); };

byId("skip").addEventListener("click", byHand(skip));
byId("played").addEventListener("click", byHand(finish));
byId("pause").addEventListener("click", togglePause);
byId("undo").addEventListener("click", byHand(undo));
byId("what-if").addEventListener("click", byHand(toggleSupposed));
byId("share").addEventListener("click", share);
byId("new-session").addEventListener("click", byHand(() => { giveUp(); return act(() => newSession()); }));
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(byId("key").value.trim());
  byId("key").value = "";
  byId("key-form").hidden = true;
  start();
});
byId("compare").addEventListener("click", toggleCompare);
document.addEventListener("visibilitychange", watchSession);
listenToSession(follow);
listenToActions({
  ended: () => {
    showControls();
    if (opened === state.id) return; // otherwise a new session has begun, and could not be opened
    opened = state.id;
    showOpened();
    explainNext();
  },
  idle: catchUp,
});
listenToKeys({
  c: toggleCompare,
  r: chooseOther,
  ...Object.fromEntries([1, 2, 3, 4, 5, 6, 7, 8, 9].map((rank) => [rank, () => nthNext(rank) && choices.onPlay(nthNext(rank))])),
});
listenForKeys(() => { byId("key-form").hidden = false; });
listenToTimes(({ last, median }) => {
  byId("latency").textContent = `Last response ${last.toFixed(0)} ms, median ${median.toFixed(0)} ms`;
});
listenToClock({ counted: count, ended: () => finish({ byTimer: true }) });
listenToSearch(choices, tell);
listenToShowMe({ begin: () => act(() => newSession()), play, skip });
listenToControls({ changed: () => listAgain("options", "You changed the options"), stationed: (name) => listAgain("options", name ? `Radio from ${name}` : "The radio ended"), failed: (error) => tell(error.message) });
listenToReplay((events) => act(() => newSession(() => replay(events))));
addEventListener("hashchange", () => act(showShared));
listenToReleases(() => listAgain("release", `You chose ${byId("releases").selectedOptions[0]?.text}`, `${byId("releases").selectedOptions[0]?.text} is selected.`),
  (live) => compareLive(live, choices));

/** Open the session, and try again until the service and Redis answer. */
function start() {
  const away = (error) => tell(error.status ? `Sessions are unavailable. Retrying… (${error.message})` : "The service does not answer. Retrying…");
  act(async () => {
    await callUntilAnswered(async () => {
      await Promise.all([readLive(), loadPopular()]);
      showOptions();
      await openSession();
    }, away);
    await showShared();
    loadFeatures().then(showFeatures);
  });
}

function showFeatures() {
  choices.onFeedback = feedbackOf((type, track) => { stopShowing(); return giveFeedback(type, track); });
  showStation();
  if (!choices.onFeedback || !currentAnswer()) return;
  forgetRows();
  showNext(currentAnswer(), choices);
}

start();
