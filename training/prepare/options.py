"""The kinds of logs that `segue prepare` reads, and its options."""

from typing import Any, Final, Literal, Self, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from segue.errors import BadOption

LogKind: TypeAlias = Literal["mssd", "lfm1k", "lfm2b", "yambda", "events"]


KINDS: Final[tuple[LogKind, ...]] = get_args(LogKind)


# Options without an effect on a kind of log are rejected, not ignored.
NO_EFFECT: Final[dict[LogKind, tuple[str, ...]]] = {
    "mssd": ("idle_gap_s", "skip_within_s", "played_ratio_pct"),
    "lfm1k": ("skip_flag", "played_ratio_pct"),
    "lfm2b": ("skip_flag", "played_ratio_pct"),
    "yambda": ("skip_flag", "skip_within_s"),
    "events": ("skip_flag", "played_ratio_pct"),
}


SkipFlag: TypeAlias = Literal["skip_1", "skip_2", "skip_3"]


class PrepareOptions(BaseModel):
    """Options of `prepare`. The defaults are those of the paper (section 4.2)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    seed: int = Field(default=0, ge=0, lt=2**31, description="Random seed for session sampling")

    @model_validator(mode="after")
    def _possible_lengths(self) -> Self:
        if self.min_session_plays > self.max_session_plays:
            raise ValueError(
                f"min_session_plays is {self.min_session_plays}, expected at most max_session_plays, "
                f"which is {self.max_session_plays}"
            )
        return self


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
        if getattr(options, name) != PrepareOptions.model_fields[name].default:
            raise BadOption(f"{name} has no effect on logs of kind {kind}: leave it out")
    if options.sample_half_skips is None:
        return options.model_copy(update={"sample_half_skips": kind == "lfm1k"})
    return options
