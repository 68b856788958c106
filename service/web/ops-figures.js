// Compute rates, latency quantiles and skip rates from two responses of GET /operations.
// segue/cli/rates.py does the same for `segue top`; a test compares the two. Does not touch the page.

export const QUANTILES = [50, 90, 99];
// Routes in the total: the calls of listeners, without streams, which stay open for minutes.
const LISTENERS = ["/sessions/", "/recommendations", "/tracks"];
const STREAM = "/stream";
const KEPT = 600;

const sum = (values) => values.reduce((total, value) => total + value, 0);

/**
 * The latency in seconds that `percent` of the responses did not exceed, interpolated linearly within a bucket.
 * `within[i]` responses took up to `bounds[i]` and more than the previous bound. The last bucket has no bound and counts
 * as the last bound. null without responses.
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
 * The 95 % interval of a rate, as [low, high] shares. Wilson's score interval, which holds for few trials as well:
 * https://doi.org/10.1080/01621459.1927.10502953
 */
export function wilson(hits, trials) {
  if (!trials) return [0, 1];
  const z = 1.959964;
  const share = hits / trials;
  const scale = 1 + z ** 2 / trials;
  const centre = share + z ** 2 / (2 * trials);
  const half = z * Math.sqrt((share * (1 - share)) / trials + z ** 2 / (4 * trials ** 2));
  return [(centre - half) / scale, (centre + half) / scale];
}

/**
 * Rates per second, latencies in ms and skip rates between two snapshots. Without an earlier snapshot of the same
 * start and replica, they cover everything since the start, and rates are null.
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
    routes: counted.map((line) => lineOf(line.route === "none" ? "static files and unknown paths" : `${line.method} ${line.route}`, [line])),
    shed_per_s: rate(after.shed - (before?.shed ?? 0)),
    events_per_s: rate(since("plays", "skips")),
    sessions_per_s: rate(since("sessions")),
    releases: after.releases.map((line) => releaseSince(credited.get(line.release), line, rate)),
  };
}

const isListeners = (route) => LISTENERS.some((begin) => route.startsWith(begin)) && !route.endsWith(STREAM);

/** The responses of a route between two snapshots. */
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
    lists,
    lists_per_s: rate(lists),
    plays,
    skip_rate: plays ? skips / plays : null,
    played_rate: plays ? 1 - skips / plays : null,
  };
}

/** The latest snapshots of each replica. Behind a proxy, replicas answer in turn. */
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

  /** The rates over the last `seconds`, or less if the history is shorter, of the replica that answered last. */
  figures(seconds) {
    const latest = this.#latest;
    const first = this.#kept.get(latest.instance).find((one) => one !== latest && latest.at - one.at <= seconds);
    return figures(first ?? null, latest);
  }
}
