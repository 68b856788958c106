"""`segue prepare`: figures worked out by hand for small logs of every kind, and what is refused."""

import bz2
import gzip
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest
import zstandard

from segue.errors import BadLog, BadOption, InputError
from training.data.dataset import Dataset
from training.prepare.options import LogKind
from training.prepare.pipeline import PrepareReport, prepare, prepare_options

MSSD_HEADER = (
    "session_id,session_position,session_length,track_id_clean,skip_1,skip_2,skip_3,not_skipped,context_switch,"
    "no_pause_before_play,short_pause_before_play,long_pause_before_play,hist_user_behavior_n_seekfwd,"
    "hist_user_behavior_n_seekback,hist_user_behavior_is_shuffle,hour_of_day,date,premium,context_type,"
    "hist_user_behavior_reason_start,hist_user_behavior_reason_end"
)


def plays_of(dataset: Dataset) -> dict[str, list[tuple[str, bool]]]:
    """Sessions by id: the tracks and whether they were skipped."""
    sessions, ids = dataset.sessions, dataset.session_ids.to_list()
    return {
        session_id: [
            (dataset.catalogue.track_id(int(row)), bool(skipped))
            for row, skipped in zip(sessions.rows[start:end], sessions.skipped[start:end], strict=True)
        ]
        for session_id, start, end in zip(ids, sessions.offsets[:-1], sessions.offsets[1:], strict=True)
    }


def told(dataset: Dataset) -> dict[str, str]:
    """Sessions by id: the tracks one after another, skipped ones with a star."""
    return {
        session_id: " ".join(track + "*" * skipped for track, skipped in plays)
        for session_id, plays in plays_of(dataset).items()
    }


def told_steps(report: PrepareReport) -> list[tuple[str, int, int, int | None, str | None]]:
    """The steps: their name, what they removed, the plays and sessions that remain, and their option."""
    return [(step.step, step.removed, step.plays, step.sessions, step.option) for step in report.steps]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., PrepareReport]:
    """Prepare texts, bytes or frames as files of a log."""

    def run_it(kind: LogKind, *contents: Any, suffix: str = ".csv", **options: Any) -> PrepareReport:
        files = []
        for number, content in enumerate(contents):
            file = tmp_path / f"log{number}{suffix}"
            if isinstance(content, pl.DataFrame):
                file = file.with_suffix(".parquet")
                content.write_parquet(file)
            else:
                file.write_bytes(content if isinstance(content, bytes) else content.encode())
            files.append(file)
        return prepare(kind, files, tmp_path / "out", prepare_options(**options), overwrite=True)

    return run_it


Run = Callable[..., PrepareReport]


def lfm1k_line(user: str, time: str, artist: str, title: str, mbid: str = "") -> str:
    return f"{user}\t2009-05-04T{time}Z\t\t{artist}\t{mbid}\t{title}\n"


# Newest first, as published. Session one: a is skipped after 20 s and c after 30 s; e follows d after exactly
# 20 minutes. Session two begins one second later than that after e.
LFM1K = "".join(
    [
        lfm1k_line("u1", "10:49:00", "Ä", "h", "mbid-h"),
        lfm1k_line("u1", "10:45:00", "B", "g", "mbid-g"),
        lfm1k_line("u1", "10:44:31", "A", "a"),
        lfm1k_line("u1", "10:24:30", "A", "e", "mbid-e"),
        lfm1k_line("u1", "10:04:30", "A", "d", "mbid-d"),
        lfm1k_line("u1", "10:04:00", "A", "c", "mbid-c"),
        lfm1k_line("u1", "10:00:20", "坂本", 'b "live', ""),
        lfm1k_line("u1", "10:00:00", "A", "a"),
        lfm1k_line("u0", "10:00:05", "A", "a"),
        lfm1k_line("u0", "10:00:00", "A", "a"),
    ]
)


class TestListeners:
    def test_sessions_and_skips_are_as_worked_out_by_hand(self, run: Run) -> None:
        report = run("lfm1k", LFM1K, min_session_plays=2, sample_half_skips=False)
        assert told(report.dataset) == {
            "s00000001": "A — a* A — a",
            "s00000002": 'A — a* 坂本 — b "live mbid-c* mbid-d mbid-e',
            "s00000003": "A — a* mbid-g mbid-h",
        }
        assert report.dataset.facts.counts.model_dump() == {"sessions": 3, "plays": 10, "tracks": 7, "skips": 4}

    def test_the_report_says_what_each_rule_left(self, run: Run) -> None:
        report = run("lfm1k", LFM1K + "cut short\n", sample_half_skips=False, max_malformed_pct=10)
        assert told_steps(report) == [
            ("lines read", 0, 11, None, None),
            ("malformed lines", 1, 10, None, "--max-malformed 10"),
            ("sessions", 0, 10, 3, "--idle-gap 1200"),
            ("short sessions", 5, 5, 1, "--min-session-plays 5"),
        ]
        assert (report.kind, report.files, report.lines, report.malformed) == ("lfm1k", 1, 11, 1)

    def test_title_artist_and_start_are_kept(self, run: Run, tmp_path: Path) -> None:
        catalogue = run("lfm1k", LFM1K, min_session_plays=3, sample_half_skips=False).dataset.catalogue
        row = catalogue.row('坂本 — b "live')
        assert catalogue.frame.select("title", "artist").row(row - 1) == ('b "live', "坂本")
        started = pl.read_parquet(tmp_path / "out" / "sessions.parquet")["started_at"].to_list()
        assert started[0] == datetime(2009, 5, 4, 10, 0, 0, tzinfo=UTC)

    def test_gap_and_skip_time_can_be_set(self, run: Run) -> None:
        report = run("lfm1k", LFM1K, idle_gap_s=1199, skip_within_s=29, min_session_plays=1, sample_half_skips=False)
        assert list(told(report.dataset).values()) == [
            "A — a* A — a",
            'A — a* 坂本 — b "live mbid-c mbid-d',
            "mbid-e",
            "A — a* mbid-g mbid-h",
        ]

    def test_of_two_plays_at_one_second_the_later_line_is_the_earlier_play(self, run: Run) -> None:
        lines = [lfm1k_line("u", "10:00:00", "A", title, title) for title in "edcba"]
        report = run("lfm1k", lfm1k_line("u", "10:00:40", "A", "f", "f") + "".join(lines), sample_half_skips=False)
        assert told(report.dataset) == {"s00000001": "a* b* c* d* e f"}

    def test_the_order_of_lines_and_files_does_not_matter(self, run: Run) -> None:
        lines = LFM1K.splitlines(keepends=True)
        whole = run("lfm1k", LFM1K, min_session_plays=2).dataset.facts.fingerprint
        assert run("lfm1k", "".join(lines[5:]), "".join(lines[:5]), min_session_plays=2).dataset.facts.fingerprint == (
            whole
        )
        assert run("lfm1k", "".join(sorted(lines)), min_session_plays=2).dataset.facts.fingerprint == whole

    def test_no_name_of_a_listener_enters_the_dataset(self, run: Run, tmp_path: Path) -> None:
        run("lfm1k", LFM1K.replace("u1", "secret-listener"))
        for file in (tmp_path / "out").iterdir():
            assert b"secret-listener" not in file.read_bytes()

    @pytest.mark.parametrize("times", ["date-time", "epoch seconds", "epoch milliseconds", "with offset", "with T"])
    @pytest.mark.parametrize("header", ["user_id\ttrack_id\talbum_id\t{}", "{}\talbum_id\tuser_id\ttrack_id"])
    def test_lfm2b_is_read_by_its_header(self, run: Run, times: str, header: str) -> None:
        lines = [header.format("timestamp")]
        for track, second in (("9", 0), ("8", 20), ("7", 200), ("9", 400), ("6", 600)):
            moment = datetime.fromtimestamp(1_580_000_000 + second, tz=UTC)
            time = {
                "date-time": f"{moment:%Y-%m-%d %H:%M:%S}",
                "with T": f"{moment:%Y-%m-%dT%H:%M:%S.000Z}",
                "with offset": f"{moment:%Y-%m-%d %H:%M:%S+00:00}",
                "epoch seconds": f"{1_580_000_000 + second}",
                "epoch milliseconds": f"{(1_580_000_000 + second) * 1000}",
            }[times]
            fields = {"user_id": "5", "track_id": track, "album_id": "1", "timestamp": time}
            lines.append("\t".join(fields[name] for name in lines[0].split("\t")))
        report = run("lfm2b", "\n".join(lines), suffix=".tsv")
        assert told(report.dataset) == {"s00000001": "9* 8 7 9 6"}
        started = pl.read_parquet(report.dataset.path / "sessions.parquet")["started_at"].item()
        assert started == datetime.fromtimestamp(1_580_000_000, tz=UTC)

    def test_lfm2b_with_commas_capitals_and_a_byte_order_mark(self, run: Run) -> None:
        lines = "\ufeffUser_ID,Track_ID,Timestamp\r\n" + "".join(
            f"1,{n},{1_580_000_000 + n * 60}\r\n" for n in range(5)
        )
        assert told(run("lfm2b", lines).dataset) == {"s00000001": "0 1 2 3 4"}

    def test_yambda_skips_are_shares_heard(self, run: Run) -> None:
        frame = pl.DataFrame(
            {
                "uid": [3, 3, 3, 3, 3],
                "item_id": [11, 12, 13, 11, 14],
                "timestamp": [100, 105, 300, 400, 500],
                "is_organic": [1, 1, 0, 0, 1],
                "played_ratio_pct": [49, 50, 100, 130, 0],
                "track_length_seconds": [200] * 5,
            }
        ).cast(pl.UInt32)
        assert told(run("yambda", frame).dataset) == {"s00000001": "11* 12 13 11 14*"}
        assert told(run("yambda", frame, played_ratio_pct=60).dataset) == {"s00000001": "11* 12* 13 11 14*"}

    def test_events_without_sessions_are_cut_into_sessions(self, run: Run) -> None:
        lines = "timestamp,track_id,user_id,title\n" + "".join(
            f'2024-01-01T10:0{minute}:00+01:00,t{minute},ann,"Song, {minute}"\n' for minute in range(5)
        )
        dataset = run("events", lines).dataset
        assert told(dataset) == {"s00000001": "t0 t1 t2 t3 t4"}
        assert sorted(dataset.catalogue.frame["title"]) == [f"Song, {minute}" for minute in range(5)]


def mssd(*plays: tuple[str, int, str, str], date: str = "2018-07-15") -> str:
    lengths = Counter(session for session, *_ in plays)
    rest = f"True,0,0,0,0,0,0,True,16,{date},True,radio,a,b"
    lines = [
        f"{session},{position},{lengths[session]},{track},{flags.replace(' ', ',')},{rest}"
        for session, position, track, flags in plays
    ]
    return "\n".join([MSSD_HEADER, *lines, ""])


class TestWholeSessions:
    PLAYS = (
        ("two", 2, "b", "False True True"),
        ("two", 1, "a", "True True True"),
        ("one", 1, "c", "0 0 1"),
        ("one", 2, "a", "false false false"),
        ("one", 3, "b", "1 1 1"),
    )

    @pytest.mark.parametrize(
        ("flag", "one", "two"),
        [("skip_1", "c a b*", "a* b"), ("skip_2", "c a b*", "a* b*"), ("skip_3", "c* a b*", "a* b*")],
    )
    def test_mssd_sessions_come_in_order_with_the_chosen_skip(self, run: Run, flag: str, one: str, two: str) -> None:
        dataset = run("mssd", mssd(*self.PLAYS), min_session_plays=2, skip_flag=flag).dataset
        assert told(dataset) == {"one": one, "two": two}

    @pytest.mark.parametrize("date", ["15-07-18", "2018-07-15"])
    def test_mssd_dates_come_in_two_forms(self, run: Run, date: str) -> None:
        path = run("mssd", mssd(*self.PLAYS, date=date), min_session_plays=2).dataset.path
        started = pl.read_parquet(path / "sessions.parquet")["started_at"].to_list()
        assert started == [datetime(2018, 7, 15, 16, tzinfo=UTC)] * 2

    def test_a_session_in_two_files_is_one_session(self, run: Run) -> None:
        dataset = run("mssd", mssd(*self.PLAYS[:1]), mssd(*self.PLAYS[1:]), min_session_plays=2).dataset
        assert told(dataset)["two"] == "a* b*"

    def test_short_sessions_are_dropped(self, run: Run) -> None:
        dataset = run("mssd", mssd(*self.PLAYS), min_session_plays=3).dataset
        assert list(told(dataset)) == ["one"]

    def test_events_are_ordered_by_position_or_time(self, run: Run) -> None:
        by_position = "session_id,position,track_id,skipped\ns,10,c,1\ns,9,b,0\ns,2,a,true\n"
        assert told(run("events", by_position, min_session_plays=1).dataset) == {"s": "a* b c*"}
        by_time = "session_id,timestamp,track_id,skipped\ns,1700000020,c,1\ns,1700000001,b,0\ns,1700000000,a,1\n"
        assert told(run("events", by_time, min_session_plays=1).dataset) == {"s": "a* b c*"}

    def test_long_sessions_are_cut_and_short_remainders_dropped(self, run: Run) -> None:
        lines = ["session_id,position,track_id,skipped", *(f"s,{n},t{n},0" for n in range(8))]
        dataset = run("events", "\n".join(lines), max_session_plays=3, min_session_plays=2).dataset
        assert told(dataset) == {"s": "t0 t1 t2", "s~2": "t3 t4 t5", "s~3": "t6 t7"}
        shorter = run("events", "\n".join(lines), max_session_plays=3, min_session_plays=3).dataset
        assert list(told(shorter)) == ["s", "s~2"]


class TestEventLogOfTheService:
    SCHEMA: ClassVar[dict[str, Any]] = {
        "session_id": pl.String,
        "position": pl.Int64,
        "track_id": pl.String,
        "skipped": pl.Boolean,
        "timestamp": pl.Datetime("ms", "UTC"),
        "written_at": pl.Datetime("us", "UTC"),
    }

    def rows(self, *rows: tuple[int, str, bool, int]) -> pl.DataFrame:
        at = datetime(2024, 1, 1, tzinfo=UTC)
        told = [
            ("s", position, track, skipped, at, datetime(2024, 1, 1, 0, 0, 0, written, tzinfo=UTC))
            for position, track, skipped, written in rows
        ]
        return pl.DataFrame(told, schema=self.SCHEMA, orient="row")

    def test_of_two_reports_of_a_play_the_newest_counts(self, run: Run) -> None:
        log = self.rows((0, "a", True, 9), (0, "a", False, 1), (1, "b", False, 2), (1, "b", True, 3))
        report = run("events", log, min_session_plays=1)
        assert told(report.dataset) == {"s": "a* b*"}
        assert ("repeated reports", 2, 2, None, None) in told_steps(report)

    def test_without_the_time_of_writing_the_last_row_counts(self, run: Run) -> None:
        log = self.rows((0, "a", True, 9), (0, "a", False, 1), (1, "b", False, 2)).drop("written_at")
        later = self.rows((1, "b", True, 1)).drop("written_at")
        assert told(run("events", log, later, min_session_plays=1).dataset) == {"s": "a b*"}

    def test_a_folder_of_parquet_files_is_read_but_nothing_unfinished(self, tmp_path: Path) -> None:
        folder = tmp_path / "log" / "2024-01-01"
        folder.mkdir(parents=True)
        self.rows((0, "a", False, 1)).write_parquet(folder / "one.parquet")
        self.rows((1, "b", False, 1)).write_parquet(folder / "two.parquet")
        (folder / "three.parquet.unfinished").write_text("half")
        (folder / ".four.parquet").write_text("half")
        options = prepare_options(min_session_plays=1)
        report = prepare("events", [tmp_path / "log"], tmp_path / "out", options)
        assert (told(report.dataset), report.files) == ({"s": "a b"}, 2)


def events(sessions: dict[str, str]) -> str:
    """Whole sessions from texts such as `a b* c`."""
    lines = ["session_id,position,track_id,skipped"]
    for session_id, plays in sessions.items():
        for position, play in enumerate(plays.split()):
            lines.append(f"{session_id},{position},{play.rstrip('*')},{int(play.endswith('*'))}")
    return "\n".join(lines)


class TestRules:
    def test_rare_tracks_go_before_short_sessions(self, run: Run) -> None:
        log = events({"s1": "a a b c", "s2": "a b b d", "s3": "c e"})
        report = run("events", log, min_track_plays=3, min_session_plays=3)
        # a and b have three plays each, all others fewer.
        assert told(report.dataset) == {"s1": "a a b", "s2": "a b b"}
        assert told_steps(report) == [
            ("lines read", 0, 10, None, None),
            ("sessions", 0, 10, 3, None),
            ("rare tracks", 4, 6, 3, "--min-track-plays 3"),
            ("short sessions", 0, 6, 2, "--min-session-plays 3"),
        ]

    def test_dropping_a_track_changes_no_outcome(self, run: Run) -> None:
        lines = [("10:00:00", "a"), ("10:00:10", "rare"), ("10:05:00", "a"), ("10:10:00", "a")]
        log = "".join(lfm1k_line("u", time, "A", track, track) for time, track in reversed(lines))
        report = run("lfm1k", log, min_track_plays=2, min_session_plays=1, sample_half_skips=False)
        assert told(report.dataset) == {"s00000001": "a* a a"}

    def test_half_of_the_sessions_hold_a_skip(self, run: Run) -> None:
        log = events({f"s{n:02}": "a b*" if n < 5 else "a b" for n in range(30)})
        dataset = run("events", log, min_session_plays=1, sample_half_skips=True, seed=1).dataset
        sessions = told(dataset)
        assert list(sessions)[:5] == ["s00", "s01", "s02", "s03", "s04"]
        assert list(sessions.values()).count("a b") == 5
        assert list(sessions) == sorted(sessions)

    def test_where_few_sessions_lack_a_skip_all_are_kept(self, run: Run) -> None:
        log = events({"s1": "a b*", "s2": "a*", "s3": "a"})
        assert len(run("events", log, min_session_plays=1, sample_half_skips=True).dataset.sessions) == 3

    def test_lfm1k_alone_is_sampled_by_default(self, run: Run) -> None:
        # u1's session of five holds a skip; u2's and u3's hold none, so one of them is drawn.
        quiet = "".join(lfm1k_line(user, f"10:{n:02}:00", "A", "a") for user in ("u2", "u3") for n in range(5))
        assert len(run("lfm1k", LFM1K + quiet).dataset.sessions) == 2
        assert len(run("lfm1k", LFM1K + quiet, sample_half_skips=False).dataset.sessions) == 3
        assert run("lfm1k", LFM1K).dataset.facts.options["sample_half_skips"] is True

    def test_a_random_sample_follows_the_seed(self, run: Run) -> None:
        log = events({f"s{n:02}": "a b" for n in range(40)})
        drawn = [
            list(told(run("events", log, min_session_plays=1, max_sessions=10, seed=seed).dataset))
            for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]
        assert len(drawn[0]) == 10

    def test_where_nothing_is_left_the_message_says_which_rule_took_it(self, run: Run) -> None:
        with pytest.raises(BadLog, match=r"the longest session has 3 plays: lower --min-session-plays \(5\)"):
            run("events", events({"s": "a b c"}))


class TestTrackIds:
    def ids(self, run: Run, *tracks: tuple[str, str, str]) -> list[str]:
        lines = "".join(
            lfm1k_line("u", f"10:{n:02}:00", artist, title, mbid) for n, (artist, title, mbid) in enumerate(tracks)
        )
        plays = plays_of(run("lfm1k", lines, min_session_plays=1, sample_half_skips=False).dataset)
        return [track for track, _ in plays["s00000001"]]

    def test_artist_and_title_stand_for_a_missing_id(self, run: Run) -> None:
        assert self.ids(run, ("A", "x", ""), ("", "y", ""), ("A", "z", "m-1")) == ["A — x", "y", "m-1"]

    def test_long_ids_stay_distinct_and_short_enough(self, run: Run) -> None:
        ids = self.ids(run, ("A", "x" * 300 + "1", ""), ("A", "x" * 300 + "2", ""), ("A", "é" * 252, ""))
        assert len(set(ids)) == 3
        assert [len(track_id) for track_id in ids] == [256, 256, 256]
        assert ids[0].startswith("A — xxx")
        assert ids[2] == "A — " + "é" * 252

    def test_tracks_that_would_be_called_the_same_stay_distinct(self, run: Run) -> None:
        ids = self.ids(run, ("A — B", "C", ""), ("A", "B — C", ""), ("", "d", ""), ("", "", "d"))
        assert len(set(ids)) == 4
        assert all(track_id.startswith(("A — B — C #", "d #")) for track_id in ids)

    def test_control_characters_become_blanks(self, run: Run) -> None:
        (one, two) = self.ids(run, ("A", "x\x07y", ""), ("A", "x y", ""))
        assert one.startswith("A — x y #")
        assert two.startswith("A — x y")
        assert one != two


class TestMalformedLines:
    def test_they_are_counted_shown_and_left_out(self, run: Run) -> None:
        wrong = [
            "only three\tfields\there",
            "u1\t2009-05-04T10:00:00Z\t\tA\t\tx\tone too many",
            "u1\tyesterday\t\tA\t\tx",
            "\t2009-05-04T10:00:00Z\t\tA\t\tx",
            "u1\t2009-05-04T10:00:00Z\t\tA\t\t",
            "u1\tnot shown\t\tA\t\tx",
        ]
        report = run("lfm1k", LFM1K + "\n" + "\n\n".join(wrong) + "\n", sample_half_skips=False, max_malformed_pct=40)
        assert (report.lines, report.malformed) == (16, 6)
        assert report.malformed_reasons == {
            "wrong number of fields": 2,
            "timestamp is no time": 2,
            "userid is missing": 1,
            "title is missing": 1,
        }
        assert [(line.reason, line.value) for line in report.malformed_examples] == [
            ("wrong number of fields", None),
            ("wrong number of fields", None),
            ("timestamp is no time", "yesterday"),
            ("userid is missing", ""),
            ("title is missing", ""),
        ]
        assert report.dataset.facts.malformed_lines == 6
        assert len(report.dataset.sessions.rows) == 5

    def test_the_report_shows_a_short_value_and_never_the_row(self, run: Run) -> None:
        report = run("lfm1k", LFM1K + f"secret\t\x1b[2J{'x' * 5_000}\t\tA\t\tx", max_malformed_pct=10)
        [line] = map(str, report.malformed_examples)
        assert line.endswith(
            f"log0.csv, line 11, timestamp: '\\x1b[2J{'x' * 56}' is no time; accepted: times such as "
            "2009-05-04T23:08:57Z, from 1990 on"
        )

    def test_examples_come_from_all_files_in_order(self, run: Run) -> None:
        report = run("lfm1k", LFM1K + "one\ntwo\n", "three\n" + LFM1K, min_session_plays=1, max_malformed_pct=20)
        assert [(Path(line.file).name, line.number) for line in report.malformed_examples] == [
            ("log0.csv", 11),
            ("log0.csv", 12),
            ("log1.csv", 1),
        ]

    def test_bytes_that_are_no_utf8_are_refused(self, run: Run) -> None:
        """Replaced bytes would make one track of several."""
        line = len(LFM1K.splitlines()) + 1
        with pytest.raises(BadLog, match=rf"log0.csv, line {line}: byte 0xFF is no UTF-8: .* --encoding latin-1"):
            run("lfm1k", LFM1K.encode() + b"u1\t2009-05-04T10:30:00Z\t\tA\t\t\xff\xfe\n", min_session_plays=1)

    def test_events_may_have_unreadable_positions_flags_and_times(self, run: Run) -> None:
        header = "session_id,position,track_id,skipped,timestamp\n"
        good = "s,1,a,0,\ns,2,b,1,2024-01-01 10:00:00\n"
        wrong = "s,x,a,0,\ns,3,a,perhaps,\ns,4,a,1,soon\ns,5,,1,\ns,6,a,1,,too many\n"
        report = run("events", header + good + wrong, min_session_plays=1, max_malformed_pct=80)
        assert told(report.dataset) == {"s": "a b*"}
        assert sorted(report.malformed_reasons) == [
            "position is no whole number",
            "skipped is no flag",
            "timestamp is no time",
            "track_id is missing",
            "wrong number of fields",
        ]

    def test_numbers_that_are_not_whole_are_no_positions_and_no_flags(self, run: Run) -> None:
        """Not cut to whole ones, by which plays would fall together."""
        frame = pl.DataFrame(
            {
                "session_id": ["s"] * 5,
                "position": [0.5, 1.0, 2.0, 3.0, None],
                "track_id": ["x", "a", "b", "c", "d"],
                "skipped": [0.0, 0.0, 1.0, 0.5, 1.0],
            }
        )
        report = run("events", frame, min_session_plays=1, max_malformed_pct=60)
        assert told(report.dataset) == {"s": "a b*"}
        assert report.malformed_reasons == {
            "position is no whole number": 1,
            "position is missing": 1,
            "skipped is no flag": 1,
        }

    def test_a_stray_quote_costs_its_own_line_at_most(self, run: Run) -> None:
        fields = ['12" mix', 'the "x" mix', '"say ""hi"", now"', '""', '"open', '"shut" early', '7"', "plain", '"a,b"']
        lines = [f"s,{number},t{number},0,{title},end" for number, title in enumerate(fields)]
        log = "\n".join(["session_id,position,track_id,skipped,title,line", *lines])
        report = run("events", log, max_malformed_pct=30)
        titles = dict(report.dataset.catalogue.frame.select("track_id", "title").rows())
        assert titles == {
            "t0": '12" mix',
            "t1": 'the "x" mix',
            "t2": 'say "hi", now',
            "t3": None,
            "t6": '7"',
            "t7": "plain",
            "t8": "a,b",
        }
        assert [line.number for line in report.malformed_examples] == [6, 7]

    def test_missing_values_of_parquet_are_malformed(self, run: Run) -> None:
        frame = pl.DataFrame(
            {
                "user_id": ["u", None, "u"],
                "track_id": ["a", "a", "b"],
                "timestamp": [1_700_000_000, 1_700_000_001, None],
            }
        )
        report = run("events", frame, min_session_plays=1, max_malformed_pct=70)
        assert report.malformed_reasons == {"user_id is missing": 1, "timestamp is missing": 1}

    def test_a_log_of_another_kind_is_refused(self, run: Run) -> None:
        with pytest.raises(BadLog, match=r"none of 6 lines can be read as lfm1k; .*line 1: wrong number of fields"):
            run("lfm1k", mssd(*TestWholeSessions.PLAYS))


def pack_gz(content: bytes) -> bytes:
    return gzip.compress(content)


class TestSources:
    @pytest.mark.parametrize(
        ("suffix", "pack"), [(".gz", pack_gz), (".bz2", bz2.compress), (".zst", zstandard.compress)]
    )
    @pytest.mark.parametrize("kind", ["lfm1k", "events"])
    def test_compressed_logs_give_the_same_dataset(
        self, run: Run, tmp_path: Path, kind: LogKind, suffix: str, pack: Callable[[bytes], bytes]
    ) -> None:
        log = LFM1K if kind == "lfm1k" else events({"s": "a b* c d e"})
        plain = run(kind, log).dataset.facts.fingerprint
        packed = run(kind, pack(log.encode()), suffix=f".csv{suffix}").dataset
        assert packed.facts.fingerprint == plain
        half = len(log.encode()) // 2
        parts = pack(log.encode()[:half]) + pack(log.encode()[half:])  # as pigz, pbzip2 and pzstd write
        assert run(kind, parts, suffix=f".csv{suffix}").dataset.facts.fingerprint == plain
        assert not list(tmp_path.glob(".log-*"))

    @pytest.mark.parametrize(
        ("suffix", "pack"), [(".gz", pack_gz), (".bz2", bz2.compress), (".zst", zstandard.compress)]
    )
    def test_damaged_compression_is_refused(
        self, run: Run, tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
    ) -> None:
        with pytest.raises(BadLog, match="cannot be uncompressed"):
            run("lfm1k", pack(LFM1K.encode())[:12] + b"no compressed data", suffix=f".tsv{suffix}")
        with pytest.raises(BadLog, match="cannot be uncompressed"):
            run("lfm1k", pack(LFM1K.encode())[:-20], suffix=f".tsv{suffix}")

    def test_folders_and_globs_name_the_logs_in_them(self, tmp_path: Path) -> None:
        folder = tmp_path / "mssd"
        (folder / "training_set").mkdir(parents=True)
        (folder / "track_features").mkdir()
        (folder / "track_features" / "tf_000.csv").write_text("track_id,duration\n")
        (folder / "training_set" / "log_0.csv").write_text(mssd(*TestWholeSessions.PLAYS[:2]))
        (folder / "training_set" / "log_1.csv").write_text(mssd(*TestWholeSessions.PLAYS[2:]))
        options = prepare_options(min_session_plays=1)
        sources: Sequence[list[Path | str]] = (
            [folder],
            [str(folder / "training_set" / "log_*.csv")],
            [folder / "training_set" / "log_0.csv", folder],
        )
        for number, source in enumerate(sources):
            report = prepare("mssd", source, tmp_path / str(number), options)
            assert (report.files, len(report.dataset.sessions)) == (2, 2)

    def test_what_is_not_there_is_refused_in_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "nothing.csv").write_bytes(b"")
        for source, message in (
            (tmp_path / "absent.csv", "does not exist"),
            (tmp_path / "empty", r"holds no log of kind mssd: expected files log_\*\.csv"),
            (str(tmp_path / "*.tsv"), "no file matches"),
            (tmp_path / "nothing.csv", "is empty"),
        ):
            with pytest.raises(BadLog, match=message) as caught:
                prepare("mssd", [source], tmp_path / "out")
            assert "\n" not in str(caught.value)
        with pytest.raises(BadLog, match="name at least one"):
            prepare("mssd", [], tmp_path / "out")

    @pytest.mark.parametrize("header", ["session_id,track\rid,skipped,position", "x" * 200_000, "track_id,,skipped"])
    def test_a_header_that_is_none_is_refused(self, run: Run, header: str) -> None:
        with pytest.raises(BadLog, match=r"has the columns .*; expected"):
            run("events", f"{header}\ns,t,true,0\n")

    def test_a_header_alone_is_no_log(self, run: Run) -> None:
        with pytest.raises(BadLog, match=r"no line in .*: expected a log of kind mssd"):
            run("mssd", MSSD_HEADER + "\n")

    def test_missing_columns_are_named_with_those_found(self, run: Run) -> None:
        with pytest.raises(BadLog, match=r"columns a, b; expected session_id, session_pos.*missing are session_id"):
            run("mssd", "a,b\n1,2\n")
        with pytest.raises(BadLog, match=r"columns user_id, track_id; expected timestamp or time"):
            run("lfm2b", "user_id\ttrack_id\n1\t2\n")
        with pytest.raises(
            BadLog, match=r"columns session_id, track_id, position; expected skipped, or timestamp to infer"
        ):
            run("events", "session_id,track_id,position\n1,2,3\n")
        with pytest.raises(BadLog, match=r"columns uid, item_id; expected .*missing are timestamp, played_ratio_pct"):
            run("yambda", pl.DataFrame({"uid": [1], "item_id": [2]}))

    def test_files_of_the_wrong_form_are_refused(self, run: Run) -> None:
        with pytest.raises(BadLog, match="expected text"):
            run("mssd", pl.DataFrame({"a": [1]}))
        with pytest.raises(BadLog, match="is no Parquet file"):
            run("yambda", "a,b\n1,2\n")
        with pytest.raises(BadLog, match="cannot be read as Parquet"):
            run("events", b"PAR1 and no more", suffix=".parquet")
        with pytest.raises(BadLog, match="two columns named 'track_id', expected a header that names each once"):
            run("events", "track_id,track_id\n1,2\n")

    def test_files_of_two_forms_are_refused(self, run: Run) -> None:
        listeners = "user_id,track_id,timestamp\nu,a,1700000000\n"
        with pytest.raises(BadLog, match="give logs of one form at a time"):
            run("events", events({"s": "a b c d e"}), listeners)

    def test_an_existing_dataset_is_not_touched_before_the_log_is_read(self, run: Run, tmp_path: Path) -> None:
        before = run("lfm1k", LFM1K).dataset.facts
        with pytest.raises(InputError, match="already exists"):
            prepare("lfm1k", [tmp_path / "log0.csv"], tmp_path / "out")
        with pytest.raises(BadLog):
            run("lfm1k", "nonsense")
        assert f'"{before.fingerprint}"' in (tmp_path / "out" / "dataset.json").read_text()


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"idle_gap_s": 0}, "idle_gap_s is 0"),
            ({"min_session_plays": 30}, "expected at most max_session_plays, which is 20"),
            ({"skip_flag": "skip_4"}, "skip_flag is 'skip_4'"),
            ({"gap": 3}, "gap is 3"),
            ({"title": "a\nb"}, "title is 'a\\\\nb': expected one line of at most 100 characters"),
            ({"title": "a" * 101}, "expected one line of at most 100 characters"),
        ],
    )
    def test_wrong_options_are_refused_in_one_line(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(BadOption, match=message) as caught:
            prepare_options(**options)
        assert "\n" not in str(caught.value)

    def test_an_option_without_an_effect_is_refused(self, run: Run) -> None:
        with pytest.raises(BadOption, match="idle_gap_s has no effect on logs of kind mssd"):
            run("mssd", mssd(*TestWholeSessions.PLAYS), idle_gap_s=60)

    def test_an_unknown_kind_is_refused(self, run: Run) -> None:
        with pytest.raises(BadOption, match="no logs of kind 'tidal': expected one of events, spotify"):
            run("tidal", "x")

    def test_the_dataset_says_under_which_options_it_was_made(self, run: Run) -> None:
        options = run("lfm1k", LFM1K, seed=5).dataset.facts.options
        assert options["seed"] == 5
        assert "skip_flag" not in options

    def test_a_title_names_the_dataset_and_changes_no_play(self, run: Run) -> None:
        untitled = run("lfm1k", LFM1K).dataset.facts
        titled = run("lfm1k", LFM1K, title="My last.fm").dataset.facts
        assert (untitled.title, titled.title) == ("Last.fm 1K", "My last.fm")
        assert untitled.fingerprint == titled.fingerprint
        older = titled.model_copy(update={"options": {"seed": 0}})  # a dataset of an earlier version has no title
        assert older.title == "Last.fm 1K"
        assert titled.model_copy(update={"options": {}, "source": "synthetic"}).title == "Simulated sessions"

    def test_progress_is_told_to_the_end(self, run: Run, tmp_path: Path) -> None:
        run("lfm1k", LFM1K)
        heard: list[tuple[str, int, int]] = []
        prepare(
            "lfm1k",
            [tmp_path / "log0.csv"],
            tmp_path / "other",
            progress=lambda what, finished, steps: heard.append((what, finished, steps)),
        )
        assert heard[0] == ("reading log0.csv", 0, 3)
        assert heard[-1] == ("done", 3, 3)
