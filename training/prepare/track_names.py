"""What the tracks of a log are called in a catalogue.

A catalogue's ids have at most 256 characters and no control characters (segue.events). An id of the log that keeps to
this is taken as it is. A track that has only an artist and a title (their key is `artist`, tab, `title`) is called
`artist — title`. Where that is too long, holds control characters or is also the name of another track, it is
shortened and ends in ` #` and 16 hexadecimal digits of the key's hash: distinct tracks never share an id.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.events import CONTROL_CHARACTERS, MAX_ID_LENGTH

_HASH_DIGITS: Final = 16
_CONTROL: Final = f"[{CONTROL_CHARACTERS}]"


def track_table(lines: pl.DataFrame, codes: NDArray[np.uint32]) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """The tracks that `codes` names (`track_id`, `title`, `artist`), and `codes` as positions in that frame.

    `lines` has the categorical columns `track` and, where known, `title` and `artist`; `codes` are codes of `track`.
    A track's title and artist are the first ones given for it in the order of the lines.
    """
    code_of_line = lines["track"].to_physical().to_numpy()
    count = int(code_of_line.max()) + 1
    used = np.flatnonzero(np.bincount(codes, minlength=count))
    position = np.zeros(count, dtype=np.int64)
    position[used] = np.arange(len(used))
    keys = _first_given(lines["track"], code_of_line, used)
    names: dict[str, pl.Series] = {
        name: _first_given(lines[name], code_of_line, used) for name in ("title", "artist") if name in lines.columns
    }
    return named(keys, names), position[codes]


def named(keys: pl.Series, names: Mapping[str, pl.Series]) -> pl.DataFrame:
    """`track_id` of distinct keys, and `title` and `artist` where `names` has them."""
    return pl.DataFrame({"track_id": track_ids(keys), **{name: printable(texts) for name, texts in names.items()}})


def track_ids(keys: pl.Series) -> pl.Series:
    """Distinct ids for distinct keys, as this module's docstring says."""
    readable = keys.str.strip_prefix("\t").str.replace("\t", " — ", literal=True)
    ids = printable(readable)
    unfit = (ids != readable) | (ids.str.len_chars() > MAX_ID_LENGTH) | ids.is_duplicated()
    which = unfit.arg_true()
    if which.is_empty():
        return ids
    kept = MAX_ID_LENGTH - _HASH_DIGITS - 2
    # Few tracks come here: a loop is quick enough, and blake2b is the same on every machine, as polars' hash is not.
    digests = [hashlib.blake2b(key.encode(), digest_size=_HASH_DIGITS // 2).hexdigest() for key in keys.gather(which)]
    return ids.scatter(which, ids.gather(which).str.head(kept) + " #" + pl.Series(digests))


def printable(texts: pl.Series) -> pl.Series:
    """The texts with a blank for every control character."""
    return texts.str.replace_all(_CONTROL, " ")


def _first_given(column: pl.Series, code_of_line: NDArray[Any], used: NDArray[np.int64]) -> pl.Series:
    """For each of the codes `used`, the first text of `column` on a line with that code, null where there is none."""
    given = np.flatnonzero(column.is_not_null().to_numpy())[::-1]
    first = np.full(int(code_of_line.max()) + 1, -1, dtype=np.int64)
    first[code_of_line[given]] = given  # backwards, so that the first line is the last to be written
    lines = pl.Series(first[used])
    return column.gather(lines.set(lines < 0, None)).cast(pl.String)
