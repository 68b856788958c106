"""Cases of exports that people own, and of published data sets."""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tests.log_cases.case import Case
from tests.log_cases.history import (
    HISTORY,
    TITLES,
    Content,
    account_row,
    apple_row,
    epoch,
    json_lines,
    lfm1k,
    lines,
    quoted,
    stream,
    table,
)

_FOLDER: Final = "Spotify Extended Streaming History/"
_SIX = (("a", 0, 200), ("b", 200, 200), ("c", 400, 10), ("d", 410, 190), ("e", 608, 200), ("f", 828, 200))


def zipped(files: Mapping[str, Content], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive."""
    stream_ = io.BytesIO()
    with zipfile.ZipFile(stream_, "w", method) as archive:
        for name, content in files.items():
            assert isinstance(content, str | bytes)
            archive.writestr(name, content)
    return stream_.getvalue()


def tarred(files: Mapping[str, Content], mode: str = "w:gz") -> bytes:
    """A tar archive."""
    stream_ = io.BytesIO()
    with tarfile.open(fileobj=stream_, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            data = content.encode() if isinstance(content, str) else content
            assert isinstance(data, bytes)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream_.getvalue()


def spotify() -> Iterator[Case]:
    """The extended streaming history, and the history of the account data."""
    name = "Streaming_History_Audio_2024_0.json"
    first = [
        stream("a", "10:03:20", 200_000),
        stream("b", "10:06:50", 210_000),
        stream("c", "10:06:58", 8_000, "fwdbtn"),
        stream("d", "10:10:08", 190_000),
    ]
    second = [
        stream("e", "10:40:20", 12_000, "fwdbtn", skipped=None),
        stream("f", "10:43:20", 180_000, skipped=None),
        stream("a", "10:43:25", 5_000, "fwdbtn"),
        stream("g", "10:47:25", 240_000),
        stream("h", "10:52:25", 200_000),
        stream("c", "10:52:37", 6_000, "fwdbtn"),
    ]
    others = [
        stream("", "10:40:08", 1_800_000, episode_name="Invented Episode"),
        stream("", "10:52:26", 1_000, "endplay", audiobook_uri="spotify:show:INVENTED"),
        stream("b", "10:49:05", 100_000, incognito_mode=True),
    ]
    whole = [*second[2:0:-1], *others[:2], *first[::-1], second[0], *second[3:], others[2]]
    sessions = "a b c* d | e* f a* g h c*"
    personal = ("192.0.2.1", "ZZ")
    yield Case(
        "rows in no order",
        "spotify",
        {name: json.dumps(whole)},
        expected=sessions,
        never=personal,
        says=("podcast", "audiobook", "private"),
        log={"unknown_outcomes": 0},
    )
    private = "a b c* d | e* f a* g b h c*"
    yield Case("private sessions", "spotify", {name: json.dumps(whole)}, "--include-private", private)
    old = [
        stream("a", "2019-06-01T18:03:21Z", 201_000, skipped=None, offline_timestamp=0),
        stream("b", "2019-06-01T18:03:26Z", 5_000, "fwdbtn", skipped=False, offline_timestamp=1),
        stream("c", "2019-06-01T18:06:45Z", 199_000, offline_timestamp=1_559_412_206_000),
        stream("d", "2019-06-01T18:06:54Z", 9_000, "fwdbtn", skipped=None, offline_timestamp=1_559_412_405),
        stream("e", "2019-06-01T18:10:44Z", 230_000, skipped=None, offline_timestamp=0),
    ]
    yield Case("an older export", "spotify", {"endsong_0.json": json.dumps(old)}, expected="a b* c d* e")
    files: dict[str, Content] = {
        f"{_FOLDER}ReadMeFirst_ExtendedStreamingHistory.pdf": b"%PDF-1.4\n%\xe2\xe3\n",
        f"{_FOLDER}Streaming_History_Audio_2023-2024_0.json": json.dumps(first),
        f"{_FOLDER}Streaming_History_Audio_2024_1.json": json.dumps([*first[2:], *second[:4]]),
        f"{_FOLDER}Streaming_History_Video_2024.json": json.dumps([stream("h", "23:01:00", 60_000)]),
    }
    sessions = "a b c* d | e* f a* g"
    folder = {f"my_spotify_data/{path}": content for path, content in files.items()}
    yield Case("a folder", "spotify", folder, expected=sessions, log={"merged": 2}, sources=("my_spotify_data",))
    yield Case("the zip", "spotify", {"my_spotify_data.zip": zipped(files)}, expected=sessions, log={"merged": 2})
    long = [
        stream("a", "10:25:00", 1_500_000),
        stream("b", "10:28:20", 200_000),
        stream("c", "10:28:27", 7_000, "fwdbtn"),
        stream("d", "10:31:57", 210_000),
    ]
    yield Case("a track of 25 minutes", "spotify", {name: json.dumps(long)}, expected="a b c* d")
    broken = [stream("abcdefgh"[n % 8], f"{6 + n // 15:02}:{n * 4 % 60:02}:20", 200_000) for n in range(30)]
    broken[11]["ts"] = "not a time"
    left = " ".join("abcdefgh"[n % 8] for n in range(30) if n != 11)
    yield Case(
        "a row that cannot be read",
        "spotify",
        {name: json.dumps(broken)},
        "--max-session-plays 50",
        left,
        malformed=1,
        says=(name.lower().replace(".", r"\."), r"\b1[12]\b", r"\bts\b"),
        never=personal,
    )
    at_once = [stream("b", "10:03:40", 200_000), stream("a", "10:00:20", 0, "fwdbtn"), stream("c", "10:07:00", 200_000)]
    yield Case("a play of 0 s that starts with the next one", "spotify", {name: json.dumps(at_once)}, expected="a* b c")
    ends = lines(
        "user_id,track_id,ended_at,ms_played",
        "u a 10:03:20 200000; u b 10:06:50 210000; u c 10:06:58 8000; u d 10:10:08 190000; u e 10:13:48 220000",
    )
    options = "--columns timestamp=ended_at --timestamp-is end"
    yield Case("ends with played durations", "events", {"ends.csv": ends}, options, "a b c* d e")
    short = [
        account_row(*one)
        for one in (
            ("a", "10:03", 200_000),
            ("b", "10:06", 210_000),
            ("c", "10:06", 8_000),
            ("d", "10:10", 190_000),
            ("e", "10:13", 220_000),
            ("f", "10:17", 200_000),
        )
    ]
    account = {"StreamingHistory_music_0.json": json.dumps(short)}
    yield Case("account data", "spotify-account", account, expected="a b c* d e f", says=("30 s",))
    minute = [account_row("a", "10:06", 8_000), account_row("b", "10:06", 20_000), account_row("c", "10:10", 200_000)]
    account = {"StreamingHistory0.json": json.dumps(minute)}
    yield Case("the order within a minute", "spotify-account", account, expected="a* b* c")


def exports() -> Iterator[Case]:
    """Last.fm, ListenBrainz, Apple Music, Rockbox."""
    newest = [(*TITLES[track], 1_709_287_200 + second) for track, second, _ in reversed(_SIX)]
    scrobbles = [
        {
            "uts": uts,
            "utc_time": "01 Mar 2024, 10:00",
            "artist": artist,
            "artist_mbid": "",
            "album": "Invented Album",
            "album_mbid": "",
            "track": title,
            "track_mbid": "",
        }
        for artist, title, uts in [("Mira Quill", "Low Tide Radio", ""), *newest]
    ]
    six = "a b c* d e f"
    yield Case("CSV", "lastfm", {"recent.csv": quoted(scrobbles)}, expected=six, says=("playing",))
    stats = [
        {"track": title, "artist": artist, "album": "Invented Album", "date": uts * 1000}
        for artist, title, uts in newest
    ]
    document = json.dumps({"username": "listener", "scrobbles": stats}, indent=1)
    yield Case("JSON", "lastfm", {"stats.json": document}, expected=six, never=("listener",))
    same = [{**one, "uts": 1_709_287_610 if one["track"] == "Slow Copper" else one["uts"]} for one in scrobbles]
    yield Case("two scrobbles in one second", "lastfm", {"recent.csv": quoted(same)}, expected=six, says=("1 of 1",))
    listens = [
        {
            "listened_at": uts,
            "inserted_at": uts + 90,
            "track_metadata": {
                "track_name": title,
                "artist_name": artist,
                "release_name": "Invented Album",
                "additional_info": {"submission_client": "invented"},
                "mbid_mapping": None,
            },
        }
        for artist, title, uts in newest
    ]
    repeated = json_lines([*listens[:2], listens[1], *listens[2:]])
    yield Case("JSON Lines", "listenbrainz", {"1.jsonl": repeated}, expected=six, log={"merged": 1}, says=("inferred",))
    skip, natural, pause = "TRACK_SKIPPED_FORWARDS", "NATURAL_END_OF_TRACK", "PLAYBACK_MANUALLY_PAUSED"
    activity = [
        apple_row("a", "10:00:00", "10:00:00", 0, "", **{"Event Type": "PLAY_START"}),
        apple_row("a", "10:00:00", "10:03:30", 210_000, natural),
        apple_row("b", "10:03:30", "10:03:39", 9_000, skip),
        apple_row("c", "10:03:39", "10:07:09", 210_000, natural),
        apple_row("c", "10:04:00", "10:04:00", 0, "", **{"Event Type": "LYRIC_DISPLAY"}),
        apple_row("d", "10:07:09", "10:08:49", 100_000, pause),
        apple_row(
            "d",
            "10:09:49",
            "10:11:39",
            110_000,
            natural,
            **{"Start Position In Milliseconds": 100_000, "End Position In Milliseconds": 210_000},
        ),
        apple_row("h", "10:11:39", "10:11:59", 20_000, natural, **{"Media Type": "VIDEO"}),
        apple_row("e", "10:11:59", "10:12:11", 12_000, skip),
        apple_row("f", "10:12:11", "10:15:41", 210_000, natural, **{"Artist Name": ""}),
    ]
    words = ("video", "play_start|start", "lyric", "artist")
    yield Case(
        "Play Activity",
        "apple-music",
        {"Apple Music Play Activity.csv": quoted(activity)},
        expected="a b* c d e* f",
        says=words,
    )
    played = "".join(
        f"{artist}\tInvented Album\t{title}\t1\t200\t{rating}\t{1_709_287_200 + second}\t\n"
        for track, second, rating in (("a", 0, "L"), ("b", 200, "L"), ("c", 400, "S"), ("d", 500, "L"), ("e", 525, "L"))
        for artist, title in [TITLES[track]]
    )
    header = "#AUDIOSCROBBLER/1.1\n#TZ/UTC\n#CLIENT/Rockbox invented\n"
    yield Case("the log of a player", "rockbox", {".scrobbler.log": header + played}, expected="a b c* d e")


_MSSD = "session_id,session_position,session_length,track_id_clean,skip_1,skip_2,skip_3,not_skipped,hour_of_day,date\n"


def mssd(text: str, length: int = 0) -> str:
    """Sessions of the Music Streaming Sessions Dataset from text such as `0_x: a b* | 0_y: c`."""
    written = []
    for part in text.split(" | "):
        session, _, plays = part.partition(": ")
        for position, play in enumerate(plays.split(), start=1):
            skip = str(play.endswith("*")).lower()
            written.append(
                f"{session},{position},{length or len(plays.split())},t_{play[0]},{skip},{skip},{skip},"
                f"{str(not play.endswith('*')).lower()},16,2018-07-15\n"
            )
    return _MSSD + "".join(written)


def yambda(**other: Any) -> list[dict[str, Any]]:
    """Rows of Yambda: the history with times in steps of 5 s, of which plays below half are skips."""
    ratios = (90, 100, 10, 97, 30, 100, 88, 49, 50, 20, 100, 5, 93, 100, 41)
    return [
        {
            "uid": int(play.user[1]),
            "timestamp": 3600 + play.second // 5 * 5,
            "item_id": play.number,
            "is_organic": 1,
            "played_ratio_pct": ratio,
            "track_length_seconds": 210,
            **other,
        }
        for play, ratio in zip(HISTORY, ratios, strict=True)
    ]


_YAMBDA = "1 2 3* 4 5* 6 | 2 7* 8 1* | 3 1* 5 7 8*"
_VISITS = "1 2 3 | 4 5* 6 | 2 7 8* 1 | 3 1* 5 7 8"


def music_streaming_sessions() -> Iterator[Case]:
    """MSSD as published."""
    day = "20180715_000000000000.csv"
    training: dict[str, Content] = {f"training_set/log_0_{day}": mssd("0_x: a b* c d e* | 0_y: f* g h a* b* c")}
    half: dict[str, Content] = {f"test_set/log_prehistory_{day}": mssd("1_z: a b c* d e*", length=10)}
    hidden = "session_id,session_position,session_length,track_id_clean\n1_z,6,10,t_f\n1_z,7,10,t_g\n"
    test = half | {f"test_set/log_input_{day}": hidden}
    features: dict[str, Content] = {"track_features/tf_000000000000.csv": "track_id,duration\nt_a,200\n"}
    whole, first, both = "a b* c d e* | f* g h a* b* c", "a b c* d e*", "a b* c d e* | f* g h a* b* c | a b c* d e*"
    everything: dict[str, Content] = {f"mssd/{name}": text for name, text in (training | test | features).items()}
    packed: dict[str, Content] = {
        f"mssd/{name}.tar.gz": tarred(part)
        for name, part in (("test_set", test), ("track_features", features), ("training_set", training))
    }
    left_out = ("test_set", "name them to read them as well", "track_features")
    yield Case("the whole folder", "mssd", everything, expected=whole, sources=("mssd",), says=left_out)
    yield Case("the archives in a folder", "mssd", packed, expected=whole, sources=("mssd",), says=left_out)
    yield Case("one archive", "mssd", {"mssd.zip": zipped(everything)}, expected=whole, says=left_out)
    halves = ("1 of 1 sessions lack their last plays", "session_length")
    yield Case("first halves of sessions", "mssd", half, expected=first, says=halves)
    ignored = ("ignored: plays without an outcome \\(log_input\\)\\s+2\\s+5\\s", *halves)
    facts = {"ignored": {"plays without an outcome (log_input)": 2}}
    yield Case("the test set", "mssd", test, expected=first, says=ignored, log=facts, sources=("test_set",))
    files = {name.removeprefix("test_set/"): text for name, text in test.items()}
    yield Case("the test set in an archive", "mssd", {"test.tar.gz": tarred(files)}, expected=first, says=ignored)
    yield Case(
        "the training set and the test set",
        "mssd",
        {**training, **test},
        expected=both,
        says=("1 of 3 sessions lack their last plays", ignored[0].replace("5", "16")),
        log=facts,
        sources=("training_set", "test_set"),
    )
    yield Case(
        "second halves of sessions",
        "mssd",
        {f"log_input_{day}": hidden},
        refused=("none of 2 lines has an outcome", "log_prehistory"),
    )


def lfm() -> Iterator[Case]:
    """Last.fm 1K, LFM-2b and LFM-1b."""
    profile = "lastfm-dataset-1K/userid-profile.tsv"
    archive: dict[str, Content] = {
        profile: "#id\tgender\tage\tcountry\tregistered\nuser_000001\tm\t\tJapan\tAug 13, 2006\n",
        "lastfm-dataset-1K/userid-timestamp-artid-artname-traid-traname.tsv": lfm1k(),
    }
    every = "--all-sessions"
    yield Case("the published archive", "lfm1k", {"lastfm-dataset-1K.tar.gz": tarred(archive)}, every)
    for method, name in ((zipfile.ZIP_STORED, "stored"), (zipfile.ZIP_DEFLATED, "deflated")):
        yield Case(f"a {name} zip", "lfm1k", {"lastfm.zip": zipped({"plays.tsv": lfm1k()}, method)}, every)
    header = "userid\ttimestamp\tmusicbrainz-artist-id\tartist-name\tmusicbrainz-track-id\ttrack-name\n"
    yield Case("a header", "lfm1k", {"plays.tsv": header + lfm1k()}, every)
    yield Case("lines twice", "lfm1k", {"1.tsv": lfm1k(), "2.tsv": lfm1k()}, every, log={"merged": 15})
    events = "user_id\ttrack_id\talbum_id\ttimestamp\n" + "".join(
        f"{play.user[1]}\t{play.number}\t7\t{play.moment:%Y-%m-%d %H:%M:%S}\n" for play in HISTORY
    )
    two: dict[str, Content] = {"lfm2b/listening_events_1.tsv": events, "lfm2b/listening_events_2.tsv": events}
    named = "1 2 3* 4 5* 6 | 2 7 8* 1 | 3 1* 5 7 8"
    yield Case("lines twice", "lfm2b", two, expected=named, log={"merged": 15}, sources=("lfm2b",))
    lfm1b = "".join(f"{play.user[1]}\t7\t8\t{play.number}\t{epoch(play)}\n" for play in HISTORY)
    yield Case("LFM-1b", "lfm2b", {"LFM-1b_LEs.txt": lfm1b}, expected=named)


def yandex() -> Iterator[Case]:
    """Yambda as published."""
    flat: dict[str, Content] = {"yambda/flat/50m/listens.parquet": yambda()}
    yield Case("listens", "yambda", flat, expected=_YAMBDA, sources=("yambda/flat/50m",))
    both = flat | {"yambda/flat/500m/listens.parquet": yambda()}
    yield Case("two sizes", "yambda", both, refused=("flat/50m", "flat/500m"), sources=("yambda",))
    nothing = {"played_ratio_pct": None, "track_length_seconds": None}
    likes = [
        one | nothing | {"event_type": kind} for one, kind in zip(yambda(), ("like", "dislike", "unlike"), strict=False)
    ]
    listens = [one | {"event_type": "listen"} for one in yambda()]
    multi: dict[str, Content] = {"multi_event.parquet": [*listens[:5], *likes, *listens[5:]]}
    yield Case("several events", "yambda", multi, expected=_YAMBDA, says=("3", "like"))
    liked = [{name: one[name] for name in ("uid", "timestamp", "item_id", "is_organic")} for one in yambda()]
    yield Case("likes", "yambda", {"likes.parquet": liked}, refused=("likes", "listens"))
    sequences = [{name: [one[name] for one in yambda()] for name in yambda()[0]} | {"uid": 1}]
    yield Case("sequences", "yambda", {"listens.parquet": sequences}, refused=("flat",))


def other_data_sets() -> Iterator[Case]:
    """Data sets that the kind `events` reads or refuses."""
    recbole = table(
        separator="\t",
        header="user_id:token\titem_id:token\ttimestamp:float",
        timestamp=lambda play: f"{epoch(play)}.0",
    )
    yield Case("RecBole", "events", {"recbole.inter": recbole}, "--columns track_id=item_id")
    visits = (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4)
    clicks = "SessionId\tItemId\tTime\n" + "".join(
        f"{visit}\t{play.number}\t{epoch(play)}.0\n" for visit, play in zip(visits, HISTORY, strict=True)
    )
    options = "--columns session_id=SessionId,track_id=ItemId,timestamp=Time"
    yield Case("session-rec", "events", {"clicks.txt": clicks}, options, _VISITS, says=("inferred",))
    playlists = {"info": {"slice": "0-1"}, "playlists": [{"name": "invented", "pid": 0, "tracks": [{"pos": 0}]}]}
    yield Case(
        "playlists", "events", {"mpd.slice.0-1.json": json.dumps(playlists)}, refused=("playlists",), never=("{",)
    )
    tags = "user_id,track_id,hashtag,created_at\n" + "".join(
        f"{play.user},{play.track},{tag},{play.moment:%Y-%m-%d %H:%M:%S}\n"
        for play in HISTORY
        for tag in ("nowplaying", *("music",) * (play.track == "b"))
    )
    yield Case("#nowplaying-RS", "events", {"tags.csv": tags}, "--columns timestamp=created_at", log={"merged": 2})
    minutes = "user\tsong\ttimestamp\n" + "".join(f"{p.user}\t{p.track}\t{p.moment:%Y-%m-%d %H:%M}\n" for p in HISTORY)
    yield Case(
        "Music4All",
        "events",
        {"m.tsv": minutes},
        "--columns user_id=user,track_id=song",
        "a b c d e f | b g h a | c a e g h",
        says=("coarser than --skip-within 30",),
    )
    names = ("ts_listen", "media_id", "user_id", "is_listened")
    flow = table(
        names, ts_listen=epoch, media_id=lambda play: play.number, is_listened=lambda play: int(not play.skipped)
    )
    options = "--columns track_id=media_id,timestamp=ts_listen,played=is_listened"
    yield Case("DSG17", "events", {"train.csv": flow}, options, "1 2 3* 4 5* 6 | 2 7 8* 1 | 3 1* 5 7 8")
    target = "msno,song_id,source_type,target\n" + "".join(f"{play.user},{play.track},radio,1\n" for play in HISTORY)
    yield Case("KKBox", "events", {"train.csv": target}, refused=("msno", "song_id"))
    line = 'event.session\t0\t1709287200\t{"numtracks": 1}\t{"subjects": [], "objects": [{"type": "track", "id": 1}]}\n'
    yield Case("30Music", "events", {"sessions.idomaar": line * 3}, refused=("idomaar",))


CASES: Final = (*spotify(), *exports(), *music_streaming_sessions(), *lfm(), *yandex(), *other_data_sets())
