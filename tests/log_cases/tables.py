"""Cases of the kind `events`: encodings, separators, JSON, archives, types of ids, and reports."""

import gzip
import io
import json
import zipfile
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final

from tests.log_cases.case import Case
from tests.log_cases.history import FLAGGED, HISTORY, Content, epoch, json_lines, lines, rows, table

_NAMES = ("Café", "Cafè", "Naïve", "Naîve", "Zoë", "Zoé")
_ACCENTS = "user_id,track_id,timestamp,title\n" + "".join(
    f"u1,{_NAMES[number % 6]},2024-03-01T10:{number * 4:02}:00Z,Ça {_NAMES[number % 6]}\n" for number in range(12)
)
# Ten sessions of six plays without a skip.
_SIXTY = [(f"u{number // 6}", "abcdef"[number % 6], f"10:{number % 6 * 4:02}:00") for number in range(60)]


def _events(
    name: str, content: Content | dict[str, Content], options: str = "", expected: str | None = None, **facts: Any
) -> Case:
    case = Case(name, "events", content if isinstance(content, dict) else {"plays.csv": content}, options, **facts)
    return case if expected is None else case._replace(expected=expected)


def encodings() -> Iterator[Case]:
    """Bytes that are text."""
    read: dict[str, Any] = {"expected": " ".join(_NAMES * 2), "never": ("\ufffd",)}
    yield _events("UTF-8", _ACCENTS.encode(), **read)
    yield _events("UTF-8 with a byte order mark", _ACCENTS.encode("utf-8-sig"), **read)
    yield _events("UTF-16", _ACCENTS.encode("utf-16"), **read)
    yield _events("UTF-16, big endian", b"\xfe\xff" + _ACCENTS.encode("utf-16-be"), **read)
    yield _events("Latin-1", _ACCENTS.encode("latin-1"), refused=("utf-8", "line 2", "--encoding"))
    yield _events("Latin-1, named", _ACCENTS.encode("latin-1"), "--encoding latin-1", **read)
    bad = lines("user_id,track_id,timestamp", ";".join(" ".join(play) for play in _SIXTY)).replace("u4,c", "u4,é")
    yield _events("one byte that is not UTF-8", bad.encode("latin-1"), refused=("utf-8", "line 28", "--encoding"))


def forms_of_tables() -> Iterator[Case]:
    """Separators, headers, names of columns, JSON."""
    for name, separator in (("semicolons", ";"), ("pipes", "|"), ("tabs", "\t")):
        yield _events(f"{name} between fields", table(FLAGGED, separator=separator))
    index = table(("index", *FLAGGED), index=HISTORY.index, header="," + ",".join(FLAGGED))
    yield _events("an index without a name", index)
    yield _events("a separator at the end of lines", table(FLAGGED).replace("\n", ",\n"))
    other = table(
        ("userId", "playedAt", "trackId"), userId=_field("user_id"), playedAt=_iso, trackId=_field("track_id")
    )
    yield _events("other names", other, "--columns user_id=userId,timestamp=playedAt --columns track_id=trackId")
    unknown = other.replace("userId", "wer").replace("playedAt", "wann").replace("trackId", "was")
    yield _events("unknown names", unknown, refused=("wer", "wann", "was", "track_id", "--columns"))
    yield _events("unknown names, told", unknown, "--columns user_id=wer,timestamp=wann,track_id=was")
    title = table(
        ("user_id", "track_id", "timestamp", "title"),
        title=lambda play: '"Paper Lantern\n(second line)"' if play.track in "af" else "Harbour Nine",
    )
    yield _events("a title over two lines", title)
    yield _events("quotes inside quotes", title.replace("\n(second line)", ', 12"" mix'))
    yield _events("JSON Lines", {"plays.jsonl": json_lines(rows())})
    yield _events("JSON", {"plays.json": json.dumps(rows())})
    yield _events("JSON over many lines", {"plays.json": json.dumps(rows(), indent=1)})


def _field(name: str) -> Any:
    return lambda play: rows((name,), [play])[0][name]


_iso = _field("timestamp")


def archives() -> Iterator[Case]:
    """Content that is not what the name says."""
    yield _events("gzip inside .csv", gzip.compress(table().encode()))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as sheet:
        sheet.writestr("[Content_Types].xml", "<Types/>")
        sheet.writestr("xl/workbook.xml", "<workbook/>")
    yield _events("a spreadsheet", stream.getvalue(), refused=("xlsx", "csv"), never=("PK",))


def ids() -> Iterator[Case]:
    """Ids of types that are no ids, and words for missing values."""
    numbers = rows(timestamp=epoch, track_id=lambda play: play.number)
    floats = rows(timestamp=epoch, track_id=lambda play: float(play.number))
    named = "1 2 3* 4 5* 6 | 2 7 8* 1 | 3 1* 5 7 8"

    def parquet(name: str, some: list[dict[str, Any]], **facts: Any) -> Case:
        return _events(name, {"plays.parquet": some}, **facts)

    yield _events("integers and floats", {"1.parquet": numbers[:10], "2.parquet": floats[10:]}, "", named)
    big = rows(timestamp=epoch, track_id=lambda play: float(2**53 + 2 * play.number - 2))
    yield parquet("floats that are no longer exact", big, refused=("track_id", r"2\^53|9,?007,?199,?254,?740,?992"))
    nan = rows(timestamp=epoch, user_id=lambda play: 1.0 if play.user == "u1" else float("nan"))
    yield parquet("NaN for users", nan, refused=("5 of 15", "user_id"))
    decimals = rows(timestamp=epoch, track_id=lambda play: Decimal(play.number).quantize(Decimal("1.00")))
    yield parquet("decimals", decimals, expected=named)
    booleans = rows(timestamp=epoch, track_id=lambda play: play.number % 2 == 0)
    yield parquet("Booleans", booleans, refused=("track_id", "boolean"))
    lists = rows(timestamp=epoch, track_id=lambda play: [play.track])
    yield parquet("lists", lists, refused=("track_id", "list"))
    words = iter(("None", "nan", "NULL", "\\N", "NA") * 3)
    missing = table(user_id=lambda play: "u1" if play.user == "u1" else next(words))
    yield _events("words for missing users", missing, refused=("5 of 15", "user_id"))
    text = table(plays=HISTORY[:10], track_id=lambda play: play.number)
    decimal = table(plays=HISTORY[10:], track_id=lambda play: f"{play.number}.0")
    mixed = "1 2 3* 4 5* 6 | 2 7 8* 1 | 3.0 1.0* 5.0 7.0 8.0"
    yield _events("text that ends in .0", {"1.csv": text, "2.csv": decimal}, "", mixed, says=(r"end in '?`?\.0",))
    rounded = table(track_id=lambda play: "8.00000E+14")
    sessions = "x x x* x x* x | x x x* x | x x* x x x".replace("x", "8.00000E+14")
    yield _events("rounded numbers", rounded, "", sessions, says=("rounded",))


def reports() -> Iterator[Case]:
    """Limits, steps and messages."""
    header = "user_id,track_id,timestamp"
    third = [(user, "-" if number % 3 == 2 else track, time) for number, (user, track, time) in enumerate(_SIXTY)]
    without = lines(header, ";".join(" ".join(play) for play in third))
    refused = ("20 of 60", "track_id", "line 4", "--max-malformed")
    yield _events("a third without a track", without, refused=refused)
    left = " | ".join(["a b d e"] * 10)
    yield _events("a third without a track, allowed", without, "--max-malformed 40", left, malformed=20)
    whole = lines(header, ";".join(" ".join(play) for play in _SIXTY))
    sessions = " | ".join(["a b c d e f"] * 10)
    one = " | ".join("a b c d f" if number == 6 else "a b c d e f" for number in range(10))
    shown = ("1 of 60", "line 42", "track_id")
    yield _events("one line without a track", whole.replace("u6,e,", "u6,,"), "", one, malformed=1, says=shown)
    escapes = whole.replace("u0,e", "evil\x1b]0;title\x07\x1b[2J,line\nu0,e")
    yield _events("escape codes", escapes, "", sessions, malformed=1, never=("\x1b", "\x07"))
    more = lines(header, "u1 d 10:06:52; u3 a 15:00:00; u3 b 15:03:20; u3 c 15:06:40").removeprefix(f"{header}\n")
    yield _events("steps", table() + more, "", "a b c* d e* f | c a* e g h", min_session_plays=None, log={"merged": 1})
    short = lines(header, "u1 a 10:00:00; u1 b 10:03:20; u1 c 10:06:40; u2 a 10:00:00; u2 b 10:03:20; u2 c 10:06:40")
    short_of = (r"\b3 plays", r"\b5\b", "--min-session-plays")
    yield _events("sessions that are too short", short, refused=short_of, min_session_plays=None)
    yield _events("sessions that are long enough", short, "", "a b c | a b c", min_session_plays=3)


CASES: Final = (*encodings(), *forms_of_tables(), *archives(), *ids(), *reports())
