"""The kinds of logs that `segue prepare` reads, and its options."""

from typing import Any, Final, Literal, Self, TypeAlias, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from segue.errors import BadOption

LogKind: TypeAlias = Literal[
    "events",
    "spotify",
    "spotify-account",
    "lastfm",
    "listenbrainz",
    "apple-music",
    "rockbox",
    "mssd",
    "lfm1k",
    "lfm2b",
    "yambda",
]


KINDS: Final[tuple[LogKind, ...]] = get_args(LogKind)

# What other people's services export, each in its own form (see training.prepare.exports).
EXPORTS: Final[tuple[LogKind, ...]] = ("spotify", "spotify-account", "lastfm", "listenbrainz", "apple-music", "rockbox")

_INFERRED: Final[tuple[LogKind, ...]] = ("events", "spotify", "lastfm", "listenbrainz", "apple-music", "lfm1k", "lfm2b")
_WITH_DURATIONS: Final[tuple[LogKind, ...]] = ("events", "spotify", "spotify-account", "listenbrainz", "apple-music")

# The kinds on which an option has an effect. An option that is not listed has an effect on every kind.
EFFECTIVE_ON: Final[dict[str, tuple[LogKind, ...]]] = {
    "idle_gap_s": tuple(kind for kind in KINDS if kind != "mssd"),
    "skip_within_s": _INFERRED,
    "skip_after_s": _INFERRED,
    "no_skips": ("events", "lastfm", "listenbrainz", "lfm1k", "lfm2b"),
    "merge_within_s": tuple(kind for kind in KINDS if kind not in ("mssd", "yambda")),
    "skip_below_s": _WITH_DURATIONS,
    "skip_below_ratio_pct": ("events",),
    "columns": ("events",),
    "where": ("events",),
    "where_not": ("events",),
    "encoding": tuple(kind for kind in KINDS if kind != "yambda"),
    "time_format": ("events", "lastfm", "lfm2b"),
    "time_zone": ("events", "spotify-account", "lastfm"),
    "timestamp_is": ("events",),
    "include_private": ("spotify",),
    "skip_flag": ("mssd",),
    "played_ratio_pct": ("yambda",),
}

# Options without an effect on a kind of log are rejected, not ignored.
NO_EFFECT: Final[dict[LogKind, tuple[str, ...]]] = {
    kind: tuple(name for name, kinds in EFFECTIVE_ON.items() if kind not in kinds) for kind in KINDS
}


SkipFlag: TypeAlias = Literal["skip_1", "skip_2", "skip_3"]

# What a column of an `events` log can be. `played` is a flag of the opposite meaning of `skipped`.
Role: TypeAlias = Literal[
    "user_id",
    "session_id",
    "position",
    "timestamp",
    "track_id",
    "skipped",
    "played",
    "end_reason",
    "ms_played",
    "duration_ms",
    "title",
    "artist",
    "written_at",
]

_MOST_FILTERS: Final = 50  # columns
_LONGEST_TITLE: Final = 100  # characters

ROLES: Final[tuple[Role, ...]] = get_args(Role)


class PrepareOptions(BaseModel):
    """Options of `prepare`. The defaults are those of the paper (section 4.2)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(default="", description="The title of the dataset in pages and tables; empty: the kind of log")
    idle_gap_s: float = Field(default=1200, gt=0, description="A session ends after this many seconds of inactivity")
    skip_within_s: float = Field(
        default=30, ge=0, description="A play is skipped if the next one of its session starts within this many seconds"
    )
    min_session_plays: int = Field(default=5, ge=1, description="Sessions with fewer plays are dropped")
    max_session_plays: int = Field(
        default=20, ge=1, description="Longer sessions are split into consecutive ones of at most this many plays"
    )
    min_track_plays: int = Field(default=0, ge=0, description="Plays of tracks with fewer plays are dropped")
    sample_half_skips: bool | None = Field(
        default=None,
        description="Sample as many sessions without a skip as with one; by default only for lfm1k",
    )
    max_sessions: int | None = Field(default=None, ge=1, description="Randomly sample at most this many sessions")
    skip_flag: SkipFlag = Field(default="skip_2", description="MSSD only: the column that marks a skip")
    played_ratio_pct: int = Field(
        default=50, ge=1, description="Yambda only: plays heard for less than this percentage are skips"
    )
    columns: dict[Role, str] = Field(
        default_factory=dict, description="events only: the name of the column of the log for each of some columns"
    )
    where: list[str] = Field(
        default_factory=list, description="events only: COLUMN=VALUE of the lines to read; all others are left out"
    )
    where_not: list[str] = Field(
        default_factory=list, description="events only: COLUMN=VALUE of the lines to leave out"
    )
    encoding: str = Field(default="", description="The encoding of text files, such as latin-1; by default UTF-8")
    max_malformed_pct: float = Field(
        default=5, ge=0, le=100, description="A log with a larger percentage of malformed lines is refused"
    )
    time_format: str | None = Field(default=None, description="The form of the times, such as %m/%d/%Y %H:%M")
    time_zone: str | None = Field(default=None, description="The zone of times without a zone, such as Europe/Berlin")
    timestamp_is: Literal["start", "end"] = Field(
        default="start", description="Whether a time is the start or the end of a play"
    )
    no_skips: bool = Field(default=False, description="The log has no skips: every play counts as played")
    skip_after_s: float = Field(
        default=0, ge=0, description="A play is no skip if the next one starts less than this many seconds later"
    )
    merge_within_s: float = Field(
        default=0, ge=0, description="The same track started again within this many seconds is the same play"
    )
    skip_below_s: float | None = Field(
        default=None, gt=0, description="A play is skipped if it was heard for less than this many seconds"
    )
    skip_below_ratio_pct: float | None = Field(
        default=None, gt=0, le=100, description="A play is skipped if less than this percentage of the track was heard"
    )
    include_private: bool = Field(default=False, description="Spotify only: keep the plays of private sessions")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Random seed for session sampling")

    @field_validator("title")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if len(value) > _LONGEST_TITLE or not value.isprintable():
            raise ValueError(f"expected one line of at most {_LONGEST_TITLE} characters")
        return value.strip()

    @field_validator("columns", mode="before")
    @classmethod
    def _named_columns(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else _columns_of_texts(value)

    @field_validator("where", "where_not", mode="before")
    @classmethod
    def _conditions(cls, value: Any) -> Any:
        conditions = [value] if isinstance(value, str) else list(value)
        columns = set()
        for condition in conditions:
            column, equals, _ = str(condition).partition("=")
            if not column.strip() or not equals or condition.encode(errors="ignore").decode() != condition:
                raise ValueError("expected COLUMN=VALUE, such as event=play")
            columns.add(column.strip().lower())
        if len(columns) > _MOST_FILTERS:
            raise ValueError(f"expected at most {_MOST_FILTERS} columns")
        return conditions

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        if value:
            try:
                "".encode(value)
            except (LookupError, ValueError) as error:
                raise ValueError("no encoding has this name: expected one such as latin-1, cp1252 or utf-16") from error
        return value

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except (ZoneInfoNotFoundError, ValueError, OSError) as error:
                raise ValueError("no time zone has this name: expected one such as Europe/Berlin or UTC") from error
        return value

    @model_validator(mode="after")
    def _possible_lengths(self) -> Self:
        if self.min_session_plays > self.max_session_plays:
            raise ValueError(
                f"min_session_plays is {self.min_session_plays}, expected at most max_session_plays, "
                f"which is {self.max_session_plays}"
            )
        if self.skip_after_s > self.skip_within_s:
            raise ValueError(
                f"skip_after_s is {self.skip_after_s:g}, expected at most skip_within_s, "
                f"which is {self.skip_within_s:g}"
            )
        if self.no_skips and (self.skip_below_s is not None or self.skip_below_ratio_pct is not None):
            raise ValueError("no_skips contradicts skip_below_s and skip_below_ratio_pct: give one of them")
        return self


def _columns_of_texts(texts: Any) -> dict[str, str]:
    """The columns of texts such as `track_id=trackId,timestamp=played_at`. Raises ValueError."""
    found: dict[str, str] = {}
    role = ""
    for piece in ",".join([texts] if isinstance(texts, str) else texts).split(","):
        name, equals, column = piece.partition("=")
        if not equals and role:  # a comma in the name of a column
            found[role] += f",{piece}"
            continue
        role = name.strip().lower()
        if not equals or not column.strip():
            raise ValueError("expected NAME=COLUMN, such as track_id=trackId,timestamp=played_at")
        if role not in ROLES:
            raise ValueError(f"{role!r} is no column of a log: expected one of {', '.join(ROLES)}")
        if role in found:
            raise ValueError(f"{role} is named twice")
        found[role] = column
    return found


_DEFAULTS: Final = PrepareOptions()


def prepare_options(**values: Any) -> PrepareOptions:
    """Options by name. Raises BadOption with one line if a name is unknown or a value is out of range."""
    try:
        return PrepareOptions(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        what = f"{name} is {first['input']!r}: " if name else ""
        raise BadOption(f"{what}{first['msg'].removeprefix('Value error, ')}") from error


def options_of_kind(kind: LogKind, options: PrepareOptions) -> PrepareOptions:
    """The options with the kind's defaults. Raises BadOption for an option without an effect."""
    if kind not in KINDS:
        raise BadOption(f"there are no logs of kind {kind!r}: expected one of {', '.join(KINDS)}")
    for name in NO_EFFECT[kind]:
        if getattr(options, name) != getattr(_DEFAULTS, name):
            raise BadOption(f"{name} has no effect on logs of kind {kind}: leave it out")
    if options.sample_half_skips is None:
        return options.model_copy(update={"sample_half_skips": kind == "lfm1k"})
    return options
