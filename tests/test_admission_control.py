"""Admission control: the concurrency limit adapts to the response times."""

from collections import deque
from typing import Any

import pytest

from service.http.admission_control import MIN_IN_FLIGHT, OVERLOADED_RESPONSE, AdmissionControl

TARGET_S = 0.05


class Clock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Queue:
    """A service that answers one request after another, each in `each_s`."""

    def __init__(self, each_s: float) -> None:
        self.each_s = each_s
        self.clock = Clock()
        self.refused = 0
        self.admission_control = AdmissionControl(TARGET_S, clock=self.clock)
        self.in_flight: deque[dict[str, Any]] = deque()
        self.waits: list[float] = []

    def offer(self, per_s: float, seconds: float) -> None:
        """Requests at an even rate. A refusal takes no time."""
        coming = self.clock.now
        until = coming + seconds
        answered = self.clock.now + self.each_s
        while self.clock.now < until:
            if coming <= answered or not self.in_flight:
                self.clock.now = coming
                if not self.in_flight:
                    answered = coming + self.each_s
                if self.admission_control.is_full():
                    self.refused += 1
                else:
                    scope: dict[str, Any] = {"came": coming}
                    self.admission_control.enter(scope)
                    self.in_flight.append(scope)
                coming += 1 / per_s
            else:
                self.clock.now = answered
                scope = self.in_flight.popleft()
                self.waits.append(answered - scope["came"])
                self.admission_control.leave(scope, learn=True)
                answered += self.each_s


def test_nobody_is_refused_below_capacity() -> None:
    queue = Queue(each_s=0.001)
    queue.offer(per_s=900, seconds=10)
    assert queue.refused == 0
    assert len(queue.waits) == pytest.approx(9000, abs=2)


@pytest.mark.parametrize("times", [2, 5])
@pytest.mark.parametrize("each_s", [0.0003, 0.001, 0.003])
def test_beyond_capacity_accepted_requests_are_answered_in_time(each_s: float, times: float) -> None:
    queue = Queue(each_s)
    queue.offer(per_s=times / each_s, seconds=2)  # the first seconds teach
    queue.waits.clear()
    queue.refused = 0
    queue.offer(per_s=times / each_s, seconds=10)
    waits = sorted(queue.waits)
    assert len(waits) == pytest.approx(10 / each_s, rel=0.02)  # the capacity is used
    assert queue.refused == pytest.approx((times - 1) * 10 / each_s, rel=0.05)
    assert waits[int(0.99 * len(waits))] <= 1.1 * TARGET_S


def test_the_limit_adapts_to_a_slower_and_a_faster_service_within_two_seconds() -> None:
    queue = Queue(each_s=0.0003)
    queue.offer(per_s=10_000, seconds=3)
    fast = queue.admission_control.max_in_flight
    queue.each_s = 0.002
    queue.offer(per_s=10_000, seconds=2)
    assert queue.admission_control.max_in_flight == pytest.approx(TARGET_S / 0.002, rel=0.3)
    queue.each_s = 0.0003
    queue.offer(per_s=10_000, seconds=3)
    assert queue.admission_control.max_in_flight == pytest.approx(fast, rel=0.3)


def test_a_round_of_late_answers_among_many_in_time_is_no_overload() -> None:
    """32 clients who ask again at once; every tenth of a second the core is away for longer than the target."""
    clock = Clock()
    admission_control = AdmissionControl(TARGET_S, clock=clock)
    for _ in range(100):
        for took in (*([0.01] * 10), 1.6 * TARGET_S):
            scopes: list[dict[str, Any]] = [{} for _ in range(32)]
            for scope in scopes:
                assert not admission_control.is_full()
                admission_control.enter(scope)
            clock.now += took
            for scope in scopes:
                admission_control.leave(scope, learn=True)


def test_a_long_stall_cuts_once_and_few_are_always_let_in() -> None:
    clock = Clock()
    admission_control = AdmissionControl(TARGET_S, clock=clock)
    before = admission_control.max_in_flight
    scopes: list[dict[str, Any]] = [{} for _ in range(40)]
    for scope in scopes:
        admission_control.enter(scope)
    clock.now = 10.0
    for scope in scopes:
        admission_control.leave(scope, learn=True)
    assert admission_control.max_in_flight == before / 2
    for _ in range(500):
        scope = {}
        admission_control.enter(scope)
        clock.now += 10
        admission_control.leave(scope, learn=True)
    assert admission_control.max_in_flight == MIN_IN_FLIGHT
    assert admission_control.in_flight == 0


def test_what_does_not_tell_of_the_load_teaches_nothing_and_what_did_not_enter_does_not_leave() -> None:
    clock = Clock()
    admission_control = AdmissionControl(TARGET_S, clock=clock)
    before = admission_control.max_in_flight
    scope: dict[str, Any] = {}
    admission_control.enter(scope)
    clock.now = 10.0
    admission_control.leave(scope, learn=False)
    admission_control.leave(scope, learn=True)
    admission_control.leave({}, learn=True)
    assert (admission_control.in_flight, admission_control.max_in_flight) == (0, before)


def test_a_door_without_a_target_is_never_full() -> None:
    admission_control = AdmissionControl()
    for _ in range(100_000):
        admission_control.enter({})
    assert not admission_control.is_full()


def test_the_refusal_says_when_to_come_again() -> None:
    assert OVERLOADED_RESPONSE.status_code == 503
    assert OVERLOADED_RESPONSE.headers["retry-after"] == "1"
    assert OVERLOADED_RESPONSE.media_type == "application/problem+json"
