"""The file of tracks that `segue prepare --tracks` reads: titles, artists and attributes by track id.

A CSV, TSV, JSON Lines or Parquet file with a line per track. The column track_id is required. `title` and `artist` name
the track; every other column is an attribute (segue.attributes). The types of a Parquet file are kept. The values of a
text file give the type of its column:

    true, false, yes, no in any case, for explicit also 1 and 0    boolean; NO alone is a text, as for Norway
    numbers, unless one has a leading zero or the name ends in id  number
    2026-11-29, or a time that starts with such a date             date
    texts, one of them with a |                                    set: the texts between the bars
    other texts                                                    text

A file `added-tracks.json` of a folder of releases, the tracks that were added while a service ran, is read as well.
"""

import json
from pathlib import Path
from typing import Any, Final

import polars as pl

from segue.attributes import check_name, kind_of
from segue.errors import BadLog, InputError
from segue.safe_files import UNREADABLE

_NAMES: Final = ("title", "artist")
_SEPARATORS: Final = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_TRUE, _FALSE = ("true", "yes", "t"), ("false", "no", "f")
_NUMBER: Final = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_DATE: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ].*)?$"
_CONTROL: Final = r"[\x00-\x1f\x7f]"
_LARGEST_WHOLE: Final = 2**53


def read_tracks(path: Path) -> pl.DataFrame:
    """Read a file of tracks: track_id, title and artist if given, and attributes. One line per track.

    Raises BadLog with a one-line message: the file cannot be read, a track has two lines that differ, or a column
    cannot be an attribute.
    """
    frame = _read(path)
    if "track_id" not in frame.columns:
        raise BadLog(f"{path} has the columns {', '.join(frame.columns)[:200]}, expected one named track_id")
    columns = [_column(path, frame[name]) for name in frame.columns]
    found = pl.DataFrame([column for column in columns if column is not None])
    found = found.filter(pl.col("track_id").is_not_null() & (pl.col("track_id") != "")).unique(maintain_order=True)
    repeated = found.filter(pl.col("track_id").is_duplicated())
    if len(repeated):
        raise BadLog(f"{path} has two lines for the track {repeated['track_id'][0]!r} that differ: keep one of them")
    if not len(found) and path.suffix.lower() != ".json":  # there may be no added tracks
        raise BadLog(f"{path} names no track: expected a line per track, with its id in the column track_id")
    return found


def with_attributes(tracks: pl.DataFrame, given: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Return the tracks of a log with the names and attributes of `given`, which win over those that they have.

    Raises BadLog if a column of `given`, which is from `path`, is an attribute of another kind in an earlier file.
    """
    twice = [name for name in given.columns if name in tracks.columns and name != "track_id"]
    for name in twice:
        kinds = [kind_of(frame[name].dtype) for frame in (given, tracks)]
        if kinds[0] != kinds[1] and ("text" not in kinds or "set" in kinds):
            raise BadLog(f"{path}: {name} is a {kinds[0]}, in an earlier file a {kinds[1]}: write both in the same way")
    joined = tracks.join(given, on="track_id", how="left", maintain_order="left", suffix=" given")
    columns = [pl.coalesce(*_alike(joined[f"{name} given"], joined[name])).alias(name) for name in twice]
    return joined.with_columns(columns).drop(f"{name} given" for name in twice)


def _alike(one: pl.Series, other: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Return two columns with one data type: texts if one has texts."""
    if one.dtype == other.dtype:
        return one, other
    common = pl.Float64 if pl.String not in (one.dtype, other.dtype) else pl.String
    return one.cast(common), other.cast(common)


def told(path: Path, tracks: pl.DataFrame, given: pl.DataFrame) -> str:
    """Return a sentence on how many tracks of the log the file names, and on its attributes.

    Raises BadLog if it names none of them.
    """
    matched = len(tracks.join(given, on="track_id", how="semi"))
    if not matched and path.suffix.lower() != ".json":  # added tracks may have no play yet
        raise BadLog(
            f"{path} names none of the {len(tracks):,} tracks of the log: its first track_id is "
            f"{given['track_id'][0]!r}, the log has for example {tracks['track_id'][0]!r}"
        )
    kinds = ", ".join(
        f"{name} ({kind_of(dtype)})" for name, dtype in given.schema.items() if name not in ("track_id", *_NAMES)
    )
    left = len(given) - matched
    unused = f"; {left:,} of its tracks are not in the log and were left out" if left else ""
    return f"{path.name} names {matched:,} of the {len(tracks):,} tracks{unused}. Attributes: {kinds or 'none'}"


def _read(path: Path) -> pl.DataFrame:
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return pl.read_parquet(path)
        if suffix in (".jsonl", ".ndjson"):
            return pl.read_ndjson(path, infer_schema_length=None)
        if suffix == ".json":
            return _added(json.loads(path.read_bytes()))
        if suffix in _SEPARATORS:
            separator = _SEPARATORS[suffix]
            with path.open(encoding="utf-8-sig", newline="") as file:
                header = file.readline()
            if suffix == ".csv" and separator not in header:
                separator = ";" if ";" in header else "\t" if "\t" in header else separator
            return pl.read_csv(path, separator=separator, infer_schema=False, null_values="")
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError, *UNREADABLE) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadLog(f"{path} cannot be read as a file of tracks: {reason.partition(chr(10))[0][:200]}") from error
    raise BadLog(f"{path} ends in {suffix or 'nothing'}, expected .csv, .tsv, .jsonl, .parquet or added-tracks.json")


def _added(content: Any) -> pl.DataFrame:
    """Return the lines of an added-tracks.json. Its texts stay texts, but for dates."""
    lines = [
        {"track_id": track_id, "title": track["title"], "artist": track["artist"], **track["attributes"]}
        for track_id, track in content["added"].items()
    ]
    frame = pl.DataFrame(lines, infer_schema_length=None, schema=None if lines else {"track_id": pl.String})
    # As categories, which `_column` does not read as numbers.
    texts = [name for name, kind in frame.schema.items() if kind == pl.String and name not in ("track_id", *_NAMES)]
    dates = [name for name in texts if frame[name].drop_nulls().str.contains(_DATE).all()]
    return frame.with_columns(pl.col(name).cast(pl.Categorical) for name in texts if name not in dates)


def _column(path: Path, column: pl.Series) -> pl.Series | None:
    """Return a column with the type of its kind; None for an empty one."""
    name = column.name
    if name in ("track_id", *_NAMES):
        if not (column.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null) or column.dtype.is_integer()):
            raise BadLog(f"{path}: the column {name} is {column.dtype}, expected texts")
        texts = column.cast(pl.String)
        return texts if name == "track_id" or texts.null_count() < len(texts) else None
    if column.null_count() == len(column):
        return None
    try:
        check_name(name)
    except InputError as error:
        raise BadLog(f"{path}: {error}") from error
    typed = _of_text(column) if column.dtype == pl.String else _of_type(column)
    if typed is None or kind_of(typed.dtype) is None:
        raise BadLog(
            f"{path}: the column {name} is {column.dtype}, which cannot be an attribute: expected texts, numbers, "
            "booleans, dates or lists of texts. Leave the column out"
        )
    texts = typed.explode() if typed.dtype == pl.List(pl.String) else typed
    if texts.dtype == pl.String and texts.str.contains(_CONTROL).any():
        raise BadLog(f"{path}: the column {name} has a value with a control character, such as a tab: remove it")
    return typed


def _of_type(column: pl.Series) -> pl.Series | None:
    dtype = column.dtype
    if dtype.is_integer():
        exact = (column.cast(pl.Float64).abs() < _LARGEST_WHOLE).all()
        return column.cast(pl.Int64) if exact else column.cast(pl.String)  # ids, such as barcodes
    if dtype.is_float() or dtype.is_decimal():
        numbers = column.cast(pl.Float64)
        return numbers.set(~numbers.is_finite(), None)
    if isinstance(dtype, pl.Datetime):
        return column.dt.date()
    if isinstance(dtype, pl.Array):
        return _of_type(column.arr.to_list())
    if isinstance(dtype, pl.List):
        inner = dtype.inner
        of_texts = inner in (pl.String, pl.Categorical, pl.Enum) or inner.is_integer()
        return column.cast(pl.List(pl.String)) if of_texts else None
    return column.cast(pl.String) if dtype in (pl.Categorical, pl.Enum) else column


def _of_text(column: pl.Series) -> pl.Series:
    texts = column.str.strip_chars()
    texts = texts.set(texts == "", None)
    given = texts.drop_nulls()
    lower = given.str.to_lowercase()
    numeric = column.name == "explicit"
    true, false = (*_TRUE, *["1"] * numeric), (*_FALSE, *["0"] * numeric)
    if not len(given):
        return texts
    if lower.is_in([*true, *false]).all() and (numeric or not (given == "NO").all()):
        known = texts.str.to_lowercase()
        return pl.select(pl.when(known.is_not_null()).then(known.is_in(true))).to_series().alias(column.name)
    numbers = _numbers(texts)
    if numbers is not None:
        return numbers
    if given.str.contains(_DATE).all():
        dates = texts.str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False)
        if dates.null_count() == texts.null_count():
            return dates
    if given.str.contains("|", literal=True).any():
        return (
            texts.str.split("|")
            .list.eval(pl.element().str.strip_chars())
            .list.eval(pl.element().filter(pl.element() != ""))
        )
    return texts


def _numbers(texts: pl.Series) -> pl.Series | None:
    """Return the texts as numbers. None if some of them are no numbers, or are ids."""
    given = texts.drop_nulls()
    if texts.name.lower().endswith("id") or not given.str.contains(_NUMBER).all():
        return None
    numbers = texts.cast(pl.Float64)
    known = numbers.drop_nulls()
    if (known.abs() >= _LARGEST_WHOLE).any():  # such as barcodes: as numbers, different ones would be equal
        return None
    return numbers.cast(pl.Int64) if (known % 1 == 0).all() else numbers
