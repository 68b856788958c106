// SVG line charts of the last minutes. ops.css sets colours and dashes; each chart has a text alternative.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 320;
const HEIGHT = 120;
const LEFT = 44;
const BOTTOM = 18;
const TOP = 8;

function shape(tag, attributes, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

/** Round up to 1, 2 or 5 times a power of ten. */
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value * (1 - 1e-9));
}

/**
 * Draw `lines`, an array of { name, points } with points [seconds, value or null], over the last `span` seconds up to
 * `now`. A missing value leaves a gap in the line. `show` formats a value as text.
 */
export function draw(figure, { lines, now, span, show, most = 0 }) {
  const values = lines.flatMap((line) => line.points.map(([, value]) => value)).filter((value) => value !== null);
  const top = most || roundUp(Math.max(0, ...values));
  const x = (at) => LEFT + ((WIDTH - LEFT - 4) * (at - now + span)) / span;
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(value, top) / top);
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": words(figure, lines, show) });
  for (const value of [0, top / 2, top]) {
    svg.append(shape("line", { x1: LEFT, x2: WIDTH - 4, y1: y(value), y2: y(value), class: "grid" }));
    svg.append(shape("text", { x: LEFT - 6, y: y(value) + 4, class: "tick end" }, show(value)));
  }
  svg.append(shape("text", { x: LEFT, y: HEIGHT - 3, class: "tick" }, `${span / 60} min ago`));
  svg.append(shape("text", { x: WIDTH - 4, y: HEIGHT - 3, class: "tick end" }, "now"));
  for (const [number, line] of lines.entries()) {
    const shown = line.points.filter(([at]) => at >= now - span);
    svg.append(shape("path", { d: path(shown, x, y), class: `line line-${number}` }));
    for (const [at, value] of alone(shown)) svg.append(shape("circle", { cx: x(at), cy: y(value), r: 2.5, class: `dot line-${number}` }));
  }
  figure.querySelector(".drawing").replaceChildren(svg);
}

/** Points without a neighbour, which no line shows. */
const alone = (points) => points.filter(([, value], at) => value !== null && (points[at - 1]?.[1] ?? null) === null && (points[at + 1]?.[1] ?? null) === null);

function path(points, x, y) {
  let pen = "M";
  const steps = [];
  for (const [at, value] of points) {
    if (value === null) {
      pen = "M";
    } else {
      steps.push(`${pen}${x(at).toFixed(1)} ${y(value).toFixed(1)}`);
      pen = "L";
    }
  }
  return steps.join("");
}

function words(figure, lines, show) {
  const title = figure.querySelector("figcaption .title").textContent;
  const said = lines.map(({ name, points }) => {
    const known = points.map(([, value]) => value).filter((value) => value !== null);
    return known.length ? `${name}: now ${show(known.at(-1))}, maximum ${show(Math.max(...known))}` : `${name}: no data yet`;
  });
  return `${title}. ${said.join("; ") || "No data yet"}`;
}
