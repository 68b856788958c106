"use strict";
// Adds menus and tooltips to the charts, and sorting to the tables. Both are complete without this script.
// It also opens folded parts that a link leads to, and all of them to print.

const all = (selector, within = document) => [...within.querySelectorAll(selector)];

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
  const empty = (row) => (text(row) === "-" ? 1 : 0); // empty cells stay last in both orders
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

// --- Charts ---

// The menus of the chart of systems also filter the tables of its evaluation: its id is that of their element and a name.
function filterTables(view, figure) {
  const within = document.getElementById(figure.id.split("-")[0]);
  const filter = () => {
    const { model, feedback } = { model: view.signal("model"), feedback: view.signal("feedback") };
    for (const row of all("tr[data-model]", within)) {
      row.hidden =
        !["every system", "the first eight", row.dataset.model].includes(model) ||
        !["with or without", row.dataset.feedback].includes(feedback);
    }
  };
  for (const name of ["model", "feedback"]) view.addSignalListener(name, filter);
}

// On a narrow screen a chart is as wide as the page, and the name of each row is above its marks.
const room = document.querySelector("main").clientWidth;
const narrow = room < 600;

function fit(spec) {
  spec.config.padding = { left: 2, top: 5, right: 12, bottom: 5 };
  spec.config.legend = { ...spec.config.legend, columns: 3, layout: { top: { direction: "vertical", anchor: "start" } } };
  spec.config.axis.labelFontSize = 10;
  const rows = spec.encoding?.y?.type === "nominal" && spec.height?.step;
  spec.width = room - (rows ? 24 : 64);
  if (!rows) return;
  spec.height = { ...spec.height, step: 46 };
  const inside = { labelAlign: "left", labelPadding: -2, labelOffset: -19, ticks: false, domain: false };
  spec.encoding.y = { ...spec.encoding.y, axis: inside };
}

for (const [id, spec] of Object.entries(JSON.parse(document.getElementById("charts").textContent))) {
  const figure = document.getElementById(id);
  const options = {
    actions: false,
    ast: true, // the content security policy forbids eval
    bind: figure.querySelector(".controls"),
    defaultStyle: false,
    renderer: "svg",
    tooltip: { disableDefaultStyle: true },
  };
  if (narrow && typeof spec.width === "number") {
    fit(spec);
    figure.querySelector(".chart").classList.add("fitted");
  }
  vegaEmbed(figure.querySelector(".chart"), spec, options).then(({ view }) => {
    if (figure.dataset.chart === "systems") filterTables(view, figure);
  });
}

// On a narrow screen, menus and contents are folded.
if (narrow) for (const details of all("details.wide")) details.open = false;

// --- Folded parts ---

const closed = (elements) => elements.filter((details) => !details.open);

function reveal() {
  const target = document.getElementById(location.hash.slice(1));
  if (!target) return;
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  (target.closest(".fold") ?? target).scrollIntoView();
}
addEventListener("hashchange", reveal);
reveal();

let opened = [];
addEventListener("beforeprint", () => {
  opened = closed(all("details"));
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
