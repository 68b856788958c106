// Format numbers as text, and create elements from text.

export const byId = (id) => document.getElementById(id);

export function element(tag, properties, ...content) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...content);
  return made;
}

/** A number in the format of `segue top`; a dash if it is unknown. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  return value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(value >= 10 ? 1 : 2);
}

export const count = (value) => value.toLocaleString("en");
export const percent = (value) => (value === null ? "–" : `${(value * 100).toFixed(1)} %`);
export const size = (bytes) => (bytes < 1e6 ? `${number(bytes / 1e3)} kB` : `${number(bytes / 1e6)} MB`);
export const when = (text) => new Date(text).toLocaleString("en", { dateStyle: "medium", timeStyle: "medium" });

/** A table row: a header, then cells of [text, value, true if alarming or "quiet" if uncertain]. */
export function row(name, cells) {
  return element("tr", {}, element("th", { scope: "row" }, name), ...cells.map(([text, value, alarming]) => {
    const cell = element("td", { className: value === undefined ? "" : `number${alarming === "quiet" ? " quiet" : alarming ? " bad" : ""}` }, text);
    if (value !== undefined) cell.dataset.value = value ?? "";
    return cell;
  }));
}

/** Fill a list of facts. Null and false values are omitted; [text, true] is alarming. */
export function facts(id, named) {
  const lines = Object.entries(named).filter(([, value]) => value).map(([name, value]) => {
    const [text, alarming] = Array.isArray(value) ? value : [value, false];
    return [element("dt", {}, name), element("dd", { className: alarming ? "bad" : "" }, text)];
  });
  byId(id).replaceChildren(...lines.flat());
}
