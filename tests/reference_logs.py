"""The reading half of the reference (tests/reference_sessions.py): logs of all kinds to plays, in plain Python."""

import bz2
import csv
import email.utils
import gzip
import io
import json
import re
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from tests.reference_sessions import Options

Row = Mapping[str, Any]
Content = bytes | list[dict[str, Any]]  # a file, or the rows of a Parquet file
_MISSING: Final = {None, "", "\\N", "NULL", "null", "None", "NaN", "nan", "NA", "<NA>"}
_YES: Final = {"true", "t", "yes", "y", "1", "1.0"}
_NO: Final = {"false", "f", "no", "n", "0", "0.0"}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST_MS: Final = 631_152_000_000  # 1990
_MEDIA: Final = ("podcast", "video")


@dataclass(frozen=True)
class Play:
    """A line of a log. Times are in ms since 1970."""

    owner: tuple[str, ...]  # of the session where it is given, otherwise of the listener
    track: str
    file: int
    line: int
    start: int | None = None
    end: int | None = None
    position: int | None = None
    skipped: bool | None = None  # None: to be inferred
    written_at: int | None = None
    written_time: int | None = None  # as the log has it, before a duration is subtracted
    other: Any = None  # what reports of one play must have in common beside owner, start and track
    order: int | None = None  # where it is not the order of starts
    rank: int = 0  # order of plays that start at once
    given: bool = False  # whether the owner is a session
    dated: bool = True  # whether the time is a date


class _Unreadable(Exception):
    """A line that is left out."""


def read_log(kind: str, files: Mapping[str, Content], options: "Options") -> list[Play]:
    """The plays of a log, in the order of files and lines."""
    read = _KINDS[kind]
    plays: list[Play] = []
    for number, (name, content) in enumerate(_unpacked(files)):
        if not _belongs(kind, name):
            continue
        rows = _rows(kind, content, options)
        if kind == "apple-music":
            rows = _continued(rows)
        for line, row in enumerate(rows):
            if not _is_wanted(row, options):
                continue
            try:
                play = read(row, options, number, line)
            except (_Unreadable, KeyError, ValueError, IndexError):
                continue
            if play is not None:
                plays.append(play)
    return plays


def _is_wanted(row: dict[Any, Any], options: "Options") -> bool:
    """Whether the filters keep a row."""

    def has(column: str, value: str) -> bool:
        found = row.get(column)
        return (str(found).lower() if isinstance(found, bool) else str(found or "")) == value

    wanted = defaultdict[str, list[str]](list)
    for column, value in options.where:
        wanted[column].append(value)
    return all(any(has(column, value) for value in values) for column, values in wanted.items()) and not any(
        has(column, value) for column, value in options.where_not
    )


def _belongs(kind: str, name: str) -> bool:
    """Whether a file of a folder or an archive is part of the log."""
    match kind:
        case "mssd":
            # The test set counts only if it is named, not as a part of a larger folder or archive.
            return "/tf_" not in name and "log_input" not in name and "/test_set/" not in name
        case "lfm1k":
            return "profile" not in name
        case "spotify" | "spotify-account":
            return name.endswith(".json") and "Video" not in name
    return True


def _unpacked(files: Mapping[str, Content]) -> Iterator[tuple[str, Content]]:
    for name, content in files.items():
        if isinstance(content, list):
            yield name, content
        elif content[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                yield from ((f"{name}/{member}", archive.read(member)) for member in archive.namelist())
        else:
            plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
            plain = bz2.decompress(content) if content[:3] == b"BZh" else plain
            if plain[257:262] == b"ustar":
                with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
                    for member in tar.getmembers():
                        found = tar.extractfile(member)
                        assert found is not None
                        yield f"{name}/{member.name}", found.read()
            else:
                yield name, plain


def _text(content: bytes, encoding: str) -> str:
    for mark, name in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if content.startswith(mark):
            return content.decode(name)
    return content.decode(encoding)


def _rows(kind: str, content: Content, options: "Options") -> list[dict[Any, Any]]:
    """The rows of a file by lower-case names; without a header, by the number of the field."""
    if isinstance(content, list):
        return [_lower(row) for row in content]
    text = _text(content, options.encoding)
    if kind == "lfm1k":
        lines = [line.split("\t") for line in text.splitlines()]
        return [dict(enumerate(line)) for line in lines if line[0] != "userid"]
    if kind == "lfm2b" and text[:1].isdigit():  # LFM-1b has no header
        lines = [line.split("\t") for line in text.splitlines()]
        return [{"user_id": line[0], "track_id": line[3], "timestamp": line[4]} for line in lines]
    if kind == "rockbox":
        return [dict(enumerate(line.split("\t"))) for line in text.splitlines() if not line.startswith("#")]
    return _objects(text) if text.lstrip()[:1] in {"[", "{"} else _table(text)


def _objects(text: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError:
        found = [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(found, dict):
        found = found.get("scrobbles", [found])
    return [_lower(row) for row in found]


def _table(text: str) -> list[dict[str, Any]]:
    header = text.splitlines()[0]
    separator = max("\t;|,", key=header.count)
    read = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    names = [name.strip().lower().partition(":")[0] for name in next(read)]
    return [dict(zip(names, row, strict=False)) for row in read if row]


def _lower(row: Row) -> dict[str, Any]:
    return {name.lower(): value for name, value in row.items()}


def moment(value: Any, options: "Options") -> int:
    """A time in ms since 1970. Raises ValueError for values that are none."""
    if isinstance(value, datetime):
        return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1000)
    if isinstance(value, date):
        raise _Unreadable
    text = str(value).strip()
    if options.time_format:
        read = datetime.strptime(text, options.time_format)  # noqa: DTZ007 (the zone follows)
    elif re.fullmatch(r"\d{14}", text):
        read = datetime.strptime(text, "%Y%m%d%H%M%S")  # noqa: DTZ007
    elif re.fullmatch(r"-?\d+(\.\d*)?(e[+-]?\d+)?", text, re.IGNORECASE):
        return _number(Decimal(text))
    elif re.fullmatch(r"\d\d \w{3} \d{4}, \d\d:\d\d", text):
        read = datetime.strptime(text, "%d %b %Y, %H:%M")  # noqa: DTZ007
    elif text[:1].isalpha():
        read = email.utils.parsedate_to_datetime(text)
    elif ":" not in text and "T" not in text:
        raise _Unreadable
    else:
        read = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text.replace(" UTC", "Z").replace(" +", "+")))
    if read.tzinfo is None:
        read = read.replace(tzinfo=ZoneInfo(options.time_zone))
    return (read - _EPOCH) // timedelta(milliseconds=1)


def _number(value: Decimal) -> int:
    for limit, factor in ((11, 1000), (14, 1), (17, Decimal("1e-3"))):
        if abs(value) < 10**limit:
            return int(value * factor)
    return int(value / 10**6)


def _plausible(ms: int) -> int:
    tomorrow = (datetime.now(tz=UTC) + timedelta(days=1)).timestamp() * 1000
    if not _EARLIEST_MS <= ms <= tomorrow:
        raise _Unreadable
    return ms


def _id(value: Any) -> str:
    if isinstance(value, float | Decimal) and value == value and value % 1 == 0:  # noqa: PLR0124 (NaN)
        value = int(value)
    if value in _MISSING or isinstance(value, float):
        raise _Unreadable
    return str(value)


def _flag(value: Any) -> bool | None:
    if value in _MISSING:
        return None
    text = str(value).strip().lower()
    if text not in _YES | _NO:
        raise _Unreadable
    return text in _YES


def _named(artist: Any, title: Any) -> str:
    if not title:
        raise _Unreadable
    return f"{artist} — {title}" if artist else str(title)


def _events(row: dict[str, Any], options: "Options", file: int, line: int) -> Play | None:
    def value(role: str) -> Any:
        found = row.get(options.columns.get(role, role).lower())
        return None if found in _MISSING else found

    given = value("session_id") is not None
    names = [value("user_id"), value("session_id")] if given else [value("user_id")]
    owner = tuple(_id(name) for name in names if name is not None or not given)
    flag = _flag(value("skipped"))
    if value("played") is not None:
        flag = not _flag(value("played"))
    length = None if value("ms_played") is None else int(value("ms_played"))
    if flag is None and length is not None and options.skip_below:
        flag = length < options.skip_below * 1000
    if flag is None and length is not None and options.skip_below_pct and value("duration_ms") is not None:
        flag = length * 100 < options.skip_below_pct * int(value("duration_ms"))
    at = None if value("timestamp") is None else moment(value("timestamp"), options)
    dated = at is None or at >= _EARLIEST_MS
    if at is not None and not (given and flag is not None):
        _plausible(at)
    start = at
    if at is not None and options.timestamp_is == "end":
        start = at - (length or 0)
    place = value("position")
    if at is None and (place is None or not given):
        raise _Unreadable
    return Play(
        owner,
        _id(value("track_id")),
        file,
        line,
        start=start,
        end=start + length if start is not None and length is not None else None,
        position=None if place is None else int(float(place)),
        skipped=flag,
        written_at=None if value("written_at") is None else moment(value("written_at"), options),
        written_time=at,
        given=given,
        dated=dated,
    )


def _mssd(row: dict[str, Any], options: "Options", file: int, line: int) -> Play | None:
    start = None
    if row.get("date"):
        day = datetime.strptime(row["date"], "%Y-%m-%d" if len(row["date"]) > 8 else "%d-%m-%y")  # noqa: DTZ007
        start = moment(day + timedelta(hours=int(row["hour_of_day"])), options)
    owner, track = (_id(row["session_id"]),), _id(row["track_id_clean"])
    skipped = _flag(row[options.skip_flag])
    return Play(
        owner, track, file, line, start=start, position=int(row["session_position"]), skipped=skipped, given=True
    )


def _lfm1k(row: dict[Any, Any], options: "Options", file: int, line: int) -> Play | None:
    start = _plausible(moment(row[1], options))
    track = row[4] or _named(row[3], row[5])
    return Play((_id(row[0]),), track, file, line, start=start, written_time=start)


def _lfm2b(row: dict[str, Any], options: "Options", file: int, line: int) -> Play | None:
    start = _plausible(moment(row["timestamp"], options))
    return Play((_id(row["user_id"]),), _id(row["track_id"]), file, line, start=start, written_time=start)


def _yambda(row: dict[str, Any], options: "Options", file: int, line: int) -> Play | None:
    if row.get("event_type", "listen") != "listen":
        return None
    start, whole = int(row["timestamp"]) * 1000, tuple(row.values())
    skipped = row["played_ratio_pct"] < options.played_ratio
    owner, track = (_id(row["uid"]),), _id(row["item_id"])
    return Play(owner, track, file, line, start=start, skipped=skipped, other=whole, dated=False)


def _spotify(row: dict[str, Any], options: "Options", file: int, line: int) -> Play | None:
    if not row["spotify_track_uri"] or (row["incognito_mode"] and not options.include_private):
        return None
    end, played = _plausible(moment(row["ts"], options)), row["ms_played"]
    skipped = row["skipped"] is True or row["reason_end"] == "fwdbtn"
    track, start = row["spotify_track_uri"], end - played
    return Play(("",), track, file, line, start=start, end=end, rank=end, skipped=skipped, other=end)


def _account(row: dict[str, Any], options: "Options", file: int, line: int) -> Play | None:
    end, played = _plausible(moment(row["endtime"], options)), row["msplayed"]
    track = _named(row["artistname"], row["trackname"])
    return Play(("",), track, file, line, start=end - played, end=end, order=end, skipped=played < 30_000)


def _lastfm(row: dict[str, Any], options: "Options", file: int, line: int) -> Play | None:
    at = row.get("uts") or row.get("date")
    if not at:
        return None
    start = _plausible(moment(at, options))
    return Play(("",), _named(row["artist"], row["track"]), file, line, start=start, written_time=start)


def _listenbrainz(row: dict[str, Any], options: "Options", file: int, line: int) -> Play | None:
    start, told = _plausible(moment(row["listened_at"], options)), row["track_metadata"]
    return Play(("",), _named(told["artist_name"], told["track_name"]), file, line, start=start, written_time=start)


def _continued(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Plays of Apple Music. A play that continues after a pause is one play with the later end."""
    plays: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: str(row["event start timestamp"])):
        if row["event type"] != "PLAY_END" or row["media type"] != "AUDIO":
            continue
        before = plays[-1] if plays else {"end reason type": ""}
        if (
            before["end reason type"] == "PLAYBACK_MANUALLY_PAUSED"
            and before["song name"] == row["song name"]
            and before["end position in milliseconds"] == row["start position in milliseconds"]
        ):
            plays[-1] = row | {"event start timestamp": before["event start timestamp"]}
        else:
            plays.append(row)
    return plays


def _apple(row: dict[str, Any], options: "Options", file: int, line: int) -> Play | None:
    start, end = (_plausible(moment(row[f"event {which} timestamp"], options)) for which in ("start", "end"))
    skipped = row["end reason type"] == "TRACK_SKIPPED_FORWARDS"
    return Play(("",), _named(row["artist name"], row["song name"]), file, line, start=start, end=end, skipped=skipped)


def _rockbox(row: dict[Any, Any], options: "Options", file: int, line: int) -> Play | None:
    start = _plausible(int(row[6]) * 1000)
    return Play(("",), _named(row[0], row[2]), file, line, start=start, skipped=row[5] == "S", written_time=start)


_Read = Callable[[dict[Any, Any], "Options", int, int], Play | None]
_KINDS: Final[Mapping[str, _Read]] = {
    "events": _events,
    "mssd": _mssd,
    "lfm1k": _lfm1k,
    "lfm2b": _lfm2b,
    "yambda": _yambda,
    "spotify": _spotify,
    "spotify-account": _account,
    "lastfm": _lastfm,
    "listenbrainz": _listenbrainz,
    "apple-music": _apple,
    "rockbox": _rockbox,
}
