// Why a track has its rank: the play it is closest to, the skip that moves it most, and how much each contributes to its score.

import { titleOf, trackOf } from "./session.js";
import { element, hidden } from "./show.js";

const SHOWN = 6; // bars; the last one sums the remaining plays

/** Contributions of the plays to each track's score, by track id, largest absolute value first. */
export function reasonsOf({ items, explanation }) {
  if (!explanation?.plays.length) return new Map();
  return new Map(explanation.items.map((item, at) => {
    const parts = item.contributions.map((value, place) => ({ ...explanation.plays[place], value }));
    parts.sort((one, other) => Math.abs(other.value) - Math.abs(one.value));
    return [item.track_id, { parts, score: items[at].score, withoutSkips: item.rank_without_skips }];
  }).filter(([, why]) => why.parts.length));
}

/** The main reasons in one or two lines; opening the element shows all contributions. */
export function details({ parts, score, withoutSkips }, isOpen) {
  const made = element("details", "why", element("summary", "", ...inShort(parts)), element("ul", "", ...bars(parts)));
  const together = `Total score: ${score.toFixed(2).replace("-", "−")}.`;
  const without = withoutSkips ? ` Rank without skips: ${withoutSkips}.` : " Rank without skips: below 200.";
  const hasSkip = parts.some((part) => part.outcome === "skipped");
  made.append(element("p", "quiet", together + (hasSkip ? without : "")));
  made.open = isOpen;
  return made;
}

function inShort(parts) {
  const played = parts.find((part) => part.outcome === "played" && part.value > 0);
  const skipped = parts.find((part) => part.outcome === "skipped");
  const reasons = [];
  if (played) reasons.push(reason("played", "close to ", played));
  if (skipped && skipped.value < 0) reasons.push(reason("skipped", "lowered by the skip of ", skipped));
  if (skipped && skipped.value > 0) reasons.push(reason("skipped", "raised by the skip of ", skipped));
  return reasons.length ? reasons : ["details"];
}

function reason(outcome, words, part) {
  const mark = element("span", `mark ${outcome}`);
  return element("span", "reason", mark, element("span", "", words, element("b", "", titleOf(trackOf(part.track_id)))));
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
