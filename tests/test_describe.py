"""`segue describe`: its figures are those of a count play by play, and its output is what a person can read."""

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.cli import main
from segue.errors import BadDataset
from tests.descriptions import Sessions, figures, week_of_listening, written
from training.data.dataset import CATALOGUE_FILE, FACTS_FILE, open_dataset
from training.data.describe import statistics
from training.data.describe.description import Description
from training.data.describe.statistics import describe
from training.data.log_facts import DataWarning, LogFacts, LogFile, SkipSources
from training.data.sessions_parquet import SESSIONS_FILE

NOW = datetime(2025, 1, 1, tzinfo=UTC)
TRACKS = 30
LISTENING = st.lists(
    st.lists(st.tuples(st.integers(0, TRACKS - 1), st.booleans()), min_size=1, max_size=35),
    min_size=1,
    max_size=12,
)


def same(found: Any, **expected: Any) -> None:
    shown = found.model_dump()
    for name, value in expected.items():
        assert shown[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def agrees(of: Description, expected: dict[str, Any]) -> None:
    """The description says what was counted in plain Python."""
    same(of, plays=expected["plays"], skips=expected["skips"])
    names = ("count", "mean_length", "quantiles", "with_skip", "only_skips", "with_targets")
    same(of.sessions, **{name: expected[name] for name in names})
    for group in of.by_position:
        places = [expected["positions"][place] for place in range(group.first, group.last + 1)]
        assert (group.plays, group.skips) == (sum(p["plays"] for p in places), sum(p["skips"] for p in places))
    assert {place for group in of.by_position for place in range(group.first, group.last + 1)} == set(
        expected["positions"]
    )
    for group_of in of.sessions.lengths:
        within = range(group_of.first, group_of.last + 1)
        assert group_of.sessions == sum(expected["lengths"][length] for length in within)
    assert sum(group_of.sessions for group_of in of.sessions.lengths) == of.sessions.count
    for name in ("first_play", "after_play", "after_skip"):
        assert getattr(of.by_previous, name).model_dump() == expected[name], name
    same(of.last_plays, **expected["last_plays"], repeated=expected["repeated_last"])
    same(
        of.repeats,
        plays=expected["repeats"],
        sessions=expected["repeating_sessions"],
        immediate=expected["immediate"],
        immediate_after_skip=expected["immediate_after_skip"],
    )
    names = ("played", "played_once", "top_1_percent", "top_10_percent", "tracks_of_half", "gini")
    same(of.popularity, **{name: expected[name] for name in names})
    top = sorted(expected["track_plays"].items(), key=lambda track: (-track[1], track[0]))[:10]
    assert [(track.track_id, track.plays, track.skips) for track in of.popularity.top] == [
        (f"t{track:02}", plays, expected["track_skips"][track]) for track, plays in top
    ]


@st.composite
def listening(draw: st.DrawFn) -> tuple[Sessions, list[bool]]:
    """Sessions, and whether the outcome of the last play of each is known; an unknown one is stored as played."""
    sessions = draw(LISTENING)
    known = draw(st.lists(st.booleans(), min_size=len(sessions), max_size=len(sessions)))
    for session, is_known in zip(sessions, known, strict=True):
        if not is_known:
            session[-1] = (session[-1][0], False)
    return sessions, known


class TestFigures:
    @settings(max_examples=60, deadline=None)
    @given(listening(), st.sampled_from([1, 5, 40, 1 << 20]))
    def test_of_any_sessions_are_those_of_a_count_play_by_play(
        self, tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Sessions, list[bool]], block: int
    ) -> None:
        sessions, known = drawn
        dataset = written(tmp_path_factory.mktemp("any") / "d", sessions, tracks=TRACKS, last_known=known)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(statistics, "_BLOCK", block)
            agrees(describe(dataset, NOW), figures(sessions, known, TRACKS))

    def test_of_a_mapped_dataset_are_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        in_memory = describe(week_of_listening(tmp_path / "d"), NOW)
        monkeypatch.setattr("training.data.dataset.MAPPED_FROM", 1)
        mapped = open_dataset(tmp_path / "d")
        assert mapped.sessions.rows.dtype == np.int32
        assert describe(mapped, NOW) == in_memory

    def test_of_one_session_worked_out_by_hand(self, tmp_path: Path) -> None:
        # a b* b c* a: position rates 0 1 0 1 0; the second b and a are repeats; three tracks of 2, 2 and 1 plays.
        session = [(0, False), (1, True), (1, False), (2, True), (0, False)]
        of = describe(written(tmp_path / "d", [session], tracks=4), NOW)
        assert [group.skip_rate for group in of.by_position] == [0, 1, 0, 1, 0]
        same(of.by_previous.after_skip, plays=2, skips=0)
        same(of.by_previous.after_play, plays=2, skips=2)
        same(of.repeats, plays=2, sessions=1, immediate=1, immediate_after_skip=1)
        same(of.last_plays, plays=1, skips=0, skip_rate=0.0, unknown=0, repeated=1)
        same(of.popularity, tracks=4, played=3, played_once=1, top_1_percent=0.4, tracks_of_half=2)
        # Gini: differences of all pairs sum to 4, relative to 2 * 3 tracks * 5 plays.
        assert of.popularity.gini == pytest.approx(4 / 30)

    def test_equal_plays_have_a_gini_index_of_zero(self, tmp_path: Path) -> None:
        assert describe(written(tmp_path / "d", [[(track, False) for track in range(7)]]), NOW).popularity.gini == 0

    def test_long_sessions_share_groups_of_positions(self, tmp_path: Path) -> None:
        sessions = [[(0, place % 2 == 1) for place in range(1200)], [(1, True)] * 25]
        of = describe(written(tmp_path / "d", sessions), NOW)
        shown = [(group.first, group.last, group.plays) for group in of.by_position[19:]]
        assert shown == [
            (20, 20, 2), (21, 30, 15), (31, 50, 20), (51, 100, 50), (101, 200, 100), (201, 500, 300), (501, 1000, 500),
            (1001, 1200, 200),
        ]  # fmt: skip
        assert (of.sessions.lengths[0].first, of.sessions.lengths[-1].last) == (21, 1200)


class TestTimes:
    def starting(self, folder: Path, starts: Sequence[datetime | None], **options: Any) -> Description:
        sessions = [[(track, track % 2 == 1) for track in range(3)]] * len(starts)
        return describe(written(folder / "d", sessions, starts=starts, **options), NOW)

    @pytest.mark.parametrize(
        ("days", "period"), [(0, "day"), (39, "day"), (41, "week"), (300, "month"), (2_000, "year"), (90_000, "year")]
    )
    def test_the_periods_are_as_long_as_the_span_needs(self, tmp_path: Path, days: int, period: str) -> None:
        first = datetime(1900, 1, 1, 9, 30, tzinfo=UTC)
        of = self.starting(tmp_path, [first + timedelta(days=days), None, first, None])
        assert (of.times.first, of.times.last) == (first, first + timedelta(days=days))
        assert (of.times.unknown, of.times.period) == (2, period)
        assert sum(one.sessions for one in of.times.periods) == 2
        assert sum(one.plays for one in of.times.periods) == 6
        assert all(one.skip_rate == pytest.approx(1 / 3) for one in of.times.periods)
        assert [one.start for one in of.times.periods] == sorted(one.start for one in of.times.periods)

    def test_a_period_has_the_sessions_that_start_in_it(self, tmp_path: Path) -> None:
        day = datetime(2024, 2, 28, tzinfo=UTC)
        starts = [day, day + timedelta(hours=23, minutes=59), day + timedelta(days=2), day + timedelta(days=1)]
        of = self.starting(tmp_path, starts, last_known=[True, True, True, False])
        found = [(f"{one.start:%m-%d}", one.sessions, one.plays, one.skips) for one in of.times.periods]
        assert found == [("02-28", 2, 6, 2), ("02-29", 1, 2, 1), ("03-01", 1, 3, 1)]

    def test_the_resolution_is_the_greatest_step_that_reaches_every_start(self, tmp_path: Path) -> None:
        day = datetime(2024, 2, 28, tzinfo=UTC)
        assert self.starting(tmp_path, [day, day + timedelta(seconds=90)]).times.resolution_s == 90

    def test_without_a_start_there_is_no_span(self, tmp_path: Path) -> None:
        of = self.starting(tmp_path, [None, None])
        same(of.times, first=None, last=None, unknown=2, resolution_s=None, period=None, periods=[])


def played(*lengths: int, skip_every: int = 0, tracks: int = 30) -> Sessions:
    """Sessions of these lengths whose tracks follow each other; every n-th play is skipped."""
    plays = iter((number % tracks, bool(skip_every) and number % skip_every == 0) for number in range(sum(lengths)))
    return [[next(plays) for _ in range(length)] for length in lengths]


ORDINARY = [3, 4, 5, 6] * 50  # lengths


class TestWarnings:
    def codes(self, folder: Path, sessions: Sessions, **options: Any) -> list[str]:
        return [warning.code for warning in describe(written(folder / "d", sessions, **options), NOW).warnings]

    def test_there_is_none_about_an_ordinary_log(self, tmp_path: Path) -> None:
        assert self.codes(tmp_path, played(*ORDINARY, skip_every=4)) == []

    @pytest.mark.parametrize(
        ("code", "sessions", "options"),
        [
            ("no_skips", played(*ORDINARY), {}),
            ("many_skips", [[(t, t < 29) for t in range(n, n + 5)] for n in range(26)] * 5, {}),
            ("one_session", played(25, skip_every=4), {}),
            ("few_sessions", played(*[3, 4, 5] * 33, skip_every=4), {}),
            ("equal_lengths", played(*[20] * 100, skip_every=3), {}),
            ("sessions_cut", played(*[20, 20, 7] * 50, skip_every=3), {"options": {"max_session_plays": 20}}),
            ("short_sessions", played(*[2, 2, 3] * 50, skip_every=4), {}),
            ("small_catalogue", played(*ORDINARY, skip_every=4, tracks=19), {"tracks": 19}),
            ("dominant_track", [[(0, False), *part] for part in played(*ORDINARY, skip_every=4)], {"tracks": 100}),
            ("rare_tracks", played(*ORDINARY, skip_every=4, tracks=900), {"tracks": 900}),
            ("float_ids", played(*ORDINARY, skip_every=4), {"tracks": [f"{number}.0" for number in range(30)]}),
            ("malformed_lines", played(*ORDINARY, skip_every=4), {"malformed_lines": 20}),
            (
                "implausible_times",
                played(*ORDINARY, skip_every=4),
                {"starts": [datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)] * 200},
            ),
            (
                "implausible_times",
                played(*ORDINARY, skip_every=4),
                {"starts": [datetime(2025, 1, 2, 0, 0, 1, tzinfo=UTC)] * 200},
            ),
            (
                "coarse_times",
                played(*ORDINARY, skip_every=4),
                {
                    "starts": [datetime(2024, 1, 1, minute=number % 60, tzinfo=UTC) for number in range(200)],
                    "log": LogFacts(skips_from=SkipSources(time=900)),
                },
            ),
            (
                "unknown_last_outcomes",
                [[*part, (5, False)] for part in played(*ORDINARY, skip_every=4)],
                {"last_known": [number != 7 for number in range(200)]},
            ),
            ("last_plays_never_skipped", [[*part, (5, False)] for part in played(*ORDINARY, skip_every=4)], {}),
            (
                "skips_before_repeats",
                [*[[(t, f) for t in range(n, n + 4) for f in (True, False)] for n in range(27)] * 5, *played(3, 4)],
                {},
            ),
            (
                "files_differ",
                played(*ORDINARY, skip_every=4),
                {
                    "log": LogFacts(
                        files=[LogFile(name="a", plays=100, skips=45), LogFile(name="b", plays=800, skips=120)]
                    )
                },
            ),
        ],
    )
    def test_each_is_given_where_it_holds(
        self, tmp_path: Path, code: str, sessions: Sessions, options: dict[str, Any]
    ) -> None:
        assert code in self.codes(tmp_path, sessions, **options)

    @pytest.mark.parametrize(
        ("code", "sessions", "options"),
        [
            # 80 % exactly; 20 tracks; sessions of two lengths below the cut; times of Yambda; a file of 99 plays.
            ("many_skips", [[(t, t % 5 > 0) for t in range(n, n + 5)] for n in range(25)] * 5, {}),
            ("small_catalogue", played(*ORDINARY, skip_every=4, tracks=20), {"tracks": 20}),
            ("sessions_cut", played(*[19, 20, 20] * 50, skip_every=3), {"options": {"max_session_plays": 40}}),
            (
                "implausible_times",
                played(*ORDINARY, skip_every=4),
                {"starts": [datetime(1970, 1, 1, tzinfo=UTC)] * 200, "source": "yambda"},
            ),
            (
                "coarse_times",
                played(*ORDINARY, skip_every=4),
                {
                    "starts": [datetime(2024, 1, 1, minute=number % 60, tzinfo=UTC) for number in range(200)],
                    "log": LogFacts(skips_from=SkipSources(flag=900)),
                },
            ),
            (
                "files_differ",
                played(*ORDINARY, skip_every=4),
                {"log": LogFacts(files=[LogFile(name="a", plays=99, skips=99), LogFile(name="b", plays=800, skips=9)])},
            ),
        ],
    )
    def test_each_is_left_out_just_beside(
        self, tmp_path: Path, code: str, sessions: Sessions, options: dict[str, Any]
    ) -> None:
        assert code not in self.codes(tmp_path, sessions, **options)

    def test_those_of_the_log_come_first_and_once(self, tmp_path: Path) -> None:
        told = [DataWarning(code=code, message=f"{code} as the log says") for code in ("no_time_zone", "no_skips")]
        found = describe(written(tmp_path / "d", played(3, 4), log=LogFacts(warnings=told)), NOW).warnings
        assert found[:2] == told
        assert "few_sessions" in [warning.code for warning in found]
        assert [warning.code for warning in found].count("no_skips") == 1


class TestOutput:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
        code = main(["describe", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    def test_on_a_terminal_of_80_columns_is_as_recorded(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name, value in {"FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": "80", "LINES": "50"}.items():
            monkeypatch.setenv(name, value)
        week_of_listening(Path("week"))
        _, out, _ = self.run(capsys, "week")
        shown = "".join(f"{line.rstrip()}\n" for line in out.splitlines())
        assert max(map(len, shown.splitlines())) <= 80
        recorded = Path(__file__).parent / "described-week.txt"
        if os.environ.get("SEGUE_RECORD"):
            recorded.write_text(shown, encoding="utf-8")
        assert shown == recorded.read_text(encoding="utf-8")

    def test_through_a_pipe_has_a_line_a_row(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        week_of_listening(tmp_path / "week")
        code, out, err = self.run(capsys, tmp_path / "week")
        assert code == 0
        assert "\x1b" not in out
        lines = out.splitlines()
        assert f"folder\t{tmp_path / 'week'}" in lines
        at = lines.index("# Skip rate by file")
        assert lines[at + 1 : at + 4] == [
            "file\tplays\tskips\tskip rate",
            "phone.csv\t1,000\t400\t40.0%",
            "<b>radio & co</b>.csv\t712\t9\t1.3%",
        ]
        assert err == "For plots, add --html FILE.\n"

    def test_as_json_has_every_figure(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        dataset = week_of_listening(tmp_path / "week")
        found = json.loads(self.run(capsys, tmp_path / "week", "--json")[1])
        assert found == json.loads(describe(dataset).model_dump_json())
        assert found["times"]["first"] == "2024-03-01T18:00:00Z"
        assert found["log"]["steps"][1]["option"] == "--max-malformed"

    def test_control_characters_in_names_are_escaped(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        log = LogFacts(
            files=[LogFile(name="a\x1b[31m.csv", plays=1, skips=0)],
            warnings=[DataWarning(code="x", message="bad\x1b[2J")],
        )
        written(tmp_path / "d", played(3, 4), log=log)
        _, out, _ = self.run(capsys, tmp_path / "d")
        assert "\x1b" not in out
        assert "a\\x1b[31m.csv" in out


class TestDamage:
    def damaged(self, capsys: pytest.CaptureFixture[str], folder: Path, words: str) -> None:
        assert main(["describe", str(folder)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1
        assert words in captured.err

    def test_a_folder_that_is_no_dataset_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.damaged(capsys, tmp_path, "is not a dataset")
        self.damaged(capsys, tmp_path / "missing", "is not a dataset")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (pl.lit(None).alias("started_at"), "no times in column started_at"),
            (pl.lit(2**62).cast(pl.Datetime("ms", "UTC")).alias("started_at"), "outside years 1 to 9998"),
            (pl.lit(-(2**62)).cast(pl.Datetime("ms", "UTC")).alias("started_at"), "outside years 1 to 9998"),
            (pl.lit("x").alias("last_known"), "last_known"),
        ],
    )
    def test_columns_of_another_kind_are_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: pl.Expr, words: str
    ) -> None:
        written(tmp_path / "d", played(3, 4))
        file = tmp_path / "d" / SESSIONS_FILE
        pl.read_parquet(file).with_columns(change).write_parquet(file)
        self.damaged(capsys, tmp_path / "d", words)

    def test_a_missing_column_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        written(tmp_path / "d", played(3, 4))
        file = tmp_path / "d" / SESSIONS_FILE
        pl.read_parquet(file).drop("started_at").write_parquet(file)
        self.damaged(capsys, tmp_path / "d", "started_at")

    def test_facts_about_the_log_of_another_kind_are_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        written(tmp_path / "d", played(3, 4))
        file = tmp_path / "d" / FACTS_FILE
        file.write_text(json.dumps(json.loads(file.read_text()) | {"log": {"files": 7}}))
        self.damaged(capsys, tmp_path / "d", "damaged at log.files")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b'{"a":' * 100_000, "expected JSON"),
            (b'{"format_version": 1, "source": "\\ud800"}', "expected JSON"),
            (b'{"format_version": 1, "source": 1' + b"0" * 5_000 + b"}", "expected JSON"),
        ],
    )
    def test_facts_that_no_page_can_show_are_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: str
    ) -> None:
        written(tmp_path / "d", played(3, 4))
        (tmp_path / "d" / FACTS_FILE).write_bytes(content)
        self.damaged(capsys, tmp_path / "d", words)

    def test_a_number_that_no_log_reaches_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        written(tmp_path / "d", played(3, 4))
        file = tmp_path / "d" / FACTS_FILE
        log = {"files": [{"name": "a", "plays": 1, "skips": 10**400}]}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"log": log}))
        self.damaged(capsys, tmp_path / "d", "damaged at log.files.0.skips")

    def test_a_name_that_is_not_utf_8_is_shown_with_escapes(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        log = LogFacts(files=[LogFile(name=os.fsdecode(b"caf\xe9.csv"), plays=1, skips=0)])
        written(tmp_path / "d", played(3, 4), log=log)
        assert main(["describe", str(tmp_path / "d"), "--html", str(tmp_path / "a.html")]) == 0
        out = capsys.readouterr().out
        assert "caf\\udce9.csv\t1\t0" in out
        assert "caf\\udce9.csv" in (tmp_path / "a.html").read_text(encoding="utf-8")

    def test_any_damage_ends_in_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        week_of_listening(tmp_path / "d")
        rng = np.random.default_rng(3)
        codes = []
        for number in range(90):
            file = tmp_path / "d" / (FACTS_FILE, SESSIONS_FILE, CATALOGUE_FILE)[number % 3]
            whole = file.read_bytes()
            changed = bytearray(whole)
            for at in rng.integers(len(whole), size=int(rng.integers(1, 4))):
                changed[at] = rng.integers(256)
            file.write_bytes(changed[: int(rng.integers(len(whole)))] if number % 7 == 0 else changed)
            codes.append(main(["describe", str(tmp_path / "d")]))
            captured = capsys.readouterr()
            assert codes[-1] in (0, 2)
            assert codes[-1] == 0 or len(captured.err.splitlines()) == 1
            file.write_bytes(whole)
        assert codes.count(2) > 45

    @pytest.mark.parametrize("row", [0, 31, -1])
    def test_a_play_of_no_track_is_refused(self, tmp_path: Path, row: int) -> None:
        dataset = written(tmp_path / "d", played(3, 4))
        dataset.sessions.rows[2] = row
        with pytest.raises(BadDataset, match="outside its 30 tracks"):
            describe(dataset, NOW)
