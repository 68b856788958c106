"use strict";
// Adds menus and tooltips to the charts, and sorting to the tables. Both are complete without this script.

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

// The menus of the first chart also filter the tables below it.
function filterTables(view, section) {
  const filter = () => {
    const { model, feedback } = { model: view.signal("model"), feedback: view.signal("feedback") };
    for (const row of all("tr[data-model]", section)) {
      row.hidden =
        !["every", row.dataset.model].includes(model) ||
        !["with or without", row.dataset.feedback].includes(feedback);
    }
  };
  for (const name of ["model", "feedback"]) view.addSignalListener(name, filter);
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
  vegaEmbed(figure.querySelector(".chart"), spec, options).then(({ view }) => {
    if (figure.dataset.chart === "systems") filterTables(view, figure.closest("section"));
  });
}
