// Why a track is where it is: the play that it is closest to, the skip that moves it most, and what each adds to its score.

import { titleOf, trackOf } from "./session.js";
import { element, hidden } from "./show.js";

const SHOWN = 6; // plays with a bar of their own

/** What speaks for and against each track of an answer, the strongest first, by track id. */
export function reasonsOf({ items, explanation }) {
  if (!explanation?.plays.length) return new Map();
  return new Map(explanation.items.map((item, at) => {
    const parts = item.contributions.map((value, place) => ({ ...explanation.plays[place], value }));
    parts.sort((one, other) => Math.abs(other.value) - Math.abs(one.value));
    return [item.track_id, { parts, score: items[at].score, withoutSkips: item.rank_without_skips }];
  }).filter(([, why]) => why.parts.length));
}

/** Reasons in a line or two, and all of them once it is opened. */
export function details({ parts, score, withoutSkips }, isOpen) {
  const made = element("details", "why", element("summary", "", ...inShort(parts)), element("ul", "", ...bars(parts)));
  const together = `Together ${score.toFixed(2).replace("-", "−")}, its score.`;
  const without = withoutSkips ? ` Without any skip: rank ${withoutSkips}.` : " Without any skip: far down.";
  const hasSkip = parts.some((part) => part.outcome === "skipped");
  made.append(element("p", "quiet", together + (hasSkip ? without : "")));
  made.open = isOpen;
  return made;
}

function inShort(parts) {
  const played = parts.find((part) => part.outcome === "played" && part.value > 0);
  const skipped = parts.find((part) => part.outcome === "skipped");
  const told = [];
  if (played) told.push(reason("played", "close to ", played));
  if (skipped && skipped.value < 0) told.push(reason("skipped", "pushed away by the skip of ", skipped));
  if (skipped && skipped.value > 0) told.push(reason("skipped", "lifted by the skip of ", skipped));
  return told.length ? told : ["why"];
}

function reason(outcome, words, part) {
  const mark = element("span", `mark ${outcome}`);
  return element("span", "reason", mark, element("span", "", words, element("b", "", titleOf(trackOf(part.track_id)))));
}

function bars(parts) {
  const most = Math.abs(parts[0].value) || 1;
  const [own, others] = parts.length > SHOWN ? [parts.slice(0, SHOWN - 1), parts.slice(SHOWN - 1)] : [parts, []];
  const shown = own.map((part) => bar(nameOf(part), part.value, most));
  if (others.length) shown.push(bar([`${others.length} others`], others.reduce((sum, { value }) => sum + value, 0), most));
  return shown;
}

const nameOf = ({ track_id: id, outcome }) => [element("span", `mark ${outcome}`), titleOf(trackOf(id)), hidden(`, ${outcome}`)];

function bar(name, value, most) {
  const made = element("span", `bar ${value < 0 ? "against" : "for"}`);
  made.style.width = `${Math.min(100, (100 * Math.abs(value)) / most)}%`;
  return element("li", "", element("span", "", ...name), element("span", "track", made), element("span", "score", signed(value)));
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
