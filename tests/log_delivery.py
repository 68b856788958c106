"""Ways in which one history is delivered: files, order of lines, format, spelling of times, encoding, compression.

Whatever the way, `segue prepare` writes the same dataset.
"""

import bz2
import csv
import email.utils
import gzip
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import polars as pl
import zstandard
from hypothesis import strategies as st

from tests.log_cases.sources import tarred, zipped

START_S: Final = 1_700_000_000
# Letters beside ASCII are those of Latin-1, so that every encoding has them.
TRACKS: Final = ("a", "b b", 'c "live"', "d, e; f|g", "hé", "ÿÄ\u00a0ß", "0", "007", "x/y?z=%20", "A - B")
TITLES: Final = (None, "Café", "two\nlines", 'A "quoted", title', "ü; |", None, "Zoë", "plain", "1", "x")


class Play(NamedTuple):
    """A play, as a log tells it. `second` counts from START_S."""

    user: str
    visit: int
    position: int
    second: int
    track: int  # index of TRACKS
    skipped: bool | None

    @property
    def moment(self) -> datetime:
        """The start in UTC."""
        return datetime.fromtimestamp(START_S + self.second, tz=UTC)


_GAPS: Final = (1, 2, 12, 29, 30, 31, 200, 240, 1199, 1200, 1201, 4000)


@st.composite
def histories(draw: st.DrawFn, *, flags: Sequence[bool | None] = (None, True, False), ties: bool = False) -> list[Play]:
    """Plays of up to three users, in order. Without `ties`, no user has two plays that start at once."""
    plays: list[Play] = []
    for user in draw(st.sampled_from([["ann"], ["ann", "béa"], ["béa", "ann", "10"]])):
        second, visit, position = draw(st.integers(0, 100_000)), 1, 0
        for _ in range(draw(st.integers(1, 12))):
            flag, track = draw(st.sampled_from(flags)), draw(st.integers(0, len(TRACKS) - 1))
            plays.append(Play(user, visit, position, second, track, flag))
            gap = draw(st.sampled_from((0, *_GAPS) if ties else _GAPS))
            second, position = second + gap, position + 1
            if gap >= 1200:
                visit, position = visit + 1, 0
    return plays


Row = dict[str, Any]
FORMS: Final[dict[str, tuple[str, ...]]] = {
    "listeners": ("user_id", "track_id", "timestamp", "title"),
    "listeners with flags": ("user_id", "track_id", "timestamp", "skipped", "title"),
    "sessions by time": ("session_id", "track_id", "timestamp", "skipped"),
    "sessions without flags": ("session_id", "timestamp", "track_id"),
    "sessions by position": ("session_id", "position", "track_id", "skipped"),
    "visits of users": ("user_id", "session_id", "timestamp", "track_id", "skipped"),
}


def rows(plays: Sequence[Play], form: str) -> list[Row]:
    """The plays as the rows of a form of events; times are `datetime`, missing values None."""
    visits = form == "visits of users"
    return [
        {
            name: {
                "user_id": play.user,
                "session_id": str(play.visit) if visits else f"{play.user}-{play.visit}",
                "position": play.position,
                "track_id": TRACKS[play.track],
                "timestamp": play.moment,
                "skipped": bool(play.skipped) if form == "sessions by position" else play.skipped,
                "title": TITLES[play.track],
            }[name]
            for name in FORMS[form]
        }
        for play in plays
    ]


def _in(form: str) -> Callable[[datetime], str]:
    return lambda moment: format(moment, form)


def _zoned(hours: float, form: str) -> Callable[[datetime], str]:
    return lambda moment: moment.astimezone(timezone(timedelta(hours=hours))).isoformat(form)


def _epoch(factor: int) -> Callable[[datetime], str]:
    return lambda moment: str(int(moment.timestamp()) * factor)


SPELLINGS: Final[dict[str, Callable[[datetime], str]]] = {
    "ISO 8601": _in("%Y-%m-%dT%H:%M:%SZ"),
    "ISO 8601 with offset": _zoned(2, "T"),
    "ISO 8601 west": _zoned(-5.5, "T"),
    "ISO 8601 without zone": _in("%Y-%m-%dT%H:%M:%S"),
    "BigQuery": _in("%Y-%m-%d %H:%M:%S UTC"),
    "BigQuery with fractions": _in("%Y-%m-%d %H:%M:%S.000000 UTC"),
    "PostgreSQL": _in("%Y-%m-%d %H:%M:%S+00"),
    "Snowflake": _in("%Y-%m-%d %H:%M:%S.000 +0000"),
    "pandas": _zoned(0, " "),
    "RFC 2822": email.utils.format_datetime,
    "epoch s": _epoch(1),
    "epoch ms": _epoch(10**3),
    "epoch us": _epoch(10**6),
    "epoch ns": _epoch(10**9),
    "epoch float": lambda moment: f"{moment.timestamp()}",
}
_EACH: Final = tuple(SPELLINGS.values())
SPELLINGS["mixed"] = lambda moment: _EACH[int(moment.timestamp()) % len(_EACH)](moment)
# With the option that says how to read them.
_TOLD: Final[dict[str, tuple[Callable[[datetime], str], dict[str, str]]]] = {
    "day first": (_in("%d.%m.%Y %H:%M:%S"), {"time_format": "%d.%m.%Y %H:%M:%S"}),
    "local": (
        lambda moment: format(moment.astimezone(ZoneInfo("America/New_York")), "%Y-%m-%d %H:%M:%S"),
        {"time_zone": "America/New_York"},
    ),
}
_SPELL: Final = SPELLINGS | {name: spell for name, (spell, _) in _TOLD.items()}
_ENCODINGS: Final[dict[str, tuple[Callable[[str], bytes], dict[str, str]]]] = {
    "UTF-8": (str.encode, {}),
    "UTF-8 with a byte order mark": (lambda text: text.encode("utf-8-sig"), {}),
    "UTF-16": (lambda text: text.encode("utf-16"), {}),
    "UTF-16, big endian": (lambda text: b"\xfe\xff" + text.encode("utf-16-be"), {}),
    "Latin-1": (lambda text: text.encode("latin-1"), {"encoding": "latin-1"}),
    "Windows-1252": (lambda text: text.encode("cp1252"), {"encoding": "cp1252"}),
}
_SEPARATORS: Final = {"CSV": ",", "TSV": "\t", "semicolons": ";", "pipes": "|"}
_FORMATS: Final = (*_SEPARATORS, "JSON Lines", "JSON", "Parquet")
_TYPES: Final[dict[str, Callable[[pl.Expr], pl.Expr]]] = {
    "datetime": lambda time: time.cast(pl.Datetime("us", "UTC")),
    "datetime in ns": lambda time: time.cast(pl.Datetime("ns", "UTC")),
    "datetime elsewhere": lambda time: time.dt.convert_time_zone("Asia/Tokyo"),
    "datetime without zone": lambda time: time.dt.replace_time_zone(None).dt.cast_time_unit("ms"),
    "epoch s": lambda time: time.dt.epoch("s"),
    "epoch ms": lambda time: time.dt.epoch("ms"),
    "epoch us": lambda time: time.dt.epoch("us"),
    "epoch ns": lambda time: time.dt.epoch("ns"),
    "epoch float": lambda time: time.dt.epoch("s").cast(pl.Float64),
}
_PACKERS: Final[dict[str, tuple[str, Callable[[str, bytes], bytes]]]] = {
    "plain": ("", lambda _, content: content),
    "gzip": (".gz", lambda _, content: gzip.compress(content)),
    "bzip2": (".bz2", lambda _, content: bz2.compress(content)),
    "Zstandard": (".zst", lambda _, content: zstandard.compress(content)),
    "zip": (".zip", lambda name, content: zipped({name: content})),
    "tar": (".tar", lambda name, content: tarred({f"folder/{name}": content}, "w")),
    "tar.gz": (".tar.gz", lambda name, content: tarred({f"folder/{name}": content})),
}


class Delivery(NamedTuple):
    """A way to deliver a history. The options say how to read it."""

    format: str
    spelling: str
    encoding: str
    packing: str
    line_end: str
    quote_all: bool
    parts: int
    repeated: bool
    order: random.Random | None  # None: the order of the history

    @property
    def options(self) -> dict[str, str]:
        """The options of `prepare` for this delivery."""
        options = dict(_TOLD[self.spelling][1]) if self.spelling in _TOLD else {}
        return options | _ENCODINGS[self.encoding][1]

    def files(self, whole: Sequence[Row]) -> dict[str, bytes]:
        """The files of a history."""
        lines = list(whole)
        if self.repeated and self.order is not None:
            lines += self.order.sample(lines, self.order.randint(1, len(lines)))
        if self.order is not None:
            self.order.shuffle(lines)
        parts = [lines[number :: self.parts] for number in range(self.parts)]
        return dict(self._file(f"part{number}", part) for number, part in enumerate(parts) if part)

    def _file(self, name: str, part: list[Row]) -> tuple[str, bytes]:
        if self.format == "Parquet":
            return f"{name}.parquet", _parquet(part, self.spelling)
        spell = _SPELL[self.spelling]
        written = [row | ({"timestamp": spell(row["timestamp"])} if "timestamp" in row else {}) for row in part]
        if self.format.startswith("JSON") and self.spelling.startswith("epoch") and "timestamp" in part[0]:
            number = float if self.spelling == "epoch float" else int
            written = [row | {"timestamp": number(row["timestamp"])} for row in written]
        suffix = {"TSV": ".tsv", "JSON Lines": ".jsonl", "JSON": ".json"}.get(self.format, ".csv")
        content = _ENCODINGS[self.encoding][0](self._text(written))
        ending, pack = _PACKERS[self.packing]
        return f"{name}{suffix}{ending}", pack(f"{name}{suffix}", content)

    def _text(self, part: list[Row]) -> str:
        if self.format == "JSON Lines":
            return "".join(json.dumps(row, ensure_ascii=self.quote_all) + self.line_end for row in part)
        if self.format == "JSON":
            return json.dumps(part, ensure_ascii=self.quote_all, indent=1 if self.line_end == "\n" else None)
        stream = io.StringIO(newline="")
        quoting: Final = csv.QUOTE_ALL if self.quote_all else csv.QUOTE_MINIMAL
        separator = _SEPARATORS[self.format]
        writer = csv.DictWriter(
            stream, list(part[0]), delimiter=separator, quoting=quoting, lineterminator=self.line_end
        )
        writer.writeheader()
        writer.writerows(part)
        return stream.getvalue()


def _parquet(part: list[Row], spelling: str) -> bytes:
    stream = io.BytesIO()
    schema: dict[str, Any] = {"skipped": pl.Boolean, "title": pl.String, "position": pl.Int32}
    frame = pl.DataFrame(part, schema_overrides={name: schema[name] for name in part[0] if name in schema})
    if "timestamp" in frame.columns:
        frame = frame.with_columns(_TYPES[spelling](pl.col("timestamp")))
    frame.write_parquet(stream, compression="lz4")
    return stream.getvalue()


PLAIN: Final = Delivery("CSV", "ISO 8601", "UTF-8", "plain", "\n", quote_all=False, parts=1, repeated=False, order=None)


@st.composite
def deliveries(
    draw: st.DrawFn, formats: Sequence[str] = _FORMATS, packers: Sequence[str] = tuple(_PACKERS)
) -> Delivery:
    """Any way to deliver a history."""
    form = draw(st.sampled_from(formats))
    return Delivery(
        format=form,
        spelling=draw(st.sampled_from(list(_TYPES if form == "Parquet" else _SPELL))),
        encoding="UTF-8" if form == "Parquet" else draw(st.sampled_from(list(_ENCODINGS))),
        packing="plain" if form == "Parquet" else draw(st.sampled_from(packers)),
        line_end=draw(st.sampled_from(["\n", "\r\n"])),
        quote_all=draw(st.booleans()),
        parts=draw(st.integers(1, 4)),
        repeated=draw(st.booleans()),
        order=draw(st.randoms(use_true_random=False)),
    )


def without_names(facts: Mapping[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """What dataset.json says without what names files, columns and lines: `options` are those of the delivery."""
    kept = {name: value for name, value in facts.items() if name not in {"log", "options"}}
    return kept | {"options": {name: value for name, value in facts["options"].items() if name not in options}}
