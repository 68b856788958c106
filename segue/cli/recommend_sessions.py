"""`segue recommend --sessions`: recommend for all sessions of a Parquet file, in bounded memory.

The rows of a session may be anywhere in the file. A file with more than ROWS_IN_MEMORY rows is first divided by ranges
of session ids, so that each range fits in memory. Sessions are written in the order of their ids, so the result does
not depend on the ranges.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zlib import crc32

import numpy as np
import polars as pl

from segue.catalogue import PAD_ROW
from segue.errors import InputError
from segue.safe_files import UNREADABLE, check_footer, new_file
from segue.sessions import Outcome, Play
from segue.window import Sessions

if TYPE_CHECKING:
    from segue.recommend import Recommendation
    from service.releases.loaded import LoadedRelease, Question, RecommendResult

ROWS_IN_MEMORY: Final = 1_000_000
SCHEMA: Final = {
    "session_id": pl.String(),
    "rank": pl.Int32(),  # 1 is the best
    "track_id": pl.String(),
    "score": pl.Float32(),
    "source": pl.String(),  # model or popularity
}
_SESSIONS_AT_ONCE: Final = 64  # as many as the service ranks in one call
_ROWS_OF_A_PART: Final = 500_000  # of the output, in memory
_ORDERS: Final = ("position", "timestamp")
_SAMPLED: Final = 100_000  # session ids that determine the ranges


@dataclass(frozen=True)
class SessionsJob:
    """What to recommend."""

    source: Path
    out: Path
    question: "Question"  # for each session, whose plays replace those of the question
    options: Mapping[str, str] = field(default_factory=dict)  # as they were given, for the metadata of the file
    overwrite: bool = False


def recommend_sessions(live: "LoadedRelease", job: SessionsJob, report: Callable[[int, int], None]) -> int:
    """Write the recommendations for the sessions in `job.source` to `job.out`, and return the number of sessions.

    `report` is called with the plays done and their total. Raises InputError if the input cannot be read.
    """
    from service.settings import Settings

    most_plays: int = Settings.model_fields["max_session_plays"].default
    plays = _Plays(job.source)
    count = done = 0
    with (
        new_file(job.out, overwrite=job.overwrite) as unfinished,
        tempfile.TemporaryDirectory(dir=job.out.parent, prefix=f".{job.out.name}.", suffix=".unfinished") as name,
    ):
        folder = Path(name)
        parts = _Parts(folder)
        for frame in plays.by_session(folder):
            latest = frame.group_by("session_id", maintain_order=True).tail(most_plays)
            for start, ids, sessions in _blocks(latest, live):
                parts.add(live, ids, _recommended(live, job.question, ids, sessions))
                count += len(ids)
                report(done + start, plays.rows)
            done += len(frame)
        parts.write(unfinished, live, job)
    return count


def _recommended(
    live: "LoadedRelease", asked: "Question", ids: list[str], sessions: Sessions
) -> "list[Recommendation | RecommendResult]":
    if asked.spacing is None and asked.policy is None:
        recommender, caution = live.recommender_for(asked.filter), live.caution(asked.caution)
        return [*recommender.recommend(sessions, asked.k, repeat=asked.repeat, caution=caution)]
    questions: list[Question] = []
    for number, session_id in enumerate(ids):
        start, end = sessions.offsets[number : number + 2].tolist()
        rows, skips = sessions.rows[start:end].tolist(), sessions.skipped[start:end].tolist()
        outcomes = [Outcome.SKIPPED if skipped else Outcome.PLAYED for skipped in skips]
        ids_of = [live.catalogue.track_id(row) if row != PAD_ROW else "" for row in rows]
        plays = [Play(*one) for one in zip(ids_of, outcomes, strict=True)]
        questions.append(replace(asked, plays=plays, seed=crc32(session_id.encode())))
    return [*live.answer(questions)]


def _blocks(frame: pl.DataFrame, live: "LoadedRelease") -> Iterator[tuple[int, list[str], Sessions]]:
    """Yield blocks of sessions: the index of the first play, the session ids and their plays."""
    lengths = frame.group_by("session_id", maintain_order=True).len()
    ids = lengths["session_id"].to_list()
    ends = np.concatenate([[0], np.cumsum(lengths["len"].to_numpy())]).astype(np.int64)
    for first in range(0, len(ids), _SESSIONS_AT_ONCE):
        offsets = ends[first : first + _SESSIONS_AT_ONCE + 1]
        start, end = int(offsets[0]), int(offsets[-1])
        rows = live.catalogue.rows(frame["track_id"][start:end].to_list())
        skipped = frame["skipped"][start:end].to_numpy()
        yield start, ids[first : first + _SESSIONS_AT_ONCE], Sessions(rows, skipped, offsets - start)


class _Parts:
    """The rows of the result: at most _ROWS_OF_A_PART in memory, the others in files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[Path] = []
        self._frames: list[pl.DataFrame] = []
        self._rows = 0

    def add(self, live: "LoadedRelease", ids: list[str], found: "list[Recommendation | RecommendResult]") -> None:
        lengths = [len(one.rows) for one in found]
        self._frames.append(
            pl.DataFrame(
                {
                    "session_id": np.repeat(np.array(ids, dtype=object), lengths).tolist(),
                    "rank": np.concatenate([np.arange(1, length + 1) for length in lengths]),
                    "track_id": [live.catalogue.track_id(row) for one in found for row in one.rows],
                    "score": np.concatenate([one.scores for one in found]),
                    "source": [one.source for one in found for _ in range(len(one.rows))],
                },
                schema=SCHEMA,
                strict=False,
            )
        )
        self._rows += sum(lengths)
        if self._rows >= _ROWS_OF_A_PART:
            self._flush()

    def _flush(self) -> None:
        self._files.append(self._folder / f"part-{len(self._files):06}.parquet")
        pl.concat(self._frames or [pl.DataFrame(schema=SCHEMA)]).write_parquet(self._files[-1], compression="lz4")
        self._frames, self._rows = [], 0

    def write(self, path: Path, live: "LoadedRelease", job: SessionsJob) -> None:
        """Write all rows to one file. Its metadata names the release, the options and the time."""
        self._flush()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        caution = f"{live.caution(job.question.caution):g}"
        facts = {
            "release": live.name,
            "k": str(job.question.k),
            "repeat": job.question.repeat.text,
            "caution": caution,
            "written_at": now,
        }
        metadata = {f"segue.{name}": value for name, value in {**facts, **job.options}.items()}
        pl.scan_parquet(self._files).sink_parquet(path, compression="zstd", metadata=metadata)


class _Plays:
    """The plays of the input: a Parquet file, or a folder of them such as an event log."""

    def __init__(self, source: Path) -> None:
        """Raises InputError if a file cannot be read, lacks a column or has a column of the wrong type."""
        self._source = source
        files = [source]
        if source.is_dir():  # an event log has preferences and served lists in files of their own
            others = {*source.glob("preferences-*.parquet"), *source.glob("lists-*.parquet")}
            files = sorted(set(source.glob("*.parquet")) - others)
        if not source.exists():
            raise InputError(f"{source} does not exist: give a Parquet file of plays, or a folder of such files")
        if not files:
            raise InputError(f"{source} has no file named *.parquet: give a Parquet file of plays")
        scans = [self._scanned(file) for file in files]
        for file, scan in zip(files, scans, strict=True):
            if scan.collect_schema() != scans[0].collect_schema():
                raise InputError(f"{file} and {files[0]} have different columns: write both in the same way")
        self._scan = pl.concat(scans)
        self._names = self._scan.collect_schema().names()
        try:
            facts = self._scan.select(pl.len().alias("rows"), pl.all().null_count()).collect(engine="streaming")
        except UNREADABLE as error:
            raise _unreadable(source, error) from error
        self.rows = int(facts["rows"].item())
        if not self.rows:
            raise InputError(f"{source} has no plays: give a file with at least one row")
        for name in self._names:
            if nulls := int(facts[name].item()):
                raise InputError(f"{source}: the column {name} is empty in {nulls:,} rows: remove these rows")

    def _scanned(self, file: Path) -> pl.LazyFrame:
        try:
            check_footer(file)
            scan = pl.scan_parquet(file)
            schema = scan.collect_schema()
        except UNREADABLE as error:
            raise _unreadable(file, error) from error
        order = next((name for name in _ORDERS if name in schema), None)
        missing = [name for name in ("session_id", "track_id", "skipped") if name not in schema]
        if missing or order is None:
            lacks = missing[0] if missing else "position"
            raise InputError(
                f"{file} has no column {lacks}: expected session_id, position (or timestamp), track_id and skipped"
            )
        for name, allowed, expected in (
            ("session_id", _is_text, "text"),
            ("track_id", _is_text, "text"),
            ("skipped", _is_flag, "true or false"),
            (order, _is_order, "whole numbers or times"),
        ):
            if not allowed(schema[name]):
                raise InputError(f"{file}: the column {name} is {schema[name]}, expected {expected}")
        versions = ["written_at"] if order == "position" and "written_at" in schema else []
        texts = [pl.col(name).cast(pl.String) for name in ("session_id", "track_id")]
        places = pl.col(order).cast(pl.Int64) if schema[order].is_integer() else pl.col(order)
        return scan.select(*texts, "skipped", places, *versions)

    def by_session(self, folder: Path) -> Iterator[pl.DataFrame]:
        """Yield all plays, sorted by session id and within a session oldest first. A session is in one frame."""
        if self.rows <= ROWS_IN_MEMORY:
            yield self._sorted(self._scan.collect(engine="streaming"))
            return
        bounds = self._bounds()
        files: list[list[Path]] = [[] for _ in range(len(bounds) + 1)]
        for number, chunk in enumerate(self._scan.collect_batches(chunk_size=ROWS_IN_MEMORY, maintain_order=True)):
            ranges = bounds.search_sorted(chunk["session_id"], side="right").alias("range")
            for (place,), part in chunk.with_columns(ranges).partition_by("range", as_dict=True).items():
                file = folder / f"range-{place}-{number}.arrow"
                part.drop("range").write_ipc(file)
                files[int(place)].append(file)
        for of_range in files:
            if of_range:
                yield self._sorted(pl.concat([pl.read_ipc(file) for file in of_range]))
            for file in of_range:
                file.unlink()

    def _bounds(self) -> pl.Series:
        """Return session ids that divide the plays into ranges of about ROWS_IN_MEMORY plays."""
        sampled = self._scan.select(pl.col("session_id").gather_every(-(-self.rows // _SAMPLED)))
        ids = sampled.collect(engine="streaming")["session_id"].sort()
        count = -(-self.rows // ROWS_IN_MEMORY)
        return ids[[len(ids) * place // count for place in range(1, count)]].unique().sort()

    def _sorted(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the plays in order. Of several rows of a play, the one with the latest `written_at` counts."""
        order = self._names[3]
        frame = frame.sort("session_id", *self._names[3:], maintain_order=True)
        if order == "position":
            play = ["session_id", order]
            if "written_at" in self._names:
                frame = frame.unique(play, keep="last", maintain_order=True)
            elif (repeated := frame.select(play).is_duplicated()).any():
                session_id, position = frame.select(play).row(repeated.to_list().index(True))
                raise InputError(
                    f"{self._source}: session {session_id!r} has position {position} twice: keep one row per play, or "
                    "add a column written_at, of which the latest row counts"
                )
        return frame


def _is_text(kind: pl.DataType) -> bool:
    return kind == pl.String or kind.is_integer()


def _is_flag(kind: pl.DataType) -> bool:
    return kind == pl.Boolean


def _is_order(kind: pl.DataType) -> bool:
    return kind.is_integer() or kind.is_temporal()


def _unreadable(path: Path, error: BaseException) -> InputError:
    reason = str(error).partition("\n")[0][:200]
    return InputError(f"{path} cannot be read as Parquet: {reason}; copy it again")
