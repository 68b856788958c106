"""The histories that services export for a person: sessions and skips worked out by hand, and ignored rows."""

import gzip
import json
import random
import re
import shlex
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from segue.cli import main
from segue.errors import BadLog, BadOption
from tests import spotify_export
from tests.export_samples import EXPORT_SAMPLES
from tests.log_samples import Sample
from tests.prepare_runs import contents, needs_ray, ray_of_two
from training.data.dataset import Dataset
from training.prepare.disk_engine import disk_engine
from training.prepare.options import EXPORTS, LogKind
from training.prepare.pipeline import Engine, PrepareReport, prepare, prepare_options
from training.prepare.ray_engine import ray_engine

Run = Callable[..., PrepareReport]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Prepare files, given by their names: text, bytes, or rows that become a JSON array."""

    def run_it(kind: LogKind, files: dict[str, Any], engine: Engine | None = None, **options: Any) -> PrepareReport:
        folder = tmp_path / "log"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            written = json.dumps(content) if isinstance(content, list) else content
            (folder / name).write_bytes(written if isinstance(written, bytes) else written.encode())
        given = prepare_options(**{"min_session_plays": 1, **options})
        return prepare(kind, [folder / name for name in files], tmp_path / "d", given, overwrite=True, engine=engine)

    return run_it


def told(dataset: Dataset) -> str:
    """The sessions as `a b* | c`: ids, skipped ones with a star. Of `artist — title`, the title."""
    sessions, ids = dataset.sessions, dataset.catalogue.track_ids
    plays = [
        ids[row - 1].rpartition(" — ")[2] + "*" * skipped
        for row, skipped in zip(sessions.rows.tolist(), sessions.skipped.tolist(), strict=True)
    ]
    bounds = sessions.offsets.tolist()
    return " | ".join(" ".join(plays[start:end]) for start, end in pairwise(bounds))


def sessions_of(dataset: Dataset) -> list[spotify_export.Session]:
    ids, sessions = dataset.catalogue.track_ids, dataset.sessions
    plays = [(ids[row - 1], skip) for row, skip in zip(sessions.rows.tolist(), sessions.skipped.tolist(), strict=True)]
    bounds = sessions.offsets.tolist()
    return [plays[start:end] for start, end in pairwise(bounds)]


def spotify_row(
    end: str, played_s: float, track: str | None, *, reason: str | None = "trackdone", **fields: Any
) -> Any:
    """A row of the extended streaming history."""
    made = spotify_export.row(0, round(played_s * 1000), 0, reason_end=reason, skipped=fields.pop("skipped", False))
    made |= {"ts": f"2024-03-01T{end}Z", "spotify_track_uri": track, "master_metadata_track_name": track}
    return made | fields


AUDIO = "Streaming_History_Audio_2024_0.json"


class TestSpotify:
    def test_a_play_starts_when_it_ended_less_what_was_played(self, run: Run, tmp_path: Path) -> None:
        rows = [
            spotify_row("10:03:20", 200, "a"),
            spotify_row("10:06:58", 8, "c", reason="fwdbtn", skipped=True),
            spotify_row("10:06:50", 210, "b"),
            spotify_row("10:10:08", 190, "d"),
        ]
        assert told(run("spotify", {AUDIO: rows}).dataset) == "a b c* d"
        started = pl.read_parquet(tmp_path / "d" / "sessions.parquet")["started_at"]
        assert [f"{at:%H:%M:%S}" for at in started] == ["10:00:00"]

    @pytest.mark.parametrize(
        ("skipped", "reason", "played_s", "outcome"),
        [
            (True, "endplay", 100, True),
            (True, "trackdone", 100, True),  # the flag is taken at its word
            (False, "fwdbtn", 100, True),  # `false` stands in every row of some years
            (None, "fwdbtn", 1, True),
            (False, "endplay", 5, False),
            (False, "trackdone", 5, False),
            (None, "trackdone", 5, False),
            (None, "endplay", 40, False),
            (None, "backbtn", 5, True),  # nothing is said: played briefly, and another track follows at once
            (None, "", 5, True),
            (None, None, 5, True),
        ],
    )
    def test_skips_are_the_export_s_own(
        self, run: Run, skipped: bool | None, reason: str | None, played_s: float, outcome: bool
    ) -> None:
        rows = [
            spotify_row("10:00:00", played_s, "a", reason=reason, skipped=skipped),
            spotify_row("10:03:00", 179, "b", skipped=None),
        ]
        assert told(run("spotify", {AUDIO: rows}).dataset) == ("a* b" if outcome else "a b")

    def test_a_brief_play_that_nothing_follows_at_once_is_no_skip(self, run: Run) -> None:
        rows = [
            spotify_row("10:00:00", 5, "a", reason="logout", skipped=None),
            spotify_row("10:06:00", 180, "b", reason="logout", skipped=None),
        ]
        assert told(run("spotify", {AUDIO: rows}).dataset) == "a b"
        assert told(run("spotify", {AUDIO: rows}, skip_below_s=30).dataset) == "a* b"

    def test_a_long_track_does_not_end_its_session(self, run: Run) -> None:
        rows = [spotify_row("10:25:00", 1500, "a"), spotify_row("10:28:20", 200, "b")]
        assert told(run("spotify", {AUDIO: rows}).dataset) == "a b"
        rows[1]["ts"] = "2024-03-01T10:48:21Z"  # 20 minutes and a second after the end
        assert told(run("spotify", {AUDIO: rows}).dataset) == "a | b"

    def test_rows_that_are_no_tracks_are_counted_by_what_they_are(self, run: Run) -> None:
        none = {"master_metadata_track_name": None}
        rows = [
            spotify_row("10:03:00", 180, "a"),
            spotify_row("10:10:00", 180, None, spotify_episode_uri="spotify:episode:x", episode_name="E", **none),
            spotify_row("10:12:00", 180, None, audiobook_uri="spotify:show:x", audiobook_title="B", **none),
            spotify_row("10:14:00", 180, None),
            spotify_row("10:16:00", 100, "b", incognito_mode=True),
            spotify_row("10:20:00", 180, "c"),
        ]
        report = run("spotify", {AUDIO: rows})
        assert told(report.dataset) == "a c"
        assert report.log.ignored == {"podcast": 1, "audiobook": 1, "no track URI": 1, "private session": 1}
        assert report.malformed == 0
        assert report.log.notes[0] == "the sessions start from 2024-03-01 to 2024-03-01"
        assert told(run("spotify", {AUDIO: rows}, include_private=True).dataset) == "a b c"

    def test_rows_of_two_files_are_one_play(self, run: Run) -> None:
        rows = [spotify_row(f"10:{3 * n:02}:00", 180, "abcd"[n]) for n in range(4)]
        files = {AUDIO: rows[:3], "Streaming_History_Audio_2024_1.json": rows[1:]}
        assert told(run("spotify", files).dataset) == "a b c d"

    def test_older_rows_lack_fields(self, run: Run) -> None:
        row = {"ts": "2012-03-01T10:03:00Z", "ms_played": 180000, "spotify_track_uri": "a"}
        later = {"ts": "2012-03-01T10:03:04Z", "ms_played": 4000, "spotify_track_uri": "b", "reason_end": "fwdbtn"}
        assert told(run("spotify", {"endsong_0.json": [row]}).dataset) == "a"
        assert told(run("spotify", {"endsong_0.json": [row, later]}).dataset) == "a b*"

    def test_title_and_artist_are_kept_and_nothing_personal(self, run: Run, tmp_path: Path) -> None:
        rows = spotify_export.streams(60)
        report = run("spotify", {AUDIO: rows})
        track = report.dataset.catalogue.frame.row(0, named=True)
        assert track["title"].startswith("Song ")
        assert track["artist"].startswith("Artist ")
        written = b"".join(contents(tmp_path / "d").values())
        assert not [value for value in spotify_export.PERSONAL[:4] if value.encode() in written]

    def test_a_row_that_cannot_be_read_is_named_without_its_other_values(self, run: Run) -> None:
        rows = [spotify_row(f"{10 + n // 20}:{3 * n % 60:02}:00", 170, f"t{n}") for n in range(40)]
        rows[7] |= {"ts": "yesterday"}
        report = run("spotify", {AUDIO: rows}, max_session_plays=50)
        assert report.dataset.facts.counts.plays == 39
        (example,) = report.malformed_examples
        shown = str(example)
        assert "yesterday" in shown
        assert "'ts'" in shown or "ts:" in shown
        assert not [value for value in spotify_export.PERSONAL if value in shown]

    def test_account_data_is_named(self, run: Run) -> None:
        rows = [{"endTime": "2024-03-01 10:03", "artistName": "A", "trackName": "a", "msPlayed": 1}]
        with pytest.raises(BadLog, match=r"account data.*spotify-account"):
            run("spotify", {"StreamingHistory_music_0.json": rows})

    def test_account_data_and_history_are_told_apart_the_other_way_round(self, run: Run) -> None:
        with pytest.raises(BadLog, match=r"extended streaming history.*segue prepare spotify\b"):
            run("spotify-account", {"StreamingHistory0.json": [spotify_row("10:03:00", 180, "a")]})


@pytest.fixture(scope="class")
def download(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[spotify_export.Row]]]:
    """A download of 100,000 streams, and the rows of its files."""
    files = spotify_export.files_of(spotify_export.streams(100_000))
    return spotify_export.write_zip(tmp_path_factory.mktemp("spotify") / "my_spotify_data.zip", files), files


class TestSpotifyDownload:
    @pytest.mark.parametrize("engine", ["polars", "disk", pytest.param("ray", marks=[needs_ray, pytest.mark.slow])])
    def test_every_session_and_skip_is_the_download_s_own(
        self, download: tuple[Path, dict[str, list[spotify_export.Row]]], tmp_path: Path, engine: str
    ) -> None:
        path, files = download
        expected = list(spotify_export.sessions_of_files(files))
        assert len(expected) > 4_000
        skips = sum(skipped for session in expected for _, skipped in session)
        assert 15_000 < skips < 40_000
        if engine == "ray":
            with ray_of_two():
                report = prepare("spotify", [path], tmp_path / "d", engine=ray_engine())
        else:
            report = prepare("spotify", [path], tmp_path / "d", engine=disk_engine() if engine == "disk" else None)
        assert sessions_of(report.dataset) == expected
        assert report.malformed == 0
        assert set(report.log.ignored) == {"podcast", "audiobook", "no track URI", "private session"}


def account_row(end: str, played_s: float, title: str, artist: str = "A") -> dict[str, Any]:
    return {
        "endTime": f"2024-03-01 {end}",
        "artistName": artist,
        "trackName": title,
        "msPlayed": round(played_s * 1000),
    }


class TestSpotifyAccount:
    ROWS: tuple[Any, ...] = (
        account_row("10:03", 200, "a"),
        account_row("10:06", 210, "b"),
        account_row("10:06", 8, "c"),
        account_row("10:06", 20, "d"),  # by its length it would be before c
        account_row("10:10", 190, "e"),
    )

    def test_equal_minutes_keep_the_order_of_the_file(self, run: Run) -> None:
        report = run("spotify-account", {"StreamingHistory0.json": [*self.ROWS]})
        assert told(report.dataset) == "a b c* d* e"

    def test_a_play_below_thirty_seconds_is_a_skip_unless_it_is_said_otherwise(self, run: Run) -> None:
        rows = [account_row("10:03", 29.999, "a"), account_row("10:05", 30, "b"), account_row("10:06", 8, "c")]
        assert told(run("spotify-account", {"StreamingHistory0.json": rows}).dataset) == "a* b c*"
        report = run("spotify-account", {"StreamingHistory0.json": rows}, skip_below_s=10)
        assert told(report.dataset) == "a b c*"

    def test_the_pause_is_counted_from_the_end_of_a_play(self, run: Run) -> None:
        rows = [account_row("10:25", 1500, "a"), account_row("10:47", 150, "b"), account_row("11:12", 180, "c")]
        assert told(run("spotify-account", {"StreamingHistory0.json": rows}).dataset) == "a b | c"

    def test_the_same_row_in_two_files_is_one_play(self, run: Run) -> None:
        files = {"StreamingHistory0.json": [*self.ROWS[:3]], "StreamingHistory1.json": [*self.ROWS[1:]]}
        assert told(run("spotify-account", files).dataset) == "a b c* d* e"

    def test_the_same_title_of_another_artist_is_another_track(self, run: Run) -> None:
        rows = [account_row("10:03", 100, "a"), account_row("10:06", 100, "a", artist="B")]
        assert run("spotify-account", {"StreamingHistory0.json": rows}).dataset.facts.counts.tracks == 2

    def test_unknown_tracks_are_counted(self, run: Run) -> None:
        rows = [*self.ROWS, account_row("10:13", 100, "Unknown Track", artist="Unknown Artist")]
        report = run("spotify-account", {"StreamingHistory0.json": rows})
        assert report.log.ignored == {"unknown track": 1}
        assert report.dataset.facts.counts.plays == 5


SCROBBLES = [  # newest first
    ("", "Artist", "now"),
    ("1709288028", "C", "f"),
    ("1709287808", "C", "e"),
    ("1709287610", "B", "d"),
    ("1709287610", "B", "c"),
    ("1709287400", "A", "b"),
    ("1709287200", "A", "a"),
]


def ghan(rows: list[tuple[str, str, str]]) -> str:
    """The CSV of lastfm.ghan.nl."""
    lines = ['"uts","utc_time","artist","artist_mbid","album","album_mbid","track","track_mbid"']
    lines += [f'"{at}","","{artist}","","An ""Album"", live","","{title}",""' for at, artist, title in rows]
    return "\n".join(lines) + "\n"


def api_track(at: str, artist: str, title: str) -> dict[str, Any]:
    """A track of Last.fm's own API."""
    made: dict[str, Any] = {"artist": {"mbid": "", "#text": artist}, "name": title, "album": {"#text": "X"}}
    return made | ({"date": {"uts": at, "#text": "01 Mar 2024, 10:00"}} if at else {"@attr": {"nowplaying": "true"}})


API = [api_track(*scrobble) for scrobble in SCROBBLES]
DATED = [scrobble for scrobble in SCROBBLES if scrobble[0]]


class TestLastfm:
    @pytest.mark.parametrize(
        ("name", "content", "playing"),
        [
            ("scrobbles.csv", ghan(SCROBBLES), 1),
            ("scrobbles.csv.gz", gzip.compress(ghan(SCROBBLES).encode()), 1),
            ("pages.json", [{"@attr": {"page": "1"}, "track": API[:3]}, {"@attr": {"page": "2"}, "track": API[3:]}], 1),
            ("lists.json", [API[:3], API[3:]], 1),
            ("tracks.json", API, 1),
            ("response.json", json.dumps({"recenttracks": {"track": API, "@attr": {"user": "x"}}}), 1),
            ("lines.jsonl", "".join(json.dumps(one) + "\n" for one in API), 1),
            (
                "stats.json",
                json.dumps(
                    {
                        "username": "x",
                        "scrobbles": [
                            {"track": title, "artist": artist, "album": "X", "date": int(at) * 1000}
                            for at, artist, title in DATED
                        ],
                    }
                ),
                0,
            ),
            (
                "stats.csv",
                "\ufeffArtist;Album;AlbumId;Track;Date#x\n"
                + "".join(f'"{artist}";"X";"";"{title}";"{at}000"\n' for at, artist, title in DATED),
                0,
            ),
            (
                "named.csv",
                "artist_name,track_name,listened_at\n"
                + "".join(f"{artist},{title},{at}\n" for at, artist, title in DATED),
                0,
            ),
        ],
        ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
    )
    def test_every_common_form_gives_the_same(self, run: Run, name: str, content: Any, playing: int) -> None:
        report = run("lastfm", {name: content})
        assert told(report.dataset) == "a b c* d e f"
        assert report.log.ignored == ({"now playing": playing} if playing else {})
        assert report.dataset.catalogue.track_ids[0].startswith("A — ")

    def test_whole_minutes_give_no_skips(self, run: Run) -> None:
        lines = ["C,X,f,01 Mar 2024 10:13", "B,X,d,01 Mar 2024 10:06", "B,X,c,01 Mar 2024 10:06"]
        lines += ["A,X,b,01 Mar 2024 10:03", 'A,"X, live",a,01 Mar 2024 10:00']
        lines += [f"A,X,{title},29 Feb 2024 {9 - place:02}:00" for place, title in enumerate("vwxyz")]
        report = run("lastfm", {"listener.csv": "\n".join(lines)}, min_session_plays=5)
        assert told(report.dataset) == "a b c d f"

    def test_a_header_without_a_name_is_read(self, run: Run) -> None:
        lines = ['"","date","artist","track","album"', '"1","2024-03-01 10:03:00","A","b","X"']
        lines += ['"2","2024-03-01 10:00:00","A","a","X"']
        assert told(run("lastfm", {"scraped.csv": "\n".join(lines)}).dataset) == "a b"

    def test_a_file_without_the_columns_is_refused_with_those_it_has(self, run: Run) -> None:
        with pytest.raises(BadLog, match=r"artist, .*plays.*expected"):
            run("lastfm", {"top.csv": "artist,name of song,plays\nA,b,3\n"})


def listen(at: int | None, title: str | None, artist: str = "A", **more: Any) -> dict[str, Any]:
    metadata = {"track_name": title, "artist_name": artist, "release_name": "X", "mbid_mapping": None}
    return {"listened_at": at, "inserted_at": 1709300000, "track_metadata": {**metadata, "additional_info": more}}


class TestListenBrainz:
    LISTENS: tuple[Any, ...] = tuple(listen(int(at), title, artist) for at, artist, title in DATED)

    def lines(self, *more: Any) -> str:
        return "".join(json.dumps(one) + "\n" for one in (*self.LISTENS, *more))

    def test_json_lines_are_read_newest_first(self, run: Run) -> None:
        report = run("listenbrainz", {"listens.jsonl": self.lines(self.LISTENS[0])})
        assert told(report.dataset) == "a b c* d e f"

    def test_an_array_is_read_too(self, run: Run) -> None:
        assert told(run("listenbrainz", {"listens.json": [*self.LISTENS]}).dataset) == "a b c* d e f"

    def test_the_zip_is_read_as_it_arrives(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "listenbrainz_x.zip", "w") as archive:
            archive.writestr("user.json", json.dumps({"user_id": 1, "username": "invented-listener"}))
            archive.writestr("feedback.jsonl", json.dumps({"recording_msid": "x", "score": 1}) + "\n")
            archive.writestr("listens/2024/3.jsonl", self.lines())
            archive.writestr("listens/2024/4.jsonl", json.dumps(listen(1711968000, "g")) + "\n")
        options = prepare_options(min_session_plays=1)
        report = prepare("listenbrainz", [tmp_path / "listenbrainz_x.zip"], tmp_path / "d", options)
        assert told(report.dataset) == "a b c* d e f | g"
        assert b"invented-listener" not in b"".join(contents(tmp_path / "d").values())

    def test_listens_of_spotify_are_ends(self, run: Run) -> None:
        of = {"music_service": "spotify.com"}
        listens = [
            listen(1709287400, "a", ms_played=200_000, **of),
            listen(1709287440, "b", ms_played=40_000, **of),
            listen(1709287640, "c", ms_played=200_000, **of),
        ]
        text = "".join(json.dumps(one) + "\n" for one in listens)
        assert told(run("listenbrainz", {"l.jsonl": text}).dataset) == "a b c"
        assert told(run("listenbrainz", {"l.jsonl": text}, skip_within_s=60).dataset) == "a b* c"

    def test_a_listen_without_a_title_is_malformed(self, run: Run) -> None:
        report = run("listenbrainz", {"l.jsonl": self.lines(listen(1709288500, None))}, max_malformed_pct=50)
        assert report.malformed == 1
        assert told(report.dataset) == "a b c* d e f"


APPLE_COLUMNS = (
    "Artist Name,End Position In Milliseconds,End Reason Type,Event End Timestamp,Event Start Timestamp,Event Type,"
    "Media Duration In Milliseconds,Media Type,Play Duration Milliseconds,Song Name,Start Position In Milliseconds"
)


def apple_row(
    start: str,
    end: str,
    title: str,
    reason: str = "NATURAL_END_OF_TRACK",
    *,
    position_s: tuple[float, float] = (0, 210),
    event: str = "PLAY_END",
    media: str = "AUDIO",
    artist: str = "A",
) -> str:
    first, last = (round(1000 * position) for position in position_s)
    times = (f"2024-03-01T{at}Z" if at else "" for at in (end, start))
    return ",".join((artist, str(last), reason, *times, event, "210000", media, str(last - first), title, str(first)))


def apple(*rows: str) -> dict[str, Any]:
    return {"Apple Music Play Activity.csv": "\n".join((APPLE_COLUMNS, *rows)) + "\n"}


PAUSED = "PLAYBACK_MANUALLY_PAUSED"


class TestAppleMusic:
    def test_end_reasons_say_what_was_skipped(self, run: Run) -> None:
        report = run(
            "apple-music",
            apple(
                apple_row("10:00:00", "10:03:30", "a"),
                apple_row("10:03:30", "10:03:39", "b", "TRACK_SKIPPED_FORWARDS", position_s=(0, 9)),
                apple_row("10:03:39", "10:04:39", "c", "TRACK_SKIPPED_FORWARDS", position_s=(0, 60)),
                apple_row("10:04:39", "10:04:44", "d", PAUSED, position_s=(0, 5)),
                apple_row("10:06:00", "10:06:05", "e", "MANUALLY_SELECTED_PLAYBACK_OF_A_DIFF_ITEM", position_s=(0, 5)),
                apple_row(
                    "10:06:06", "10:08:06", "f", "MANUALLY_SELECTED_PLAYBACK_OF_A_DIFF_ITEM", position_s=(0, 120)
                ),
                apple_row("10:08:06", "10:11:36", "g"),
            ),
        )
        assert told(report.dataset) == "a b* c* d e* f g"

    def test_a_pause_and_its_continuation_are_one_play(self, run: Run) -> None:
        rows = (
            apple_row("10:00:00", "10:03:30", "a"),
            apple_row("10:03:30", "10:05:10", "b", PAUSED, position_s=(0, 100)),
            apple_row("10:06:10", "10:06:40", "b", "SCRUB_BEGIN", position_s=(100, 130)),
            apple_row("10:06:41", "10:06:51", "b", "TRACK_SKIPPED_FORWARDS", position_s=(180, 190)),
            apple_row("10:06:51", "10:10:21", "c"),
        )
        assert told(run("apple-music", apple(*rows)).dataset) == "a b* c"
        assert told(run("apple-music", apple(*reversed(rows))).dataset) == "a b* c"

    def test_a_track_that_is_played_again_is_another_play(self, run: Run) -> None:
        rows = (
            apple_row("10:00:00", "10:01:40", "a", PAUSED, position_s=(0, 100)),
            apple_row("10:02:00", "10:05:30", "a"),  # from its beginning
            apple_row("10:05:30", "10:09:00", "a"),
        )
        assert told(run("apple-music", apple(*rows)).dataset) == "a a a"

    def test_a_pause_of_a_day_ends_the_play(self, run: Run) -> None:
        rows = (
            apple_row("10:00:00", "10:01:40", "a", PAUSED, position_s=(0, 100)),
            apple_row("18:00:00", "18:01:50", "a", position_s=(100, 210)),
        )
        assert told(run("apple-music", apple(*rows)).dataset) == "a | a"

    def test_other_rows_are_counted_by_what_they_are(self, run: Run) -> None:
        report = run(
            "apple-music",
            apple(
                apple_row("10:00:00", "10:00:00", "a", "", event="PLAY_START", position_s=(0, 0)),
                apple_row("10:00:00", "10:03:30", "a"),
                apple_row("10:01:00", "10:01:00", "a", "", event="LYRIC_DISPLAY", position_s=(0, 0)),
                apple_row("10:03:30", "10:03:50", "v", media="VIDEO"),
                apple_row("10:04:00", "10:07:30", ""),
                apple_row("10:07:30", "10:07:30", "b", "", event="SOMETHING_NEW", position_s=(0, 0)),
                apple_row("10:07:30", "10:11:00", "b", artist=""),
            ),
        )
        assert told(report.dataset) == "a b"
        assert report.log.ignored == {
            "PLAY_START event": 1,
            "LYRIC_DISPLAY event": 1,
            "video": 1,
            "play without a title": 1,
            "other event": 1,
        }
        assert "plays without an artist, whose track is known by its title alone: 1" in report.log.notes

    def test_one_of_the_times_is_enough(self, run: Run) -> None:
        rows = (apple_row("", "10:03:30", "a"), apple_row("10:03:30", "", "b"))
        assert told(run("apple-music", apple(*rows)).dataset) == "a b"

    def test_the_download_is_read_as_it_arrives(self, tmp_path: Path) -> None:
        """The zip holds a zip for each service, and that of Apple Music the Play Activity among other files."""
        (name, content), *_ = apple(apple_row("10:00:00", "10:03:30", "a")).items()
        with zipfile.ZipFile(tmp_path / "Apple_Media_Services.zip", "w") as outer:
            for service, member in (("Apple Music Activity", name), ("Stores Activity", "Account Info.csv")):
                with (
                    outer.open(f"Apple_Media_Services/{service}.zip", "w") as stream,
                    zipfile.ZipFile(stream, "w") as inner,
                ):
                    inner.writestr(f"{service}/{member}", content if member == name else "Name\ninvented-listener\n")
                    inner.writestr(f"{service}/Other.csv", "a,b\n1,2\n")
        options = prepare_options(min_session_plays=1)
        report = prepare("apple-music", [tmp_path / "Apple_Media_Services.zip"], tmp_path / "d", options)
        assert told(report.dataset) == "a"

    def test_older_and_newer_names_of_columns_are_known(self, run: Run) -> None:
        content = apple(apple_row("10:00:00", "10:03:30", "a"))["Apple Music Play Activity.csv"]
        older = content.replace("Song Name", "Content Name").replace("Artist Name", "Container Artist Name")
        report = run("apple-music", {"Apple Music Play Activity.csv": older})
        assert report.dataset.catalogue.track_ids == ["A — a"]


SCROBBLER_LOG = (
    "#AUDIOSCROBBLER/1.1\n#TZ/UTC\n#CLIENT/Rockbox invented\n"
    "A\tX\ta\t1\t200\tL\t1709287200\t\n"
    "A\tX\tb\t1\t200\tL\t1709287400\t\n"
    "B\tX\tc\t1\t200\tS\t1709287600\t\n"
    "B\tX\td\t1\t200\tL\t1709287700\t\n"
    "C\tX\te\t1\t200\tL\t1709287725\tmbid\n"
)


class TestRockbox:
    def test_the_rating_is_the_log_s_own_skip(self, run: Run) -> None:
        report = run("rockbox", {".scrobbler.log": SCROBBLER_LOG})
        assert told(report.dataset) == "a b c* d e"
        assert report.log.ignored == {"header line": 3}
        assert report.malformed == 0

    def test_version_one_has_a_field_less(self, run: Run) -> None:
        text = SCROBBLER_LOG.replace("/1.1\n#TZ/UTC", "/1.0").replace("\t\n", "\n").replace("\tmbid", "")
        assert told(run("rockbox", {"scrobbler.log": text}).dataset) == "a b c* d e"

    def test_a_player_without_a_clock_is_refused(self, run: Run) -> None:
        lines = "".join(f"A\tX\t{title}\t1\t200\tL\t{place}\t\n" for place, title in enumerate("abc"))
        with pytest.raises(BadLog, match="1970"):
            run("rockbox", {"scrobbler.log": "#AUDIOSCROBBLER/1.1\n#TZ/UNKNOWN\n" + lines})

    def test_a_file_that_is_no_such_log_is_refused(self, run: Run) -> None:
        with pytest.raises(BadLog):
            run("rockbox", {"scrobbler.log": "artist,title\na,b\n"})


class TestEveryExport:
    @pytest.mark.parametrize("kind", EXPORTS)
    def test_a_table_of_other_columns_is_refused(self, tmp_path: Path, kind: LogKind) -> None:
        file = tmp_path / "plays.parquet"
        pl.DataFrame({"user_id": ["a"], "track_id": ["b"], "timestamp": [1_700_000_000]}).write_parquet(file)
        with pytest.raises(BadLog, match="expected "):
            prepare(kind, [file], tmp_path / "out")

    @pytest.mark.parametrize("kind", ["spotify", "rockbox"])
    def test_an_option_without_effect_is_refused(self, run: Run, kind: LogKind) -> None:
        with pytest.raises(BadOption, match="no effect"):
            run(kind, {AUDIO: [spotify_row("10:03:00", 180, "a")]}, played_ratio_pct=20)


PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "export-your-history.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the documents are not part of the wheel")
class TestHowTo:
    COMMANDS = re.findall(r"`segue (prepare [^`]*--out [^`]*)`", PAGE.read_text() if PAGE.exists() else "")

    def test_it_has_a_command_for_every_export(self) -> None:
        assert {command.split()[1] for command in self.COMMANDS} == set(EXPORTS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_its_commands_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
        monkeypatch.chdir(tmp_path)
        _, kind, name, *rest = shlex.split(command)
        sample = next(sample for sample in EXPORT_SAMPLES.values() if sample.kind == kind)
        if name.endswith(".zip"):
            with zipfile.ZipFile(name, "w") as archive:
                for member, content in sample.files.items():
                    folder = {"listenbrainz": "listens/2024", "apple-music": "Apple Music Activity"}.get(
                        kind, "Spotify"
                    )
                    archive.writestr(f"{folder}/{member}", content)
        else:
            Path(name).write_text(next(iter(sample.files.values())))
        assert main(["prepare", kind, name, *rest]) == 0
        assert (tmp_path / "data" / "mine" / "dataset.json").exists()


def rows_of(name: str, content: str) -> tuple[list[str], Callable[[list[str]], str]]:
    """The rows of an export, and what makes a file of rows."""
    if content.startswith("["):
        return [json.dumps(row) for row in json.loads(content)], lambda rows: f"[{','.join(rows)}]"
    lines = content.splitlines()
    head = {".csv": 1, ".log": 3}.get(Path(name).suffix, 0)
    return lines[head:], lambda rows: "\n".join([*lines[:head], *rows]) + "\n"


class TestSameHistory:
    """The dataset does not depend on the order of rows, on how they are divided into files, nor on repeated parts."""

    NAMES = ("spotify", "lastfm, csv", "listenbrainz", "apple music", "rockbox")

    @staticmethod
    def variants(sample: Sample, seed: int) -> Iterator[dict[str, str]]:
        rng = random.Random(seed)
        (name, content), *_ = sample.files.items()
        rows, joined = rows_of(name, content)
        yield {name: content}
        yield {name: joined(rng.sample(rows, len(rows)))}
        yield {f"{part}{name}": content for part in (1, 2)}
        repeated = [row for row in rows for _ in range(rng.choice((1, 1, 2)))]
        yield {name: joined(repeated)}
        if sample.kind != "apple-music":  # a play that was paused must not be divided
            cut = len(rows) // 3
            yield {f"1{name}": joined(rows[:cut]), f"2{name}": joined(rows[cut:])}
            yield {f"1{name}": joined(rows[cut // 2 :]), f"2{name}": joined(rows[: cut * 2])}

    @pytest.mark.parametrize("name", NAMES)
    def test_the_dataset_is_the_same(self, tmp_path: Path, name: str) -> None:
        sample = EXPORT_SAMPLES[name]
        options = prepare_options(**sample.options | {"max_malformed_pct": 50})
        found = []
        for number, files in enumerate(self.variants(sample, seed=4)):
            paths = sample._replace(files=files).write(tmp_path / f"log{number}")
            report = prepare(sample.kind, paths, tmp_path / f"out{number}", options)
            written = contents(tmp_path / f"out{number}")
            found.append((report.dataset.facts.fingerprint, written["catalogue.parquet"], written["sessions.parquet"]))
        assert len(found) >= 4
        assert len(set(found)) == 1
