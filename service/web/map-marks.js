// The marks on the map: the session's path, its position and the next tracks. They differ in shape, not only in colour.

export const NUMBERED = 5; // next tracks with a number
const REACH = 12; // largest distance in pixels at which a mark is selected
const FADED = 0.45; // opacity of plays outside the encoder's window
const STEPS = 5; // latest steps of the path that are drawn as lines; older plays are dots

/** The marks of a list, its explanation and the session's plays; none for a release without a map. */
export function marksOf({ items, explanation }, plays) {
  const places = explanation?.places;
  if (!places) return [];
  return [
    ...pathOf(places.path, plays, explanation.plays.length),
    ...items.map((track, at) => ({ kind: "next", track, rank: track.rank, place: places.items[at] })),
    ...(places.query ? [{ kind: "query", place: places.query }] : []),
  ];
}

/** The plays that have a position on the map. The last `seen` of them are in the encoder's window (`isSeen`). */
function pathOf(places, plays, seen) {
  const older = Math.max(0, plays.length - places.length); // the service returns positions of the latest plays only
  const path = places.flatMap((place, at) => (place && plays[older + at] ? [{ place, play: plays[older + at] }] : []));
  return path.map(({ place, play }, at) => ({ kind: play.outcome, track: { track_id: play.track_id }, place, isSeen: at >= path.length - seen }));
}

export const isOfPath = ({ kind }) => kind === "played" || kind === "skipped";

/**
 * Draw marks. `pixelOf` converts a position to pixels, `colours` are the page's, `unit` is one CSS pixel.
 * Of the path's last step, only `share` (0 to 1) is drawn.
 */
export function drawMarks(context, marks, pixelOf, colours, unit, share) {
  const path = marks.filter(isOfPath);
  context.lineJoin = "round";
  for (let at = Math.max(1, path.length - STEPS); at < path.length; at++) {
    context.globalAlpha = path[at].isSeen ? 1 : FADED;
    const [from, to] = [path[at - 1].place, path[at].place];
    const reached = at === path.length - 1 ? between(from, to, share) : to;
    line(context, pixelOf(from), pixelOf(reached), colours, unit);
  }
  const order = ["next", "played", "skipped", "query"]; // later marks cover earlier ones
  for (const kind of order) {
    for (const mark of marks) {
      if (mark.kind !== kind) continue;
      context.globalAlpha = mark.isSeen === false ? FADED : 1;
      SHAPES[kind](context, ...pixelOf(mark.place), colours, unit * (mark.isSeen === false ? 0.7 : 1), mark);
    }
  }
  context.globalAlpha = 1;
  drawNumbers(context, marks.filter(({ rank }) => rank <= NUMBERED), pixelOf, colours, unit);
}

/** The ranks of the first next tracks: over all marks, and none over another. */
function drawNumbers(context, numbered, pixelOf, colours, unit) {
  const taken = [];
  context.font = `600 ${11 * unit}px system-ui, sans-serif`;
  context.lineWidth = 3 * unit;
  context.strokeStyle = colours.card;
  context.fillStyle = colours.text;
  for (const { rank, place } of numbered) {
    const [x, y] = pixelOf(place);
    const spots = [[10, 4], [-17, 4], [-3, -10], [-3, 18], [14, -8], [14, 16]].map(([across, down]) => [x + across * unit, y + down * unit]);
    const isFree = ([left, base]) => !taken.some((other) => Math.abs(other[0] - left) < 10 * unit && Math.abs(other[1] - base) < 11 * unit);
    const spot = spots.find(isFree) ?? spots[0];
    taken.push(spot);
    context.strokeText(rank, ...spot);
    context.fillText(rank, ...spot);
  }
}

/** An arrow from where the session stood to where it stands, in the colour of skips. */
export function drawMove(context, { from, to, words }, pixelOf, colours, unit, share) {
  const [start, end] = [pixelOf(from), pixelOf(between(from, to, share))];
  const angle = Math.atan2(end[1] - start[1], end[0] - start[0]);
  for (const [colour, width] of [[colours.card, 7], [colours.skipped, 3.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = width * unit;
    context.lineCap = "round";
    context.beginPath();
    context.moveTo(...start);
    context.lineTo(...end);
    for (const turn of [2.6, -2.6]) {
      context.moveTo(...end);
      context.lineTo(end[0] + 12 * unit * Math.cos(angle + turn), end[1] + 12 * unit * Math.sin(angle + turn));
    }
    context.stroke();
  }
  context.font = `600 ${12 * unit}px system-ui, sans-serif`;
  context.lineWidth = 4 * unit;
  context.strokeStyle = colours.card;
  context.fillStyle = colours.skipped;
  const half = context.measureText(words).width / 2;
  const x = Math.max(half + 4 * unit, Math.min(context.canvas.width - half - 4 * unit, start[0]));
  context.textAlign = "center";
  context.strokeText(words, x, start[1] - 14 * unit);
  context.fillText(words, x, start[1] - 14 * unit);
  context.textAlign = "start";
}

/** The position at `share` (0 to 1) of the way between two positions. */
export const between = (from, to, share) => from.map((value, axis) => value + share * (to[axis] - value));

/** The nearest mark of a track; undefined if none is near. */
export function markAt(marks, pixelOf, across, down, unit) {
  const away = ({ place }) => Math.hypot(pixelOf(place)[0] - across, pixelOf(place)[1] - down);
  const near = marks.filter((mark) => mark.track && away(mark) < REACH * unit);
  return near.sort((one, other) => away(one) - away(other))[0];
}

function line(context, from, to, colours, unit) {
  for (const [colour, width] of [[colours.card, 4], [colours.text, 1.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = width * unit;
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
  }
}

const SHAPES = {
  played(context, x, y, colours, unit) {
    context.beginPath();
    context.arc(x, y, 6 * unit, 0, 2 * Math.PI);
    paint(context, colours.accent, colours.card, unit);
  },
  skipped(context, x, y, colours, unit) {
    const half = 6 * unit;
    context.beginPath();
    context.rect(x - half, y - half, 2 * half, 2 * half);
    paint(context, colours.card, colours.skipped, unit);
    context.beginPath();
    context.moveTo(x - half / 2, y - half / 2);
    context.lineTo(x + half / 2, y + half / 2);
    context.moveTo(x + half / 2, y - half / 2);
    context.lineTo(x - half / 2, y + half / 2);
    context.stroke();
  },
  next(context, x, y, colours, unit, { rank }) {
    const half = (rank === 1 ? 8 : 5) * unit;
    context.beginPath();
    context.moveTo(x, y - half);
    context.lineTo(x + half, y);
    context.lineTo(x, y + half);
    context.lineTo(x - half, y);
    context.closePath();
    paint(context, colours.card, colours.accent, unit);
  },
  query(context, x, y, colours, unit) {
    for (const [colour, width] of [[colours.card, 5], [colours.text, 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width * unit;
      context.beginPath();
      context.arc(x, y, 9 * unit, 0, 2 * Math.PI);
      for (const [across, down] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        context.moveTo(x + across * 5 * unit, y + down * 5 * unit);
        context.lineTo(x + across * 14 * unit, y + down * 14 * unit);
      }
      context.stroke();
    }
  },
};

function paint(context, fill, edge, unit) {
  context.fillStyle = fill;
  context.strokeStyle = edge;
  context.lineWidth = 2 * unit;
  context.fill();
  context.stroke();
}
