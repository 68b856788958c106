"""The dataset folder: write, open and verify datasets. training.data.splits divides them into parts.

The commands `prepare` and `simulate` write a dataset folder. Training and evaluation read it. The folder contains:

    sessions.parquet   session_id string, rows list<int32>, skipped list<bool>, started_at datetime (ms, UTC) or null,
                       and last_known bool if the outcome of some last play is unknown (its skip flag is then false)
    catalogue.parquet  the tracks (segue.catalogue); rows start at 1, sorted by descending plays, then by track id
    dataset.json       the source, options and size of the data (`Facts`), and facts about the log (`LogFacts`)

With the same version of Polars, the same plays give identical files, byte for byte. The fingerprint depends only on the
plays. The plays of a large dataset are memory-mapped (training.data.sessions_parquet) and are never loaded completely.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from segue.arrays import Bool, Int
from segue.catalogue import FIRST_TRACK_ROW, Catalogue
from segue.errors import BadDataset, InputError
from segue.safe_files import UNREADABLE, check_footer, new_folder
from segue.window import Sessions
from training.data.log_facts import LogFacts
from training.data.sessions_parquet import (
    FLAT_FOLDER,
    SESSIONS_FILE,
    blocks,
    counts,
    flat_sessions,
    keep_flat,
    mapped_sessions,
    read_last_known,
    read_sessions,
    write_sessions,
)

FORMAT_VERSION: Final = 1
FACTS_FILE: Final = "dataset.json"
CATALOGUE_FILE: Final = "catalogue.parquet"
MAPPED_FROM: Final = 4_000_000  # plays; the arrays of a smaller dataset are read into memory

_IDS_PER_UPDATE: Final = 1_000_000  # track ids joined into one string per update of the hash


# The title of a dataset that was given none, by the source of its plays.
_TITLES: Final = {
    "synthetic": "Simulated sessions",
    "mssd": "Spotify sessions (MSSD)",
    "lfm1k": "Last.fm 1K",
    "lfm2b": "LFM-2b",
    "yambda": "Yambda",
    "events": "Listening log",
    "spotify": "Spotify history",
    "spotify-account": "Spotify history",
    "lastfm": "Last.fm history",
    "listenbrainz": "ListenBrainz history",
    "apple-music": "Apple Music history",
    "rockbox": "Rockbox log",
}


def source_title(source: str) -> str:
    """Return the title of a dataset from this source that was given none, the source itself if it is unknown."""
    return _TITLES.get(source, source)


class Counts(BaseModel):
    """The size of a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sessions: int = Field(ge=1, description="Sessions")
    plays: int = Field(ge=1, description="Plays of all sessions, including skipped ones")
    tracks: int = Field(ge=1, description="Tracks of the catalogue, including tracks never played")
    skips: int = Field(ge=0, description="Plays that were skipped")


class Facts(BaseModel):
    """The content of `dataset.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = Field(default=FORMAT_VERSION, description="Version of the folder's format")
    source: str = Field(description="The log format, or the generator of the plays")
    options: dict[str, JsonValue] = Field(description="The options that the plays were prepared with")
    counts: Counts
    skip_rate: float = Field(ge=0, le=1, description="Skipped plays as a share of all plays")
    session_lengths: dict[int, int] = Field(description="Number of sessions by their number of plays")
    malformed_lines: int = Field(ge=0, description="Lines of the log that could not be read and were ignored")
    fingerprint: str = Field(description="sha256 of track ids, rows, skip flags and offsets, in hexadecimal")
    log: LogFacts | None = Field(default=None, description="The log: null for simulated and older datasets")

    @property
    def title(self) -> str:
        """The title in pages and tables: that of `segue prepare --title`, else the name of the source in words."""
        return str(self.options.get("title") or source_title(self.source))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A verified dataset. The catalogue is in memory; the sessions are in memory or memory-mapped."""

    path: Path
    facts: Facts
    catalogue: Catalogue
    sessions: Sessions  # rows are int64 in memory and int32 if memory-mapped
    last_known: Bool | None = None  # [sessions], whether the outcome of the last play is known; None: of all of them

    @property
    def has_outcomes(self) -> bool:
        """Whether the log tells played from skipped tracks. If it does not, all plays count as played."""
        if self.last_known is None or self.last_known.any():
            return True
        unknown = 0 if self.facts.log is None else self.facts.log.unknown_outcomes
        return not self.facts.options.get("no_skips") and unknown < self.facts.counts.plays

    @cached_property
    def session_ids(self) -> pl.Series:
        """Return the session ids in the order of the sessions, read on first use. [sessions] string."""
        return _session_ids(self.path)


@dataclass(frozen=True, eq=False)
class RawInteractions:
    """The plays of a dataset before rows are assigned to tracks. Session i is the slice offsets[i]:offsets[i + 1]."""

    tracks: pl.DataFrame  # columns track_id, title and artist (optional); the catalogue includes unplayed tracks too
    codes: NDArray[np.integer[Any]]  # [plays], positions in `tracks`
    skipped: Bool  # [plays]
    offsets: Int  # [sessions + 1]
    session_ids: pl.Series  # [sessions] string
    started_at: pl.Series | None = None  # [sessions] datetime (ms, UTC); None if the start times are unknown
    last_known: Bool | None = None  # [sessions], whether the outcome of the last play is known; None: of all of them


def write_listening(
    path: Path,
    listening: RawInteractions,
    source: str,
    options: Mapping[str, Any] | None = None,
    *,
    malformed_lines: int = 0,
    log: LogFacts | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Write a dataset folder atomically and open it.

    With `overwrite`, an existing dataset at `path` is replaced. Otherwise an existing `path` raises InputError. Raises
    BadDataset for invalid plays.
    """
    _check(listening)
    catalogue, row_of_code = _build_catalogue(listening)
    with new_folder(path, overwrite=overwrite, marker=FACTS_FILE, private=True) as folder:
        catalogue.write_parquet(folder / CATALOGUE_FILE)
        sessions = _to_rows(listening, row_of_code, folder / FLAT_FOLDER)
        last_known = None if listening.last_known is None or listening.last_known.all() else listening.last_known
        write_sessions(folder / SESSIONS_FILE, sessions, listening.session_ids, listening.started_at, last_known)
        if (folder / FLAT_FOLDER).exists():
            keep_flat(folder / SESSIONS_FILE, folder / FLAT_FOLDER)
        facts = _facts(catalogue, sessions, source, dict(options or {}), malformed_lines, log)
        (folder / FACTS_FILE).write_text(facts.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return open_dataset(path)


def open_dataset(path: Path) -> Dataset:
    """Open a dataset folder and verify it.

    If the dataset has at least MAPPED_FROM plays, its arrays are memory-mapped files, created in the folder on first
    use. Raises BadDataset if the folder is missing or damaged, or has an unsupported format version.
    """
    facts = _read_facts(path)
    try:
        catalogue = Catalogue.read_parquet(path / CATALOGUE_FILE)
        check_footer(path / SESSIONS_FILE)
        read = mapped_sessions if facts.counts.plays >= MAPPED_FROM else read_sessions
        sessions = read(path / SESSIONS_FILE)
        last_known = read_last_known(path / SESSIONS_FILE)
    except (InputError, *UNREADABLE) as error:
        raise BadDataset(f"{path} is damaged: {_one_line(error)}: write it again with `segue prepare`") from error
    found = fingerprint(catalogue, sessions)
    if found != facts.fingerprint:
        raise BadDataset(
            f"{path} is damaged: its fingerprint is {found[:12]}…, {FACTS_FILE} says {facts.fingerprint[:12]}…: "
            "write it again with `segue prepare`"
        )
    return Dataset(path, facts, catalogue, sessions, last_known)


def fingerprint(catalogue: Catalogue, sessions: Sessions) -> str:
    """Return the sha256 of the track ids (ordered by row), rows, skip flags and offsets, in hexadecimal.

    Rows are hashed as little-endian int32, skip flags as uint8 and offsets as little-endian int64. Paths,
    titles, times and session ids do not affect the fingerprint.
    """
    sha = hashlib.sha256()
    ids = catalogue.frame["track_id"]
    for start in range(0, len(ids), _IDS_PER_UPDATE):
        # An id contains no line feed, so the joined text is unambiguous.
        sha.update(ids.slice(start, _IDS_PER_UPDATE).str.join("\n").item().encode() + b"\n")
    for values, dtype in ((sessions.rows, "<i4"), (sessions.skipped, "?"), (sessions.offsets, "<i8")):
        for part in blocks(len(values)):
            sha.update(np.ascontiguousarray(values[part].astype(dtype, copy=False)).data)
    return sha.hexdigest()


def _check(listening: RawInteractions) -> None:
    plays, sessions = len(listening.codes), len(listening.offsets) - 1
    if plays == 0 or sessions < 1:
        raise BadDataset("there is no play to write: a dataset holds at least one session of one play")
    lengths = np.diff(listening.offsets)
    if listening.offsets[0] != 0 or listening.offsets[-1] != plays or lengths.min() < 1:
        raise BadDataset("offsets must rise from 0 to the number of plays, with at least one play a session")
    if len(listening.skipped) != plays or len(listening.session_ids) != sessions:
        raise BadDataset(
            f"{plays:,} plays in {sessions:,} sessions need as many skip flags and session ids, found "
            f"{len(listening.skipped):,} and {len(listening.session_ids):,}"
        )
    if listening.last_known is not None:
        if len(listening.last_known) != sessions:
            raise BadDataset(f"last_known has {len(listening.last_known):,} values for {sessions:,} sessions")
        if listening.skipped[listening.offsets[1:] - 1][~listening.last_known].any():
            raise BadDataset("a last play of unknown outcome is flagged as skipped: its skip flag must be false")
    if listening.session_ids.null_count() or listening.session_ids.n_unique() != sessions:
        raise BadDataset("session ids are missing or repeated: name every session once")
    if listening.codes.min() < 0 or listening.codes.max() >= len(listening.tracks):
        raise BadDataset(f"a play names a track outside the {len(listening.tracks):,} tracks given")


def _build_catalogue(listening: RawInteractions) -> tuple[Catalogue, Int]:
    """Build the catalogue, sorted by descending number of plays, then by track id.

    Returns the catalogue and the row of each code, [tracks] int64.
    """
    count = len(listening.tracks)
    plays = counts(listening.codes, count)
    skips = counts(listening.codes, count, where=listening.skipped)
    counted = listening.tracks.with_columns(pl.Series("plays", plays), pl.Series("skips", skips)).with_row_index("code")
    ordered = counted.sort(["plays", "track_id"], descending=[True, False])
    row_of_code = np.empty(count, dtype=np.int64)
    row_of_code[ordered["code"].to_numpy()] = np.arange(FIRST_TRACK_ROW, count + FIRST_TRACK_ROW)
    try:
        return Catalogue.from_frame(ordered.drop("code")), row_of_code
    except InputError as error:
        raise BadDataset(str(error)) from error


def _facts(
    catalogue: Catalogue,
    sessions: Sessions,
    source: str,
    options: dict[str, Any],
    malformed: int,
    log: LogFacts | None,
) -> Facts:
    lengths, numbers = np.unique(sessions.lengths, return_counts=True)
    plays, skips = len(sessions.rows), int(sessions.skipped.sum())
    return Facts(
        source=source,
        options=options,
        counts=Counts(sessions=len(sessions), plays=plays, tracks=len(catalogue), skips=skips),
        skip_rate=skips / plays,
        session_lengths=dict(zip(lengths.tolist(), numbers.tolist(), strict=True)),
        malformed_lines=malformed,
        fingerprint=fingerprint(catalogue, sessions),
        log=log,
    )


def _to_rows(listening: RawInteractions, row_of_code: Int, flat: Path) -> Sessions:
    """Return the sessions with codes replaced by catalogue rows.

    If there are at least MAPPED_FROM plays, the arrays are memory-mapped files in the folder `flat`.
    """
    codes, skipped = listening.codes, listening.skipped
    if len(codes) < MAPPED_FROM:
        return Sessions(row_of_code[codes], skipped, listening.offsets)

    def parts() -> Iterator[tuple[Int, Bool, Int]]:
        none = np.empty(0, dtype=np.int64)
        for part in blocks(len(codes)):
            yield row_of_code[codes[part]], skipped[part], none
        yield none, none.astype(np.bool_), np.diff(listening.offsets)

    return flat_sessions(flat, parts())


def _read_facts(path: Path) -> Facts:
    file = path / FACTS_FILE
    try:
        found = json.loads(file.read_bytes())
        json.dumps(found, ensure_ascii=False).encode()  # lone surrogates cannot be written to a page or a release
    except OSError as error:
        raise BadDataset(
            f"{path} is not a dataset: {FACTS_FILE} cannot be read ({error.strerror}): write one with `segue prepare`"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadDataset(f"{file} is damaged, expected JSON: write the dataset again with `segue prepare`") from error
    version = found.get("format_version") if isinstance(found, dict) else None
    if version != FORMAT_VERSION:
        raise BadDataset(
            f"{file} has format version {version}, this Segue reads version {FORMAT_VERSION}: write the dataset again"
        )
    try:
        return Facts.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadDataset(f"{file} is damaged at {place}: {first['msg']}: write the dataset again") from error


def _session_ids(path: Path) -> pl.Series:
    try:
        return pl.read_parquet(path / SESSIONS_FILE, columns=["session_id"])["session_id"]
    except UNREADABLE as error:
        raise BadDataset(f"{path} is damaged: {_one_line(error)}: write it again with `segue prepare`") from error


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
