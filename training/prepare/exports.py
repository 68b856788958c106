"""The listening histories that services and players give to a person who asks for them.

Each reader maps the columns of one export to those of a log and takes the source's own word for skips. Rows that are no
plays of tracks (podcasts, video, private sessions, other events) are ignored and counted by their reason. An export
belongs to one listener. Addresses, user agents and user names are never read.
"""

from collections.abc import Callable, Sequence
from typing import Final

import polars as pl

from training.prepare.content import PlainFile
from training.prepare.export_rows import ExportRows, Rule
from training.prepare.formats import LINE_COLUMNS, LogFormat, LogLines
from training.prepare.options import LogKind, PrepareOptions
from training.prepare.scrobble_exports import ROCKBOX_FIELDS, lastfm, lastfm_json, listenbrainz, rockbox
from training.prepare.streaming_exports import apple_music, spotify, spotify_account
from training.prepare.tables import LogTable

_READERS: Final[dict[LogKind, Callable[[LogTable, PrepareOptions], ExportRows]]] = {
    "spotify": spotify,
    "spotify-account": spotify_account,
    "lastfm": lastfm,
    "listenbrainz": listenbrainz,
    "apple-music": apple_music,
    "rockbox": rockbox,
}


def read_export(kind: LogKind, plain: PlainFile, options: PrepareOptions) -> LogLines:
    """The lines of a file of an export. Raises BadLog."""
    rows = _READERS[kind](_table(kind, plain), options)
    never = pl.lit(value=False)
    ignored = pl.any_horizontal(never, *(where.fill_null(value=False) for where in rows.ignored.values()))
    faulty = pl.any_horizontal(never, *(fault.where for fault in rows.faults))
    skipped, evidence = _outcome(rows.outcome)
    given = {
        "owner": pl.lit("me"),
        "at": rows.at,
        "end": rows.end,
        "track": rows.track,
        "skipped": skipped,
        "evidence": evidence,
        "title": rows.title,
        "artist": rows.artist,
    }
    columns = {
        name: pl.lit(None, dtype=dtype) if (value := given.get(name)) is None else value.cast(dtype)
        for name, dtype in LINE_COLUMNS.items()
    }
    broken = pl.lit(value=False) if rows.complete is None else ~rows.complete
    faults = ((broken, 1), (rows.track.is_null(), 3), (faulty | rows.at.is_null(), 4))
    problem = pl.coalesce(*(pl.when(where).then(pl.lit(code, dtype=pl.UInt8)) for where, code in faults))
    frame = rows.frame.filter(~ignored).select(**columns, text=pl.lit(""), problem=problem.fill_null(0))
    return LogLines(frame, LogFormat(sessions_given=False, by_position=False, by_end=rows.ordered_by_end))


def _outcome(rules: Sequence[Rule]) -> tuple[pl.Expr, pl.Expr]:
    """Whether a play was skipped, and what says so. Both are null where no rule applies."""
    known = [(where.fill_null(value=False), skipped, evidence) for where, skipped, evidence in rules]
    skipped = [pl.when(where).then(pl.lit(skip)) for where, skip, _ in known]
    evidence = [pl.when(where).then(pl.lit(code)) for where, _, code in known]
    return pl.coalesce(pl.lit(None, dtype=pl.Boolean), *skipped), pl.coalesce(pl.lit(None, dtype=pl.UInt8), *evidence)


def _table(kind: LogKind, plain: PlainFile) -> LogTable:
    if kind == "rockbox":
        return LogTable.open(plain, quoted=False, names=ROCKBOX_FIELDS)
    if kind == "lastfm" and plain.content == "json":
        return lastfm_json(plain)
    return LogTable.open(plain)
