"""`segue prepare events`: which column is what, where skips come from, and what a log is refused for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from segue.errors import BadLog, BadOption
from tests.test_listening_logs import told
from training.prepare.events import KNOWN_NAMES
from training.prepare.options import KINDS, NO_EFFECT, ROLES, PrepareOptions, options_of_kind
from training.prepare.pipeline import PrepareReport, prepare, prepare_options

Run = Callable[..., PrepareReport]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Prepare texts or frames as files of a log of events."""

    def run_it(*contents: "str | pl.DataFrame", **options: Any) -> PrepareReport:
        files = []
        for number, content in enumerate(contents):
            file = tmp_path / (f"log{number}.csv" if isinstance(content, str) else f"log{number}.parquet")
            if isinstance(content, str):
                file.write_text(content, encoding="utf-8")
            else:
                content.write_parquet(file)
            files.append(file)
        given = {"min_session_plays": 1, **options}
        return prepare("events", files, tmp_path / "out", prepare_options(**given), overwrite=True)

    return run_it


def rows(header: str, *lines: str) -> str:
    return "\n".join([header, *lines]) + "\n"


PLAIN = [f"u,{track},2024-03-01T10:{minute:02}:00Z" for track, minute in zip("abcdef", range(0, 24, 4), strict=True)]


class TestFilters:
    FRAME = pl.DataFrame(
        {
            "user_id": ["u"] * 6,
            "track_id": list("abcdef"),
            "timestamp": [1_709_287_200 + 200 * place for place in range(6)],
            "whole": [1, 2, None, 1, 2, 3],
            "real": [1.0, 2.5, None, float("nan"), 1.0, 3.0],
            "flag": [True, False, None, True, True, False],
            "text": ["x", "NULL", None, "", "X", "x,y=z"],
            "bytes": [b"x", b"y", None, b"", b"x", b"x"],
        },
        schema_overrides={"text": pl.Categorical},
    )

    @pytest.mark.parametrize(
        ("options", "kept"),
        [
            ({"where": ["whole=1"]}, "a d"),
            ({"where": ["whole=1", "whole=2"]}, "a b d e"),
            ({"where": ["whole=1", "flag=true", "text=x"]}, "a"),
            ({"where": ["whole="]}, "c"),
            ({"where_not": ["whole="]}, "a b d e f"),
            ({"where_not": ["whole=1", "flag=false"]}, "c e"),
            ({"where": ["real=1"]}, "a e"),
            ({"where": ["real=2.5", "real="]}, "b c d"),
            ({"where": ["flag=true"], "where_not": ["whole=2"]}, "a d"),
            ({"where": ["text="]}, "b c d"),
            ({"where": ["text=x,y=z"]}, "f"),
            ({"where": "Text=x"}, "a"),
            ({"where": ["bytes=x"]}, "a e f"),
            ({"where_not": ["track_id=a", "track_id=b", "track_id=c", "track_id=d"]}, "e f"),
        ],
    )
    def test_lines_are_chosen_by_the_values_of_columns(self, run: Run, options: dict[str, Any], kept: str) -> None:
        report = run(self.FRAME, **options)
        assert told(report.dataset) == {"s00000001": kept}
        assert sum(report.log.ignored.values()) == 6 - len(kept.split())
        steps = [step for step in report.steps if step.step == "filtered lines"]
        assert [step.option for step in steps] == sorted(report.log.ignored)
        assert report.malformed == 0

    def test_many_values_are_told_in_short(self, run: Run) -> None:
        report = run(self.FRAME, where_not=[f"track_id={track}" for track in "abcx\x1b"])
        assert report.log.ignored == {
            "--where-not track_id=a --where-not track_id=b --where-not track_id=c and 2 more": 3
        }
        note = r"--where-not track_id=\x1b left out no line: values are compared exactly"
        assert note in run(self.FRAME, where_not=["track_id=\x1b"]).log.notes

    def test_a_column_must_be_in_every_file(self, run: Run) -> None:
        with pytest.raises(
            BadLog, match=r"log1.parquet has the columns .*, whole; expected real, named by --where-not"
        ):
            run(self.FRAME, self.FRAME.select("user_id", "track_id", "timestamp", "whole"), where_not=["real=1"])
        with pytest.raises(BadLog, match="column whole is of type List"):
            run(self.FRAME.with_columns(whole=[[1]] * 6), where=["whole=1"])
        with pytest.raises(BadLog, match="all of 6 lines are left out"):
            run(self.FRAME, where=["whole=4"])

    def test_a_filter_uses_its_column(self, run: Run) -> None:
        report = run(self.FRAME.rename({"flag": "event_type"}), where=["event_type=true"])
        assert "event_type" not in report.log.unused_columns
        assert "several_events" not in {warning.code for warning in report.log.warnings}


class TestNames:
    @pytest.mark.parametrize(
        "header",
        [
            "user_id,track_id,timestamp",
            "userId,trackId,playedAt",
            "User ID,Item-Id,Listened_At",
            "uid,song,created_at",
            "User-ID?,Track (ID),played at:",
            "User.ID,Track.ID,Played.At",
            "user,media_id,started_at",
        ],
    )
    def test_known_names_are_understood(self, run: Run, header: str) -> None:
        report = run(rows(header, *PLAIN))
        assert told(report.dataset) == {"s00000001": "a b c d e f"}
        columns = [column.strip().lower() for column in header.split(",")]
        assert report.log.columns == dict(zip(("user_id", "track_id", "timestamp"), columns, strict=True))

    def test_the_name_of_a_role_goes_before_other_names(self, run: Run) -> None:
        report = run(rows("user_id,track_id,timestamp,item_id,created_at", *(f"{line},x,1" for line in PLAIN)))
        assert told(report.dataset) == {"s00000001": "a b c d e f"}
        assert report.log.unused_columns == ["item_id", "created_at"]

    def test_two_columns_that_fit_are_refused_and_the_option_decides(self, run: Run) -> None:
        log = rows("user_id,song,timestamp,item", *(f"{line},x" for line in PLAIN))
        with pytest.raises(BadLog, match=r"one track_id, found item and song: --columns track_id=COLUMN"):
            run(log)
        report = run(log, columns=("track_id=Song",))
        assert told(report.dataset) == {"s00000001": "a b c d e f"}

    def test_a_named_column_must_be_there(self, run: Run) -> None:
        with pytest.raises(BadLog, match=r"columns user_id, track_id, timestamp; expected id, named by --columns"):
            run(rows("user_id,track_id,timestamp", *PLAIN), columns=("track_id=id",))

    def test_what_is_lacking_is_named_with_the_option(self, run: Run) -> None:
        with pytest.raises(
            BadLog, match=r"no column has a known name for a time or a position in a session; .*timestamp=C"
        ):
            run(rows("user_id,track_id,target", "u,a,1"))
        with pytest.raises(BadLog, match=r"columns a, b; .*--columns track_id=COLUMN,user_id=COLUMN,timestamp=COLUMN"):
            run(rows("a,b", "1,2"))

    def test_columns_that_look_like_times_are_named(self, run: Run) -> None:
        with pytest.raises(BadLog, match=r"no column has a known name for a time, .*: when, on; .*timestamp=when$"):
            run(rows("user_id,track_id,n,when,on", "u,a,1,2024-03-01 10:00:00,8/3/2026 6:27:09 PM"))

    def test_messages_name_columns_as_the_file_does(self, run: Run) -> None:
        with pytest.raises(BadLog, match=r"columns User, Track ID, When \?; .* --columns 'timestamp=When \?'$"):
            run(rows("User,Track ID,When ?", "u,a,2024-03-01 10:00:00"))
        with pytest.raises(BadLog, match=r"line 2, Played At: 'soon' is no time"):
            run(rows("User,Track ID,Played At", "u,a,soon"))

    def test_several_listeners_in_an_export_are_told(self, tmp_path: Path) -> None:
        file = tmp_path / "scrobbles.csv"
        file.write_text(rows("user,artist,track,uts", *(f"{u},A,T{n},170000{n}000" for n, u in enumerate("aabb"))))
        report = prepare("lastfm", [file], tmp_path / "out", prepare_options(min_session_plays=1))
        [note] = [note for note in report.log.notes if "another listener" in note]
        assert note.endswith("(column user): they are read as plays of one listener: 2")

    def test_a_column_is_named_for_one_role(self, run: Run) -> None:
        log = rows("user_id,track_id,timestamp", *PLAIN)
        with pytest.raises(BadLog, match=r"--columns user_id=track_id leaves no column for track_id"):
            run(log, columns="user_id=track_id")
        with pytest.raises(BadLog, match=r"--columns names track_id for user_id and track_id: name it for one$"):
            run(log, columns="user_id=track_id,track_id=track_id")
        assert run(log, columns="track_id=track_id,title=track_id").log.columns["title"] == "track_id"

    def test_a_header_in_another_encoding_is_refused(self, run: Run, tmp_path: Path) -> None:
        file = tmp_path / "log.csv"
        file.write_bytes(rows("user_id,track_id,zeit,Höreinheit", *(f"{line},1" for line in PLAIN)).encode("cp1252"))
        with pytest.raises(BadLog, match=r"line 1: byte 0xF6 is no UTF-8: .*--encoding cp1252"):
            prepare("events", [file], tmp_path / "out", prepare_options())

    def test_a_history_of_spotify_is_pointed_to_its_kind(self, tmp_path: Path) -> None:
        file = tmp_path / "log.json"
        file.write_text('[{"ts": "2024-03-01T10:00:00Z", "ms_played": 1, "spotify_track_uri": "spotify:track:a"}]')
        with pytest.raises(BadLog, match=r"log.json is Spotify's .*: read it with `segue prepare spotify`"):
            prepare("events", [file], tmp_path / "out", prepare_options())

    def test_a_log_with_a_header_alone_is_named(self, run: Run) -> None:
        with pytest.raises(BadLog, match=r"no line in .*log0.csv: expected"):
            run("user_id,track_id,timestamp\n")

    def test_every_role_has_names_and_no_name_has_two_roles(self) -> None:
        assert set(KNOWN_NAMES) == set(ROLES)
        names = [name for of_role in KNOWN_NAMES.values() for name in of_role]
        assert len(names) == len(set(names))
        assert all(role.replace("_", "") in KNOWN_NAMES[role] for role in ROLES)

    def test_the_time_of_spotify_is_not_taken_for_a_start(self, run: Run) -> None:
        log = rows("user,track_id,ts,ms_played", *(f"{line},1000" for line in PLAIN))
        with pytest.raises(
            BadLog, match=r"ts is the end of a play: add --columns timestamp=ts, and --timestamp-is end"
        ):
            run(log)
        report = run(log, columns={"timestamp": "ts"}, timestamp_is="end")
        starts = pl.read_parquet(report.dataset.path / "sessions.parquet")["started_at"].to_list()
        assert [f"{start:%H:%M:%S}" for start in starts] == ["09:59:59"]


class TestSessions:
    LOG = ("1,ann,a,100", "1,ann,b,300", "1,ben,c,100", "1,ben,d,300", "2,ann,e,100")

    def test_a_session_is_a_pair_of_session_and_listener(self, run: Run) -> None:
        lines = [line.replace(",100", ",1700000100").replace(",300", ",1700000300") for line in self.LOG]
        report = run(rows("session_id,user_id,track_id,timestamp", *lines))
        assert sorted(told(report.dataset).values()) == ["a b", "c d", "e"]

    def test_by_position_as_well(self, run: Run) -> None:
        lines = [f"{line},{number % 2}" for number, line in enumerate(self.LOG)]
        report = run(rows("session_id,user_id,track_id,position,skipped", *lines))
        assert sorted(told(report.dataset).values()) == ["a b*", "c d*", "e"]

    def test_sessions_without_flags_are_kept_and_skips_inferred(self, run: Run) -> None:
        lines = ["s,a,1700000000", "s,b,1700000010", "s,c,1700090000"]
        report = run(rows("session_id,track_id,timestamp", *lines))
        assert told(report.dataset) == {"s": "a* b c"}
        assert report.log.sessions_given

    def test_files_of_two_forms_are_refused(self, run: Run) -> None:
        with pytest.raises(BadLog, match=r"log1.csv has a session_id, the first file does not"):
            run(rows("user_id,track_id,timestamp", *PLAIN), rows("session_id,track_id,timestamp", *PLAIN))


class TestSkips:
    def test_a_flag_goes_before_an_end_reason_and_that_before_a_duration(self, run: Run) -> None:
        log = rows(
            "session_id,track_id,timestamp,skipped,reason_end,ms_played",
            "s,a,1700000000,1,trackdone,200000",
            "s,b,1700000200,,fwdbtn,200000",
            "s,c,1700000400,,trackdone,5000",
            "s,d,1700000600,,endplay,5000",
            "s,e,1700000800,,endplay,200000",
            "s,f,1700001000,0,fwdbtn,5000",
            "s,g,1700001200,,,",
            "s,h,1700001210,,,",
        )
        report = run(log, skip_below_s=30)
        assert told(report.dataset) == {"s": "a* b* c d* e f g* h"}
        assert report.log.skips_from.model_dump() == {"flag": 2, "end_reason": 2, "played_duration": 2, "time": 1}
        assert report.log.unknown_outcomes == 1

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, "a b c d"),
            ({"skip_below_s": 30}, "a* b c d*"),
            ({"skip_below_ratio_pct": 50}, "a* b* c d"),
            ({"skip_below_ratio_pct": 50, "skip_below_s": 30}, "a* b* c d*"),
        ],
    )
    def test_the_played_duration_counts_if_an_option_asks_for_it(
        self, run: Run, options: dict[str, Any], expected: str
    ) -> None:
        """b was heard for 40 of 200 s; the duration of d is unknown; 50 % and 30 s are no skips."""
        log = rows(
            "user_id,track_id,timestamp,ms_played,duration_ms",
            "u,a,1700000000,29999,200000",
            "u,b,1700000300,40000,200000",
            "u,c,1700000600,30000,60000",
            "u,d,1700000900,5000,",
        )
        report = run(log, **options)
        assert told(report.dataset) == {"s00000001": expected}
        notes = [note for note in report.log.notes if "not used for skips" in note]
        told_of = (
            "ms_played and duration_ms were not used for skips: --skip-below-seconds uses the played duration, and "
            "--skip-below-ratio its share of the duration of the track"
        )
        assert notes == ([] if options else [told_of])

    def test_a_single_duration_that_is_not_used_is_named_in_the_singular(self, run: Run) -> None:
        lines = [f"{line},200000" for line in PLAIN]
        (note,) = (
            note for note in run(rows("user_id,track_id,timestamp,ms_played", *lines)).log.notes if "not used" in note
        )
        assert note.startswith("ms_played was not used for skips: --skip-below-seconds")

    def test_a_flag_of_the_opposite_meaning_is_inverted(self, run: Run) -> None:
        lines = [f"{line},{int(number % 3 > 0)}" for number, line in enumerate(PLAIN)]
        report = run(rows("user_id,track_id,timestamp,is_listened", *lines))
        assert told(report.dataset) == {"s00000001": "a* b c d* e f"}
        assert report.log.columns["played"] == "is_listened"

    def test_where_both_flags_are_given_skipped_counts(self, run: Run) -> None:
        report = run(rows("user_id,track_id,timestamp,skipped,not_skipped", *(f"{line},1,1" for line in PLAIN)))
        assert told(report.dataset) == {"s00000001": "a* b* c* d* e* f*"}
        assert report.log.unused_columns == ["not_skipped"]

    def test_a_pause_is_counted_from_the_end_of_a_play(self, run: Run) -> None:
        log = ["u,long,1700000000,1500000", "u,next,1700001600,1000"]
        assert told(run(rows("user_id,track_id,timestamp,ms_played", *log)).dataset) == {"s00000001": "long next"}
        assert len(told(run(rows("user_id,track_id,timestamp,other", *log)).dataset)) == 2

    def test_a_log_without_a_skip_signal_needs_an_option(self, run: Run) -> None:
        log = rows("session_id,position,track_id", "s,0,a", "s,1,b")
        with pytest.raises(BadLog, match=r"--columns skipped=COLUMN, or count every play as played with --no-skips"):
            run(log)
        report = run(log, no_skips=True)
        assert told(report.dataset) == {"s": "a b"}
        assert report.log.unknown_outcomes == 2

    def test_an_option_that_contradicts_the_log_is_refused(self, run: Run) -> None:
        with pytest.raises(BadLog, match="has the column skipped, which says what was skipped: omit --no-skips"):
            run(rows("user_id,track_id,timestamp,skipped", *(f"{line},1" for line in PLAIN)), no_skips=True)
        with pytest.raises(BadLog, match=r"expected ms_played for --skip-below-seconds"):
            run(rows("user_id,track_id,timestamp", *PLAIN), skip_below_s=10)
        with pytest.raises(BadLog, match=r"expected duration_ms for --skip-below-ratio"):
            run(rows("user_id,track_id,timestamp,ms_played", *(f"{line},1" for line in PLAIN)), skip_below_ratio_pct=10)
        with pytest.raises(BadLog, match=r"expected ms_played for --timestamp-is end"):
            run(rows("user_id,track_id,timestamp", *PLAIN), timestamp_is="end")
        with pytest.raises(BadLog, match=r"expected a time for --timestamp-is end"):
            run(rows("session_id,position,track_id,skipped", "s,1,a,0", "s,1,b,0"), timestamp_is="end")

    def test_an_end_without_a_duration_is_malformed(self, run: Run) -> None:
        log = rows("user_id,track_id,timestamp,ms_played", "u,a,1700000000,1000", "u,b,1700000100,", "u,c,,1000")
        report = run(log, timestamp_is="end", max_malformed_pct=70)
        assert report.malformed_reasons == {"ms_played is missing": 1, "timestamp is missing": 1}

    def test_a_negative_duration_is_malformed(self, run: Run) -> None:
        log = rows("user_id,track_id,timestamp,ms_played", "u,a,1700000000,1000", "u,b,1700000100,-1")
        assert run(log, max_malformed_pct=50).malformed_reasons == {"ms_played is negative": 1}


class TestTypesOfParquet:
    @pytest.mark.parametrize(
        "values",
        [
            pl.Series([True, False, None]),
            pl.Series([1.0, float("nan"), 2.5]),
            pl.Series([[1], [2], None]),
            pl.Series([{"a": 1}, {"a": 2}, None]),
            pl.Series([b"a", b"\xff", None]),
            pl.Series([None, None, None]),
            pl.Series([1, 2, 3]).cast(pl.Duration),
            pl.Series(["a", "b", None], dtype=pl.Categorical),
            pl.Series([2**63 - 1, 0, -(2**63)]),
            pl.Series([1e300, -1e300, 1e18]),
        ],
        ids=lambda values: str(values.dtype),
    )
    @pytest.mark.parametrize("role", ROLES)
    def test_a_column_of_any_type_is_read_or_refused_in_one_line(self, run: Run, role: str, values: pl.Series) -> None:
        columns: dict[str, Any] = {"user_id": ["u"] * 3, "session_id": ["s"] * 3, "track_id": ["a", "b", "c"]}
        columns |= {"timestamp": [1_700_000_000, 1_700_000_100, 1_700_000_200], "duration_ms": [9, 9, 9]}
        columns[role] = values.alias(role)
        for lacking in ("", "session_id"):
            frame = pl.DataFrame({name: column for name, column in columns.items() if name != lacking or name == role})
            try:
                run(frame, max_malformed_pct=100)
            except BadLog as error:
                assert "log0.parquet" in str(error)  # noqa: PT017
                assert "\n" not in str(error)  # noqa: PT017

    @pytest.mark.parametrize("unit", ["ms", "us", "ns"])
    def test_durations_are_milliseconds(self, run: Run, unit: Any) -> None:
        columns = {"user_id": ["u"] * 2, "track_id": ["a", "b"], "timestamp": [1_700_000_000, 1_700_000_100]}
        played = pl.Series([9_000, 90_000]).cast(pl.Duration("ms")).cast(pl.Duration(unit))
        report = run(pl.DataFrame(columns).with_columns(ms_played=played), skip_below_s=10)
        assert told(report.dataset) == {"s00000001": "a* b"}
        late = pl.DataFrame(columns).with_columns(ms_played=-played)
        with pytest.raises(BadLog, match=r"ms_played: '-9000' is negative"):
            run(late, skip_below_s=10)


class TestTheLimitOfMalformedLines:
    LOG = rows(
        "user_id,track_id,timestamp", *(f"u,t{n},17000{n:02}000" for n in range(38)), "u,,1700000000", "u,x,soon"
    )

    def test_up_to_the_limit_they_are_left_out_and_shown(self, run: Run) -> None:
        report = run(self.LOG)
        assert (report.lines, report.malformed) == (40, 2)
        assert [str(line).partition("log0.csv, ")[2].partition("; ")[0] for line in report.malformed_examples] == [
            "line 40, track_id: no value",
            "line 41, timestamp: 'soon' is no time",
        ]

    def test_above_it_the_log_is_refused_with_the_first_one(self, run: Run) -> None:
        with pytest.raises(BadLog, match=r"2 of 40 lines cannot be read, more than --max-malformed 4.9 % allows; .*40"):
            run(self.LOG, max_malformed_pct=4.9)

    def test_words_for_missing_values_are_told_from_ids(self, run: Run) -> None:
        log = rows("user_id,track_id,timestamp", "NULL,a,1700000000", "u,b,1700000100")
        with pytest.raises(BadLog, match=r"line 2, user_id: 'NULL' stands for a missing value"):
            run(log)


class TestOptions:
    @pytest.mark.parametrize(
        ("texts", "columns"),
        [
            ("track_id=trackId", {"track_id": "trackId"}),
            (("track_id=a,timestamp=b", "title=c"), {"track_id": "a", "timestamp": "b", "title": "c"}),
            ("title=Track, name,artist=By", {"title": "Track, name", "artist": "By"}),
            ("title=a=b", {"title": "a=b"}),
            ("Track_ID=x", {"track_id": "x"}),
        ],
    )
    def test_columns_are_named(self, texts: Any, columns: dict[str, str]) -> None:
        assert prepare_options(columns=texts).columns == columns

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("columns", "track=x", "'track' is no column of a log: expected one of user_id"),
            ("columns", "track_id", "expected NAME=COLUMN"),
            ("columns", "track_id=", "expected NAME=COLUMN"),
            ("columns", "track_id=a,track_id=b", "track_id is named twice"),
            ("encoding", "latin-99", "no encoding has this name"),
            ("encoding", "base64", "no encoding has this name"),
            ("time_zone", "Europe/Atlantis", "no time zone has this name"),
            ("max_malformed_pct", 101, "less than or equal to 100"),
            ("skip_after_s", 31, "expected at most skip_within_s"),
            ("timestamp_is", "middle", "'start' or 'end'"),
            ("where", ["event"], "expected COLUMN=VALUE, such as event=play"),
            ("where", ["event=play", " =play"], "expected COLUMN=VALUE"),
            ("where_not", "=play", "expected COLUMN=VALUE"),
            ("where_not", ["a=\udcff"], "expected COLUMN=VALUE"),
            ("where", [f"c{number}=x" for number in range(51)], "at most 50 columns"),
        ],
    )
    def test_wrong_values_are_refused_in_one_line(self, name: str, value: Any, message: str) -> None:
        with pytest.raises(BadOption, match=message) as caught:
            prepare_options(**{name: value})
        assert "\n" not in str(caught.value)

    def test_options_without_an_effect_are_refused(self) -> None:
        given: dict[str, Any] = {
            "columns": "track_id=x",
            "encoding": "latin-1",
            "time_format": "%c",
            "time_zone": "UTC",
        }
        given |= {"timestamp_is": "end", "no_skips": True, "skip_after_s": 1, "merge_within_s": 1, "skip_below_s": 1}
        given |= {"skip_below_ratio_pct": 1, "include_private": True, "idle_gap_s": 1, "skip_within_s": 1}
        given |= {"skip_flag": "skip_1", "played_ratio_pct": 1, "where": ["a=b"], "where_not": ["a=b"]}
        assert set(given) == {name for names in NO_EFFECT.values() for name in names}
        for kind in KINDS:
            for name, value in given.items():
                options = PrepareOptions(**{name: value})
                if name in NO_EFFECT[kind]:
                    with pytest.raises(BadOption, match=f"{name} has no effect on logs of kind {kind}"):
                        options_of_kind(kind, options)
                else:
                    options_of_kind(kind, options)
