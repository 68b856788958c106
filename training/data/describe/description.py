"""The result of `segue describe`, as `--json` prints it.

A rate counts the plays whose outcome is known. The outcome of the last play of a session is unknown if outcomes were
inferred from the next play (column `last_known` of sessions.parquet). Datasets do not record other unknown outcomes
play by play: those count as played.
"""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, computed_field

from training.data.log_facts import DataWarning, LogFacts, LogFile, SkipSources


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rate(_Part):
    """Skipped plays among plays with a known outcome."""

    plays: int = Field(ge=0, description="Plays with a known outcome")
    skips: int = Field(ge=0, description="Those that were skipped")

    @computed_field(description="skips / plays; null without plays")  # type: ignore[prop-decorator]
    @property
    def skip_rate(self) -> float | None:
        """Skips as a share of plays; None without plays."""
        return self.skips / self.plays if self.plays else None


class PositionRate(Rate):
    """The rate of some positions in the session."""

    first: int = Field(ge=1, description="First position of the group; 1 is the first play of a session")
    last: int = Field(ge=1, description="Last position of the group")


class FileRate(Rate):
    """The rate of one file of the log."""

    name: str = Field(description="Name of the file")


class LengthCount(_Part):
    """The number of sessions with some numbers of plays."""

    first: int = Field(ge=1, description="Smallest number of plays of the group")
    last: int = Field(ge=1, description="Largest number of plays of the group")
    sessions: int = Field(ge=0, description="Number of sessions")


class Sessions(_Part):
    """Session lengths in plays. Quantiles are lengths of sessions: at least that share of sessions is as short."""

    count: int = Field(ge=1, description="Number of sessions")
    mean_length: float = Field(description="Mean number of plays")
    quantiles: dict[str, int] = Field(description="Number of plays at the quantiles 0, 0.05, 0.25, 0.5, 0.75, 0.95, 1")
    lengths: list[LengthCount] = Field(description="Histogram; lengths up to 20 are groups of their own")
    with_skip: int = Field(ge=0, description="Sessions with at least one skip")
    only_skips: int = Field(ge=0, description="Sessions in which every play was skipped")
    with_targets: int = Field(ge=0, description="Sessions of at least 3 plays: the `last-play` split evaluates these")


class Period(Rate):
    """The rate of the sessions that started in one period."""

    start: datetime = Field(description="Start of the period, UTC")
    sessions: int = Field(ge=0, description="Sessions that started in the period")


class Times(_Part):
    """When sessions started. Datasets do not contain the times of single plays."""

    first: datetime | None = Field(description="Start of the first session, UTC; null if no start is known")
    last: datetime | None = Field(description="Start of the last session, UTC; null if no start is known")
    unknown: int = Field(ge=0, description="Sessions without a known start")
    resolution_s: float | None = Field(
        description="Greatest common divisor of all start times, in seconds; null if no play has a start time"
    )
    period: Literal["day", "week", "month", "year"] | None = Field(description="Length of the periods")
    periods: list[Period] = Field(description="Sessions and skip rate by period; periods without sessions are left out")


class ByPrevious(_Part):
    """Skip rate by the outcome of the previous play of the session."""

    first_play: Rate = Field(description="First plays of sessions, which have no previous play")
    after_play: Rate = Field(description="Plays after one that was not skipped")
    after_skip: Rate = Field(description="Plays after a skip")


class LastPlays(Rate):
    """The last plays of sessions: the test targets of the `last-play` split."""

    unknown: int = Field(ge=0, description="Last plays whose outcome is unknown")
    repeated: int = Field(ge=0, description="Last plays of a track that the session had played before")


class Repeats(_Part):
    """Tracks that a session plays again."""

    plays: int = Field(ge=0, description="Plays of a track that the session had played before")
    sessions: int = Field(ge=0, description="Sessions with such a play")
    immediate: int = Field(ge=0, description="Plays of the same track as the play before")
    immediate_after_skip: int = Field(ge=0, description="Immediate repeats of a play that was skipped")


class TopTrack(Rate):
    """One of the most played tracks."""

    track_id: str = Field(description="Id of the track")
    title: str | None = Field(description="Title, null if unknown")
    artist: str | None = Field(description="Artist, null if unknown")


class Lorenz(_Part):
    """A point of the Lorenz curve, from the most played track on."""

    tracks: float = Field(description="Share of the played tracks")
    plays: float = Field(description="Their share of all plays")


class Popularity(_Part):
    """How plays are distributed over the tracks. Shares and the Gini index leave out tracks that were never played."""

    tracks: int = Field(ge=1, description="Tracks of the catalogue")
    played: int = Field(ge=0, description="Tracks with at least one play")
    played_once: int = Field(ge=0, description="Tracks with exactly one play")
    top_1_percent: float = Field(description="Share of plays of the most played 1 % of tracks, rounded up")
    top_10_percent: float = Field(description="Share of plays of the most played 10 % of tracks, rounded up")
    tracks_of_half: int = Field(ge=1, description="The most played tracks that together have half of all plays")
    gini: float = Field(description="Gini index of the plays per track: 0 if all are equal, towards 1 if few have all")
    with_title: int = Field(ge=0, description="Tracks with a title")
    top: list[TopTrack] = Field(description="The ten most played tracks")
    lorenz: list[Lorenz] = Field(description="Points of the Lorenz curve")


class Outcomes(_Part):
    """Where the outcomes of plays come from. Null in datasets that do not record it."""

    sources: SkipSources | None = Field(description="Plays by the source of their outcome")
    inferred: float | None = Field(description="Share of plays whose outcome was inferred from time")
    unknown: int | None = Field(description="Plays whose outcome cannot be known")


class Description(_Part):
    """The figures of a dataset."""

    path: str = Field(description="Folder of the dataset")
    source: str = Field(description="The log format, or the generator of the plays")
    fingerprint: str = Field(description="sha256 of the plays")
    options: dict[str, JsonValue] = Field(description="The options that the plays were prepared with")
    malformed_lines: int = Field(ge=0, description="Lines of the log that could not be read and were ignored")
    plays: int = Field(ge=1, description="Number of plays, including those with an unknown outcome")
    skips: int = Field(ge=0, description="Skipped plays")
    skip_rate: float = Field(description="skips / plays, as in dataset.json")
    sessions: Sessions = Field(description="Session lengths")
    times: Times = Field(description="When sessions started")
    by_position: list[PositionRate] = Field(description="Skip rate by position; 1 to 20 are groups of their own")
    by_previous: ByPrevious = Field(description="Skip rate by the previous outcome")
    by_file: list[FileRate] | None = Field(description="Skip rate by file, most plays first; null if not recorded")
    last_plays: LastPlays = Field(description="The last plays of sessions")
    repeats: Repeats = Field(description="Repeated tracks")
    popularity: Popularity = Field(description="Plays per track")
    outcomes: Outcomes = Field(description="Sources of outcomes")
    log: LogFacts | None = Field(description="The log, as `segue prepare` read it; null if not recorded")
    warnings: list[DataWarning] = Field(description="What to look at before training")


def file_rates(files: list[LogFile]) -> list[FileRate]:
    """Return the rates of files, most plays first."""
    ordered = sorted(files, key=lambda file: (-file.plays, file.name))
    return [FileRate(plays=file.plays, skips=file.skips, name=file.name) for file in ordered]
