// Cover-like artwork, drawn from a track's id: deterministic, local, without downloads. Tracks of a genre share a colour; without
// a genre, tracks of an artist do. So you see at a glance which kind of music leaves the list.

const SVG = "http://www.w3.org/2000/svg";

/** A 32-bit hash of a text (FNV-1a). */
function hash(text) {
  let value = 2166136261;
  for (let at = 0; at < text.length; at++) value = Math.imul(value ^ text.charCodeAt(at), 16777619);
  return (value ^ (value >>> 15)) >>> 0;
}

function shape(tag, attributes, ...content) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...content);
  return made;
}

const hues = new Map(); // kind of music -> hue, in the order of appearance, so that the first kinds differ clearly
const GOLDEN_DEG = 137.508;

/** The hue of a track in degrees. */
function hueOf(track) {
  const kind = track.attributes?.genre ?? track.artist ?? track.track_id;
  if (!hues.has(kind)) hues.set(kind, Math.round(170 + hues.size * GOLDEN_DEG) % 360);
  return hues.get(kind);
}

const DESIGNS = [
  // circles
  (random, light) => [0, 1, 2].map((at) => shape("circle", { cx: random(8, 40), cy: random(8, 40), r: 20 - 6 * at, fill: light(at) })),
  // rays
  (random, light) => {
    const [x, y] = [random(0, 48), random(30, 48)];
    return [0, 1, 2, 3].map((at) => shape("path", { d: `M${x} ${y}L${at * 16 - 8} -4H${at * 16}Z`, fill: light(at % 3) }));
  },
  // waves
  (random, light) => [0, 1, 2].map((at) => {
    const y = 14 + at * 11;
    return shape("path", { d: `M0 ${y}Q12 ${y - random(4, 14)} 24 ${y}T48 ${y}V48H0Z`, fill: light(at) });
  }),
  // blocks
  (random, light) => [0, 1, 2, 3].map((at) => shape("rect", { x: (at % 2) * 24, y: at > 1 ? 24 : 0, width: random(10, 24), height: random(10, 24), fill: light(at % 3) })),
  // arcs
  (random, light) => {
    const corner = random(0, 1) > 0.5 ? 48 : 0;
    return [0, 1, 2].map((at) => shape("circle", { cx: corner, cy: 48, r: 38 - 12 * at, fill: light(at) }));
  },
];

/** The cover of a track as an SVG, hidden from screen readers. */
export function artOf(track, className = "art") {
  let seed = hash(track.track_id) || 1;
  const random = (low, high) => {
    seed ^= seed << 13; seed ^= seed >>> 17; seed ^= seed << 5; seed >>>= 0; // xorshift
    return Math.round(10 * (low + (high - low) * (seed / 4294967296))) / 10;
  };
  const hue = hueOf(track);
  const ground = random(24, 36);
  const light = (level) => `hsl(${hue + random(-16, 16)} 62% ${ground + 12 + level * 13}%)`;
  const design = DESIGNS[hash(`${track.track_id} design`) % DESIGNS.length];
  return shape("svg", { class: className, viewBox: "0 0 48 48", "aria-hidden": "true", focusable: "false" },
    shape("rect", { width: 48, height: 48, fill: `hsl(${hue} 55% ${ground}%)` }), ...design(random, light));
}
