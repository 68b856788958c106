"""Write sessions.parquet in blocks, and read it into flat arrays in memory or in memory-mapped .npy files.

The mapped files are in the folder `flat` next to sessions.parquet:

    flat/rows.npy      int32 [plays]
    flat/skipped.npy   bool [plays]
    flat/offsets.npy   int64 [sessions + 1]
    flat/flat.json     the sha256 of the sessions.parquet that the arrays were derived from

Training on mapped arrays loads only the plays that it reads. The folder is a cache: a dataset is complete without the
folder. The folder is created if it is missing or was derived from another sessions.parquet.
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

BLOCK: Final = 4_000_000  # elements processed at a time

_HEADER_BYTES: Final = 128  # the size of the .npy header of any one-dimensional array


class GrowingArray:
    """An .npy file to which elements are appended.

    The file is readable after the `with` block has ended without an error.
    """

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._length = 0
        self._file = path.open("wb")
        self._file.write(b"\0" * _HEADER_BYTES)

    def __len__(self) -> int:
        """Return the number of elements written so far."""
        return self._length

    def append(self, values: NDArray[Any]) -> None:
        """Append elements to the file. The values must fit the file's dtype."""
        self._file.write(np.ascontiguousarray(values.astype(self.dtype, copy=False)).data)
        self._length += len(values)

    def __enter__(self) -> Self:
        """Return this array, ready for `append`."""
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Write the header with the number of elements, unless the block raised an error. Close the file."""
        with self._file:
            if kind is None:
                self._file.seek(0)
                facts = {"descr": self.dtype.str, "fortran_order": False, "shape": (self._length,)}
                np.lib.format.write_array_header_1_0(self._file, facts)
                assert self._file.tell() == _HEADER_BYTES


def mapped(path: Path, dtype: DTypeLike) -> NDArray[Any]:
    """Return the one-dimensional array of an .npy file, memory-mapped and read-only.

    The array stays readable after the file is renamed or deleted. Raises OSError if the file cannot be read, and
    ValueError if the file is not a one-dimensional array of `dtype`.
    """
    array = np.lib.format.open_memmap(path, mode="r")
    if array.ndim != 1 or array.dtype != np.dtype(dtype):
        raise ValueError(f"{path} holds {array.ndim}-dimensional {array.dtype}, expected one dimension of {dtype}")
    # Indexing a plain array is faster than indexing np.memmap. The plain array keeps the map open.
    return np.asarray(array)


def blocks(length: int, size: int = BLOCK) -> Iterator[slice]:
    """Yield slices of at most `size` elements that cover range(length), in order."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def counts(values: NDArray[Any], count: int, where: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Count the occurrences of each integer below `count` in `values`. [count] int64.

    With the mask `where`, only the selected values are counted.
    """
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
_LAST_KNOWN: Final = "last_known"  # an optional column
_DTYPES: Final = {"rows": np.dtype("<i4"), "skipped": np.dtype(np.bool_), "offsets": np.dtype("<i8")}


def write_sessions(
    file: Path,
    sessions: Sessions,
    session_ids: pl.Series,
    started_at: pl.Series | None,
    last_known: NDArray[np.bool_] | None = None,
) -> None:
    """Write sessions.parquet.

    `session_ids` [sessions] string, `started_at` [sessions] datetime or None, `last_known` [sessions] bool or None. The
    same sessions give the same bytes, for arrays in memory and for mapped arrays.
    """

    def parts(
        columns: list[str] | None, _predicate: pl.Expr | None, _rows: int | None, _size: int | None
    ) -> Iterator[pl.DataFrame]:
        for start in range(0, len(sessions), _SESSIONS_A_BLOCK):
            which = slice(start, min(start + _SESSIONS_A_BLOCK, len(sessions)))
            frame = _frame(sessions, session_ids, started_at, which)
            if last_known is not None:
                frame = frame.with_columns(pl.Series(_LAST_KNOWN, last_known[which]))
            yield frame if columns is None else frame.select(columns)

    schema = _SCHEMA if last_known is None else {**_SCHEMA, _LAST_KNOWN: pl.Boolean()}
    source = register_io_source(parts, schema=schema)
    source.sink_parquet(file, compression="zstd", row_group_size=_SESSIONS_A_BLOCK)


def read_sessions(file: Path) -> Sessions:
    """Read sessions.parquet into arrays in memory. Rows are int64.

    The columns are read one after the other, to limit memory use. Raises BadDataset for invalid sessions, and a Polars
    error for a damaged file.
    """
    rows, lengths = _flat(pl.read_parquet(file, columns=["rows"])["rows"], file)
    skipped, other = _flat(pl.read_parquet(file, columns=["skipped"])["skipped"], file)
    _equal(lengths, other, file)
    return Sessions(rows.astype(np.int64), skipped.astype(np.bool_), _offsets(lengths))


def read_last_known(file: Path) -> NDArray[np.bool_] | None:
    """Return whether the outcome of each session's last play is known, [sessions] bool. None: of all of them.

    Raises BadDataset for invalid values, and a Polars error for a damaged file.
    """
    if _LAST_KNOWN not in pl.read_parquet_schema(file):
        return None
    found = pl.read_parquet(file, columns=[_LAST_KNOWN])[_LAST_KNOWN]
    if found.dtype != pl.Boolean or found.null_count():
        raise BadDataset(f"{file.name} has a column {_LAST_KNOWN} of other values than true and false")
    return found.to_numpy().astype(np.bool_)


def mapped_sessions(file: Path) -> Sessions:
    """Open sessions.parquet as memory-mapped arrays. Rows are int32.

    The arrays are files in the folder `flat` next to sessions.parquet, and are created if they are missing. If the
    folder is not writable, the arrays are created in the system's temporary folder and disappear when the process ends.
    Raises BadDataset for invalid sessions, and a Polars error for a damaged file.
    """
    digest = _sha256(file)
    folder = file.parent / FLAT_FOLDER
    try:
        if json.loads((folder / FLAT_FILE).read_bytes()) == {"sessions_sha256": digest}:
            return _mapped(folder)
    except (OSError, ValueError):
        pass  # missing or incomplete: create the arrays again
    try:
        with new_folder(folder, overwrite=True, marker=FLAT_FILE, private=True, keep=False) as unfinished:
            sessions = _made(file, unfinished, digest)  # map the files before another process can replace the folder
    except (InputError, OSError) as error:
        if isinstance(error, BadDataset):
            raise
        with tempfile.TemporaryDirectory() as temporary:
            return _made(file, Path(temporary), digest)
    return sessions


def keep_flat(file: Path, folder: Path) -> None:
    """Record in `folder` that its arrays, written by `flat_sessions`, match the sessions.parquet `file`."""
    (folder / FLAT_FILE).write_text(json.dumps({"sessions_sha256": _sha256(file)}) + "\n", encoding="utf-8")


def flat_sessions(folder: Path, parts: Iterator[tuple[NDArray[Any], NDArray[Any], Int]]) -> Sessions:
    """Write sessions part by part into the array files of `folder`, and return the arrays memory-mapped.

    Each part is the rows and skip flags of plays, and the lengths of sessions. The lengths may be in a later part than
    the plays of their sessions.
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
    """Return the concatenated values of a column of lists, and the length of each list.

    Raises BadDataset if a list is missing or empty, or if a value is missing.
    """
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
