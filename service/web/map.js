// The map of the catalogue: each track is a point and the session is a path.

import { bytes, call } from "./api.js";
import { NUMBERED, between, drawMarks, drawMove, isOfPath, markAt, marksOf } from "./map-marks.js";
import { Points } from "./map-points.js";
import { drawRegions, regionsOf } from "./map-regions.js";
import { View } from "./map-view.js";
import { mostPlayed } from "./search.js";
import { state, titleOf, trackOf } from "./session.js";
import { byId, button, element } from "./show.js";

const MOST = 100000;
const POINTED_MS = 80; // delay before the name of a point is requested
const REACH = 14; // largest distance in pixels at which a point is selected
const NO_MAP = 404;
const MOVED_MS = 450; // duration of the animation of the path's last step, the session's position and the view
const FOLLOWED = 4; // largest zoom while following, so that the surroundings stay visible
const NAMED = 20; // plays named in the text alternative

let release = null; // the release of the latest list
let points = null;
let drawn = null; // the release of the points
let marks = [];
let movement = { began: -Infinity };
let move = null; // { from, to, words }: where the session stood before the latest skip, and where it stands
let standing = null; // where the session stood with the latest play
let regions = [];
let view = null;
let colours = null;
let choices = null;
let scheduled = false;
let pointing = 0;
let names = new Map(); // position -> track

/** Show the move that the skip of a track caused, until the next action; null to show none. */
export function showMove(track) {
  const to = marks.find(({ kind }) => kind === "query")?.place;
  move = track && standing && to ? { from: standing, to, words: `moved away from ${titleOf(track)}` } : null;
  byId("map").dataset.move = move ? move.words : "";
  if (view) redraw();
}

/** Show the session of a list on the map. The points are loaded with the first list of a release. `skipped`: the latest skip. */
export async function showMap(answer, onChoice, skipped = null) {
  choices = onChoice;
  const before = marks;
  marks = marksOf(answer, state.plays);
  byId("map-part").hidden = !answer.explanation?.places;
  if (byId("map-part").hidden) return;
  describe(answer);
  if (!skipped) {
    standing = answer.explanation.places.query ?? null;
    move = null;
    byId("map").dataset.move = "";
  }
  view ??= newView();
  moveFrom(before);
  redraw();
  if (answer.release === release) return;
  release = answer.release;
  try {
    const content = await bytes(`map?${new URLSearchParams({ limit: MOST, release })}`);
    if (answer.release !== release) return; // another release has been selected meanwhile
    points = new Points(content);
    drawn = release;
    names = new Map();
    regions = regionsOf(mostPlayed(), (at) => points.placeOf(at), points.count);
    byId("map").dataset.regions = regions.map((region) => region.name).join("|");
    const shown = `${points.count.toLocaleString("en")} ${points.count === MOST ? "most played " : ""}tracks`;
    byId("map-about").textContent = `${shown}. Similar tracks are close together.`;
    byId("map").dataset.points = points.count;
    redraw();
  } catch (error) {
    release = null; // retry with the next list
    if (error.status !== NO_MAP) byId("map-about").textContent = `The map cannot be loaded. ${error.message}`;
  }
}

/** Start the animation from the previous marks, unless the listener prefers reduced motion. The view follows the session. */
function moveFrom(before) {
  const [was, is] = [before, marks].map((list) => list.find(({ kind }) => kind === "query")?.place);
  const isStep = marks.filter(isOfPath).length > before.filter(isOfPath).length;
  const isSeen = (mark) => mark.isSeen || mark.kind === "query" || mark.rank <= NUMBERED;
  const aim = view.viewOf(is ? marks.filter(isSeen).map((mark) => mark.place) : [], FOLLOWED);
  const turn = view.follows ? [{ x: view.x, y: view.y, zoom: view.zoom }, aim] : null;
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
  movement = { query: was && is && [was, is], isStep, turn, began: isStill ? -Infinity : performance.now() };
}

/** Return the completed share of the animation, and move the view accordingly. */
function moved() {
  const share = Math.min(1, (performance.now() - movement.began) / MOVED_MS);
  const eased = 1 - (1 - share) ** 3;
  if (movement.turn && view.follows) {
    const [from, to] = movement.turn.map(({ x, y, zoom }) => [x, y, Math.log(zoom)]);
    const [x, y, zoom] = between(from, to, eased);
    Object.assign(view, { x, y, zoom: Math.exp(zoom) });
  }
  if (share === 1) movement.turn = null; // otherwise the next drawing would reset the view
  return eased;
}

function newView() {
  for (const [id, act] of Object.entries({
    "map-in": () => view.zoomBy(1.6),
    "map-out": () => view.zoomBy(1 / 1.6),
    "map-whole": () => view.whole(),
    "map-session": () => { movement.turn = null; view.fit(marks.map((mark) => mark.place)); },
  })) byId(id).addEventListener("click", act);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { colours = null; redraw(); });
  return new View(byId("map"), redraw, { onPoint: point, onChoose: choose, onLeave: () => name("") });
}

function redraw() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    draw();
  });
}

function draw() {
  const context = byId("map").getContext("2d", { willReadFrequently: true }); // pixels are computed on the CPU
  colours ??= coloursOf(getComputedStyle(document.documentElement));
  const share = moved();
  if (points) points.draw(context, view, colours.points);
  else context.clearRect(0, 0, view.width, view.height);
  drawRegions(context, regions, view.pixelOf, colours, view.ratio);
  const onWay = (mark) => (mark.kind === "query" && movement.query ? { ...mark, place: between(...movement.query, share) } : mark);
  drawMarks(context, share < 1 ? marks.map(onWay) : marks, view.pixelOf, colours, view.ratio, movement.isStep ? share : 1);
  if (move) drawMove(context, move, view.pixelOf, colours, view.ratio, share);
  if (share < 1) redraw();
}

function coloursOf(style) {
  const of = (variable) => style.getPropertyValue(variable).trim();
  const points = of("--points").match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16));
  return { points, card: of("--card"), text: of("--text"), quiet: of("--quiet"), accent: of("--accent"), skipped: of("--skipped") };
}

/** Describe the session on the map for screen readers. */
function describe({ items, explanation: { plays, places } }) {
  const path = marks.filter(isOfPath);
  const named = path.slice(-NAMED).map(({ track, kind }) => `${titleOf(trackOf(track.track_id))} (${kind})`).join(", ");
  const count = path.length > NAMED ? ` (last ${NAMED} of ${path.length} plays)` : "";
  const stands = places.query && items.length ? ` The session is near ${titleOf(items[nearestTo(places.query, places.items)])}.` : "";
  byId("map-words").textContent = `Path of the session${count}: ${named || "no plays yet"}.${stands}`;
  byId("map").dataset.path = path.length;
  byId("map").dataset.seen = plays.length;
  byId("map").dataset.next = items.length;
  byId("map").dataset.query = places.query ? places.query.join(" ") : "";
}

function nearestTo([x, y], others) {
  const distances = others.map((one) => Math.hypot(one[0] - x, one[1] - y));
  return distances.indexOf(Math.min(...distances));
}

// ---- names of points

/** The track at a pixel: a marked one, or that of a point, whose name may have to be requested. */
async function trackAt(across, down) {
  const mark = markAt(marks, view.pixelOf, across, down, view.ratio);
  if (mark) return { track: trackOf(mark.track.track_id), place: mark.place, role: mark.kind === "next" ? `next track, rank ${mark.rank}` : mark.kind };
  const position = points ? points.nearest(view, across, down, REACH * view.ratio) : -1;
  if (position < 0) return null;
  const [known, place] = [names, points.placeOf(position)]; // another release may be selected before the answer
  if (!known.has(position)) known.set(position, await call(`map/tracks/${position}?${new URLSearchParams({ release: drawn })}`));
  return { track: known.get(position), place, role: "" };
}

/** Show the name of the track at a pixel. `aloud`: also announce it, for keyboard use; with a mouse that would be too much. */
function point(across, down, { aloud = false } = {}) {
  clearTimeout(pointing);
  pointing = setTimeout(async () => {
    const asked = pointing;
    const found = await trackAt(across, down).catch(() => null);
    if (asked !== pointing) return; // the pointer has moved on
    name(found ? wordsOf(found) : "", found?.place);
    if (aloud) byId("said").textContent = found ? `In the centre: ${wordsOf(found)}` : "No track in the centre.";
  }, POINTED_MS);
}

const wordsOf = ({ track, role }) => [titleOf(track), track.artist, role].filter(Boolean).join(", ");

/** Show a name next to its point. */
function name(words, place) {
  if (!words) clearTimeout(pointing);
  const label = byId("map-name");
  label.hidden = !words;
  label.textContent = words;
  if (!words) return;
  const [across, down] = view.pixelOf(place).map((pixel) => pixel / view.ratio);
  const room = byId("map").clientWidth - label.offsetWidth;
  label.style.left = `${Math.max(0, Math.min(room, across - label.offsetWidth / 2))}px`;
  label.style.top = `${Math.max(0, down < 40 ? down + 14 : down - 38)}px`;
}

async function choose(across, down) {
  const found = await trackAt(across, down).catch(() => null);
  const chosen = byId("map-chosen");
  if (!found) {
    chosen.replaceChildren(element("span", "quiet", "No track here."));
    return;
  }
  name(wordsOf(found), found.place);
  const play = button("Play", () => choices.onPlay(found.track), "small");
  const queue = button("Play next", () => choices.onQueue(found.track), "small");
  play.setAttribute("aria-label", `Play ${titleOf(found.track)}`);
  queue.setAttribute("aria-label", `Play next: ${titleOf(found.track)}`);
  chosen.replaceChildren(element("span", "name", wordsOf(found)), play, queue);
}
