"""Rates, latencies and skip rates from two looks at a service, worked out by hand."""

import copy
from typing import Any

import pytest

from segue.cli.rates import SnapshotHistory, quantile, rates_between

BOUNDS = [0.001, 0.01, 0.1]


def snapshot(at: float = 1000.0, instance: str = "one", **changed: Any) -> dict[str, Any]:
    """A service that has answered 10 recommendations, 4 of them late, and been looked at twice."""
    return {
        "instance": instance,
        "at": at,
        "bounds_s": BOUNDS,
        "routes": [
            {"method": "GET", "route": "/operations", "statuses": {"200": 2}, "seconds": 0.01, "within": [0, 2, 0, 0]},
            {
                "method": "GET",
                "route": "/recommendations",
                "statuses": {"200": 10},
                "seconds": 0.2,
                "within": [6, 0, 4, 0],
            },
        ],
        "shed": 0,
        "events": {"plays": 5, "skips": 1, "duplicates": 0, "unknown_tracks": 0, "sessions": 2},
        "releases": [
            {"release": "a", "in_use": True, "lists": 10, "popularity_lists": 0, "plays": 8, "skips": 2},
        ],
        **changed,
    }


def later(before: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The same service: 40 more answers, of them 4 refused and 2 failed; another release took over."""
    after = copy.deepcopy(before)
    after["at"] += seconds
    after["routes"][1]["statuses"] = {"200": 44, "422": 4, "503": 2}
    after["routes"][1]["within"] = [26, 10, 12, 2]
    after["routes"].append(
        {"method": "GET", "route": "/tracks", "statuses": {"200": 4}, "seconds": 0.1, "within": [0, 0, 4, 0]}
    )
    after["shed"] = 10
    after["events"] |= {"plays": 20, "skips": 6, "sessions": 7}
    after["releases"] = [
        {"release": "a", "in_use": False, "lists": 12, "popularity_lists": 0, "plays": 12, "skips": 3},
        {"release": "b", "in_use": True, "lists": 38, "popularity_lists": 1, "plays": 0, "skips": 0},
    ]
    return after


class TestQuantiles:
    def test_lie_within_their_bucket_by_their_share_of_it(self) -> None:
        assert quantile([0, 4, 0, 0], BOUNDS, 50) == pytest.approx(0.001 + 0.009 * 2 / 4)
        assert quantile([6, 0, 4, 0], BOUNDS, 50) == pytest.approx(0.001 * 5 / 6)
        assert quantile([6, 0, 4, 0], BOUNDS, 90) == pytest.approx(0.01 + 0.09 * 3 / 4)
        assert quantile([6, 0, 4, 0], BOUNDS, 60) == pytest.approx(0.001)

    def test_of_what_is_beyond_all_bounds_are_the_last_bound(self) -> None:
        assert quantile([0, 0, 0, 3], BOUNDS, 50) == 0.1

    def test_of_nothing_are_not_known(self) -> None:
        assert quantile([0, 0, 0, 0], BOUNDS, 50) is None


class TestTwoLooks:
    def test_give_rates_latencies_and_errors(self) -> None:
        before = snapshot()
        found = rates_between(before, later(before, 4.0))
        assert found["seconds"] == 4.0
        [operations, recommendations, tracks] = found["routes"]
        assert (operations["per_s"], operations["p50_ms"]) == (0.0, None)
        assert recommendations["name"] == "GET /recommendations"
        assert (recommendations["answered"], recommendations["per_s"]) == (40, 10.0)
        assert (recommendations["refused_per_s"], recommendations["errors_per_s"]) == (1.0, 0.5)
        assert recommendations["p50_ms"] == pytest.approx(1.0)  # the last of the first 20 of 40
        assert recommendations["p90_ms"] == pytest.approx(10 + 90 * (36 - 30) / 8)
        assert recommendations["p99_ms"] == 100.0
        assert tracks["per_s"] == 1.0
        assert (found["shed_per_s"], found["events_per_s"], found["sessions_per_s"]) == (2.5, 5.0, 1.25)

    def test_count_in_the_total_what_listeners_ask_and_not_what_operators_do(self) -> None:
        before = snapshot()
        after = later(before, 4.0)
        after["routes"][0] |= {"statuses": {"200": 102}, "within": [0, 102, 0, 0]}
        for route in ("/sessions/{session_id}/stream", "none", "/ops"):
            after["routes"].append({**after["routes"][2], "route": route})
        found = rates_between(before, after)
        assert found["routes"][0]["per_s"] == 25.0
        assert (found["total"]["per_s"], found["total"]["answered"]) == (11.0, 44)
        assert found["total"]["p50_ms"] == pytest.approx(1 + 9 * 2 / 10)

    def test_call_what_found_no_route_so(self) -> None:
        refused = {"method": "any", "route": "none", "statuses": {"401": 3}, "seconds": 0.0, "within": [3, 0, 0, 0]}
        assert rates_between(None, snapshot(routes=[refused]))["routes"][0]["name"] == "static files and unknown paths"

    def test_give_each_release_its_own_skip_rate(self) -> None:
        before = snapshot()
        [one, two] = rates_between(before, later(before, 4.0))["releases"]
        assert (one["plays"], one["skip_rate"], one["played_rate"], one["lists_per_s"]) == (4, 0.25, 0.75, 0.5)
        assert (two["plays"], two["skip_rate"], two["played_rate"], two["lists_per_s"]) == (0, None, None, 9.5)

    @pytest.mark.parametrize(
        "before", [None, snapshot(at=900.0, instance="another start"), snapshot(at=2000.0), snapshot(at=1000.0)]
    )
    def test_that_do_not_compare_give_what_was_since_the_start_and_no_rates(
        self, before: dict[str, Any] | None
    ) -> None:
        found = rates_between(before, snapshot())
        assert found["seconds"] is None
        assert (found["total"]["answered"], found["total"]["per_s"], found["shed_per_s"]) == (10, None, None)
        assert found["total"]["p90_ms"] == pytest.approx(77.5)
        assert found["releases"][0]["skip_rate"] == 0.25

    def test_of_a_service_that_nobody_asked_give_nothing(self) -> None:
        quiet = snapshot(routes=[], releases=[])
        found = rates_between(quiet, {**quiet, "at": 1001.0})
        assert (found["total"]["per_s"], found["total"]["p50_ms"]) == (0.0, None)


class TestHistory:
    def test_reaches_as_far_back_as_asked(self) -> None:
        history = SnapshotHistory()
        for at in (1000.0, 1004.0, 1008.0, 1012.0):
            history.add(snapshot(at=at))
        assert history.rates_between(10)["seconds"] == 8.0
        assert history.rates_between(300)["seconds"] == 12.0
        assert history.rates_between(1)["seconds"] is None

    def test_keeps_replicas_that_answer_in_turn_apart(self) -> None:
        history = SnapshotHistory()
        for at, instance in ((1000.0, "one"), (1001.0, "two"), (1002.0, "one"), (1003.0, "two")):
            history.add(snapshot(at=at, instance=instance))
            assert history.rates_between(10)["seconds"] == (2.0 if at >= 1002.0 else None)
