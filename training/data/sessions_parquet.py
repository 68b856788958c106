"""sessions.parquet: written block by block, and read into flat arrays in memory or in mapped .npy files.

flat/rows.npy      int32 [plays]          Derived from sessions.parquet and mapped: training takes no memory for plays
flat/skipped.npy   bool [plays]           that it does not read. The folder is created if it is missing or belongs to
flat/offsets.npy   int64 [sessions + 1]   another sessions.parquet; a dataset is complete without it.
flat/flat.json     the sha256 of the sessions.parquet that the arrays were derived from
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import polars as pl
from numpy.typing import DTypeLike, NDArray
from polars.io.plugins import register_io_source

from segue.arrays import Int
from segue.errors import BadDataset, InputError
from segue.safe_files import new_folder
from segue.window import Sessions

BLOCK: Final = 4_000_000  # elements that are worked on at a time

_HEADER_BYTES: Final = 128  # what NumPy takes for any array of one dimension


class GrowingArray:
    """An .npy file that is appended to; it can be read once the block has ended without an error."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._length = 0
        self._file = path.open("wb")
        self._file.write(b"\0" * _HEADER_BYTES)

    def __len__(self) -> int:
        """Elements written so far."""
        return self._length

    def append(self, values: NDArray[Any]) -> None:
        """Write more elements; they must fit the file's dtype."""
        self._file.write(np.ascontiguousarray(values.astype(self.dtype, copy=False)).data)
        self._length += len(values)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Write the header, which says how many elements there are."""
        with self._file:
            if kind is None:
                self._file.seek(0)
                facts = {"descr": self.dtype.str, "fortran_order": False, "shape": (self._length,)}
                np.lib.format.write_array_header_1_0(self._file, facts)
                assert self._file.tell() == _HEADER_BYTES


def mapped(path: Path, dtype: DTypeLike) -> NDArray[Any]:
    """The array of an .npy file, memory-mapped and read-only. Raises ValueError or OSError where it is none of `dtype`.

    It stays readable when the file is renamed or deleted.
    """
    array = np.lib.format.open_memmap(path, mode="r")
    if array.ndim != 1 or array.dtype != np.dtype(dtype):
        raise ValueError(f"{path} holds {array.ndim}-dimensional {array.dtype}, expected one dimension of {dtype}")
    # A plain array that keeps the map: np.memmap takes longer to index.
    return np.asarray(array)


def blocks(length: int, size: int = BLOCK) -> Iterator[slice]:
    """Slices that cover range(length), in order."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def counts(values: NDArray[Any], count: int, where: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """How often each number below `count` is among `values` (where `where` holds). [count] int64."""
    found = np.zeros(count, dtype=np.int64)
    for part in blocks(len(values)):
        found += np.bincount(values[part] if where is None else values[part][where[part]], minlength=count)
    return found


SESSIONS_FILE: Final = "sessions.parquet"
FLAT_FOLDER: Final = "flat"
FLAT_FILE: Final = "flat.json"

_SESSIONS_A_BLOCK: Final = 262_144
_SCHEMA: Final = {
    "session_id": pl.String(),
    "rows": pl.List(pl.Int32),
    "skipped": pl.List(pl.Boolean),
    "started_at": pl.Datetime("ms", "UTC"),
}
_DTYPES: Final = {"rows": np.dtype("<i4"), "skipped": np.dtype(np.bool_), "offsets": np.dtype("<i8")}


def write_sessions(file: Path, sessions: Sessions, session_ids: pl.Series, started_at: pl.Series | None) -> None:
    """Write sessions.parquet; the same sessions give the same bytes, whatever they are held in."""

    def parts(
        columns: list[str] | None, _predicate: pl.Expr | None, _rows: int | None, _size: int | None
    ) -> Iterator[pl.DataFrame]:
        for start in range(0, len(sessions), _SESSIONS_A_BLOCK):
            which = slice(start, min(start + _SESSIONS_A_BLOCK, len(sessions)))
            frame = _frame(sessions, session_ids, started_at, which)
            yield frame if columns is None else frame.select(columns)

    source = register_io_source(parts, schema=_SCHEMA)
    source.sink_parquet(file, compression="zstd", row_group_size=_SESSIONS_A_BLOCK)


def read_sessions(file: Path) -> Sessions:
    """The flat arrays in memory, read one column at a time: a column's lists are gone before the next column is read.

    Raises BadDataset, and what Polars raises for a damaged file.
    """
    rows, lengths = _flat(pl.read_parquet(file, columns=["rows"])["rows"], file)
    skipped, other = _flat(pl.read_parquet(file, columns=["skipped"])["skipped"], file)
    _equal(lengths, other, file)
    return Sessions(rows.astype(np.int64), skipped.astype(np.bool_), _offsets(lengths))


def mapped_sessions(file: Path) -> Sessions:
    """The flat arrays as mapped files beside sessions.parquet, made first where they are not there. Rows are int32.

    Where the folder cannot be written, the arrays are made in the system's folder for temporary files, and are gone
    when the process ends. Raises as `read_sessions`.
    """
    digest = _sha256(file)
    folder = file.parent / FLAT_FOLDER
    try:
        if json.loads((folder / FLAT_FILE).read_bytes()) == {"sessions_sha256": digest}:
            return _mapped(folder)
    except (OSError, ValueError):
        pass  # not there, or not whole: made again
    try:
        with new_folder(folder, overwrite=folder.exists(), marker=FLAT_FILE, private=True) as unfinished:
            sessions = _made(file, unfinished, digest)  # mapped before another process can replace the folder
    except (InputError, OSError) as error:
        if isinstance(error, BadDataset):
            raise
        with tempfile.TemporaryDirectory() as temporary:
            return _made(file, Path(temporary), digest)
    return sessions


def keep_flat(file: Path, folder: Path) -> None:
    """Say that the arrays in `folder`, written by `flat_writer`, are those of the sessions.parquet `file`."""
    (folder / FLAT_FILE).write_text(json.dumps({"sessions_sha256": _sha256(file)}) + "\n", encoding="utf-8")


def flat_sessions(folder: Path, parts: Iterator[tuple[NDArray[Any], NDArray[Any], Int]]) -> Sessions:
    """Write rows, skip flags and lengths of sessions, a part at a time, as the arrays of `folder`; mapped.

    Lengths may come later than the plays that they cut into sessions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reached = 0
    with (
        GrowingArray(folder / "rows.npy", _DTYPES["rows"]) as all_rows,
        GrowingArray(folder / "skipped.npy", _DTYPES["skipped"]) as all_skipped,
        GrowingArray(folder / "offsets.npy", _DTYPES["offsets"]) as offsets,
    ):
        offsets.append(np.zeros(1, dtype=np.int64))
        for rows, skipped, lengths in parts:
            all_rows.append(rows)
            all_skipped.append(skipped)
            offsets.append(reached + np.cumsum(lengths, dtype=np.int64))
            reached += int(lengths.sum())
    return _mapped(folder)


def _mapped(folder: Path) -> Sessions:
    return Sessions(*(mapped(folder / f"{name}.npy", dtype) for name, dtype in _DTYPES.items()))


def _made(file: Path, folder: Path, digest: str) -> Sessions:
    sessions = flat_sessions(folder, _parts_of(file))
    (folder / FLAT_FILE).write_text(json.dumps({"sessions_sha256": digest}) + "\n", encoding="utf-8")
    return sessions


def _parts_of(file: Path) -> Iterator[tuple[NDArray[Any], NDArray[Any], Int]]:
    columns = pl.scan_parquet(file, glob=False).select("rows", "skipped")
    for part in columns.collect_batches(chunk_size=_SESSIONS_A_BLOCK, maintain_order=True):
        rows, lengths = _flat(part["rows"], file)
        skipped, other = _flat(part["skipped"], file)
        _equal(lengths, other, file)
        yield rows, skipped, lengths


def _flat(lists: pl.Series, file: Path) -> tuple[NDArray[Any], Int]:
    """A column of lists as its values, one after another, and the lengths of its lists."""
    lengths = lists.list.len()
    if lists.null_count() or lengths.min() == 0:
        raise BadDataset(f"{file.name} has a session without plays in column {lists.name}")
    values = lists.explode()
    if values.null_count():
        raise BadDataset(f"{file.name} has missing values in column {lists.name}")
    return values.to_numpy(), lengths.to_numpy().astype(np.int64)


def _equal(lengths: Int, other: Int, file: Path) -> None:
    if not np.array_equal(lengths, other):
        raise BadDataset(f"{file.name} has sessions with more or fewer skip flags than plays")


def _offsets(lengths: Int) -> Int:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _frame(sessions: Sessions, session_ids: pl.Series, started_at: pl.Series | None, which: slice) -> pl.DataFrame:
    offsets = sessions.offsets[which.start : which.stop + 1]
    plays = slice(int(offsets[0]), int(offsets[-1]))
    number = np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))
    rows = sessions.rows[plays].astype(np.int32, copy=False)
    lists = (
        pl.DataFrame({"session": number, "rows": rows, "skipped": sessions.skipped[plays]})
        .with_columns(pl.col("session").set_sorted())
        .group_by("session", maintain_order=True)
        .agg("rows", "skipped")
    )
    unknown = pl.Series([None], dtype=_SCHEMA["started_at"]).new_from_index(0, len(lists))
    begins = unknown if started_at is None else started_at[which].cast(_SCHEMA["started_at"])
    ids = session_ids[which].cast(pl.String)
    return lists.select(ids.alias("session_id"), "rows", "skipped", begins.alias("started_at"))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
