"""`segue prepare`: listening logs, as they are published or as the service writes them, become a dataset.

The rules are applied in this order, and the report says what each one left:

1. Malformed lines (a wrong number of fields, no listener, session or track, an unreadable time, position or skip
   flag) are left out, counted, and the first five shown. A line is a record: a field in quotes ends on its line.
2. Of several reports of one play (same session, same position) one remains: the newest by `written_at`, where the
   log has that column, otherwise the last in the order of the files and their lines. A log may so be delivered more
   than once, and a play that was later skipped reported again. Sessions without positions are ordered by
   `timestamp`, and nothing is merged in them.
3. Listeners' plays are cut into sessions at idle gaps, and skips inferred (training.prepare.session_rules); logs of
   whole sessions (MSSD, events with a session_id) keep theirs.
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
from typing import NamedTuple, TypeAlias

from segue.safe_files import refuse_existing
from training.data.dataset import FACTS_FILE, Dataset, Listening, write_listening
from training.prepare.log_portions import Part
from training.prepare.log_reading import LinesRead, LogReader, MalformedLine
from training.prepare.prepare_options import NO_EFFECT, PrepareOptions, options_of_kind, prepare_options
from training.prepare.sessionize import (
    Step,
    kept,
    made_sessions,
    owners_of,
    session_ids,
    starts_of,
    steps_of_reading,
    times_of_starts,
)
from training.prepare.sources import LogKind, find_files
from training.prepare.track_names import track_table

__all__ = ["Made", "PrepareOptions", "PrepareReport", "Step", "Work", "prepare", "prepare_options"]

Progress: TypeAlias = Callable[[str, int, int], None]  # what is done, steps finished, steps in all


class Work(NamedTuple):
    """What an engine is to make sessions of."""

    kind: LogKind
    files: Sequence[Path]
    options: PrepareOptions
    scratch: Path  # the folder where the dataset will be: there is room for copies
    tell: Progress  # of len(files) + 2 steps, the first len(files) are reading, and one is making sessions


class Made(NamedTuple):
    """What an engine made of them."""

    read: LinesRead
    listening: Listening
    steps: list[Step]


Engine: TypeAlias = Callable[[Work], Made]


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


def prepare(
    kind: LogKind,
    sources: Sequence[Path | str],
    out: Path,
    options: PrepareOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> PrepareReport:
    """Make the dataset `out` of the logs that `sources` (files, folders, globs) name.

    `engine` makes the sessions: this process (the default), or others (training.prepare.ray_engine); the dataset is the
    same.
    Raises BadLog, BadOption, and InputError where `out` is taken. Takes memory for the integer columns (some 100 bytes
    a line at the worst moment) and for the distinct names, never for the text of the log.
    """
    options = options_of_kind(kind, PrepareOptions() if options is None else options)
    refuse_existing(out, overwrite=overwrite, marker=FACTS_FILE)
    files = find_files(kind, sources)
    tell = progress or _silent
    out.parent.mkdir(parents=True, exist_ok=True)
    read, listening, steps = (engine or in_this_process)(Work(kind, files, options, out.parent, tell))
    tell("writing the dataset", len(files) + 1, len(files) + 2)
    settings = options.model_dump(exclude=set(NO_EFFECT[kind]))
    dataset = write_listening(out, listening, kind, settings, malformed_lines=read.malformed, overwrite=overwrite)
    tell("done", len(files) + 2, len(files) + 2)
    return PrepareReport(
        kind=kind,
        files=len(files),
        lines=read.lines,
        malformed=read.malformed,
        malformed_reasons=dict(read.reasons),
        malformed_examples=tuple(read.examples),
        steps=tuple(steps),
        dataset=dataset,
    )


def in_this_process(work: Work) -> Made:
    """Read all files into this process and make sessions of their lines."""
    log = LogReader(work.kind, work.options.skip_flag, work.options.played_ratio_pct, scratch=work.scratch)
    for number, file in enumerate(work.files):
        work.tell(f"reading {file.name}", number, len(work.files) + 2)
        log.read(Part(file))
    work.tell("making sessions", len(work.files), len(work.files) + 2)
    lines, form = log.result(), log.form
    steps = steps_of_reading(log.account)
    owners = owners_of(lines)
    plays = kept(made_sessions(lines, owners, form, work.options, steps), work.options, steps)
    tracks, codes = track_table(lines, plays.track)
    listening = Listening(
        tracks=tracks,
        codes=codes,
        skipped=plays.skipped,
        offsets=plays.offsets,
        session_ids=session_ids(plays.owner, plays.piece, owners["owner"] if form.whole_sessions else None),
        started_at=times_of_starts(starts_of(plays)),
    )
    return Made(log.account, listening, steps)


def _silent(_what: str, _finished: int, _steps: int) -> None:
    """Nobody watches."""
