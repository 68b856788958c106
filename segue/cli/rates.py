"""Compute rates, latency quantiles and skip rates from two responses of `GET /operations`.

service/web/ops-figures.js does the same for the operations page; a test compares the two.
Uses neither HTTP nor the terminal.
"""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

Snapshot: TypeAlias = Mapping[str, Any]  # a response of GET /operations

QUANTILES: Final = (50, 90, 99)
# Routes in the total: the calls of listeners, without streams, which stay open for minutes.
LISTENERS: Final = ("/sessions/", "/recommendations", "/tracks")
STREAM: Final = "/stream"
_KEPT: Final = 600


def quantile(within: Sequence[int], bounds_s: Sequence[float], percent: float) -> float | None:
    """Return the latency in seconds that `percent` of the responses did not exceed, interpolated within a bucket.

    `within[i]` responses took up to `bounds_s[i]` and more than the previous bound. The last bucket has no bound and
    counts as the last bound. None without responses.
    Source: https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile (2026).
    """
    rank, below = sum(within) * percent / 100, 0
    for place, count in enumerate(within):
        if count and below + count >= rank:
            if place == len(bounds_s):
                break
            low = bounds_s[place - 1] if place else 0.0
            return low + (bounds_s[place] - low) * (rank - below) / count
        below += count
    return bounds_s[-1] if sum(within) else None


def rates_between(before: Snapshot | None, after: Snapshot) -> dict[str, Any]:
    """Return rates per second, latencies in ms and skip rates between two snapshots.

    Without an earlier snapshot of the same start and replica, they cover the time since the start; rates are None.
    """
    if before is not None and (before["instance"] != after["instance"] or before["at"] >= after["at"]):
        before = None
    seconds = after["at"] - before["at"] if before is not None else None
    known = {(line["method"], line["route"]): line for line in (before["routes"] if before is not None else ())}
    credited = {line["release"]: line for line in (before["releases"] if before is not None else ())}
    counted = [_counted(known.get((line["method"], line["route"])), line) for line in after["routes"]]
    asked = [line for line in counted if _is_listeners(line["route"])]

    def rate(count: float) -> float | None:
        return count / seconds if seconds is not None else None

    def line_of(name: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        within = [sum(column) for column in zip(*(line["within"] for line in lines), strict=True)]
        latency = {f"p{percent}_ms": quantile(within, after["bounds_s"], percent) for percent in QUANTILES}
        return {
            "name": name,
            "answered": sum(line["answered"] for line in lines),
            "per_s": rate(sum(line["answered"] for line in lines)),
            "refused_per_s": rate(sum(line["refused"] for line in lines)),
            "errors_per_s": rate(sum(line["errors"] for line in lines)),
            **{key: value * 1000 if value is not None else None for key, value in latency.items()},
        }

    def since(part: str, *names: str) -> int:
        return sum(after[part][name] - (before[part][name] if before is not None else 0) for name in names)

    return {
        "seconds": seconds,
        "total": line_of("all", asked),
        "routes": [line_of(_name(line), [line]) for line in counted],
        "shed_per_s": rate(after["shed"] - (before["shed"] if before is not None else 0)),
        "events_per_s": rate(since("events", "plays", "skips")),
        "sessions_per_s": rate(since("events", "sessions")),
        "releases": [_release(credited.get(line["release"]), line, rate) for line in after["releases"]],
    }


def _is_listeners(route: str) -> bool:
    return route.startswith(LISTENERS) and not route.endswith(STREAM)


def _name(line: Mapping[str, Any]) -> str:
    return "static files and unknown paths" if line["route"] == "none" else f"{line['method']} {line['route']}"


def _counted(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the responses of a route between two snapshots."""
    statuses = before["statuses"] if before is not None else {}
    new = {status: count - statuses.get(status, 0) for status, count in after["statuses"].items()}
    within = before["within"] if before is not None else [0] * len(after["within"])
    return {
        "method": after["method"],
        "route": after["route"],
        "answered": sum(new.values()),
        "refused": sum(count for status, count in new.items() if status.startswith("4")),
        "errors": sum(count for status, count in new.items() if status.startswith("5")),
        "within": [now - then for now, then in zip(after["within"], within, strict=True)],
    }


def _release(before: Mapping[str, Any] | None, after: Mapping[str, Any], rate: Any) -> dict[str, Any]:
    lists, plays, skips = (
        after[key] - (before[key] if before is not None else 0) for key in ("lists", "plays", "skips")
    )
    return {
        "release": after["release"],
        "in_use": after["in_use"],
        "lists": lists,
        "lists_per_s": rate(lists),
        "plays": plays,
        "skip_rate": skips / plays if plays else None,
        "played_rate": 1 - skips / plays if plays else None,
    }


class SnapshotHistory:
    """The latest snapshots of each replica. Behind a proxy, replicas answer in turn."""

    def __init__(self) -> None:
        self._kept: dict[str, deque[Snapshot]] = defaultdict(lambda: deque(maxlen=_KEPT))
        self._latest: Snapshot = {}

    def add(self, snapshot: Snapshot) -> None:
        """Add a snapshot."""
        self._kept[snapshot["instance"]].append(snapshot)
        self._latest = snapshot

    def rates_between(self, seconds: float) -> dict[str, Any]:
        """Return the rates over the last `seconds`, or as far as known, of the replica that answered last."""
        latest = self._latest
        line = self._kept[latest["instance"]]
        within = [one for one in line if latest["at"] - one["at"] <= seconds and one is not latest]
        return rates_between(within[0] if within else None, latest)
