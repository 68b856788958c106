"""Attributes of the tracks, such as genre, explicit or markets: typed values that filters and answers use.

An attribute is stored as the list of its distinct values, and the number of the value of each track. A condition is
therefore evaluated for the few distinct values, whatever their type, and not for every track. `write` stores all
attributes of a catalogue in two files, which `map` memory-maps, so that the processes of a service share one copy:

    attributes.arrow     Arrow IPC, uncompressed, one line: for each attribute the list of its distinct values
    attribute_codes.npy  [attributes, tracks] unsigned, position of each track's value in that list
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.arrays import mapped_array
from segue.errors import BadRelease, InputError, UnknownAttribute
from segue.safe_files import UNREADABLE

Kind: TypeAlias = Literal["boolean", "text", "number", "date", "set"]

VALUES_FILE: Final = "attributes.arrow"
CODES_FILE: Final = "attribute_codes.npy"
ATTRIBUTE_FILES: Final = (VALUES_FILE, CODES_FILE)
NAME_PATTERN: Final = r"[A-Za-z_][A-Za-z0-9_]{0,63}"
RESERVED: Final = frozenset({"row", "code", "track_id", "title", "plays", "skips", "all", "any", "not"})

_SEPARATOR: Final = "\x1f"  # between the members of a set; `segue prepare` refuses control characters in values


def kind_of(dtype: pl.DataType) -> Kind | None:
    """Return the kind of the attributes with this data type, or None if no attribute can have it."""
    if dtype == pl.Boolean:
        return "boolean"
    if dtype == pl.String:
        return "text"
    if dtype == pl.Date:
        return "date"
    if dtype == pl.List(pl.String):
        return "set"
    return "number" if dtype in (pl.Int64, pl.Float64) else None


def check_name(name: str) -> None:
    """Raise InputError unless `name` can be the name of an attribute."""
    if not re.fullmatch(NAME_PATTERN, name) or name in RESERVED:
        raise InputError(
            f"{name[:100]!r} cannot name an attribute: use letters, digits and _, at most 64, and none of "
            f"{', '.join(sorted(RESERVED))}"
        )


@dataclass(frozen=True, eq=False)
class Attribute:
    """One attribute of all tracks."""

    kind: Kind
    values: pl.Series  # the distinct values in ascending order; null, if there is one, means that a track has no value
    codes: NDArray[np.unsignedinteger[Any]]  # [tracks], position in `values` of the value of each track, in row order


class Changes(NamedTuple):
    """Tracks whose attributes differ from the stored ones, or that the catalogue does not have."""

    rows: NDArray[np.int64]  # [n]
    attributes: "Attributes"  # of these tracks, in this order


class Attributes(Mapping[str, Attribute]):
    """The attributes of a catalogue by name. Immutable and thread-safe."""

    changes: Changes | None = None  # of tracks that a running service changed

    def __init__(self, by_name: Mapping[str, Attribute]) -> None:
        self._by_name = by_name

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> Self:
        """Create the attributes from columns of a kind (`kind_of`), one line per track in row order."""
        return cls({name: _encoded(frame[name]) for name in frame.columns})

    @classmethod
    def map(cls, folder: Path, tracks: int) -> Self:
        """Memory-map the files that `write` wrote. Raises BadRelease if they are damaged or do not fit `tracks`."""
        file = folder / VALUES_FILE
        try:
            line = pl.scan_ipc(file).collect()
        except UNREADABLE as error:
            reason = str(error).partition("\n")[0][:200]
            raise BadRelease(f"{file} is not an Arrow file: {reason}; copy the release again") from error
        codes = mapped_array(folder / CODES_FILE)
        if codes.shape != (len(line.columns), tracks) or codes.dtype.kind != "u" or len(line) != 1:
            raise BadRelease(f"{folder / CODES_FILE} does not fit {VALUES_FILE} and {tracks:,} tracks: copy it again")
        by_name = {}
        for name, of_tracks in zip(line.columns, np.asarray(codes), strict=True):
            dtype = line[name].dtype
            kind = kind_of(dtype.inner) if isinstance(dtype, pl.List) else None  # type: ignore[arg-type]  # an instance
            values = line[name].item() if kind is not None else None
            if kind is None or values is None or (tracks and int(of_tracks.max()) >= len(values)):
                raise BadRelease(f"{file} and {CODES_FILE} disagree on {name[:100]!r}: write the release again")
            by_name[name] = Attribute(kind, values, of_tracks)
        return cls(by_name)

    def write(self, folder: Path) -> None:
        """Write the files that `map` reads. Writes nothing without attributes."""
        if not self._by_name:
            return
        # From Python values, because the buffers of a series that was sorted differ from run to run.
        line = pl.DataFrame(
            [
                pl.Series(name, [one.values.to_list()], dtype=pl.List(one.values.dtype))
                for name, one in self._by_name.items()
            ]
        )
        line.write_ipc(folder / VALUES_FILE, compression="uncompressed")
        largest = max(len(one.values) for one in self._by_name.values())
        codes = np.stack([one.codes for one in self._by_name.values()]).astype(np.min_scalar_type(max(largest - 1, 0)))
        np.save(folder / CODES_FILE, codes, allow_pickle=False)

    def __getitem__(self, name: str) -> Attribute:
        """Return an attribute. Raises UnknownAttribute with the known names."""
        found = self._by_name.get(name)
        if found is None:
            known = ", ".join(sorted(self._by_name)) or "none: give `segue prepare` a file of tracks with --tracks"
            raise UnknownAttribute(f"{name[:100]!r} is not an attribute of this release. It has {known}")
        return found

    def __contains__(self, name: object) -> bool:
        """Return True if the catalogue has the attribute."""
        return name in self._by_name

    def __iter__(self) -> Any:
        """Iterate over the names."""
        return iter(self._by_name)

    def __len__(self) -> int:
        """Return the number of attributes."""
        return len(self._by_name)

    def codes_of(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a number for the value of an attribute of each row, equal for equal values. `rows` [n] -> [n] int64.

        It is the position in `values` if the value is there. Row 0 has the number of row 1. Raises UnknownAttribute.
        """
        numbers: NDArray[np.int64] = self[name].codes[np.maximum(rows, 1) - 1].astype(np.int64)
        return numbers

    def of_rows(self, rows: Iterable[int], names: Iterable[str]) -> list[dict[str, Any]]:
        """Return the values of the named attributes for each catalogue row, without null values.

        Dates are texts such as 2026-11-29. Raises UnknownAttribute.
        """
        places = np.fromiter(rows, dtype=np.int64) - 1
        columns = {name: self[name] for name in names}
        values = {name: one.values.gather(one.codes[places]).to_list() for name, one in columns.items()}
        return [
            {name: _plain(column[line]) for name, column in values.items() if column[line] is not None}
            for line in range(len(places))
        ]


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


def _encoded(column: pl.Series) -> Attribute:
    """Return distinct values and codes of a column. The members of a set have no order and count once."""
    kind = kind_of(column.dtype)
    if kind is None:
        raise InputError(f"{column.name!r} is {column.dtype}, which cannot be an attribute")
    keys = column.rename("key")
    if kind == "set":
        sorted_sets = keys.list.drop_nulls().list.unique().list.sort()
        # The separator at the front tells an empty set from a set with an empty text.
        keys = pl.select(
            pl.when(keys.is_not_null()).then(
                sorted_sets.list.eval(_SEPARATOR + pl.element()).list.join("", ignore_nulls=True)
            )
        ).to_series()
        keys = keys.rename("key")
    distinct = keys.unique().sort()
    table = pl.DataFrame({"key": distinct, "code": np.arange(len(distinct), dtype=np.uint32)})
    codes = keys.to_frame().join(table, on="key", how="left", nulls_equal=True, maintain_order="left")["code"]
    values = distinct
    if kind == "set":
        members = distinct.str.strip_prefix(_SEPARATOR).str.split(_SEPARATOR)
        empty = pl.Series([[]], dtype=pl.List(pl.String))
        values = pl.select(pl.when(distinct == "").then(pl.lit(empty).first()).otherwise(members)).to_series()
    return Attribute(kind, values.rename(""), codes.to_numpy().astype(np.uint32))
