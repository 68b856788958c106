"""The listening histories that services and players give to a person who asks for them.

Each reader maps the columns of one export to those of a log and takes the source's own word for skips. Rows that are no
plays of tracks (podcasts, video, private sessions, other events) are ignored and counted by their reason. An export
belongs to one listener. Addresses and user agents are never read. User names are only compared with each other.
"""

from collections.abc import Callable
from typing import Final

import polars as pl

from training.prepare.content import PlainFile
from training.prepare.export_rows import ExportRows
from training.prepare.formats import NOTED, Fields, LogFormat, LogLines, lines_of, missing, outcome_of
from training.prepare.options import LogKind, PrepareOptions
from training.prepare.scrobble_exports import ROCKBOX_FIELDS, lastfm, lastfm_table, listenbrainz, rockbox
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

_LISTENERS: Final = ("user_id", "user", "username", "user_name")


def read_export(kind: LogKind, plain: PlainFile, options: PrepareOptions) -> LogLines:
    """The lines of a file of an export. Raises BadLog."""
    table = _table(kind, plain)
    rows = _READERS[kind](table, options)
    skipped, evidence = outcome_of(rows.outcome)
    is_play = ~pl.any_horizontal(
        pl.lit(value=False), *(where.fill_null(value=False) for where in rows.ignored.values())
    )
    noted = rows.noted | _others(table)
    columns = {role: name for role, name in rows.columns.items() if name in table.schema}
    fields = Fields(
        owner=pl.lit("me"),
        track=rows.track,
        at=rows.at,
        end=rows.end,
        skipped=skipped,
        evidence=evidence,
        title=rows.title,
        artist=rows.artist,
        complete=rows.complete,
        faults=rows.faults,
        checks=(missing("track", "track"), missing("at", "time")),
        ignored=rows.ignored,
        counted={f"{NOTED}{name}": (is_play & where).fill_null(value=False) for name, where in noted.items()},
        columns=columns,
        also_used=rows.also_used,
        notes=rows.notes,
    )
    form = LogFormat(sessions_given=False, by_position=False, by_end=rows.ordered_by_end)
    return lines_of(table, fields, form, rows.frame)


def _others(table: LogTable) -> dict[str, pl.Expr]:
    """The plays of other listeners than the first one, if a column names them."""
    for name in _LISTENERS:
        if name in table.schema and (first := table.first_text(name)):
            what = f"plays of another listener than the first (column {name}): they are read as plays of one listener"
            return {what: pl.col(name) != first}
    return {}


def _table(kind: LogKind, plain: PlainFile) -> LogTable:
    if kind == "rockbox":
        return LogTable.open(plain, quoted=False, names=ROCKBOX_FIELDS)
    if kind == "lastfm":
        return lastfm_table(plain)
    return LogTable.open(plain)
