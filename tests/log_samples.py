"""Invented logs of every kind and format, large enough for several input splits, with lines that cannot be read."""

import bz2
import gzip
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
import zstandard

from training.prepare.options import LogKind

START: Final = 1_700_000_000
_MSSD_HEADER: Final = "session_id,session_position,track_id_clean,skip_1,skip_2,skip_3,hour_of_day,date"
_EVENTS_HEADER: Final = "session_id,position,track_id,skipped,timestamp,title,artist,written_at"


class Play(NamedTuple):
    owner: str
    place: int
    second: int
    track: int
    skipped: bool


class Sample(NamedTuple):
    """A log: what its files hold (text, bytes or a frame for Parquet), and the options to prepare it with."""

    kind: LogKind
    files: dict[str, Any]
    options: dict[str, Any]

    def write(self, folder: Path) -> list[Path]:
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            if isinstance(content, pl.DataFrame):
                content.write_parquet(folder / name)
            else:
                (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return [folder / name for name in self.files]


def plays(seed: int, owners: int) -> list[Play]:
    """Plays in no order: gaps from 0 to 40 minutes, some at the same second, each owner's places from 0 on."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(owners):
        second = START + int(rng.integers(0, 10**6))
        for place in range(int(rng.integers(1, 60))):
            second += int(rng.choice([0, 20, 30, 31, 180, 1200, 1201, 2400]))
            track = int(rng.zipf(1.4)) % 300
            found.append(Play(f"o{number * 7919 % 1000:03}-é", place, second, track, bool(rng.random() < 0.4)))
    return [found[place] for place in rng.permutation(len(found))]


def _files(name: str, lines: list[str], header: str | None, number: int = 3) -> dict[str, str]:
    """The lines in several files, each with the header, the last one without a line feed at its end."""
    parts = [lines[start::number] for start in range(number)]
    return {
        name.format(place): "\n".join(([header] if header else []) + part) + "\n" * (place < number - 1)
        for place, part in enumerate(parts)
    }


def _moment(second: int) -> datetime:
    return datetime.fromtimestamp(second, tz=UTC)


def _lfm1k() -> Sample:
    lines = [
        f"{play.owner}\t{_moment(play.second):%Y-%m-%dT%H:%M:%SZ}\t\tArtist {play.track % 40}\t"
        f"{f'mbid-{play.track}' if play.track % 3 else ''}\tTitle {play.track} of {play.place % 5}"
        for play in plays(1, 120)
    ]
    lines[5:5] = ["cut short", "", f"u\tyesterday\t\tA\t\t{'x' * 300}", "\t2009-05-04T10:00:00Z\t\tA\t\tx"]
    lines[-50] = lines[-50].replace("Title", "Ti\x07tle")
    return Sample("lfm1k", _files("log{}.tsv", lines, None), {"seed": 3})


def _lfm2b() -> Sample:
    lines = [f"{play.owner}\t{play.track}\t9\t{_moment(play.second):%Y-%m-%d %H:%M:%S}" for play in plays(2, 80)]
    return Sample("lfm2b", _files("x{}.tsv", lines, "user_id\ttrack_id\talbum_id\ttimestamp"), {"min_track_plays": 20})


def _mssd() -> Sample:
    lines = [
        f"{play.owner},{play.place},{play.track},{play.skipped},{play.place % 2},{int(play.skipped)},16,15-07-18"
        for play in plays(3, 100)
    ]
    lines[7] = lines[7] + ",too many"
    return Sample("mssd", _files("log_{}.csv", lines, _MSSD_HEADER), {"skip_flag": "skip_3", "max_session_plays": 7})


def _mssd_test_set() -> Sample:
    """First halves of sessions, second halves without outcomes, and whole sessions."""
    names = "session_id,session_position,session_length,track_id_clean"
    first, second, whole = [], [], []
    for play in (play for play in plays(11, 120) if play.place < 12):
        line = f"{play.owner},{play.place + 1},12,{play.track}"
        if play.owner < "o500":
            whole.append(f"{line},{play.skipped}")
        elif play.place < 6:
            first.append(f"{line},{play.skipped}")
        else:
            second.append(line)
    second[3] += ",too many"
    files = {
        **_files("log_prehistory_{}.csv", first, f"{names},skip_2", 2),
        **_files("log_input_{}.csv", second, names, 2),
        **_files("log_{}.csv", whole, f"{names},skip_2", 1),
    }
    return Sample("mssd", files, {"min_session_plays": 3})


def _yambda(rows: int | None = None) -> Sample:
    some = plays(4, 90)[:rows]
    frame = pl.DataFrame(
        {
            "uid": [int(play.owner[1:4]) for play in some],
            "item_id": [play.track for play in some],
            "timestamp": [play.second for play in some],
            "played_ratio_pct": [play.track * 7 % 130 for play in some],
        }
    ).cast(pl.UInt32)
    half = len(frame) // 2
    return Sample("yambda", {"a.parquet": frame[:half], "b.parquet": frame[half:]}, {"max_sessions": 50, "seed": 1})


def _event_lines(some: list[Play]) -> list[str]:
    """Titles in quotes, times that are missing, plays reported again with another outcome."""
    lines = []
    for number, play in enumerate(some):
        title = f'"Song ""{play.track}"", live"' if play.track % 2 else "" if number % 3 else f"Song {number}"
        time = "" if number % 4 == 0 else str(play.second)
        flag = "true" if play.skipped else "0"
        lines.append(f"{play.owner},{play.place},t{play.track},{flag},{time},{title},,{play.second + number % 9}")
        if number % 10 == 0:
            lines.append(f"{play.owner},{play.place},t{play.track},1,{time},,Artist,{play.second + number % 11}")
    return lines


def _events() -> Sample:
    lines = _event_lines(plays(5, 100))
    lines[3:3] = [
        'o,1,t,0,,"open,,',
        "o,x,t,0,,,,",
        "o,1,t,perhaps,,,,",
        "o,1,,0,,,,",
        "o,1,t,0,soon,,,",
        "o,1,t,0,,,,,,",
    ]
    return Sample(
        "events", _files("e{}.csv", lines, _EVENTS_HEADER), {"sample_half_skips": True, "min_session_plays": 3}
    )


def _events_by_time() -> Sample:
    lines = [f"{play.owner},t{play.track},{play.second},{int(play.skipped)}" for play in plays(6, 100)]
    return Sample("events", _files("e{}.csv", lines, "\ufeffSession_ID,track_id,timestamp,skipped\r"), {})


def _listeners(*, skips_in: tuple[bool, ...]) -> Sample:
    """Three files of listeners' events; skips are given in some: where one has none, they are inferred in all."""
    files = {}
    for number, given in enumerate(skips_in):
        some = plays(7, 90)[number :: len(skips_in)]
        columns = {
            "user_id": [play.owner for play in some],
            "track_id": [f"t{play.track}" for play in some],
            "timestamp": [_moment(play.second) + timedelta(milliseconds=play.track) for play in some],
        }
        skipped = {"skipped": [play.skipped for play in some]} if given else {}
        files[f"e{number}.parquet"] = pl.DataFrame(columns | skipped | ({"title": ["T"] * len(some)} if number else {}))
    return Sample("events", files, {"idle_gap_s": 600, "min_session_plays": 1})


def _owners_apart(*, whole: bool) -> Sample:
    """Few owners, each in one file; one file lacks a column: skips of listeners, times of sessions."""
    owner, column = ("session_id", "timestamp") if whole else ("user_id", "skipped")
    files = {}
    for number in range(2):
        some = [play for play in plays(9, 8) if int(play.owner[1:4]) % 2 == number]
        columns = {
            owner: [play.owner for play in some],
            "track_id": [f"t{play.track}" for play in some],
            "position": [play.place for play in some],
            "timestamp": [play.second for play in some],
            "skipped": [play.skipped for play in some],
        }
        files[f"e{number}.parquet"] = pl.DataFrame({k: v for k, v in columns.items() if number or k != column})
    return Sample("events", files, {"min_session_plays": 1})


def _listener_lines(some: list[Play], later: int = 0) -> list[str]:
    return [f"{play.owner},t{play.track},{play.second + later}" for play in some]


def _repeats() -> Sample:
    """A file from old to new, one from new to old, and one that repeats some lines of both a second later."""
    some = sorted(plays(10, 60), key=lambda play: play.second)
    old, new = some[: len(some) // 2], some[len(some) // 2 :][::-1]
    again = [*some[::7], *new[::5]]
    files = (_listener_lines(old), _listener_lines(new), _listener_lines(again, 1) + _listener_lines(again[::2]))
    text = {f"e{number}.csv": "\n".join(["user_id,track_id,timestamp", *lines]) for number, lines in enumerate(files)}
    return Sample("events", text, {"merge_within_s": 2, "skip_after_s": 1, "min_session_plays": 1})


def _filtered(*, as_json: bool) -> Sample:
    """Plays among likes, and plays of apps of which one is left out. Few lines of JSON name an app."""
    rows = [
        {"user_id": play.owner, "track_id": f"t{play.track}", "timestamp": play.second, "event": event, "app": app}
        for play in plays(13, 90)
        for event in ("play", *(["like"] if play.skipped else []))
        for app in ("", "test")
        if play.track % 41 == 0 or not app
    ]
    options: dict[str, Any] = {"where": ["event=play"], "where_not": ["app=test", "app=other"]}
    if as_json:
        lines = [json.dumps({name: value for name, value in row.items() if value}) for row in rows]
        return Sample("events", {f"e{n}.jsonl": "\n".join(lines[n::2]) for n in range(2)}, options)
    return Sample(
        "events", _files("e{}.csv", [",".join(map(str, row.values())) for row in rows], ",".join(rows[0])), options
    )


def _visits() -> Sample:
    """Sessions whose ids are unique per listener only. One file has flags, the other one has ends."""
    some = [(f"u{int(play.owner[1:4]) % 9}", f"{int(play.owner[1:4]) // 300}", play) for play in plays(11, 90)]
    half = len(some) // 2
    flagged = [f"{user},{session},t{play.track},{play.second},{play.skipped}" for user, session, play in some[:half]]
    ended = [f"{user},{session},t{play.track},{play.second},{play.track}" for user, session, play in some[half:]]
    columns = "user_id,session_id,track_id,timestamp"
    files = {
        "e0.csv": "\n".join([f"{columns},skipped", *flagged]),
        "e1.csv": "\n".join([f"{columns},ms_played", *ended]),
    }
    return Sample("events", files, {"max_session_plays": 6})


def _ends() -> Sample:
    """Ends of plays with played durations, in whole minutes in one of the files."""
    some = sorted(plays(12, 60), key=lambda play: play.second)
    files = {}
    for number in range(2):
        step = 60 if number else 1
        lines = [
            f"{play.owner},t{play.track},{play.second // step * step},{play.track * 900}" for play in some[number::2]
        ]
        files[f"e{number}.csv"] = "\n".join(["user_id,track_id,ended,ms_played", *lines, *lines[::9]])
    options = {"columns": {"timestamp": "ended"}, "timestamp_is": "end", "min_session_plays": 1}
    return Sample("events", files, options)


def _durations(**options: Any) -> Sample:
    """Played durations, with some blank flags; sessions are those of the log. Without options, a file lacks both."""
    some = plays(13, 60)
    lines = [
        f"{int(play.owner[1:4]) % 3},u{play.owner},t{play.track},{play.second},{play.track * 997 % 300_000},240000,"
        f"{'' if play.place % 3 else int(play.skipped)}"
        for play in some
    ]
    files = _files("e{}.csv", lines, "session_id,userId,trackId,played_at,ms_played,duration_ms,skipped")
    if options:
        return Sample("events", files, {"min_session_plays": 1, **options})
    last = [f"{play.owner}|u|t{play.track}|{play.second}" for play in plays(14, 20)]
    files["last.csv"] = "session_id|userId|trackId|played_at\n" + "\n".join(last)
    return Sample("events", files, {"min_session_plays": 1})


def _json_ends() -> Sample:
    """Rows of JSON whose times are ends, newest first, with fields in objects."""
    some = sorted(plays(15, 60), key=lambda play: -play.second)
    rows = [
        f'{{"user": {{"id": {int(play.owner[1:4])}}}, "track": "t{play.track}", "at": "{_moment(play.second):%c}", '
        f'"ms_played": {play.track * 997 % 300_000}}}'
        for play in some
    ]
    options = {"columns": {"user_id": "user.id", "track_id": "track", "timestamp": "at"}, "timestamp_is": "end"}
    return Sample(
        "events",
        {"a.jsonl": "\n".join(rows[::2]), "b.json": f"[{','.join(rows[1::2])}]"},
        {"skip_below_s": 30, **options},
    )


def _without_times() -> Sample:
    lines = [f"{play.owner},{play.place},t{play.track},{int(play.skipped)}" for play in plays(8, 60)]
    return Sample("events", _files("e{}.csv", lines, "session_id,position,track_id,skipped"), {"min_track_plays": 2})


def _packed() -> Sample:
    files = _lfm1k().files
    packers: list[tuple[str, Callable[[bytes], bytes]]] = [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".zst", zstandard.compress),
    ]
    packed = {
        name + suffix: pack(text.encode()) for (name, text), (suffix, pack) in zip(files.items(), packers, strict=True)
    }
    return Sample("lfm1k", packed, {"sample_half_skips": False})


def samples() -> Iterator[tuple[str, Sample]]:
    """All of them, by name."""
    yield "lfm1k", _lfm1k()
    yield "lfm1k, packed", _packed()
    yield "lfm2b", _lfm2b()
    yield "mssd", _mssd()
    yield "mssd, the test set", _mssd_test_set()
    yield "yambda", _yambda()
    yield "events by position", _events()
    yield "events by time", _events_by_time()
    yield "events without times", _without_times()
    yield "listeners with skips", _listeners(skips_in=(True, True, True))
    yield "listeners, skips in some files", _listeners(skips_in=(True, False, True))
    yield "listeners, skips of some", _owners_apart(whole=False)
    yield "sessions, times of some", _owners_apart(whole=True)
    yield "listeners, repeated in two directions", _repeats()
    yield "visits of listeners", _visits()
    yield "filtered", _filtered(as_json=False)
    yield "filtered JSON", _filtered(as_json=True)
    yield "ends of plays", _ends()
    yield "durations that are not used", _durations()
    yield "played seconds", _durations(skip_below_s=30)
    yield "played parts", _durations(skip_below_ratio_pct=50, max_malformed_pct=50)
    yield "ends of plays in JSON", _json_ends()
    yield "a log of few lines", _yambda(6)._replace(options={"min_session_plays": 1})


SAMPLES: Final = dict(samples())
