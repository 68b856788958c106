// Names of regions of the map: the genre, or else the artist, that most of the tracks there have.

const RADIUS = 0.22; // in map coordinates, from -1 to 1
const FEWEST = 3; // tracks that a region needs
const MOST = 12;
const SHARE = 0.5; // of the tracks nearby that must have the name

/**
 * Regions as { name, place, count }, the largest first. `tracks` are the most played tracks, in the order of the map's points;
 * `placeOf(position)` is the place of a point.
 */
export function regionsOf(tracks, placeOf, count) {
  const known = tracks.slice(0, count).map((track, at) => ({ name: track.attributes?.genre ?? track.artist, place: placeOf(at) })).filter(({ name }) => name);
  const near = (one) => known.filter(({ place }) => Math.hypot(place[0] - one.place[0], place[1] - one.place[1]) < RADIUS);
  const best = new Map();
  for (const one of known) {
    const around = near(one);
    const alike = around.filter(({ name }) => name === one.name);
    if (alike.length < FEWEST || alike.length < SHARE * around.length || alike.length <= (best.get(one.name)?.count ?? 0)) continue;
    const across = alike.reduce((sum, { place }) => sum + place[0], 0) / alike.length;
    const top = Math.max(...alike.map(({ place }) => place[1])); // above its tracks, not over them
    best.set(one.name, { name: one.name, place: [across, top], count: alike.length });
  }
  return [...best.values()].sort((one, other) => other.count - one.count).slice(0, MOST);
}

/** Draw the names, none over another. `pixelOf` converts a place to pixels, `unit` is one CSS pixel. */
export function drawRegions(context, regions, pixelOf, colours, unit) {
  const taken = [];
  context.font = `600 ${12 * unit}px system-ui, sans-serif`;
  context.textAlign = "center";
  for (const { name, place } of regions) {
    const [x, top] = pixelOf(place);
    const y = top - 14 * unit;
    const half = context.measureText(name).width / 2 + 4 * unit;
    const box = [x - half, y - 9 * unit, x + half, y + 9 * unit];
    if (taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) continue;
    taken.push(box);
    context.lineWidth = 4 * unit;
    context.strokeStyle = colours.card;
    context.fillStyle = colours.quiet;
    context.strokeText(name, x, y + 4 * unit);
    context.fillText(name, x, y + 4 * unit);
  }
  context.textAlign = "start";
}
