"""`segue prepare`: listening logs, as they are published or as the service writes them, become a dataset.

The rules are applied in this order, and the report says what each one left:

1. Malformed lines (a wrong number of fields, no listener, session or track, an unreadable time, position or skip
   flag) are left out, counted, and the first five shown. A line is a record: a field in quotes ends on its line.
2. Of several reports of one play (same session, same position) one remains: the newest by `written_at`, where the
   log has that column, otherwise the last in the order of the files and their lines. A log may so be delivered more
   than once, and a play that was later skipped reported again. Sessions without positions are ordered by
   `timestamp`, and nothing is merged in them.
3. Listeners' plays are cut into sessions at idle gaps, and skips inferred (training.session_rules); logs of whole
   sessions (MSSD, events with a session_id) keep theirs.
4. Plays of tracks with fewer than `min_track_plays` plays are dropped, counted after step 3.
5. Sessions longer than `max_session_plays` are cut, then sessions and remainders under `min_session_plays` dropped.
6. Sampling: `sample_half_skips`, then `max_sessions`.

Sessions are ordered by the log's name of the listener or session, then by time. Listeners' sessions are numbered
(`s00000001`): no name of a listener enters a dataset. Whole sessions keep their ids; the further pieces of one that
was cut have `~2`, `~3` behind it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from segue.arrays import Int
from segue.errors import BadLog, BadOption
from segue.folders import refuse_existing
from training import session_rules as rules
from training.dataset import FACTS_FILE, Dataset, Listening, write_listening
from training.log_formats import LogLines, SkipFlag
from training.log_reading import LogReader, MalformedLine
from training.log_sources import KINDS, LogKind, find_files
from training.session_rules import UNKNOWN_TIME, Plays
from training.track_names import track_table

Progress: TypeAlias = Callable[[str, int, int], None]  # what is done, steps finished, steps in all

# What cannot have an effect on a kind is refused rather than ignored.
_NO_EFFECT: Final[dict[LogKind, tuple[str, ...]]] = {
    "mssd": ("idle_gap_s", "skip_within_s", "played_ratio_pct"),
    "lfm1k": ("skip_flag", "played_ratio_pct"),
    "lfm2b": ("skip_flag", "played_ratio_pct"),
    "yambda": ("skip_flag", "skip_within_s"),
    "events": ("skip_flag", "played_ratio_pct"),
}


class PrepareOptions(BaseModel):
    """What can be set about `prepare`; the defaults are the paper's (section 4.2)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    idle_gap_s: float = Field(default=1200, gt=0, description="Seconds between two plays after which a session ends")
    skip_within_s: float = Field(
        default=30, ge=0, description="A play is skipped if the next one of its session starts within so many seconds"
    )
    min_session_plays: int = Field(default=5, ge=1, description="Sessions with fewer plays are dropped")
    max_session_plays: int = Field(
        default=20, ge=1, description="Longer sessions are cut into consecutive ones of so many plays"
    )
    min_track_plays: int = Field(default=0, ge=0, description="Plays of tracks with fewer plays are dropped")
    sample_half_skips: bool | None = Field(
        default=None,
        description="Keep as many sessions without a skip as with one, drawn at random; by default for lfm1k alone",
    )
    max_sessions: int | None = Field(default=None, ge=1, description="Keep so many sessions, drawn at random")
    skip_flag: SkipFlag = Field(default="skip_2", description="The column of MSSD that says what a skip is")
    played_ratio_pct: int = Field(
        default=50, ge=1, description="Yambda: a play is skipped if a smaller part of the track was heard, in percent"
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of the sampling")

    @model_validator(mode="after")
    def _possible_lengths(self) -> Self:
        if self.min_session_plays > self.max_session_plays:
            raise ValueError(
                f"min_session_plays is {self.min_session_plays}, expected at most max_session_plays, "
                f"which is {self.max_session_plays}"
            )
        return self


class Step(NamedTuple):
    """What a rule left."""

    rule: str
    plays: int
    sessions: int | None  # None before sessions are made


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` read, what each rule left, and the dataset that came out."""

    kind: LogKind
    files: int
    lines: int  # read, malformed ones included, blank ones and headers not
    malformed: int
    malformed_reasons: dict[str, int]
    malformed_examples: tuple[MalformedLine, ...]  # the first five
    steps: tuple[Step, ...]
    dataset: Dataset


def prepare_options(**values: Any) -> PrepareOptions:
    """Options by name. Raises BadOption with one line where a name is unknown or a value out of range."""
    try:
        return PrepareOptions(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        what = f"{name} is {first['input']!r}: " if name else ""
        raise BadOption(f"{what}{first['msg'].removeprefix('Value error, ')}") from error


def prepare(
    kind: LogKind,
    sources: Sequence[Path | str],
    out: Path,
    options: PrepareOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PrepareReport:
    """Make the dataset `out` of the logs that `sources` (files, folders, globs) name.

    Raises BadLog, BadOption, and InputError where `out` is taken. Takes memory for the integer columns (some 100 bytes
    a line at the worst moment) and for the distinct names, never for the text of the log.
    """
    options = _for_kind(kind, PrepareOptions() if options is None else options)
    refuse_existing(out, overwrite=overwrite, marker=FACTS_FILE)
    files = find_files(kind, sources)
    tell = progress or _silent
    out.parent.mkdir(parents=True, exist_ok=True)
    log = LogReader(kind, options.skip_flag, options.played_ratio_pct, scratch=out.parent)
    for number, file in enumerate(files):
        tell(f"reading {file.name}", number, len(files) + 2)
        log.read(file)
    tell("making sessions", len(files), len(files) + 2)
    listening, steps = _listening(log, options)
    tell("writing the dataset", len(files) + 1, len(files) + 2)
    settings = options.model_dump(exclude=set(_NO_EFFECT[kind]))
    dataset = write_listening(out, listening, kind, settings, malformed_lines=log.malformed, overwrite=overwrite)
    tell("done", len(files) + 2, len(files) + 2)
    return PrepareReport(
        kind=kind,
        files=len(files),
        lines=log.lines,
        malformed=log.malformed,
        malformed_reasons=dict(log.reasons),
        malformed_examples=tuple(log.examples),
        steps=tuple(steps),
        dataset=dataset,
    )


def _silent(_what: str, _finished: int, _steps: int) -> None:
    """Nobody watches."""


def _for_kind(kind: LogKind, options: PrepareOptions) -> PrepareOptions:
    """The options with the kind's defaults. Raises BadOption for an option that cannot have an effect."""
    if kind not in KINDS:
        raise BadOption(f"there are no logs of kind {kind!r}: expected one of {', '.join(KINDS)}")
    for name in _NO_EFFECT[kind]:
        if getattr(options, name) != PrepareOptions.model_fields[name].default:
            raise BadOption(f"{name} has no effect on logs of kind {kind}: leave it out")
    if options.sample_half_skips is None:
        return options.model_copy(update={"sample_half_skips": kind == "lfm1k"})
    return options


def _listening(log: LogReader, options: PrepareOptions) -> tuple[Listening, list[Step]]:
    """The plays that the rules leave, with what each rule left."""
    lines, form = log.result(), log.form
    steps = [Step("lines read", log.lines, None)]
    if log.malformed:
        steps.append(Step("malformed lines left out", len(lines), None))
    owners = _owners(lines)
    plays = _kept(_sessions(lines, owners, form, options, steps), options, steps)
    tracks, codes = track_table(lines, plays.track)
    listening = Listening(
        tracks=tracks,
        codes=codes,
        skipped=plays.skipped,
        offsets=plays.offsets,
        session_ids=_session_ids(plays, owners["owner"] if form.whole_sessions else None),
        started_at=_started_at(plays),
    )
    return listening, steps


def _owners(lines: pl.DataFrame) -> pl.DataFrame:
    """The listeners or sessions by name: `owner` string and `code`, their code in the lines."""
    # By name, for codes depend on which thread met a name first.
    distinct = lines["owner"].unique()
    return pl.DataFrame({"owner": distinct.cast(pl.String), "code": distinct.to_physical()}).sort("owner")


def _sessions(
    lines: pl.DataFrame, owners: pl.DataFrame, form: LogLines, options: PrepareOptions, steps: list[Step]
) -> Plays:
    """All plays as sessions, before any is dropped."""
    if form.newest_first:  # of two plays at the same second the later line is then the earlier play
        lines = lines.reverse()
    number_of_code = np.zeros(int(owners["code"].max()) + 1, dtype=np.uint32)  # type: ignore[arg-type]
    number_of_code[owners["code"].to_numpy()] = np.arange(len(owners), dtype=np.uint32)
    owner = number_of_code[lines["owner"].to_physical().to_numpy()]
    order = _order(owner, lines, form)
    owner = owner[order]
    if form.by_position:
        position = lines["position"].to_numpy()[order]
        latest = np.append((owner[1:] != owner[:-1]) | (position[1:] != position[:-1]), True)
        order, owner = order[latest], owner[latest]
        if len(order) < len(lines):
            steps.append(Step("repeated reports of one play merged", len(order), None))
    at = lines["at"].fill_null(UNKNOWN_TIME).to_numpy()[order] if "at" in lines.columns else None
    if form.whole_sessions or at is None:
        first = rules.first_of_owner(owner)
    else:
        first = rules.first_of_session(owner, at, options.idle_gap_s)
    if "skipped" in lines.columns and lines["skipped"].null_count() == 0:
        skipped = lines["skipped"].to_numpy()[order]
    else:
        assert at is not None
        skipped = rules.inferred_skips(at, first, options.skip_within_s)
    offsets = rules.offsets_where(first)
    plays = Plays(
        track=lines["track"].to_physical().to_numpy()[order],
        skipped=skipped,
        at=at,
        offsets=offsets,
        owner=owner[offsets[:-1]].astype(np.int64),
        piece=np.zeros(len(offsets) - 1, dtype=np.int64),
    )
    steps.append(Step("sessions made", len(order), len(plays)))
    return plays


def _order(owner: NDArray[np.uint32], lines: pl.DataFrame, form: LogLines) -> Int:
    """Line numbers by owner, then by position (of one play the newest report last) or time, then as they stand."""
    keys = pl.DataFrame({"owner": owner}).with_columns(lines["position" if form.by_position else "at"].alias("place"))
    if form.by_position and "written_at" in lines.columns:
        keys = keys.with_columns(lines["written_at"])  # a report without this time counts as the oldest
    return keys.select(pl.arg_sort_by(keys.columns, nulls_last=False, maintain_order=True)).to_series().to_numpy()


def _kept(plays: Plays, options: PrepareOptions, steps: list[Step]) -> Plays:
    """The plays that the rules of selection leave. Raises BadLog where that is none."""
    rng = np.random.default_rng(options.seed)

    def note(rule: str, left: Plays) -> Plays:
        steps.append(Step(rule, len(left.track), len(left)))
        if len(left.track) == 0:
            told = "; ".join(f"{step.rule}: {step.plays:,} plays" for step in steps)
            raise BadLog(f"no play is left ({told}): relax the last of these rules")
        return left

    if options.min_track_plays > 1:
        rare = f"plays of tracks with fewer than {options.min_track_plays} plays dropped"
        plays = note(rare, rules.without_rare_tracks(plays, options.min_track_plays))
    if plays.lengths.max() > options.max_session_plays:
        cut = rules.cut(plays, options.max_session_plays)
        plays = note(f"sessions cut into pieces of at most {options.max_session_plays} plays", cut)
    short = f"sessions of fewer than {options.min_session_plays} plays dropped"
    plays = note(short, rules.without_short_sessions(plays, options.min_session_plays))
    if options.sample_half_skips:
        half = rules.half_with_skips(plays, rng)
        plays = note("all sessions with a skip kept, and as many without one drawn", half)
    if options.max_sessions is not None:
        drawn = rules.at_most(plays, options.max_sessions, rng)
        plays = note(f"at most {options.max_sessions:,} sessions drawn", drawn)
    return plays


def _session_ids(plays: Plays, owners: pl.Series | None) -> pl.Series:
    if owners is None:
        numbers = pl.int_range(1, len(plays) + 1, eager=True).cast(pl.String).str.zfill(8)
        return ("s" + numbers).alias("session_id")
    ids = pl.DataFrame({"id": owners.gather(plays.owner), "piece": plays.piece})
    piece = pl.format("{}~{}", "id", pl.col("piece") + 1)
    return ids.select(session_id=pl.when(pl.col("piece") == 0).then("id").otherwise(piece)).to_series()


def _started_at(plays: Plays) -> pl.Series | None:
    if plays.at is None:
        return None
    at = pl.Series("started_at", plays.at[plays.offsets[:-1]])
    return at.to_frame().select(pl.when(at != UNKNOWN_TIME).then(at)).to_series().cast(pl.Datetime("ms", "UTC"))
