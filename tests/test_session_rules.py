"""The rules of `segue prepare`, one after another: repeated reports, order, sessions, outcomes, ids and the report."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.cli import main
from segue.errors import BadLog, BadOption
from training.data.dataset import Dataset
from training.data.log_facts import LogFacts
from training.prepare.options import LogKind
from training.prepare.pipeline import PrepareReport, prepare, prepare_options
from training.prepare.play_order import UNKNOWN_TIME, ordered_plays
from training.prepare.reading import FileTimes, times_of
from training.prepare.session_filters import distinct, session_ids
from training.prepare.sessionize import is_skip, last_known, sources_of

START = datetime(2024, 3, 1, 10, tzinfo=UTC)


class Play(NamedTuple):
    """A play of an invented log: its start in seconds after START."""

    at: float
    track: str
    user: str = "u1"


# Two sittings of u1 and one of u2: b is skipped after 12 s, e after exactly 30 s, g after 31 s is not.
PLAYS = (
    *(Play(at, track) for at, track in ((0, "a"), (200, "b"), (212, "c"), (412, "d"), (612, "e"), (642, "f"))),
    *(Play(at, track) for at, track in ((3000, "g"), (3031, "a"), (3200, "h"))),
    *(Play(at, track, "u2") for at, track in ((100, "c"), (130, "a"), (400, "h"))),
)
SESSIONS = ["a b* c d e* f", "g a h", "c* a h"]


def moment(play: Play) -> datetime:
    return START + timedelta(seconds=play.at)


def csv(plays: "tuple[Play, ...] | list[Play]", *, header: bool = True) -> str:
    """Plays of listeners, for `events`."""
    lines = [f"{play.user},{play.track},{moment(play):%Y-%m-%dT%H:%M:%SZ}" for play in plays]
    return "\n".join([*(["user_id,track_id,timestamp"] if header else []), *lines, ""])


def lfm1k(plays: tuple[Play, ...]) -> str:
    """Plays of listeners, newest first."""
    ordered = sorted(plays, key=lambda play: (play.user, -play.at))
    return "".join(f"{play.user}\t{moment(play):%Y-%m-%dT%H:%M:%SZ}\t\tA\t{play.track}\tT\n" for play in ordered)


def lfm2b(plays: tuple[Play, ...]) -> str:
    lines = [f"{play.user}\t{play.track}\t1\t{moment(play):%Y-%m-%d %H:%M:%S}" for play in plays]
    return "\n".join(["user_id\ttrack_id\talbum_id\ttimestamp", *lines, ""])


def sessions(*rows: str, columns: str = "session_id,position,track_id,skipped") -> str:
    return "\n".join([columns, *rows, ""])


def told(dataset: Dataset) -> list[str]:
    """The sessions in their order: the tracks, skipped ones with a star."""
    catalogue, found = dataset.catalogue, dataset.sessions
    return [
        " ".join(
            catalogue.track_id(int(row)) + "*" * int(skipped)
            for row, skipped in zip(found.rows[start:end], found.skipped[start:end], strict=True)
        )
        for start, end in pairwise(found.offsets)
    ]


class Prepared(NamedTuple):
    report: PrepareReport
    sessions: list[str]

    @property
    def log(self) -> LogFacts:
        return self.report.log

    @property
    def warnings(self) -> dict[str, str]:
        return {warning.code: warning.message for warning in self.log.warnings}

    @property
    def notes(self) -> str:
        return "; ".join(self.log.notes)

    def step(self, name: str) -> tuple[int, int, int | None, str | None]:
        """What a step removed, the plays and sessions that remain, and its option."""
        [step] = [step for step in self.log.steps if step.step == name]
        return step.removed, step.plays, step.sessions, step.option


Run = Callable[..., Prepared]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Prepare texts or frames as files of a log of listeners, without a limit of the length of sessions."""

    def run_it(kind: LogKind, *contents: Any, suffix: str = ".csv", **options: Any) -> Prepared:
        files = []
        for number, content in enumerate(contents):
            file = tmp_path / f"log{number}{suffix}"
            if isinstance(content, pl.DataFrame):
                file = file.with_suffix(".parquet")
                content.write_parquet(file)
            else:
                file.write_text(content, encoding="utf-8")
            files.append(file)
        options = {"min_session_plays": 1, **({"sample_half_skips": False} if kind == "lfm1k" else {}), **options}
        report = prepare(kind, files, tmp_path / "out", prepare_options(**options), overwrite=True)
        return Prepared(report, told(report.dataset))

    return run_it


class TestRepeatedReports:
    @pytest.mark.parametrize(
        ("kind", "write"), [("events", csv), ("lfm1k", lfm1k), ("lfm2b", lfm2b)], ids=["events", "lfm1k", "lfm2b"]
    )
    @pytest.mark.parametrize("parts", ["one file", "two files", "overlapping files"])
    def test_a_play_of_a_listener_delivered_twice_is_one_play(
        self, run: Run, kind: LogKind, write: Callable[[Any], str], parts: str
    ) -> None:
        once = run(kind, write(PLAYS), suffix=".tsv")
        files: tuple[str, ...]
        if parts == "one file" and kind == "events":
            files = (csv(PLAYS) + csv(PLAYS, header=False),)
        elif parts == "overlapping files":
            files = (write(PLAYS[:8]), write(PLAYS[4:]))
        else:
            files = (write(PLAYS), write(PLAYS))
        found = run(kind, *files, suffix=".csv" if kind == "events" else ".tsv")
        assert found.sessions == once.sessions == SESSIONS
        merged = 4 if parts == "overlapping files" else 12
        assert (found.log.merged, once.log.merged) == (merged, 0)
        assert found.step("repeated reports") == (merged, 12, None, "--merge-within 0")
        assert found.report.dataset.facts.fingerprint == once.report.dataset.facts.fingerprint

    @pytest.mark.parametrize("column", ["timestamp", "position"])
    def test_a_play_of_a_session_delivered_twice_is_one_play(self, run: Run, column: str) -> None:
        rows = [
            f"s,{1_700_000_000 + 200 * n},{track},{skip}"
            for n, (track, skip) in enumerate(zip("aba", "010", strict=True))
        ]
        columns = f"session_id,{column},track_id,skipped"
        found = run("events", sessions(*rows, *rows, columns=columns), sessions(rows[1], columns=columns))
        assert found.sessions == ["a b* a"]
        assert found.log.merged == 4
        option = "--merge-within 0" if column == "timestamp" else None
        assert found.step("repeated reports") == (4, 3, None, option)

    def test_the_same_track_later_other_tracks_and_other_listeners_are_other_plays(self, run: Run) -> None:
        plays = [Play(0, "a"), Play(0, "b"), Play(1, "c"), Play(0, "a", "u2"), Play(40, "a"), Play(40, "a", "u2")]
        found = run("events", csv(plays))
        assert found.sessions == ["a* b* c a", "a a"]
        assert found.log.merged == 0

    def test_an_instant_counts_in_every_spelling(self, run: Run) -> None:
        head = "user_id,track_id,timestamp\n"
        spellings = ("2024-03-01T10:00:00Z", "2024-03-01T12:00:00+02:00", "1709287200000", "1709287200")
        found = run("events", *(f"{head}u,a,{text}\nu,b,2024-03-01T10:05:00Z\n" for text in spellings))
        assert (found.sessions, found.log.merged) == (["a b"], 6)

    def test_the_last_line_counts_in_the_order_of_files_and_lines(self, run: Run) -> None:
        columns = "session_id,timestamp,track_id,skipped"
        early, late = ("s,1700000000,a,0", "s,1700000200,b,1"), ("s,1700000000,a,1", "s,1700000200,b,0")
        assert run("events", sessions(*early, *late, columns=columns)).sessions == ["a* b"]
        assert run("events", sessions(*late, columns=columns), sessions(*early, columns=columns)).sessions == ["a b*"]

    @pytest.mark.parametrize("place", ["timestamp", "position"])
    def test_the_newest_written_at_counts_whatever_the_order(self, run: Run, place: str) -> None:
        columns = f"session_id,{place},track_id,skipped,written_at"
        rows = ["s,1700000000,a,1,1700009000", "s,1700000000,a,0,1700008000", "s,1700000200,b,0,1700008000"]
        for lines in (rows, rows[::-1], [rows[1], rows[0], rows[2]]):
            found = run("events", sessions(*lines, columns=columns))
            assert found.sessions == ["a* b"]
            assert "other_outcomes" not in found.warnings  # a correction contradicts nothing

    def test_a_report_with_an_outcome_counts_more_than_a_later_one_without(self, run: Run) -> None:
        flagged = "user_id,track_id,timestamp,skipped\nu,a,1700000000,1\nu,b,1700000200,0\nu,c,1700000400,1\n"
        plain = "user_id,track_id,timestamp\nu,a,1700000000\nu,b,1700000200\nu,c,1700000400\n"
        assert run("events", flagged, plain).sessions == run("events", plain, flagged).sessions == ["a* b c*"]

    def test_yambda_merges_only_lines_that_are_equal_in_every_column(self, run: Run) -> None:
        rows = [(1, 100, 7, 10, 1), (1, 100, 7, 10, 1), (1, 100, 7, 20, 1), (1, 100, 7, 20, 0), (1, 105, 8, 90, 0)]
        names = ("uid", "timestamp", "item_id", "played_ratio_pct", "is_organic")
        found = run("yambda", pl.DataFrame(rows, schema=names, orient="row"))
        assert (found.sessions, found.log.merged) == (["7* 7* 7* 8"], 1)

    def test_a_track_started_again_is_merged_within_the_time_that_is_asked_for(self, run: Run) -> None:
        plays = [Play(at + again, track) for at, track in ((0, "a"), (200, "b"), (400, "c")) for again in (0, 2, 3)]
        found = run("events", csv(plays))
        assert found.sessions == ["a* a* a b* b* b c* c* c"]
        assert "track of 6 plays again within 2 seconds" in found.warnings["started_again"]
        assert "--merge-within 2" in found.warnings["started_again"]
        merged = run("events", csv(plays), merge_within_s=2)
        assert (merged.sessions, merged.log.merged, list(merged.warnings)) == (["a b c"], 6, ["no_skips"])
        assert merged.step("repeated reports")[-1] == "--merge-within 2"
        assert run("events", csv(plays), merge_within_s=1).sessions == ["a* a b* b c* c"]

    def test_any_time_can_be_asked_for(self, run: Run) -> None:
        assert run("events", csv(PLAYS), merge_within_s=float("inf")).sessions == ["a b* c d e* f", "g h", "c* a h"]

    def test_another_track_between_two_reports_does_not_matter(self, run: Run) -> None:
        plays = [Play(0, "a"), Play(1, "b"), Play(2, "a"), Play(3, "b"), Play(300, "c")]
        assert run("events", csv(plays), merge_within_s=2).sessions == ["a* b c"]

    def test_merging_within_a_time_is_refused_where_positions_tell_plays_apart(self, run: Run) -> None:
        with pytest.raises(BadOption, match="--merge-within 2 has no effect on a log with positions"):
            run("events", sessions("s,0,a,0", "s,1,b,0"), merge_within_s=2)

    def test_plays_that_end_at_one_time_are_one_play_only_if_they_start_at_one_time(self, run: Run) -> None:
        rows = ["u,a,2024-03-01T10:05:00Z,5000", "u,a,2024-03-01T10:05:00Z,9000", "u,b,2024-03-01T10:09:00Z,200000"]
        log = "\n".join(["user_id,track_id,timestamp,ms_played", *rows, *rows, ""])
        found = run("events", log, timestamp_is="end", skip_below_s=30)
        assert (found.sessions, found.log.merged) == (["a* a* b"], 3)


class TestConflicts:
    def test_two_tracks_at_one_position_are_counted_and_the_last_line_counts(self, run: Run) -> None:
        found = run("events", sessions("s,0,a,0", "s,1,b,0", "s,1,x,1", "s,1,x,1", "s,2,c,0", "s,2,y,0", "s,2,z,0"))
        assert found.sessions == ["a x* z"]
        assert (found.log.merged, found.log.conflicts) == (1, 2)
        assert found.step("other tracks at one position") == (3, 3, None, None)
        assert "2 positions have several different tracks" in found.warnings["other_tracks"]
        assert "--columns user_id=COLUMN" in found.warnings["other_tracks"]

    def test_the_newest_of_two_tracks_at_one_position_counts(self, run: Run) -> None:
        columns = "session_id,position,track_id,skipped,written_at"
        rows = ("s,0,a,1,1700000009", "s,0,b,0,1700000008", "s,1,c,0,1700000008")
        assert run("events", sessions(*rows, columns=columns)).sessions == ["a* c"]

    @pytest.mark.parametrize("place", ["timestamp", "position"])
    def test_reports_that_contradict_each_other_in_the_outcome_are_counted(self, run: Run, place: str) -> None:
        columns = f"session_id,{place},track_id,skipped"
        rows = ("s,1700000000,a,1", "s,1700000000,a,0", "s,1700000200,b,1", "s,1700000200,b,1")
        found = run("events", sessions(*rows, columns=columns))
        assert (found.sessions, found.log.merged, found.log.conflicts) == (["a b*"], 2, 1)
        assert found.warnings["other_outcomes"] == "1 play has reports of different outcomes: the last one counts"


class TestOrder:
    """Plays at one time: told from the lines of each listener in each file."""

    RISING = (Play(0, "a"), Play(180, "b"), Play(180, "c"), Play(360, "d"))
    TOLD = "a b* c d"

    def test_lines_from_old_to_new_keep_their_order(self, run: Run) -> None:
        assert run("events", csv(self.RISING)).sessions == [self.TOLD]

    def test_lines_from_new_to_old_are_reversed(self, run: Run) -> None:
        assert run("events", csv(self.RISING[::-1])).sessions == [self.TOLD]

    def test_a_single_time_in_the_wrong_place_reverses_nothing(self, run: Run) -> None:
        late = [*self.RISING, Play(540, "f"), Play(500, "e")]
        assert run("events", csv(late)).sessions == [f"{self.TOLD} e f"]
        assert run("events", csv(late[::-1])).sessions == [f"{self.TOLD} e f"]

    @pytest.mark.parametrize("cut", [1, 2, 3])
    def test_pages_of_a_log_from_new_to_old_are_one_log(self, run: Run, cut: int) -> None:
        lines = self.RISING[::-1]
        assert run("events", csv(lines[:cut]), csv(lines[cut:])).sessions == [self.TOLD]

    def test_files_in_both_directions_are_each_told_on_their_own(self, run: Run) -> None:
        later = tuple(play._replace(at=play.at + 600, track=play.track.upper()) for play in self.RISING)
        both = f"{self.TOLD} A B* C D"
        assert run("events", csv(self.RISING), csv(later[::-1])).sessions == [both]
        assert run("events", csv(later[::-1]), csv(self.RISING)).sessions == [both]

    def test_listeners_of_one_file_are_each_told_on_their_own(self, run: Run) -> None:
        other = tuple(play._replace(user="u2") for play in self.RISING[::-1])
        mixed = [play for pair in zip(self.RISING, other, strict=True) for play in pair]
        assert run("events", csv(mixed)).sessions == [self.TOLD, self.TOLD]

    def test_sessions_are_told_on_their_own_as_well(self, run: Run) -> None:
        columns = "session_id,timestamp,track_id,skipped"
        rows = [f"s,{moment(play):%Y-%m-%dT%H:%M:%SZ},{play.track},{int(play.track == 'b')}" for play in self.RISING]
        assert run("events", sessions(*rows, columns=columns)).sessions == [self.TOLD]
        assert run("events", sessions(*rows[::-1], columns=columns)).sessions == [self.TOLD]

    def test_a_part_delivered_again_changes_no_order(self, run: Run) -> None:
        for lines in (self.RISING, self.RISING[::-1]):
            again = [lines[1]]
            assert run("events", csv([*lines, *again])).sessions == [self.TOLD]
            assert run("events", csv(lines), csv(again)).sessions == [self.TOLD]


class Reported(NamedTuple):
    """A line for `reference`."""

    owner: int
    file: int
    at: int
    end: int | None
    track: int
    skipped: bool | None
    written_at: int | None


def reference(lines: list[Reported], within: int) -> list[tuple[int, int, int]]:
    """Owner, start and line of each play, in plain Python."""
    found = []
    for owner in sorted({line.owner for line in lines}):
        files = [
            [number for number, _ in group]
            for _, group in groupby(
                ((number, line) for number, line in enumerate(lines) if line.owner == owner), lambda pair: pair[1].file
            )
        ]
        balance = [sum(np.sign(lines[b].at - lines[a].at) for a, b in pairwise(file)) for file in files]
        falls = sum(balance) < 0
        turned = [
            file[::-1] if own < 0 or (own == 0 and falls) else file for file, own in zip(files, balance, strict=True)
        ]
        order = [number for file in (turned[::-1] if falls else turned) for number in file]
        order.sort(key=lambda number: (lines[number].at, -1 if (end := lines[number].end) is None else end))
        counting: dict[int, int] = {}  # the line that counts, by the line that gives the place
        for track in sorted({lines[number].track for number in order}):
            own = sorted((lines[number].at, number) for number in order if lines[number].track == track)
            plays: list[list[tuple[int, int]]] = []
            for report in own:
                if plays and report[0] - plays[-1][-1][0] <= within:
                    plays[-1].append(report)
                else:
                    plays.append([report])
            for play in plays:
                ranked = [
                    (lines[n].skipped is not None, -1 if (at := lines[n].written_at) is None else at, n)
                    for _, n in play
                ]
                counting[play[0][1]] = max(ranked)[2]
        found += [(owner, lines[number].at, counting[number]) for number in order if number in counting]
    return found


@st.composite
def logs(draw: st.DrawFn) -> list[Reported]:
    """Lines in few files, of few listeners, with many equal times."""
    number = draw(st.integers(1, 14))
    files = sorted(draw(st.lists(st.integers(0, 2), min_size=number, max_size=number)))
    maybe = draw(st.booleans())
    line = st.builds(
        Reported,
        owner=st.integers(0, 1),
        file=st.just(0),
        at=st.integers(0, 6).map(lambda second: second * 1000),
        end=st.none() | st.integers(0, 9).map(lambda second: second * 1000) if maybe else st.none(),
        track=st.integers(0, 2),
        skipped=st.none() | st.booleans(),
        written_at=st.none() | st.integers(0, 2) if maybe else st.none(),
    )
    return [draw(line)._replace(file=file) for file in files]


class TestAgainstPlainPython:
    @settings(max_examples=400, deadline=None)
    @given(lines=logs(), within=st.sampled_from([0, 1000, 2500]))
    def test_order_and_merging_are_those_of_a_loop_over_lines(self, lines: list[Reported], within: int) -> None:
        types = {"owner": pl.UInt32, "file": pl.UInt32, "track": pl.UInt32, "skipped": pl.Boolean}
        schema = {name: types.get(name, pl.Int64) for name in Reported._fields}
        frame = pl.DataFrame(lines, schema=schema, orient="row")
        frame = frame.drop([column.name for column in frame if column.null_count() == len(frame)])
        found = ordered_plays(frame, by_position=False, merge_within_ms=within)
        expected = reference(lines, within)
        assert list(zip(found.owner.tolist(), found.place.tolist(), found.line.tolist(), strict=True)) == expected
        assert found.repeats.merged == len(lines) - len(expected)


class TestSessions:
    def test_a_pause_is_counted_from_the_start_where_no_end_is_known(self, run: Run) -> None:
        plays = [Play(0, "a"), Play(1200, "b"), Play(2401, "c")]
        assert run("events", csv(plays)).sessions == ["a b", "c"]

    @pytest.mark.parametrize(("ms_played", "expected"), [(300_999, ["a", "b"]), (301_000, ["a b"])])
    def test_a_pause_is_counted_from_the_end_where_it_is_known(
        self, run: Run, ms_played: int, expected: list[str]
    ) -> None:
        rows = f"u,a,2024-03-01T10:00:00Z,{ms_played}\nu,b,2024-03-01T10:25:01Z,1000\n"
        found = run("events", f"user_id,track_id,timestamp,ms_played\n{rows}")
        assert [session.replace("*", "") for session in found.sessions] == expected

    def test_given_sessions_are_kept_and_skips_inferred_inside_them(self, run: Run) -> None:
        rows = ["s1,a,0", "s1,b,20", "s2,c,40", "s2,d,60", "s1,e,5000"]
        lines = [f"{row.rpartition(',')[0]},{1_700_000_000 + int(row.rpartition(',')[2])}" for row in rows]
        found = run("events", "\n".join(["session_id,track_id,timestamp", *lines]))
        assert found.sessions == ["a* b e", "c* d"]
        assert found.log.sessions_given
        assert found.step("sessions") == (0, 5, 2, None)

    def test_session_ids_may_be_unique_per_listener_only(self, run: Run, tmp_path: Path) -> None:
        rows = [
            *("secret-ben,1,0,d,1", "secret-ben,1,1,e,0", "secret-ann,1,0,a,0", "secret-ann,1,1,b,1"),
            *("secret-ann,2,0,c,0", "secret-cat,3,0,f,0", "secret-cat,1#2,0,g,0", "secret-cat,1,0,h,0"),
        ]
        found = run("events", sessions(*rows, columns="user_id,session_id,position,track_id,skipped"))
        assert found.sessions == ["a b*", "c", "d* e", "h", "g", "f"]
        ids = found.report.dataset.session_ids.to_list()
        assert len(set(ids)) == 6
        assert {session_id.partition("#")[0] for session_id in ids} == {"1", "2", "3"}
        for file in (tmp_path / "out").iterdir():
            assert b"secret" not in file.read_bytes()

    def test_ids_of_sessions_and_of_their_pieces_stay_distinct(self) -> None:
        owners = pl.Series(["s", "s~2", "t\tx", "t\ty"])
        ids = session_ids(np.array([0, 0, 1, 2, 2, 3]), np.array([0, 1, 0, 0, 1, 0]), owners)
        assert ids.to_list() == ["s", "s~2", "s~2#2", "t", "t~2", "t#2"]
        assert distinct(pl.Series(["a", "a#2", "a", "a"]), "#").to_list() == ["a", "a#2", "a#2#2", "a#3"]

    def test_a_given_session_of_more_than_a_day_is_a_warning(self, run: Run) -> None:
        day = 86_400
        rows = [
            f"{name},{1_700_000_000 + at},t{at},0" for name, last in (("s", day), ("long", day + 1)) for at in (0, last)
        ]
        found = run("events", sessions(*rows, columns="session_id,timestamp,track_id,skipped"))
        assert found.warnings["long_sessions"].startswith("1 session of the log lasts longer than a day")


class TestOutcomes:
    def test_given_outcomes_win_and_only_missing_ones_are_inferred(self, run: Run) -> None:
        flagged = "user_id,track_id,timestamp,skipped\nu,a,1700000000,0\nu,b,1700000010,1\n"
        plain = "user_id,track_id,timestamp\nu,c,1700000300\nu,d,1700000310\nu,e,1700000320\n"
        for files in ((flagged, plain), (plain, flagged)):
            found = run("events", *files)
            assert found.sessions == ["a b* c* d* e"]
            assert found.log.skipped_by.model_dump() == {"flag": 1, "end_reason": 0, "played_duration": 0, "time": 2}
            assert found.log.skips_from.model_dump() == {"flag": 2, "end_reason": 0, "played_duration": 0, "time": 2}
            assert found.log.unknown_outcomes == 1
            assert "2 given by the log, 2 inferred from time, 1 unknown, which count as played" in found.notes

    def test_blank_flags_are_inferred_and_remove_no_play(self, run: Run) -> None:
        rows = "u,a,1700000000,0\nu,b,1700000010,\nu,c,1700000020,\nu,d,1700000300,1\n"
        found = run("events", f"user_id,track_id,timestamp,skipped\n{rows}")
        assert found.sessions == ["a b* c d*"]
        assert found.log.unknown_outcomes == 0
        assert found.report.dataset.last_known is None

    @pytest.mark.parametrize(
        ("after", "expected"), [(0, "a* b* c d* e f"), (1, "a b* c d* e f"), (12, "a b* c d* e f")]
    )
    def test_a_shorter_gap_than_skip_after_is_no_skip(self, run: Run, after: float, expected: str) -> None:
        plays = [Play(at, track) for at, track in zip((0, 0.5, 12.5, 100, 130, 300), "abcdef", strict=True)]
        frame = pl.DataFrame(
            {
                "user_id": ["u"] * 6,
                "track_id": [play.track for play in plays],
                "timestamp": [moment(play) for play in plays],
            }
        )
        found = run("events", frame, skip_after_s=after)
        assert found.sessions == [expected]
        assert found.log.same_second_skips == (1 if after == 0 else 0)
        assert (
            "1 of 3 skips inferred from time begins in the same second as the next play: --skip-after 1" in found.notes
        ) == (after == 0)

    def test_the_last_play_of_a_session_has_no_known_outcome(self, run: Run) -> None:
        found = run("events", csv(PLAYS), max_session_plays=4)
        assert found.sessions == ["a b* c d", "e* f", "g a h", "c* a h"]
        assert found.report.dataset.last_known is not None
        assert found.report.dataset.last_known.tolist() == [True, False, False, False]
        assert found.log.unknown_outcomes == 3
        assert "the outcome of the last play is unknown in 3 of 4 sessions" in found.notes

    def test_played_durations_give_the_last_play_an_outcome(self, run: Run) -> None:
        rows = "u,a,1700000000,200000\nu,b,1700000200,5000\nu,c,1700000300,9000\n"
        found = run("events", f"user_id,track_id,timestamp,ms_played\n{rows}", skip_below_s=30)
        assert found.sessions == ["a b* c*"]
        assert found.log.skipped_by.played_duration == 2
        assert found.report.dataset.last_known is None

    def test_without_skips_every_play_counts_as_played(self, run: Run) -> None:
        found = run("events", csv(PLAYS), no_skips=True)
        assert found.sessions == [session.replace("*", "") for session in SESSIONS]
        assert found.log.unknown_outcomes == 12
        assert found.report.dataset.last_known is not None
        assert not found.report.dataset.last_known.any()
        assert "because of --no-skips" in found.notes
        assert found.warnings == {}

    def test_an_unused_column_that_may_hold_the_skips_is_a_warning(self, run: Run) -> None:
        lines = [f"{line},{number % 2},play" for number, line in enumerate(csv(PLAYS, header=False).splitlines())]
        found = run("events", "user_id,track_id,timestamp,skip_count,device\n" + "\n".join(lines) + "\n")
        assert "unused_skips" in found.warnings
        assert "several_events" not in found.warnings
        assert "--columns skipped=skip_count" in found.warnings["unused_skips"]
        found = run("events", "user_id,track_id,timestamp,n,event_type\n" + "\n".join(lines) + "\n")
        assert "unused_skips" not in found.warnings
        assert "several_events" in found.warnings

    def test_a_log_without_outcomes_and_times_is_refused_unless_it_has_no_skips(self, run: Run) -> None:
        log = sessions("s,0,a", "s,1,b", columns="session_id,position,track_id")
        with pytest.raises(BadLog, match="--no-skips"):
            run("events", log)
        found = run("events", log, no_skips=True)
        assert (found.sessions, found.log.unknown_outcomes) == (["a b"], 2)

    def test_some_blank_flags_without_times_are_unknown(self, run: Run) -> None:
        found = run("events", sessions("s,0,a,1", "s,1,b,", "s,2,c,0"))
        assert (found.sessions, found.log.unknown_outcomes) == (["a* b c"], 1)

    def test_positions_that_contradict_times_give_no_outcome(self, run: Run) -> None:
        rows = ("s,0,a,1700000300", "s,1,b,1700000000", "s,2,c,1700000010", "s,3,d,")
        found = run("events", sessions(*rows, columns="session_id,position,track_id,timestamp"))
        assert (found.sessions, found.log.unknown_outcomes) == (["a b* c d"], 3)


class TestResolution:
    def minutes(self, count: int, track: str = "t", first: int = 0) -> list[Play]:
        return [Play(60 * (n // 2) + first, f"{track}{n}") for n in range(count)]

    def test_no_skip_is_inferred_from_whole_minutes(self, run: Run) -> None:
        found = run("events", csv(self.minutes(12)))
        assert "*" not in "".join(found.sessions)
        assert found.log.unknown_outcomes == 12
        assert "the times are in steps of 60 s, coarser than --skip-within 30: no skip was inferred" in found.notes
        assert "no_skips" in found.warnings

    def test_a_longer_time_of_skips_can_be_inferred_from_them(self, run: Run) -> None:
        assert run("events", csv(self.minutes(12)), skip_within_s=60).log.skipped_by.time == 11

    def test_a_file_of_whole_minutes_is_judged_on_its_own(self, run: Run) -> None:
        exact = [Play(1000 + 7 * n, f"e{n}") for n in range(3)]
        found = run("events", csv(self.minutes(12)), csv(exact))
        assert found.log.skipped_by.time == 2
        assert found.log.unknown_outcomes == 13

    def test_few_times_can_be_whole_minutes_by_chance(self, run: Run) -> None:
        assert run("events", csv([Play(0, "a"), Play(0, "b"), Play(60, "c")])).sessions == ["a* b c"]

    @pytest.mark.parametrize(
        ("times", "resolution"),
        [([], 0), ([60_000, 180_000], 60_000), ([60_000, 90_000], 30_000), ([5000, 7001], 1000), ([None, 4000], 4000)],
    )
    def test_the_resolution_is_the_greatest_common_divisor(self, times: list[int | None], resolution: int) -> None:
        assert times_of(pl.Series(times, dtype=pl.Int64)).resolution_ms == resolution

    @settings(max_examples=50, deadline=None)
    @given(
        times=st.lists(st.integers(-(10**6), 10**6).map(lambda minute: minute * 20_000), max_size=30),
        cut=st.integers(0, 30),
    )
    def test_parts_of_a_log_give_the_resolution_of_the_whole(self, times: list[int], cut: int) -> None:
        parts = [times_of(pl.Series(part, dtype=pl.Int64)) for part in (times[:cut], times[cut:])]
        assert parts[0].add(parts[1]) == times_of(pl.Series(times, dtype=pl.Int64))
        assert FileTimes().add(parts[0]) == parts[0]


class TestTimesThatOnlyOrder:
    def test_they_are_no_dates_and_the_report_says_so(self, run: Run) -> None:
        rows = [f"s,{place},{track},{skip}" for place, track, skip in ((0, "a", 0), (1, "b", 1), (2, "c", 0))]
        found = run("events", sessions(*rows, columns="session_id,timestamp,track_id,skipped"))
        assert found.sessions == ["a b* c"]
        started = pl.read_parquet(found.report.dataset.path / "sessions.parquet")["started_at"]
        assert started.to_list() == [None]
        assert "the times of 1 session are no dates: they only order the plays" in found.notes

    def test_times_of_yambda_are_no_dates_either(self, run: Run) -> None:
        frame = pl.DataFrame({"uid": [1] * 2, "item_id": [1, 2], "timestamp": [100, 300], "played_ratio_pct": [9, 90]})
        found = run("yambda", frame)
        assert pl.read_parquet(found.report.dataset.path / "sessions.parquet")["started_at"].to_list() == [None]
        assert "no dates" not in found.notes


class TestRefusals:
    def test_the_option_and_its_value_are_named(self, run: Run) -> None:
        with pytest.raises(
            BadLog, match=r"12 plays in 3 sessions: the longest session has 6 plays: lower --min-session-plays \(7\)"
        ):
            run("events", csv(PLAYS), min_session_plays=7)
        with pytest.raises(BadLog, match=r"the most played track has 3 plays: lower --min-track-plays \(4\)"):
            run("events", csv(PLAYS), min_track_plays=4)
        with pytest.raises(BadLog, match=r"no session has a skip.*--all-sessions instead of --balance-skips"):
            run("events", csv(PLAYS), skip_within_s=0, sample_half_skips=True)


class TestWarnings:
    def flagged(self, flags: str, name: str) -> str:
        rows = [f"{name},{n},t{n},{flag}" for n, flag in enumerate(flags)]
        return sessions(*rows)

    def test_a_log_without_a_skip(self, run: Run) -> None:
        found = run("events", self.flagged("0" * 9, "s"))
        assert "--no-nce" in found.warnings["no_skips"]

    @pytest.mark.parametrize(("flags", "warned"), [("1111100000", False), ("1111111100", False), ("1111111110", True)])
    def test_more_than_four_fifths_of_skips(self, run: Run, flags: str, warned: bool) -> None:
        found = run("events", self.flagged(flags, "s"))
        assert ("many_skips" in found.warnings) == warned
        if warned:
            assert "90.0% of the plays are skipped: the flag may mean played" in found.warnings["many_skips"]

    def test_files_whose_skip_rates_differ(self, run: Run) -> None:
        few, many = self.flagged("1" + "0" * 99, "s"), self.flagged("1" * 60 + "0" * 40, "t")
        found = run("events", few, many)
        assert (
            "60.0% of the plays of log1.csv are skipped and 1.0% of those of log0.csv" in found.warnings["files_differ"]
        )
        assert [(file.name, file.plays, file.skips) for file in found.log.files] == [
            ("log0.csv", 100, 1),
            ("log1.csv", 100, 60),
        ]
        assert "files_differ" not in run("events", few[: few.index("s,99,")], many).warnings

    def test_ids_that_a_tool_has_changed(self, run: Run) -> None:
        rows = ("s,0,1,0", "s,1,2,1", "s,2,1.0,0", "s,3,3.0,0", "s,4,8.00000E+14,0")
        warnings = run("events", sessions(*rows)).warnings
        assert warnings["float_ids"].startswith("2 track ids end in `.0`, and 1 of them without it as well")
        assert warnings["rounded_ids"].startswith("1 track id look")
        assert not {"float_ids", "rounded_ids"} & run("events", sessions("s,0,1.5,0", "s,1,v1.0,1")).warnings.keys()


class TestWhatTimesAndDurationsMean:
    """Each log has 300 plays of three listeners, about four minutes apart."""

    def log(
        self,
        *,
        step_s: float = 241,
        lasts_ms: Callable[[int], int] | None = None,
        track: Callable[[int], str] = lambda n: f"t{n % 50}",
        flag: Callable[[int], str] | None = None,
        form: str = "%Y-%m-%dT%H:%M:%SZ",
    ) -> str:
        columns = ["user_id", "track_id", "timestamp"]
        columns += ["ms_played"] * (lasts_ms is not None) + ["skipped"] * (flag is not None)
        lines = []
        for n in range(300):
            values = [f"u{n // 100}", track(n), f"{START + timedelta(seconds=n % 100 * step_s):{form}}"]
            values += [] if lasts_ms is None else [str(lasts_ms(n))]
            values += [] if flag is None else [flag(n)]
            lines.append(",".join(values))
        return "\n".join([",".join(columns), *lines, ""])

    def test_nothing_is_said_of_an_ordinary_log(self, run: Run) -> None:
        found = run("events", self.log(lasts_ms=lambda n: 239_000, flag=lambda n: str(int(n % 5 == 0))))
        assert found.warnings == {}

    def test_a_track_that_follows_itself_in_a_fifth_of_the_plays(self, run: Run) -> None:
        found = run("events", self.log(track=lambda n: f"t{n // 2}"), no_skips=True)
        assert found.warnings["many_repeats"].startswith("52.6% of the plays repeat the track of the play before")
        few = self.log(track=lambda n: f"t{n // 10 * 10 if n % 10 < 2 else n}")
        assert "many_repeats" not in run("events", few, no_skips=True).warnings

    def test_ends_that_are_read_as_starts(self, run: Run) -> None:
        """Every second play is skipped after 5 s, so that the ends are 240 s and 5 s apart in turn."""
        lines = ["user_id,track_id,timestamp,ms_played"]
        at = START
        for n in range(300):
            lasts = 5 if n % 2 else 240
            at += timedelta(seconds=lasts)
            lines.append(f"u,t{n},{at:%Y-%m-%dT%H:%M:%SZ},{lasts * 1000}")
        log = "\n".join([*lines, ""])
        assert "--timestamp-is end" in run("events", log).warnings["times_are_ends"]
        assert "times_are_ends" not in run("events", log, timestamp_is="end").warnings

    def test_durations_in_seconds(self, run: Run) -> None:
        found = run("events", self.log(lasts_ms=lambda n: 200 + n % 30))
        assert found.warnings["durations_in_seconds"].startswith("100.0% of the played durations are below 1,000")
        assert "durations_in_seconds" not in run("events", self.log(step_s=2, lasts_ms=lambda n: 900)).warnings

    def test_times_at_which_lines_were_loaded(self, run: Run) -> None:
        found = run("events", self.log(step_s=0))
        assert found.warnings["equal_times"].startswith("100.0% of the plays start within a second of the play before")

    def test_times_coarser_than_the_gap_between_sessions(self, run: Run) -> None:
        log = self.log(step_s=3600)
        found = run("events", log, no_skips=True, min_session_plays=1)
        assert "steps of 3,600 s, longer than --idle-gap 1200" in found.warnings["coarse_sessions"]
        assert "coarse_sessions" not in run("events", log, no_skips=True, idle_gap_s=7200).warnings

    @pytest.mark.parametrize(("value", "other", "meaning"), [("true", "false", "played"), ("false", "true", "skipped")])
    def test_a_flag_that_is_never_the_other_value(self, run: Run, value: str, other: str, meaning: str) -> None:
        found = run("events", self.log(flag=lambda n: value if n % 3 == 1 else ""))
        assert found.warnings["constant_flag"].startswith(
            f"the column skipped is {value} for 100 plays, never {other}, and empty for 200. If empty means {meaning}, "
        )
        assert any("because neither the log nor a later play says it" in note for note in found.log.notes)

    def test_hours_of_a_12_hour_clock(self, run: Run) -> None:
        def log(form: str) -> str:
            times = [START + timedelta(seconds=n * 600) for n in range(1000)]
            return "\n".join(["user_id,track_id,timestamp", *(f"u,t{n},{at:{form}}" for n, at in enumerate(times)), ""])

        assert "all 1,000 times" in run("events", log("%Y-%m-%d %I:%M:%S")).warnings["twelve_hour_times"]
        assert "twelve_hour_times" not in run("events", log("%Y-%m-%d %H:%M:%S")).warnings

    def test_ids_that_differ_only_by_white_space(self, run: Run) -> None:
        lines = ['"s1",0,"a",0', '"s1",1,"a ",1', '"s1 ",0,"b",0', '"s1 ",1,"c",1']
        warnings = run("events", sessions(*lines)).log.warnings
        assert [one.message.partition(" only")[0] for one in warnings if one.code == "space_in_ids"] == [
            "1 track id differs from another one",
            "1 listener or session id differs from another one",
        ]


class TestTheCommand:
    @pytest.fixture
    def printed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
        def run_it(content: str, *options: str) -> str:
            (tmp_path / "plays.csv").write_text(content, encoding="utf-8")
            arguments = [str(tmp_path / "plays.csv"), "--out", str(tmp_path / "out"), "--overwrite", *options]
            assert main(["prepare", "events", *arguments]) == 0
            captured = capsys.readouterr()
            return captured.out if "--json" in options else captured.out + captured.err

        return run_it

    def test_it_reads_forward(self, printed: Callable[..., str]) -> None:
        log = csv(PLAYS) + csv(PLAYS[:1], header=False)
        lines = printed(log).splitlines()
        assert lines[1:6] == [
            "step\tremoved\tremaining plays\tremaining sessions",
            "lines read\t0\t13\t-",
            "repeated reports (--merge-within 0)\t1\t12\t-",
            "sessions (--idle-gap 1200)\t0\t12\t3",
            "short sessions (--min-session-plays 5)\t6\t6\t1",
        ]
        assert "skips from\ttime 2" in lines
        assert "unknown outcomes\t1 of 6 plays" in lines
        assert any(line.startswith("Note: outcomes are inferred from time: a play is skipped if") for line in lines)

    def test_json_has_the_same_facts(self, printed: Callable[..., str]) -> None:
        report = json.loads(printed(csv(PLAYS), "--json"))
        assert report["steps"][-1] == {
            "step": "short sessions",
            "removed": 6,
            "plays": 6,
            "sessions": 1,
            "option": "--min-session-plays 5",
        }
        assert report["log"]["skipped_by"]["time"] == 2
        assert report["log"]["notes"]

    def test_warnings_are_told(self, printed: Callable[..., str]) -> None:
        told = printed(sessions("s,0,a,0", "s,1,b,0", "s,2,c,0", "s,3,d,0", "s,4,e,0"))
        assert "Warning: no play is skipped" in told

    def test_a_pipe_for_both_streams_keeps_their_order(self, tmp_path: Path) -> None:
        (tmp_path / "plays.csv").write_text(sessions("s,0,a,0", "s,1,b,0", "s,2,c,0", "s,x,d,0", "s,4,e,0"))
        command = [sys.executable, "-m", "segue", "prepare", "events", "plays.csv", "--out", "out"]
        command += ["--min-session-plays", "1", "--max-malformed", "50"]
        found = subprocess.run(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        )
        places = [
            found.stdout.index(words)
            for words in ("could not be read", "lines read", "Warning: no play", "# dataset", "Dataset written")
        ]
        assert places == sorted(places)


def test_outcomes_are_bytes() -> None:
    outcome = np.array([0, 3, 2, 7, 9, 8 | 16 | 1], dtype=np.uint8)
    assert sources_of(outcome).tolist() == [0, 1, 1, 3, 4, 4]
    assert is_skip(outcome).tolist() == [False, True, False, True, True, True]
    assert UNKNOWN_TIME < 0
    assert callable(last_known)
