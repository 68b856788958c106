// The operations page: requests GET /operations every two seconds and shows the result. Swapping is in ops-releases.js.

import { draw } from "./ops-charts.js";
import { History, figures, wilson } from "./ops-figures.js";
import { call, setKey } from "./ops-service.js";
import { readReleases, showServed } from "./ops-releases.js";
import { byId, count, element, facts, number, percent, row, size, when } from "./ops-show.js";

const EVERY_MS = 2000;
const FIGURES_S = 10; // period of rates and latencies
const SKIPS_S = 300; // period of skip rates, which need more plays
const FEWEST_SAID = 100; // plays below which a skip rate is grey
const FEWEST_DRAWN = 30; // plays below which a skip rate is not drawn
const SPANS_S = [60, 120, 300]; // time span of the charts: the shortest that covers the data

const state = { history: new History(), points: [], paused: false, timer: 0, looks: 0, latest: null };

async function look() {
  clearTimeout(state.timer);
  if (state.paused) return;
  const number = ++state.looks;
  const isOld = () => state.paused || number !== state.looks; // paused meanwhile, or paused and resumed
  try {
    const snapshot = await call("operations");
    if (isOld()) return;
    take(snapshot);
    await readReleases(snapshot);
    if (isOld()) return;
    byId("error").hidden = true;
    byId("key-form").hidden = true;
    say(`Live, ${new Date(snapshot.at * 1000).toLocaleTimeString()}`);
  } catch (error) {
    if (isOld() || !fail(error)) return;
  }
  state.timer = setTimeout(look, EVERY_MS);
}

/** Show an error. Return true if the page should retry. */
function fail(error) {
  byId("live").classList.add("stale");
  byId("strip").firstElementChild?.classList.add("bad");
  byId("strip").querySelector("b")?.replaceChildren("NO ANSWER");
  const wantsKey = error.status === 401 || error.status === 403;
  byId("error").textContent = wantsKey ? error.message : `${error.message} Retrying…`;
  byId("error").hidden = false;
  byId("key-form").hidden = !wantsKey;
  say(wantsKey ? "API key required" : "No response");
  if (wantsKey) byId("key").focus();
  return !wantsKey;
}

/** Show the status. Screen readers announce a new kind of status, not every new time. */
function say(text) {
  const [kind, time = ""] = text.split(", ");
  const shown = byId("state");
  if (shown.dataset.kind !== kind) {
    shown.dataset.kind = kind;
    shown.replaceChildren(kind, element("span", { ariaHidden: "true" }, ""));
  }
  shown.lastChild.textContent = time ? `, ${time}` : "";
}

function take(snapshot) {
  state.latest = snapshot;
  state.history.add(snapshot);
  const now = state.history.figures(FIGURES_S);
  const skips = state.history.figures(SKIPS_S);
  state.points.push({ at: snapshot.at, total: now.total, releases: skips.releases });
  state.points = state.points.filter(({ at }) => snapshot.at - at <= SPANS_S.at(-1));
  byId("live").hidden = false;
  byId("live").classList.remove("stale");
  byId("pause").hidden = false;
  showStrip(snapshot);
  showNow(snapshot, now);
  showCharts(snapshot.at);
  showRoutes(now, figures(null, snapshot));
  showOutcomes(now, skips, figures(null, snapshot));
  showStore(snapshot);
  showServed(snapshot);
  showFacts(snapshot.release);
}

/** One line per part of the service, red where it is away. Each links to its section. */
function showStrip({ redis, event_log: log, release, experiment }) {
  const lag = log.oldest_s === null || log.oldest_s === undefined ? "" : `, lag ${number(log.oldest_s)} s`;
  const logWords = !log.kept ? "off" : log.waiting === null || log.waiting === undefined ? "unknown" : `${count(log.waiting)} waiting${lag}`;
  const parts = [
    ["Service", "up", false, "now"],
    ["Redis", redis.reachable ? (redis.workers_away ? "circuit breaker open" : "up") : "AWAY", !redis.reachable || redis.workers_away > 0, "redis"],
    ["Event log", logWords, log.kept && (logWords === "unknown" || log.dropped > 0 || log.failures > 0), "log"],
    ["Release", release.folder, false, "facts"],
    ["Experiment", experimentWords(experiment), experiment?.state === "void", "releases"],
  ];
  byId("strip").replaceChildren(...parts.map(([name, words, alarming, section]) => element("li", { className: alarming ? "bad" : "" },
    element("a", { href: `#${section}-title` }, `${name} `, element("b", {}, words)))));
}

function experimentWords(experiment) {
  if (!experiment) return "none";
  const { folder, share, state: now, since, reason } = experiment;
  if (now === "ended") return `${folder}, ended ${when(since)}`;
  return `${folder}, ${(share * 100).toFixed(0)} %${now === "void" ? `: VOID since ${when(since)}, ${reason}` : ""}`;
}

function showNow({ events }, now) {
  const ms = (value) => (value === null || value === undefined ? "–" : `${number(value)} ms`);
  const tiles = [
    ["Requests/s", number(now.total.per_s), now.total.per_s],
    ["p50", ms(now.total.p50_ms), now.total.p50_ms],
    ["p90", ms(now.total.p90_ms), now.total.p90_ms],
    ["p99", ms(now.total.p99_ms), now.total.p99_ms],
    ["5xx/s", number(now.total.errors_per_s), now.total.errors_per_s, true],
    ["Shed/s", number(now.shed_per_s), now.shed_per_s, true],
    ["Events/s", number(now.events_per_s), now.events_per_s],
    ["New sessions/s", number(now.sessions_per_s), now.sessions_per_s],
    ["Sessions", count(events.sessions), events.sessions],
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
    lines: [["p50", "p50_ms"], ["p90", "p90_ms"], ["p99", "p99_ms"]].map(([name, part]) => line(name, ({ total }) => total[part])),
    show: number,
  });
  const names = [...new Set(state.points.flatMap(({ releases }) => releases.map(({ release }) => release)))].slice(-4);
  const rateOf = (name) => ({ releases }) => {
    const found = releases.find(({ release }) => release === name);
    return found && found.plays >= FEWEST_DRAWN ? found.skip_rate : null;
  };
  draw(byId("skip-chart"), { ...common, lines: names.map((name) => line(name, rateOf(name))), show: (share) => `${Math.round(share * 100)} %`, most: 1 });
  byId("skip-legend").replaceChildren(...names.flatMap((name, place) =>
    [element("span", { className: `swatch line-${place}` }), ` ${name}`]));
}

function showRoutes(now, ever) {
  const since = new Map(ever.routes.map((line) => [line.name, line]));
  const lines = [now.total, ...now.routes.toSorted((one, other) => (other.per_s ?? 0) - (one.per_s ?? 0))];
  byId("routes").replaceChildren(...lines.map((line) => row(line.name === "all" ? "all listener requests" : line.name, [
    [number(line.per_s), line.per_s],
    [number(line.p50_ms), line.p50_ms],
    [number(line.p90_ms), line.p90_ms],
    [number(line.p99_ms), line.p99_ms],
    [number(line.refused_per_s), line.refused_per_s],
    [number(line.errors_per_s), line.errors_per_s, Boolean(line.errors_per_s)],
    [count((since.get(line.name) ?? ever.total).answered), (since.get(line.name) ?? ever.total).answered],
  ])));
}

/** A skip rate with its counts and its interval: "38.5 % (5 of 13), 18-64 %". */
function rateWords({ plays, skip_rate: rate }) {
  if (!plays) return "–";
  const [low, high] = wilson(Math.round(rate * plays), plays).map((share) => Math.round(share * 100));
  return `${percent(rate)} (${count(Math.round(rate * plays))} of ${count(plays)}), ${low}–${high} %`;
}

function showOutcomes(now, skips, ever) {
  byId("outcomes").replaceChildren(...skips.releases.map((line, place) => row(line.release, [
    [line.in_use ? "yes" : "no"],
    [number(now.releases[place].lists_per_s), now.releases[place].lists_per_s],
    [count(ever.releases[place].lists), ever.releases[place].lists],
    [count(line.plays), line.plays],
    [percent(line.played_rate), line.played_rate],
    [rateWords(line), line.skip_rate, line.plays < FEWEST_SAID ? "quiet" : false],
    [rateWords(ever.releases[place]), ever.releases[place].skip_rate, ever.releases[place].plays < FEWEST_SAID ? "quiet" : false],
  ])));
}

function showStore({ redis, event_log: log, served_lists: lists, fallbacks }) {
  const known = redis.memory_bytes !== null;
  facts("redis", {
    Status: [redis.reachable ? "up" : "unreachable", !redis.reachable],
    Problem: redis.detail && [redis.detail, true],
    "Circuit breaker": redis.workers_away ? [`open in ${count(redis.workers_away)} ${redis.workers_away === 1 ? "worker" : "workers"}`, true] : "closed",
    Memory: known && `${size(redis.memory_bytes)}${redis.memory_limit_bytes ? ` of ${size(redis.memory_limit_bytes)}` : ", no limit"}`,
    "Evicted keys": known && [count(redis.evicted_keys), redis.evicted_keys > 0],
    Persistence: known && (redis.append_only ? "append-only file" : ["no append-only file", true]),
    "Last write to disk": known && (redis.last_write_ok ? "succeeded" : ["failed", true]),
    "Connected clients": known && count(redis.clients),
    Version: known && `${redis.version}${redis.nodes > 1 ? `, ${redis.nodes} servers` : ""}`,
    "Retried commands": count(redis.repeats),
    "Popularity fallback": Object.entries(fallbacks).filter(([, lists]) => lists).map(([failed, lists]) => `${count(lists)} lists (${failed} failed)`).join(", ") || "never used",
  });
  facts("log", {
    Status: !log.kept ? "off" : log.written_here ? "written by this service" : "written by another service",
    "Events waiting": log.waiting === null ? ["unknown", true] : count(log.waiting),
    Lag: log.waiting !== null && (log.oldest_s === null ? "none" : `${number(log.oldest_s)} s`),
    "Last file": log.last_file && `${log.last_file.name}, ${size(log.last_file.bytes)}, ${when(log.last_file.written_at)}`,
    "Plays written": count(log.plays_written),
    "Plays dropped": [count(log.dropped), log.dropped > 0],
    "Failed writes": [count(log.failures), log.failures > 0],
  });
  facts("lists", {
    Status: lists.rate ? "logged" : "off",
    "Share of sessions": lists.rate > 0 && percent(lists.rate),
    "Lists written": count(lists.written),
    "Lists dropped": [count(lists.dropped), lists.dropped > 0],
  });
}

function showFacts(release) {
  const { validation, best_epoch: best } = release.evaluation;
  const { protocol, group, ...metrics } = validation ?? {};
  const of = [group && `${group} targets`, protocol && `${protocol} ranking`].filter(Boolean).join(", ");
  const measured = Object.entries(metrics).filter(([, value]) => typeof value === "number")
    .map(([name, value]) => [`Validation ${name}`, `${value.toFixed(4)}${of && ` (${of})`}`]);
  const loss = release.loss && `${release.loss.objective}, ${release.loss.alpha} NLL + ${release.loss.beta} NCE`;
  facts("facts", {
    Name: release.name,
    Folder: release.folder,
    Model: release.model,
    ...(measured.length ? Object.fromEntries(measured) : { Evaluation: "not in the manifest" }),
    "Best epoch": best && String(best),
    Loss: loss || "none",
    Tracks: count(release.tracks),
    Window: `${release.window} plays`,
    Index: release.index.kind + (release.index.exact ? `, recall ${release.index.exact}` : ""),
    "Trained on": `${release.dataset.source}, ${release.dataset.split}`,
    Created: when(release.created),
  });
}

byId("pause").addEventListener("click", () => {
  state.paused = !state.paused;
  byId("pause").setAttribute("aria-pressed", String(state.paused));
  if (state.paused) {
    clearTimeout(state.timer);
    say(`Paused, ${new Date(state.latest.at * 1000).toLocaleTimeString()}`);
  } else look();
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value.trim());
  byId("key").value = "";
  look();
});
look();
