"""The field `log` of dataset.json: what `segue prepare` read in the log, and what a person must know about it.

Simulated datasets, and those of earlier versions, have no such field. The fingerprint does not depend on it.
"""

from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MOST_FILES: Final = 1_000  # files that dataset.json lists

# Thresholds of warnings that `segue prepare` and `segue describe` share.
HIGH_SKIP_RATE: Final = 0.8
FILES_APART: Final = 0.3  # difference of the skip rates of two files
PLAYS_OF_A_FILE: Final = 100  # fewer plays tell nothing about the skip rate of a file
MANY_REPEATS: Final = 0.2  # share of plays that repeat the track of the play before
PLAYS_TO_JUDGE: Final = 100  # fewer neighbouring plays tell nothing about repeats and times


Count: TypeAlias = Annotated[int, Field(ge=0, le=2**53)]


def _unicode(text: str) -> str:
    r"""Return a text in which bytes of a file name that are no UTF-8 are escapes, such as `\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


Name: TypeAlias = Annotated[str, AfterValidator(_unicode)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataWarning(_Part):
    """Something about the data that may spoil what is learned from it."""

    code: str = Field(description="Name of the kind of warning, as in docs/how-to/check-your-log.md")
    message: str = Field(description="One or two sentences: what was found, and what to do")


class LogFile(_Part):
    """One file of the log."""

    name: Name = Field(description="Name of the file, with the name inside the archive if there is one")
    plays: Count = Field(description="Plays of the file, without repeated reports and before any filter")
    skips: Count = Field(description="Plays of the file that were skipped")


class SkipSources(_Part):
    """Number of plays by the source of their outcome (played or skipped)."""

    flag: Count = Field(default=0, description="A skip flag of the log")
    end_reason: Count = Field(default=0, description="The reason why the play ended")
    played_duration: Count = Field(default=0, description="How long the track was heard")
    time: Count = Field(default=0, description="Inferred from the start of the next play")


class PrepareStep(_Part):
    """What one rule of `segue prepare` removed, and what remained."""

    step: str = Field(description="The rule")
    removed: Count = Field(description="Plays that the rule removed")
    plays: Count = Field(description="Plays that remained")
    sessions: Count | None = Field(default=None, description="Sessions that remained; null before sessions exist")
    option: str | None = Field(default=None, description="The option that governs the rule")


class LogFacts(_Part):
    """The field `log` of dataset.json."""

    files: list[LogFile] = Field(default=[], description=f"The files of the log, at most {MOST_FILES:,}")
    skips_from: SkipSources = Field(default=SkipSources(), description="Plays by the source of their outcome")
    skipped_by: SkipSources = Field(default=SkipSources(), description="Skipped plays by the source of their outcome")
    unknown_outcomes: Count = Field(default=0, description="Plays whose outcome cannot be known")
    same_second_skips: Count = Field(
        default=0, description="Number of skips inferred from start times where the next play starts in the same second"
    )
    sessions_given: bool = Field(default=False, description="Whether the sessions are those of the log")
    merged: Count = Field(default=0, description="Repeated reports of a play that were merged")
    conflicts: Count = Field(default=0, description="Merged reports that contradicted each other")
    ignored: dict[str, int] = Field(default={}, description="Ignored lines by reason")
    columns: dict[str, str] = Field(default={}, description="The column that was read for each role")
    unused_columns: list[str] = Field(default=[], description="Columns that were not used")
    steps: list[PrepareStep] = Field(default=[], description="The rules in their order")
    notes: list[str] = Field(default=[], description="How the log was understood, one sentence each")
    warnings: list[DataWarning] = Field(default=[], description="What to look at before training")
