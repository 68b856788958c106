// What an operator reads from two answers of GET /operations: rates, quantiles of latency, skip rates.
// segue/cli/rates.py does the same for `segue top`; a test holds the two together. Knows nothing of the page.

export const QUANTILES = [50, 90, 99];
// What the total is of: what listeners ask for, but for streams, which last for minutes.
const LISTENERS = ["/sessions/", "/recommendations", "/tracks"];
const STREAM = "/stream";
const KEPT = 600;

const sum = (values) => values.reduce((total, value) => total + value, 0);

/**
 * The latency in seconds that `percent` of the answers did not exceed, taken to be spread evenly in each bucket.
 * `within[i]` answers took up to `bounds[i]` and more than the bound before; the last took longer than all bounds and
 * count as the last one. null without answers.
 */
export function quantile(within, bounds, percent) {
  const rank = (sum(within) * percent) / 100;
  let below = 0;
  for (const [place, count] of within.entries()) {
    if (count && below + count >= rank) {
      if (place === bounds.length) break;
      const low = place ? bounds[place - 1] : 0;
      return low + ((bounds[place] - low) * (rank - below)) / count;
    }
    below += count;
  }
  return sum(within) ? bounds.at(-1) : null;
}

/**
 * Rates a second, latencies in ms and skip rates between two snapshots. Without a snapshot before, or with one of
 * another start or replica: of all since the start, and without rates.
 */
export function figures(before, after) {
  if (before && (before.instance !== after.instance || before.at >= after.at)) before = null;
  const seconds = before ? after.at - before.at : null;
  const rate = (count) => (seconds === null ? null : count / seconds);
  const known = new Map((before?.routes ?? []).map((line) => [`${line.method} ${line.route}`, line]));
  const credited = new Map((before?.releases ?? []).map((line) => [line.release, line]));
  const counted = after.routes.map((line) => countedSince(known.get(`${line.method} ${line.route}`), line));

  const lineOf = (name, lines) => {
    const within = after.bounds_s.concat(0).map((_, place) => sum(lines.map((line) => line.within[place])));
    const latency = QUANTILES.map((percent) => {
      const value = quantile(within, after.bounds_s, percent);
      return [`p${percent}_ms`, value === null ? null : value * 1000];
    });
    return {
      name,
      answered: sum(lines.map((line) => line.answered)),
      per_s: rate(sum(lines.map((line) => line.answered))),
      refused_per_s: rate(sum(lines.map((line) => line.refused))),
      errors_per_s: rate(sum(lines.map((line) => line.errors))),
      ...Object.fromEntries(latency),
    };
  };
  const since = (...names) => sum(names.map((name) => after.events[name] - (before?.events[name] ?? 0)));

  return {
    seconds,
    total: lineOf("all", counted.filter(({ route }) => isListeners(route))),
    routes: counted.map((line) => lineOf(line.route === "none" ? "files, or no route" : `${line.method} ${line.route}`, [line])),
    shed_per_s: rate(after.shed - (before?.shed ?? 0)),
    events_per_s: rate(since("plays", "skips")),
    sessions_per_s: rate(since("sessions")),
    releases: after.releases.map((line) => releaseSince(credited.get(line.release), line, rate)),
  };
}

const isListeners = (route) => LISTENERS.some((begin) => route.startsWith(begin)) && !route.endsWith(STREAM);

/** What was answered on a route in between. */
function countedSince(before, after) {
  const added = Object.entries(after.statuses).map(([status, count]) => [status, count - (before?.statuses[status] ?? 0)]);
  const of = (digit) => sum(added.filter(([status]) => status.startsWith(digit)).map(([, count]) => count));
  return {
    route: after.route,
    method: after.method,
    answered: sum(added.map(([, count]) => count)),
    refused: of("4"),
    errors: of("5"),
    within: after.within.map((count, place) => count - (before?.within[place] ?? 0)),
  };
}

function releaseSince(before, after, rate) {
  const [lists, plays, skips] = ["lists", "plays", "skips"].map((name) => after[name] - (before?.[name] ?? 0));
  return {
    release: after.release,
    in_use: after.in_use,
    lists_per_s: rate(lists),
    plays,
    skip_rate: plays ? skips / plays : null,
    played_rate: plays ? 1 - skips / plays : null,
  };
}

/** The latest snapshots, of each replica by itself: behind a proxy, they answer in turn. */
export class History {
  #kept = new Map();
  #latest = null;

  add(snapshot) {
    const line = this.#kept.get(snapshot.instance) ?? [];
    line.push(snapshot);
    if (line.length > KEPT) line.shift();
    this.#kept.set(snapshot.instance, line);
    this.#latest = snapshot;
  }

  /** The figures of the last so many seconds of whoever answered last, as far back as is known. */
  figures(seconds) {
    const latest = this.#latest;
    const first = this.#kept.get(latest.instance).find((one) => one !== latest && latest.at - one.at <= seconds);
    return figures(first ?? null, latest);
  }
}
