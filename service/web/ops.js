// The operator's page: asks GET /operations every two seconds and shows what came of it. Swapping is in ops-releases.js.

import { draw } from "./ops-charts.js";
import { History, figures } from "./ops-figures.js";
import { call, setKey } from "./ops-service.js";
import { readReleases, showServed } from "./ops-releases.js";
import { byId, count, element, facts, number, percent, row, size, when } from "./ops-show.js";

const EVERY_MS = 2000;
const FIGURES_S = 10; // rates and latencies are of so many seconds
const SKIPS_S = 300; // skip rates need more plays
const SPANS_S = [60, 120, 300]; // what charts show: the least that holds what is known

const state = { history: new History(), points: [], paused: false, timer: 0, latest: null };

async function look() {
  clearTimeout(state.timer);
  if (state.paused) return;
  try {
    const told = await call("operations");
    if (state.paused) return;
    take(told);
    await readReleases(told);
    byId("error").hidden = true;
    byId("key-form").hidden = true;
    say(`Live, ${new Date(told.at * 1000).toLocaleTimeString()}`);
  } catch (error) {
    if (!fail(error)) return;
  }
  if (!state.paused) state.timer = setTimeout(look, EVERY_MS);
}

/** Say what went wrong; answers whether to ask again. */
function fail(error) {
  byId("live").classList.add("stale");
  const wantsKey = error.status === 401 || error.status === 403;
  byId("error").textContent = wantsKey ? error.message : `${error.message} Trying again.`;
  byId("error").hidden = false;
  byId("key-form").hidden = !wantsKey;
  say(wantsKey ? "A key is needed" : "No answer");
  if (wantsKey) byId("key").focus();
  return !wantsKey;
}

/** Show the state. It is read out when it changes in kind, not with each look's time. */
function say(text) {
  const [kind, time = ""] = text.split(", ");
  const shown = byId("state");
  if (shown.dataset.kind !== kind) {
    shown.dataset.kind = kind;
    shown.replaceChildren(kind, element("span", { ariaHidden: "true" }, ""));
  }
  shown.lastChild.textContent = time ? `, ${time}` : "";
}

function take(told) {
  state.latest = told;
  state.history.add(told);
  const now = state.history.figures(FIGURES_S);
  const skips = state.history.figures(SKIPS_S);
  state.points.push({ at: told.at, total: now.total, releases: skips.releases });
  state.points = state.points.filter(({ at }) => told.at - at <= SPANS_S.at(-1));
  byId("live").hidden = false;
  byId("live").classList.remove("stale");
  byId("pause").hidden = false;
  showNow(told, now);
  showCharts(told.at);
  showRoutes(now, figures(null, told));
  showOutcomes(now, skips, figures(null, told));
  showStore(told);
  showServed(told);
  showFacts(told.release);
}

function showNow(told, now) {
  const tiles = [
    ["Requests a second", number(now.total.per_s), now.total.per_s],
    ["Half answered within", `${number(now.total.p50_ms)} ms`, now.total.p50_ms],
    ["90 % within", `${number(now.total.p90_ms)} ms`, now.total.p90_ms],
    ["99 % within", `${number(now.total.p99_ms)} ms`, now.total.p99_ms],
    ["Answered 5xx a second", number(now.total.errors_per_s), now.total.errors_per_s, true],
    ["Refused as full, a second", number(now.shed_per_s), now.shed_per_s, true],
    ["Events a second", number(now.events_per_s), now.events_per_s],
    ["Sessions begun a second", number(now.sessions_per_s), now.sessions_per_s],
    ["Sessions since the start", count(told.events.sessions), told.events.sessions],
  ];
  byId("now").replaceChildren(...tiles.map(([name, text, value, alarming]) => {
    const shown = element("dd", { className: alarming && value ? "bad" : "" }, text);
    shown.dataset.value = value ?? "";
    return element("div", {}, element("dt", {}, name), shown);
  }));
}

function showCharts(now) {
  const line = (name, value) => ({ name, points: state.points.map((point) => [point.at, value(point)]) });
  const known = now - state.points[0].at;
  const common = { now, span: SPANS_S.find((span) => span >= known) ?? SPANS_S.at(-1) };
  draw(byId("rate-chart"), { ...common, lines: [line("all", ({ total }) => total.per_s)], show: number });
  draw(byId("latency-chart"), {
    ...common,
    lines: [["half", "p50_ms"], ["90 %", "p90_ms"], ["99 %", "p99_ms"]].map(([name, part]) => line(name, ({ total }) => total[part])),
    show: number,
  });
  const names = [...new Set(state.points.flatMap(({ releases }) => releases.map(({ release }) => release)))].slice(-4);
  const rateOf = (name) => ({ releases }) => releases.find(({ release }) => release === name)?.skip_rate ?? null;
  draw(byId("skip-chart"), { ...common, lines: names.map((name) => line(name, rateOf(name))), show: (share) => `${Math.round(share * 100)} %`, most: 1 });
  byId("skip-legend").replaceChildren(...names.flatMap((name, place) =>
    [element("span", { className: `swatch line-${place}` }), ` ${name}`]));
}

function showRoutes(now, ever) {
  const since = new Map(ever.routes.map((line) => [line.name, line]));
  const lines = [now.total, ...now.routes.toSorted((one, other) => (other.per_s ?? 0) - (one.per_s ?? 0))];
  byId("routes").replaceChildren(...lines.map((line) => row(line.name === "all" ? "listeners, in all" : line.name, [
    [number(line.per_s), line.per_s],
    [number(line.p50_ms), line.p50_ms],
    [number(line.p90_ms), line.p90_ms],
    [number(line.p99_ms), line.p99_ms],
    [number(line.refused_per_s), line.refused_per_s],
    [number(line.errors_per_s), line.errors_per_s, Boolean(line.errors_per_s)],
    [count((since.get(line.name) ?? ever.total).answered), (since.get(line.name) ?? ever.total).answered],
  ])));
}

function showOutcomes(now, skips, ever) {
  byId("outcomes").replaceChildren(...skips.releases.map((line, place) => row(line.release, [
    [line.in_use ? "yes" : "no"],
    [number(now.releases[place].lists_per_s), now.releases[place].lists_per_s],
    [count(line.plays), line.plays],
    [percent(line.played_rate), line.played_rate],
    [percent(line.skip_rate), line.skip_rate],
    [percent(ever.releases[place].skip_rate), ever.releases[place].skip_rate],
  ])));
}

function showStore({ redis, event_log: log, fallbacks }) {
  const known = redis.memory_bytes !== null;
  facts("redis", {
    State: [redis.reachable ? "answers" : "away", !redis.reachable],
    Trouble: redis.detail && [redis.detail, true],
    "Circuit breaker": redis.workers_away ? [`open in ${count(redis.workers_away)} workers`, true] : "closed",
    Memory: known && `${size(redis.memory_bytes)}${redis.memory_limit_bytes ? ` of ${size(redis.memory_limit_bytes)}` : ", no limit"}`,
    "Evicted keys": known && [count(redis.evicted_keys), redis.evicted_keys > 0],
    Persistence: known && (redis.append_only ? "append-only file" : ["no append-only file", true]),
    "Latest write to disk": known && (redis.last_write_ok ? "fine" : ["failed", true]),
    Clients: known && count(redis.clients),
    Version: known && `${redis.version}${redis.nodes > 1 ? `, ${redis.nodes} servers` : ""}`,
    "Commands sent again": count(redis.repeats),
    "Popularity instead": Object.entries(fallbacks).map(([failed, lists]) => `${count(lists)} lists as the ${failed} failed`).join(", ") || "never",
  });
  facts("log", {
    State: !log.kept ? "none is kept" : log.written_here ? "written here" : "another service writes the files",
    "Events waiting": log.waiting === null ? ["not known", true] : count(log.waiting),
    Lag: log.waiting !== null && (log.oldest_s === null ? "none" : `${number(log.oldest_s)} s`),
    "Last file": log.last_file && `${log.last_file.name}, ${size(log.last_file.bytes)}, ${when(log.last_file.written_at)}`,
    "Plays written": count(log.plays_written),
    Dropped: [count(log.dropped), log.dropped > 0],
    "Turns that failed": [count(log.failures), log.failures > 0],
  });
}

function showFacts(release) {
  const { validation, best_epoch: best } = release.evaluation;
  const measured = Object.entries(validation ?? {}).map(([name, value]) => [`Validation ${name}`, Number(value).toFixed(4)]);
  const loss = release.loss && `${release.loss.objective}, ${release.loss.alpha} NLL + ${release.loss.beta} NCE`;
  facts("facts", {
    Name: release.name,
    Folder: release.folder,
    Model: release.model,
    ...(measured.length ? Object.fromEntries(measured) : { Evaluation: "none in its manifest" }),
    "Best epoch": best && String(best),
    Loss: loss || "none",
    Tracks: count(release.tracks),
    Window: `${release.window} plays`,
    Index: release.index.kind + (release.index.recall ? `, recall ${release.index.recall}` : ""),
    "Trained on": `${release.dataset.source}, ${release.dataset.split}`,
    Created: when(release.created),
  });
}

byId("pause").addEventListener("click", () => {
  state.paused = !state.paused;
  byId("pause").setAttribute("aria-pressed", String(state.paused));
  if (state.paused) {
    clearTimeout(state.timer);
    say(`Paused, at ${new Date(state.latest.at * 1000).toLocaleTimeString()}`);
  } else look();
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value.trim());
  byId("key").value = "";
  look();
});
look();
