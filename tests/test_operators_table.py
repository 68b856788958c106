"""The operator's table in docs/operate/failures.md: every row is shown by tests, and its alerts exist."""

import ast
import re
from pathlib import Path
from typing import Final

import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / "docs").is_dir():
    pytest.skip("the documents are not part of the wheel", allow_module_level=True)

# The beginning of a row's first cell, and the tests that show what the row says.
SHOWN_BY: Final[dict[str, tuple[str, ...]]] = {
    "The service is killed": ("live/test_processes.py::test_no_acknowledged_event_is_lost_by_a_kill",),
    "The service is stopped": ("live/test_overload.py::test_a_stopping_service_finishes_what_is_under_way",),
    "Something hangs while the service stops": (
        "live/test_hanging_model.py::test_the_process_ends_in_time_while_the_model_hangs",
        "live/test_hanging_model.py::test_the_process_ends_in_time_while_the_disk_of_the_event_log_hangs",
        "live/test_hanging_model.py::test_the_supervisor_ends_in_time_although_a_worker_does_not_hear_it",
    ),
    "Redis cannot be reached": (
        "live/test_redis_faults.py::test_reads_fall_back_to_popularity_and_writes_are_not_acknowledged",
    ),
    "`SEGUE_REDIS_URL` is the address of another kind of server": (
        "live/test_redis_mismatch.py::test_other_servers",
        "live/test_redis_mismatch.py::test_another_server_takes_the_place_of_redis",
        "live/test_redis_mismatch.py::test_a_cluster_node_that_hides_its_cluster",
    ),
    "Redis hangs": ("live/test_redis_faults.py::test_while_redis_hangs_one_request_waits_and_the_others_do_not",),
    "Redis was restarted": (
        "live/test_redis_faults.py::test_a_restart_of_redis_between_requests_costs_nobody_an_answer",
        "live/test_redis_faults.py::test_a_connection_that_ends_before_the_answer_is_made_good_where_that_is_safe",
    ),
    "Redis rejects writes": (
        "live/test_durability.py::test_readiness_fails_with_the_reason_while_writes_are_refused",
        "live/test_durability.py::test_readiness_notices_one_node_of_a_cluster_that_refuses_writes",
    ),
    "The embedded Redis reaches its memory limit": (
        "live/test_embedded_redis.py::test_it_refuses_writes_at_its_limit_and_loses_nothing",
    ),
    "Redis evicts keys": (
        "live/test_durability.py::test_a_redis_that_evicts_is_refused_at_the_start",
        "live/test_durability.py::test_readiness_notices_a_redis_that_has_come_to_evict",
    ),
    "Redis persists less than": (
        "live/test_durability.py::test_a_redis_that_keeps_less_is_refused_at_the_start",
        "live/test_durability.py::test_readiness_notices_a_redis_that_has_become_weaker",
    ),
    "Replicas do not confirm writes": (
        "live/test_durability.py::test_a_write_is_acknowledged_when_the_replica_has_it",
    ),
    "Redis or its machine crashes": ("faults/test_faults.py::test_redis_is_killed_many_times",),
    "The encoder or index raises an error": (
        "live/test_redis_faults.py::test_a_model_that_fails_is_replaced_by_popularity",
        "live/test_redis_faults.py::test_a_model_that_fails_is_an_error_where_no_fallback_is_wanted",
    ),
    "The model hangs on one track": (
        "live/test_hanging_model.py::test_a_track_on_which_the_model_hangs_costs_its_own_requests_only",
        "live/test_hanging_model.py::test_without_a_fallback_the_answer_is_a_problem_document",
        "live/test_hanging_model.py::test_other_sessions_are_answered_while_the_track_is_asked_for_ten_times_a_second",
        "faults/test_faults.py::test_the_model_hangs_on_a_track_that_is_asked_for_all_the_time",
    ),
    "The model hangs on everything": (
        "live/test_hanging_model.py::test_readiness_fails_with_the_reason_while_the_model_hangs_on_everything",
    ),
    "The service is overloaded": (
        "live/test_overload.py::test_beyond_capacity_served_requests_are_in_time_and_the_others_refused_at_once",
        "live/test_overload.py::test_a_full_service_refuses_all_but_health_metrics_and_releases",
    ),
    "A client sends or reads too slowly": (
        "live/test_overload.py::test_slow_clients_are_told_and_let_go_and_take_nobodys_place",
    ),
    "A session is idle": ("test_session_semantics.py::test_a_session_is_over_after_the_idle_gap",),
    "Clients play tracks that the release does not know": (
        "live/test_calls.py::test_unknown_tracks_are_stored_named_and_passed_over",
    ),
    "A new release is damaged": (
        "live/test_swap.py::test_a_damaged_release_is_refused_once_until_it_changes",
        "live/test_swap.py::test_what_cannot_be_served_is_a_problem_and_changes_nothing",
    ),
    "A new release hangs during validation": (
        "live/test_hanging_model.py::"
        "test_the_trial_refuses_a_release_that_hangs_on_a_track_it_meets_and_another_one_costs_its_own_requests_only",
    ),
    "The event log's disk is full": (
        "live/test_event_log.py::test_a_full_disk_is_told_in_one_line_and_costs_no_event",
        "faults/test_faults.py::test_the_disk_of_the_event_log_is_full",
    ),
    "The event log's disk hangs": (
        "live/test_hanging_model.py::test_the_process_ends_in_time_while_the_disk_of_the_event_log_hangs",
    ),
    "The event log has no writer": ("live/test_operations.py::test_tells_what_a_full_stream_has_dropped",),
    "A file of the event log is damaged": ("live/test_event_log.py::test_a_damaged_file_stops_nobodys_erasure",),
}


def rows() -> list[list[str]]:
    """The table's rows, as their cells."""
    text = (ROOT / "docs" / "operate" / "failures.md").read_text(encoding="utf-8")
    section = text.partition("# Failure modes")[2].partition("\n#")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert cells[0] == ["failure", "what the client sees", "what readiness says", "which alert fires"]
    return cells[2:]


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_row_is_shown_by_tests_and_every_entry_has_a_row() -> None:
    for row in rows():
        assert len(row) == 4, row
    failures = [row[0] for row in rows()]
    by_entry = {entry: [failure for failure in failures if failure.startswith(entry)] for entry in SHOWN_BY}
    assert {entry: len(found) for entry, found in by_entry.items()} == dict.fromkeys(SHOWN_BY, 1)
    assert {failure for found in by_entry.values() for failure in found} == set(failures)


@pytest.mark.parametrize("entry", SHOWN_BY)
def test_the_tests_that_show_a_row_exist(entry: str) -> None:
    for name in SHOWN_BY[entry]:
        file, _, function = name.partition("::")
        assert function in functions(ROOT / "tests" / file), name


def test_every_alert_of_the_table_exists() -> None:
    rules = set(re.findall(r"- alert: (\w+)", (ROOT / "docker/prometheus/alerts.yml").read_text()))
    for row in rows():
        named = set(re.findall(r"`(Segue\w+)`", row[3]))
        assert named <= rules, row
        assert named or row[3] == "none", row


def test_every_alert_that_tells_of_a_failure_is_in_the_table() -> None:
    rules = set(re.findall(r"- alert: (\w+)", (ROOT / "docker/prometheus/alerts.yml").read_text()))
    named = {name for row in rows() for name in re.findall(r"`(Segue\w+)`", row[3])}
    # What these tell of is a fault in Segue or a lack of speed, and no failure of a row.
    assert rules - named == {"SegueServerErrors", "SegueSlow", "SegueRedisSlow", "SegueEventLogBehind"}
