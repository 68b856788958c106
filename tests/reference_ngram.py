"""The parts of segue.ngram in plain Python, without a cap on stored followers, straight from the formulas."""

from collections import Counter


def parts(lists: list[list[int]], num_rows: int, window: list[int], skipped: list[bool]) -> dict[str, list[float]]:
    """The probability of each part for the tracks 1, 2, ..., num_rows - 1 after `window`."""
    tracks = range(1, num_rows)
    plays = Counter(track for one in lists for track in one)
    total = sum(plays[track] + 0.01 for track in tracks)
    popular = {track: (plays[track] + 0.01) / total for track in tracks}
    newest = window[-1]
    recent = {track: sum(0.8 ** (len(window) - 1 - t) for t, h in enumerate(window) if h == track) for track in tracks}
    own = Counter(window[t + 1] for t in range(len(window) - 1) if window[t] == newest)
    found = {
        "ngram": _ngram(lists, popular, window),
        "follow": _pairs(_followers(lists), popular, window, 0.7),
        "near": _pairs(_neighbours(lists), popular, window, 0.9),
        "liked": _pairs(
            _neighbours(lists), popular, [0 if s else h for h, s in zip(window, skipped, strict=True)], 0.9
        ),
        "recent": {track: recent[track] / sum(recent.values()) for track in tracks},
        "own": {track: own[track] / max(sum(own.values()), 1) for track in tracks},
        "popular": popular,
    }
    return {name: [values[track] for track in tracks] for name, values in found.items()}


def _ngram(lists: list[list[int]], popular: dict[int, float], window: list[int]) -> dict[int, float]:
    probability = dict(popular)
    for order in range(1, min(4, len(window)) + 1):
        context = window[-order:]
        counts = Counter(
            one[t + order] for one in lists for t in range(len(one) - order) if one[t : t + order] == context
        )
        if not counts:
            return probability
        n = sum(counts.values())
        probability = {
            track: max(counts[track] - 0.5, 0) / n + 0.5 * len(counts) / n * lower
            for track, lower in probability.items()
        }
    return probability


def _followers(lists: list[list[int]]) -> Counter[tuple[int, int]]:
    counts: Counter[tuple[int, int]] = Counter()
    for one in lists:
        for t, track in enumerate(one):
            for d in range(1, min(8, t) + 1):
                counts[one[t - d], track] += 0.7 ** (d - 1)  # type: ignore[assignment]
    return counts


def _neighbours(lists: list[list[int]]) -> Counter[tuple[int, int]]:
    counts: Counter[tuple[int, int]] = Counter()
    for one in lists:
        for t, track in enumerate(one):
            for d in range(1, min(8, t) + 1):
                counts[one[t - d], track] += 1
                counts[track, one[t - d]] += 1
    return counts


def _pairs(
    counts: Counter[tuple[int, int]], popular: dict[int, float], window: list[int], decay: float
) -> dict[int, float]:
    totals: Counter[int] = Counter()
    for (first, _), count in counts.items():
        totals[first] += count
    probability = dict.fromkeys(popular, 0.0)
    weights = {d: decay ** (d - 1) for d in range(1, min(8, len(window)) + 1) if totals[window[-d]] > 0}
    for d, weight in weights.items():
        for track in popular:
            share = counts[window[-d], track] / (totals[window[-d]] + 1.2)
            probability[track] += weight / sum(weights.values()) * share
    rest = 1 - sum(probability.values())
    return {track: probability[track] + rest * popular[track] for track in popular}
