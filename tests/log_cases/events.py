"""Cases of the kind `events`: repeated reports, skip flags, times, and sessions."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Final

from tests.log_cases.case import Case
from tests.log_cases.history import FLAGGED, HISTORY, Content, Play, at, epoch, json_lines, lines, table

_BY_TIME = ("session_id", "timestamp", "track_id", "skipped")
_SIX = "a b c* d e* f"
_MINUTES = "a b c d e f | b g h a | c a e g h"  # times in whole minutes cannot carry a rule of 30 s


def _events(
    name: str, content: str | dict[str, Content], options: str = "", expected: str | None = None, **facts: Any
) -> Case:
    case = Case(name, "events", {"plays.csv": content} if isinstance(content, str) else content, options, **facts)
    return case if expected is None else case._replace(expected=expected)


def _from(flag: int = 0, played_duration: int = 0, time: int = 0) -> dict[str, int]:
    return {"flag": flag, "end_reason": 0, "played_duration": played_duration, "time": time}


def _spelled(no: str, yes: str) -> Callable[[Play], str]:
    return lambda play: yes if play.skipped else no


def _epoch_in(units: int) -> Callable[[Play], int]:
    return lambda play: epoch(play) * units


def repeated_reports() -> Iterator[Case]:
    """Lines that report a play again, and lines that do not."""
    timed, flagged = "user_id,track_id,timestamp", "session_id,track_id,timestamp,skipped"
    overlapping: dict[str, Content] = {"1.csv": table(plays=HISTORY[:10]), "2.csv": table(plays=HISTORY[5:])}
    yield _events("two files overlap", overlapping, log={"merged": 5}, says=(r"\b5\b",))
    twice = [play for play in HISTORY for _ in range(2)]
    yield _events("every line twice", table(plays=twice), log={"merged": 15}, says=(r"\b15\b",))
    yield _events("a log of sessions twice", table(_BY_TIME, [*HISTORY, *HISTORY]), log={"merged": 15})
    changed = lines(
        flagged,
        "s1 a 10:00:00 0; s1 b 10:03:20 0; s1 c 10:06:40 0; s1 d 10:06:52 0; s1 e 10:10:12 1; s1 f 10:10:32 0;"
        "s1 c 10:06:40 1; s1 e 10:10:12 0",
    )
    yield _events("a later line changes a flag", changed, "", "a b c* d e f", log={"merged": 2, "conflicts": 2})
    written = lines(
        f"{flagged},written_at",
        "s1 a 10:00:00 0 11:00:00; s1 b 10:03:20 0 11:00:00; s1 c 10:06:40 1 11:05:00; s1 c 10:06:40 0 11:00:00;"
        "s1 d 10:06:52 0 11:00:00; s1 e 10:10:12 0 11:00:00; s1 e 10:10:12 1 11:05:00; s1 f 10:10:32 0 11:00:00",
    )
    yield _events("a line written later changes a flag", written, "", _SIX, log={"merged": 2})
    apart = lines(timed, ";".join(f"u1 {'abcdef'[n // 2]} 10:{n // 2 * 4:02}:0{n % 2}" for n in range(12)))
    words = (r"\b6\b.*within 2 s", "--merge-within")
    yield _events("one second apart", apart, "", "a* a b* b c* c d* d e* e f* f", log={"merged": 0}, says=words)
    yield _events("one second apart, merged", apart, "--merge-within 2", "a b c d e f", log={"merged": 6})
    artefact = lines(timed, "u1 a 10:00:00; u1 b 10:03:20; u1 c 10:03:20; u1 d 10:07:00")
    told = (r"\b1 of 1\b", "same second", "--skip-after")
    yield _events("two tracks in one second", artefact, "", "a b* c d", log={"merged": 0}, says=told)
    yield _events("two tracks in one second, no skip", artefact, "--skip-after 1", "a b c d")
    again = lines(timed, "u1 a 10:00:00; u1 a 10:03:20; u1 a 10:06:40; u1 b 10:10:00; u1 b 10:13:20")
    yield _events("a track played again later", again, "", "a a a b b", log={"merged": 0})
    spelled = table(
        plays=HISTORY[:6],
        timestamp=lambda play: (
            f"{play.moment + timedelta(hours=2):%Y-%m-%dT%H:%M:%S}+02:00" if play.position % 2 else epoch(play) * 1000
        ),
    )
    three: dict[str, Content] = {"1.csv": table(plays=HISTORY[:6]), "2.csv": spelled}
    yield _events("one instant in three spellings", three, "", _SIX, log={"merged": 6})


def flags() -> Iterator[Case]:
    """Skips that are given, missing, unreadable or spelled differently."""
    given = lines(
        "user_id,track_id,timestamp,skipped",
        "u1 a 10:00:00 0; u1 b 10:03:20 1; u1 c 10:06:40 0; u1 d 10:10:00 1; u1 e 10:13:20 0; u1 f 10:16:40 1",
    )
    plain = lines(
        "user_id,track_id,timestamp",
        "u2 g 12:00:00; u2 h 12:04:00; u2 c 12:04:12; u2 d 12:08:00; u2 e 12:12:00; u2 f 12:16:00",
    )
    for order, first, second in (("first", given, plain), ("last", plain, given)):
        files: dict[str, Content] = {"1.csv": first, "2.csv": second}
        sessions, facts = "a b* c d* e f* | g h* c d e f", {"skips_from": _from(flag=6, time=5), "unknown_outcomes": 1}
        yield _events(f"the file with flags is the {order}", files, "", sessions, log=facts)
    blank = lines(
        "user_id,track_id,timestamp,skipped",
        "u1 a 10:00:00 0; u1 b 10:03:20 1; u1 c 10:06:40 -; u1 d 10:06:52 0; u1 e 10:10:12 0; u1 f 10:10:32 -",
    )
    facts = {"skips_from": _from(flag=4, time=1), "unknown_outcomes": 1}
    yield _events("blank flags beside times", blank, "", "a b* c* d e f", log=facts)
    untimed = lines(
        "session_id,position,track_id,skipped", "s1 0 a 0; s1 1 b 1; s1 2 c -; s1 3 d 0; s1 4 e -; s1 5 f 0"
    )
    yield _events("blank flags without times", untimed, "", "a b* c d e f", log={"unknown_outcomes": 2})
    yield _events(
        "flags coded 0 and 2",
        table(FLAGGED, skipped=lambda play: 2 * play.skipped),
        refused=("skipped", "'2'", "4 of 15", "--max-malformed", "true"),
    )
    for no, yes in (("f", "t"), ("no", "yes"), ("N", "Y"), ("0.0", "1.0"), ("False", "TRUE")):
        yield _events(f"flags {yes} and {no}", table(FLAGGED, skipped=_spelled(no, yes)))
    yield _events("positions as floats", table(FLAGGED, position=lambda play: f"{play.position}.0"))
    played = lines(
        "user_id,track_id,timestamp,ms_played,duration_ms",
        "u1 a 10:00:00 200000 210000; u1 b 10:03:20 5000 210000; u1 c 10:05:20 198000 210000;"
        "u1 d 10:09:00 7000 210000; u1 e 10:09:10 205000 210000; u1 f 10:13:00 4000 210000",
    )
    facts = {"skips_from": _from(played_duration=6), "unknown_outcomes": 0}
    for option in ("--skip-below-seconds 30", "--skip-below-ratio 50"):
        yield _events(f"played durations, {option}", played, option, "a b* c d* e f*", log=facts)


def times() -> Iterator[Case]:
    """Spellings of times, and values that are no times."""
    for name, form in (
        ("BigQuery", "%Y-%m-%d %H:%M:%S UTC"),
        ("BigQuery, fractions", "%Y-%m-%d %H:%M:%S.123000 UTC"),
        ("PostgreSQL", "%Y-%m-%d %H:%M:%S+00"),
        ("PostgreSQL, fractions", "%Y-%m-%d %H:%M:%S.123+00"),
        ("Snowflake", "%Y-%m-%d %H:%M:%S.000 +0000"),
        ("RFC 2822", '"%a, %d %b %Y %H:%M:%S GMT"'),
        ("compact, with its zone", "%Y%m%dT%H%M%SZ"),
        ("compact", "%Y%m%d%H%M%S"),
    ):
        yield _events(f"times of {name}", table(timestamp=at(form)))
    for factor in (1, 1_000, 1_000_000, 1_000_000_000):
        yield _events(f"epochs times {factor:,}", table(timestamp=_epoch_in(factor)))
    yield _events("no zone", table(timestamp=at("%Y-%m-%d %H:%M:%S")), says=("without a zone were read as utc",))
    local = table(timestamp=lambda play: f"{play.moment + timedelta(hours=1):%Y-%m-%d %H:%M:%S}")
    yield _events("local times with their zone", local, "--time-zone Europe/Berlin")
    dates = table(timestamp=at("%m/%d/%Y %H:%M:%S"))
    words = ("timestamp", "03/01/2024 10:00:00", "iso 8601", "--time-format")
    yield _events("US dates", dates, refused=words, never=("check the kind",))
    yield _events("US dates with their format", dates, "--time-format '%m/%d/%Y %H:%M:%S'")
    coarse = ("coarser than --skip-within 30",)
    for name, form in (("whole minutes", "%Y-%m-%d %H:%M"), ("text of Last.fm", '"%d %b %Y, %H:%M"')):
        yield _events(name, table(timestamp=at(form)), "", _MINUTES, says=coarse)
    yield _events("rounded epochs", table(timestamp=lambda play: f"{epoch(play):.6e}"), "", _MINUTES, says=coarse)
    yield _events("dates", table(timestamp=at("%Y-%m-%d")), refused=("timestamp", "2024-03-01", "time of day"))
    day = [{"user_id": play.user, "track_id": play.track, "timestamp": play.moment.date()} for play in HISTORY]
    yield _events("dates in Parquet", {"dates.parquet": day}, refused=("timestamp", "time of day"))
    half = table(timestamp=lambda play: 0 if HISTORY.index(play) % 2 else epoch(play))
    yield _events("half of the times are 0", half, refused=("7 of 15", "line 3", "1970", "no plausible time"))
    numbers = table(timestamp=lambda play: HISTORY.index(play) + 1)
    yield _events("line numbers for times", numbers, refused=("(none|15) of 15", "line 2", "1970", "no plausible time"))
    yield _events("numbers of days", table(timestamp=at("%Y%m%d")), refused=("timestamp", "20240301"))
    serial = table(timestamp=lambda play: f"{45352 + (36_000 + play.second) / 86_400:.6f}")
    yield _events("serial dates", serial, refused=("timestamp", "45352.416667", "1970", "no plausible time"))
    future = table(timestamp=at("2098-%m-%d %H:%M:%S"))
    yield _events("times in the future", future, refused=("(none|15) of 15", "2098", "no plausible time"))
    order = table(_BY_TIME, timestamp=lambda play: play.position)
    yield _events("an order instead of times", order, says=("order",))


def sessions() -> Iterator[Case]:
    """Sessions of the log, and the order of plays."""
    visits = [f"v{number}" for number in (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4)]
    own, facts = "a b c | d e* f | b g h* a | c a* e g h", {"skips_from": _from(time=11), "unknown_outcomes": 4}
    for name, owner in (("", ("session_id",)), (", with users", ("session_id", "user_id"))):
        log = table((*owner, "track_id", "timestamp"), session_id=lambda play: visits[HISTORY.index(play)])
        yield _events(f"own sessions without flags{name}", log, "", own, log=facts, says=("inferred",))
    for name, columns in (("positions", ("user_id", *FLAGGED)), ("times", ("user_id", *_BY_TIME))):
        yield _events(f"numbers of visits with {name}", table(columns, session_id=lambda play: play.visit))
    turns = lines("session_id,position,track_id,skipped", "x 1 a 0; y 1 b 0; x 2 c 0; y 2 d 1; x 0 e 1")
    yield _events("sessions in turn", turns, "", "e* a c | b d*")
    falling = lines("user_id,track_id,timestamp", "u1 d 10:06:00; u1 c 10:03:00; u1 b 10:03:00; u1 a 10:00:00")
    yield _events("from new to old", falling, "", "a b* c d")
    conflicts = lines(
        "session_id,position,track_id,skipped", "s1 0 a 0; s1 1 b 0; s1 1 x 0; s1 2 c 1; s1 2 y 1; s1 3 d 0"
    )
    facts, words = {"conflicts": 2, "merged": 0}, ("2 positions have several different tracks",)
    yield _events("two tracks at one position", conflicts, "", "a x y* d", log=facts, says=words)
    seconds = [*range(0, 4000, 200), *range(3810, 4800, 200)]
    long = lines(
        "user_id,track_id,timestamp",
        ";".join(f"u {'abcde'[n % 5]} {10 + s // 3600}:{s // 60 % 60:02}:{s % 60:02}" for n, s in enumerate(seconds)),
    )
    pieces = "a b c d e a b c d e a b c d e a b c d e* | a b c d e"
    yield _events("a session of 25 plays", long, "", pieces, min_session_plays=None, says=("inferred",))


def filters() -> Iterator[Case]:
    """Lines of several kinds, of which some are kept."""
    log = lines(
        "user_id,track_id,timestamp,event,app",
        "u1 a 10:00:00 play web; u1 a 10:00:02 like web; u1 b 10:03:20 play web; u1 b 10:06:39 stop web;"
        "u1 c 10:06:40 play -; u1 d 10:06:52 Play web; u1 x x stop web; u1 e 10:08:00 song web;"
        "test f 10:10:00 play web; u1 g 10:12:00 play test",
    )
    play = "--where event=play --where-not user_id=test --where-not APP=test"
    removed = (
        r"filtered lines \(--where event=play\)\s+5\s+5\s",
        r"--where-not user_id=test\)\s+1\s",
        r"app=test\)\s+1\s",
    )
    facts = {"ignored": {"--where event=play": 5, "--where-not APP=test": 1, "--where-not user_id=test": 1}}
    yield _events("one kind of lines", log, play, "a b c", log=facts, says=removed)
    several = "--where event=play --where event=song --where-not user_id=test --where-not app="
    yield _events("several kinds of lines", log, several, "a b e g")
    none = "--where-not event=skip --where-not event=stop --where event=play --where event=song --where event=Play"
    useless = ("--where-not user_id=nobody left out no line", r"--where-not user_id=nobody\)\s+0\s")
    yield _events(
        "a filter without effect", log, f"{none} --where-not user_id=nobody", "f | a b c* d e g", says=useless
    )
    yield _events("no line is left", log, "--where event=plays", refused=(r"all of 10 lines .*event=plays: 10",))
    unknown = ("columns user_id, track_id, timestamp, event, app", "expected kind, named by --where kind=play")
    yield _events("an unknown column", log, "--where kind=play", refused=unknown)
    rows: list[dict[str, Any]] = [
        {"user_id": "u1", "track_id": track, "timestamp": epoch(HISTORY[0]) + 200 * place}
        for place, track in enumerate("abcdef")
    ]
    nested = json_lines(row | {"app": {"name": "web"}} for row in rows)
    rows[3]["ad"] = True
    objects: dict[str, Content] = {"plays.jsonl": json_lines(rows)}
    yield _events("a field of some lines", objects, "--where-not ad=true", "a b c e f")
    yield _events("a field that is not there", objects, "--where-not adv=true", refused=("no line .* adv,", "track_id"))
    is_object: dict[str, Content] = {"plays.jsonl": nested}
    yield _events("a field that is an object", is_object, "--where app=web", refused=("expected app,", "app.name"))


CASES: Final = (*repeated_reports(), *flags(), *times(), *sessions(), *filters())
