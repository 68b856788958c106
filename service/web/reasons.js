// The details of a track: its score, and how much each play and skip contributes to it.

import { titleOf, trackOf } from "./session.js";
import { button, element, hidden, sign } from "./show.js";

const SHOWN = 6; // bars; the last one sums the remaining plays

/** Contributions of the plays to each track's score, by track id, largest absolute value first. */
export function reasonsOf({ items, explanation }) {
  if (!explanation?.plays.length) return new Map();
  return new Map(explanation.items.map((item, at) => {
    const parts = item.contributions.map((value, place) => ({ ...explanation.plays[place], value }));
    parts.sort((one, other) => Math.abs(other.value) - Math.abs(one.value));
    return [item.track_id, { parts, score: items[at].score, withoutSkips: item.rank_without_skips, baseline: item.baseline }];
  }).filter(([, why]) => why.parts.length));
}

/** The id of the play that raises the score most; undefined if none does. */
export const closestPlay = (why) => why?.parts.find((part) => part.outcome === "played" && part.value > 0)?.track_id;

/** Give a row the button that opens its details. They are built when they are open. */
export function fillReasons(item, why, answer) {
  const row = item.firstChild;
  let toggle = row.querySelector(".why");
  if (!why) {
    if (!answer.explanation && answer.source === "model" && toggle) return; // the new reasons are on their way
    toggle?.remove();
    item.querySelector(".details")?.remove();
    return;
  }
  if (!toggle) {
    toggle = button("", () => open(item, !item.querySelector(".details")), "icon why");
    toggle.append(sign("i", `Details: ${titleOf(trackOf(item.dataset.track))}`));
    toggle.setAttribute("aria-expanded", "false");
    row.querySelector(".tools").prepend(toggle);
  }
  toggle.reasons = why;
  if (item.querySelector(".details")) open(item, true);
}

function open(item, isOpen) {
  const toggle = item.querySelector(".why");
  item.querySelector(".details")?.remove();
  toggle.setAttribute("aria-expanded", isOpen);
  if (isOpen) item.append(details(toggle.reasons));
}

function details({ parts, score, withoutSkips, baseline }) {
  const number = (value) => value.toFixed(2).replace("-", "−");
  const start = baseline === undefined ? "" : ` Without any play: ${number(baseline)}.`;
  const without = withoutSkips ? ` Rank without skips: ${withoutSkips}.` : " Rank without skips: below 200.";
  const hasSkip = parts.some((part) => part.outcome === "skipped");
  return element("div", "details", element("ul", "", ...bars(parts)),
    element("p", "quiet", `Total score: ${number(score)}.${start}${hasSkip ? without : ""}`));
}

function bars(parts) {
  const most = Math.abs(parts[0].value) || 1;
  const [own, others] = parts.length > SHOWN ? [parts.slice(0, SHOWN - 1), parts.slice(SHOWN - 1)] : [parts, []];
  const shown = own.map((part) => bar(nameOf(part), part.value, most));
  if (others.length) shown.push(bar([`${others.length} more plays`], others.reduce((sum, { value }) => sum + value, 0), most));
  return shown;
}

const nameOf = ({ track_id: id, outcome }) => [element("span", `mark ${outcome}`), titleOf(trackOf(id)), hidden(`, ${outcome}`)];

function bar(name, value, most) {
  const made = element("span", `bar ${value < 0 ? "against" : "for"}`);
  made.style.width = `${Math.min(100, (100 * Math.abs(value)) / most)}%`;
  return element("li", "", element("span", "", ...name), element("span", "track", made), element("span", "score", signed(value)));
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
