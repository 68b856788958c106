"use strict";
// Tables that sort and filter, plots that change metric and group. Everything is there without this script, too.

const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const signed = (value) => (value < 0 ? "" : "+") + value.toFixed(3);

// A mark's words move from its title, which browsers show late, to an attribute that is shown at once.
for (const title of all(".mark > title")) {
  title.parentNode.dataset.says = title.textContent;
  title.remove();
}

// --- Tables ---

const number = (text) => {
  const found = /[-+]?\d[\d,]*\.?\d*/.exec(text);
  return found ? Number(found[0].replaceAll(",", "")) : NaN;
};

function sort(table, column, header) {
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const text = (row) => row.cells[column].textContent.trim();
  const rows = all("tbody tr", table);
  const numeric = rows.every((row) => /^([-+]?\d|-$)/.test(text(row)));
  const compared = (a, b) => (numeric ? number(text(a)) - number(text(b)) : text(a).localeCompare(text(b)));
  const empty = (row) => (text(row) === "-" ? 1 : 0); // what is not there stays last in either order
  rows.sort((a, b) => empty(a) - empty(b) || (empty(a) ? 0 : (descending ? -1 : 1) * compared(a, b)));
  table.tBodies[0].append(...rows);
}

for (const table of all("table")) {
  all("thead th", table).forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    button.addEventListener("click", () => sort(table, column, header));
    header.replaceChildren(button);
  });
}

// --- Plots of every system and of what feedback changed ---

function scaleOf(drawing) {
  const [low, high, start, end] = ["low", "high", "start", "end"].map((name) => Number(drawing.dataset[name]));
  return (value) => start + ((value - low) / (high - low)) * (end - start);
}

function place(mark, scale, [value, low, high], says, y = 0) {
  const x = scale(value);
  mark.setAttribute("transform", `translate(${x.toFixed(1)} ${y})`);
  const interval = mark.querySelector("line");
  interval.setAttribute("x1", (scale(low) - x).toFixed(1));
  interval.setAttribute("x2", (scale(high) - x).toFixed(1));
  mark.dataset.says = says;
}

function stack(rows, value) {
  rows.sort((a, b) => value(b) - value(a));
  rows.forEach((row, i) => row.setAttribute("transform", `translate(0 ${14 + 24 * i})`));
}

function showSystems(figure, section) {
  const form = figure.querySelector("form");
  const { metric, group, protocol } = Object.fromEntries(new FormData(form));
  const { systems } = section.protocols[protocol ?? section.first];
  const drawing = figure.querySelector("[data-low]");
  const scale = scaleOf(drawing);
  const groups = group === "both" ? ["played", "skipped"] : [group];
  const rows = all(".row", drawing);
  for (const row of rows) {
    const found = systems[row.dataset.system];
    row.classList.toggle("out", !found || !section.passes(row));
    all(".mark", row).forEach((mark, i) => {
      mark.classList.toggle("out", !groups[i]);
      if (!found || !groups[i]) return;
      const values = found[groups[i]][metric];
      const says = `${row.dataset.system}: ${metric} of ${groups[i]} targets ${values[0].toFixed(3)} [${values[1].toFixed(3)}, ${values[2].toFixed(3)}]`;
      place(mark, scale, values, says, groups.length > 1 ? [-4.5, 4.5][i] : 0);
      mark.classList.remove("g-all", "g-played", "g-skipped");
      mark.classList.add(`g-${groups[i]}`);
    });
  }
  const kept = rows.filter((row) => !row.classList.contains("out"));
  stack(kept, (row) => systems[row.dataset.system][groups[0]][metric][0]);
  drawing.querySelector(".label").textContent = metric;
  const of = groups.length > 1 ? "Circles: targets that were played; squares: that were skipped." : `Of ${group} targets.`;
  figure.querySelector("svg[role=img]").setAttribute("aria-label", `${metric} of every system, with 95 % intervals. ${of}`);
  const keys = figure.querySelector(".keys");
  if (keys) keys.hidden = group !== "both";
}

function showFeedback(figure, section) {
  const { tested, protocol } = Object.fromEntries(new FormData(figure.querySelector("form")));
  const [group, metric] = tested.split(" ");
  const found = section.protocols[protocol ?? section.first].feedback[tested];
  const drawing = figure.querySelector("[data-low]");
  const scale = scaleOf(drawing);
  for (const row of all(".row", drawing)) {
    const difference = found[row.dataset.system];
    row.classList.toggle("out", !difference);
    if (!difference) continue;
    const [value, low, high, against, verdict] = difference;
    const mark = row.querySelector(".mark");
    const kind = verdict.split(" ")[0];
    const shape = kind === "no" ? "dot" : value > 0 ? "up" : "down";
    mark.lastElementChild.outerHTML = data.marks[shape];
    mark.setAttribute("class", `mark v-${kind}`);
    const says = `${row.dataset.system}: ${metric} of ${group} targets ${signed(value)} [${signed(low)}, ${signed(high)}] against ${against}, ${verdict}`;
    place(mark, scale, [value, low, high], says);
  }
  drawing.querySelector(".label").textContent = `${metric} of ${group} targets, difference`;
  const says = `What feedback changed in ${metric} of ${group} targets: each version with feedback less the one without.`;
  figure.querySelector("svg[role=img]").setAttribute("aria-label", says);
}

for (const element of all("[data-section]")) {
  const protocols = data.sections[element.dataset.section];
  const systemsFigure = element.querySelector("[data-kind=systems]");
  const chosen = systemsFigure.querySelector("form").elements;
  const passes = (row) =>
    ["family", "fed"].every((name) => !chosen[name].value || data.systems[row.dataset.system][name] === chosen[name].value);
  const section = { protocols, passes, first: Object.keys(protocols)[0] };
  const shown = [[systemsFigure, showSystems]];
  const feedback = element.querySelector("[data-kind=feedback]");
  if (feedback) shown.push([feedback, showFeedback]);
  for (const [figure, show] of shown) {
    const form = figure.querySelector("form");
    form.hidden = false;
    form.addEventListener("change", () => show(figure, section));
    form.addEventListener("submit", (event) => event.preventDefault());
  }
  systemsFigure.querySelector("form").addEventListener("change", () => {
    for (const row of all("tr[data-system]", element)) row.hidden = !passes(row);
  });
  for (const box of all(".legend input", element)) {
    box.disabled = false;
    box.addEventListener("change", () => {
      for (const line of all(".line[data-system]", element)) {
        if (line.dataset.system === box.name) line.classList.toggle("off", !box.checked);
      }
    });
  }
}

// --- What a mark says: to the pointer beside it, to the keyboard below the plot ---

const visible = (chart) => all(".mark[data-says]", chart).filter((mark) => mark.getClientRects().length);
const middle = (mark) => {
  const box = mark.lastElementChild.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
};

function point(chart, mark) {
  for (const other of all(".mark.on", chart)) other.classList.remove("on");
  mark?.classList.add("on");
  tip.hidden = !mark;
  if (!mark) return;
  const [x, y] = middle(mark);
  tip.textContent = mark.dataset.says;
  tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${y > innerHeight - 80 ? y - tip.offsetHeight - 12 : y + 14}px`;
}

for (const chart of all("figure[data-kind] .scroll")) {
  const read = chart.parentNode.querySelector(".read");
  chart.setAttribute("aria-label", `${chart.getAttribute("aria-label")}: up and down read its marks`);
  const nearest = (event) => {
    let [least, found] = [18, null];
    for (const mark of visible(chart)) {
      const [x, y] = middle(mark);
      const far = Math.hypot(x - event.clientX, y - event.clientY);
      if (far < least) [least, found] = [far, mark];
    }
    point(chart, found);
  };
  chart.addEventListener("pointermove", nearest);
  chart.addEventListener("pointerdown", nearest);
  chart.addEventListener("pointerleave", () => point(chart, null));
  chart.addEventListener("blur", () => point(chart, null));
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") point(chart, null);
    if (!step) return;
    event.preventDefault();
    const marks = visible(chart).sort((a, b) => middle(a)[1] - middle(b)[1] || middle(a)[0] - middle(b)[0]);
    const at = marks.findIndex((mark) => mark.classList.contains("on"));
    const next = marks[Math.max(0, Math.min(at + step, marks.length - 1))];
    point(chart, next);
    read.textContent = next.dataset.says;
  });
}
