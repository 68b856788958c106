"""Prometheus metrics of all workers for `GET /operations`. Counters start at zero with the service.

Clients compute rates from two snapshots (segue/cli/rates.py, service/web/ops-figures.js).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import Metric
from prometheus_client.samples import Sample
from pydantic import BaseModel, Field

from service.telemetry import SECONDS

_OPEN_END: Final = "+Inf"


class RouteNumbers(BaseModel):
    """Responses of one route."""

    method: str = Field(description="`any` if no route matched")
    route: str = Field(description="Template of the path; `none` if no route matched")
    statuses: dict[str, int] = Field(description="Number of responses by status")
    seconds: float = Field(description="Total response time in seconds")
    within: list[int] = Field(
        description="Histogram of response times: responses up to each of `bounds_s` and above the previous one; the "
        "last count is above all of them"
    )


class ReleaseNumbers(BaseModel):
    """Recommendations of one release and their outcomes."""

    release: str
    in_use: bool
    lists: int = Field(description="Recommendation lists returned")
    popularity_lists: int = Field(description="Lists from the popularity fallback, included in `lists`")
    plays: int = Field(description="Plays attributed to the release, in sampled sessions")
    skips: int = Field(description="Skips attributed to the release, in sampled sessions")


class EventNumbers(BaseModel):
    """Reported events."""

    plays: int
    skips: int
    duplicates: int
    unknown_tracks: int
    sessions: int = Field(description="Sessions started")


class MetricsSnapshot:
    """All metrics at one point in time."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._samples: dict[str, list[Sample]] = defaultdict(list)
        for family in families:
            for sample in family.samples:
                self._samples[sample.name].append(sample)

    def count(self, name: str) -> int:
        """The sum of a counter or gauge over its labels. `name` is the exposed name."""
        return round(sum(sample.value for sample in self._samples[name]))

    def by(self, name: str, label: str) -> dict[str, int]:
        """A counter or gauge by one label, summed over the other labels."""
        found: dict[str, int] = defaultdict(int)
        for sample in self._samples[name]:
            found[sample.labels[label]] += round(sample.value)
        return dict(found)

    def routes(self) -> list[RouteNumbers]:
        """Responses of each route, ordered by path and method."""
        statuses: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        for sample in self._samples["segue_http_requests_total"]:
            statuses[_route(sample)][sample.labels["status"]] = round(sample.value)
        seconds = {_route(sample): sample.value for sample in self._samples["segue_http_request_seconds_sum"]}
        within = self._within()
        return [
            RouteNumbers(
                method=method,
                route=route,
                statuses=dict(sorted(of_route.items())),
                seconds=seconds.get((method, route), 0.0),
                within=within.get((method, route), [0] * (len(SECONDS) + 1)),
            )
            for (method, route), of_route in sorted(statuses.items(), key=lambda line: line[0][::-1])
        ]

    def _within(self) -> dict[tuple[str, str], list[int]]:
        """Response time histograms with a count per bucket. Prometheus' own buckets are cumulative."""
        buckets: dict[tuple[str, str], dict[float, int]] = defaultdict(dict)
        for sample in self._samples["segue_http_request_seconds_bucket"]:
            bound = sample.labels["le"]
            buckets[_route(sample)][float("inf" if bound == _OPEN_END else bound)] = round(sample.value)
        return {key: list(_differences(of_route)) for key, of_route in buckets.items()}

    def releases(self) -> list[ReleaseNumbers]:
        """Recommendations and outcomes of each release, ordered by name."""
        lists, plays, skips = (
            self.by(f"segue_{name}_total", "release")
            for name in ("recommendations", "attributed_plays", "attributed_skips")
        )
        in_use = self.by("segue_release_in_use", "release")
        popularity: dict[str, int] = defaultdict(int)
        for sample in self._samples["segue_recommendations_total"]:
            if sample.labels["source"] == "popularity":
                popularity[sample.labels["release"]] += round(sample.value)
        return [
            ReleaseNumbers(
                release=name,
                in_use=bool(in_use.get(name)),
                lists=lists.get(name, 0),
                popularity_lists=popularity[name],
                plays=plays.get(name, 0),
                skips=skips.get(name, 0),
            )
            for name in sorted({*lists, *plays, *skips, *in_use})
        ]

    def events(self) -> EventNumbers:
        """Reported events."""
        types = self.by("segue_events_total", "type")
        return EventNumbers(
            plays=types.get("play", 0),
            skips=types.get("skip", 0),
            duplicates=self.count("segue_duplicate_events_total"),
            unknown_tracks=self.count("segue_unknown_tracks_total"),
            sessions=self.count("segue_sessions_total"),
        )


def _route(sample: Sample) -> tuple[str, str]:
    return sample.labels["method"], sample.labels["route"]


def _differences(cumulative: dict[float, int]) -> Iterator[int]:
    before = 0
    for _, value in sorted(cumulative.items()):
        yield value - before
        before = value
