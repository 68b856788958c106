"""Filters of tracks by their attributes: read, check and evaluate them.

A filter is a JSON object. Its members must all hold for a track:

    {"explicit": false, "markets": "DE", "genre": ["rock", "pop"], "released": {"min": "2020-01-01"}}
    {"any": [{"genre": "jazz"}, {"not": {"artist": ["A", "B"]}}]}

A list is satisfied by each of its values. A set attribute, such as markets, satisfies a value that it contains. `min`
and `max` are inclusive, for numbers and dates. `all` and `any` take lists of filters, `not` takes one. The compact form
of the first example, for URLs and command lines, is

    explicit:false,markets:DE,genre:rock|pop,released:2020-01-01..

with `!` before a condition for its negation, and values in double quotes where they have one of , | " or two dots.

A track without a value satisfies neither a condition on it nor the negation (three-valued logic, as in SQL). An unknown
market or an unknown explicit flag is therefore never taken for an allowed one.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from segue.arrays import Bool, Int
from segue.attributes import NAME_PATTERN, Attribute, Attributes, Kind
from segue.catalogue import FIRST_TRACK_ROW
from segue.errors import BadFilter
from segue.safe_files import parse_json

MAX_DEPTH: Final = 8
MAX_VALUES: Final = 200
MAX_TEXT: Final = 4_000  # characters of a compact filter

Value: TypeAlias = bool | float | str


@dataclass(frozen=True, slots=True)
class OneOf:
    """The attribute has, or contains, one of the values."""

    name: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Between:
    """The attribute is at least `low` and at most `high`; None for no bound."""

    name: str
    low: Value | None
    high: Value | None


@dataclass(frozen=True, slots=True)
class Every:
    """All parts hold."""

    parts: "tuple[Filter, ...]"


@dataclass(frozen=True, slots=True)
class Some:
    """At least one part holds."""

    parts: "tuple[Filter, ...]"


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: "Filter"


Filter: TypeAlias = OneOf | Between | Every | Some | Not  # hashable: the key of caches


class Allowed:
    """The tracks that a filter allows, as a bitmap. Immutable and thread-safe."""

    def __init__(self, mask: Bool) -> None:
        """Create it from `mask` [tracks], whether each track is allowed, in row order."""
        self.bits: NDArray[np.uint8] = np.packbits(mask, bitorder="little")  # bit i: the row i + FIRST_TRACK_ROW
        self.count = int(np.count_nonzero(mask))
        self.tracks = len(mask)
        self._popular: Int = np.empty(0, dtype=np.int64)

    @property
    def share(self) -> float:
        """The share of the tracks that are allowed."""
        return self.count / max(self.tracks, 1)

    @cached_property
    def rows(self) -> Int:
        """The allowed rows in ascending order. [count] int64."""
        return np.flatnonzero(self.mask) + FIRST_TRACK_ROW

    @property
    def mask(self) -> Bool:
        """Whether each track is allowed, in row order. A new array [tracks]."""
        return np.unpackbits(self.bits, count=self.tracks, bitorder="little").astype(np.bool_)

    def contains(self, rows: Int) -> Bool:
        """Return whether each row is allowed. `rows` int64 of any shape; PAD_ROW is not allowed."""
        if not self.tracks:
            return np.zeros(rows.shape, dtype=np.bool_)
        places = np.maximum(rows, FIRST_TRACK_ROW) - FIRST_TRACK_ROW
        allowed: Bool = ((self.bits[places >> 3] >> (places & 7).astype(np.uint8)) & 1).astype(np.bool_)
        return allowed & (rows >= FIRST_TRACK_ROW)

    def first(self, order: Int, count: int) -> Int:
        """Return the first `count` rows of `order` that are allowed. [at most count] int64.

        `order` must be the same in every call, because the result is kept.
        """
        count = min(count, self.count)
        if count > len(self._popular):
            found, wanted = [], max(count, _KEPT)
            for start in range(0, len(order), _ROWS_AT_ONCE):
                part = np.asarray(order[start : start + _ROWS_AT_ONCE], dtype=np.int64)
                found.append(part[self.contains(part)])
                wanted -= len(found[-1])
                if wanted <= 0:
                    break
            self._popular = np.concatenate(found) if found else self._popular
        return self._popular[:count]

    def without(self, rows: Int) -> "Allowed":
        """Return a copy that does not allow `rows` [n] int64."""
        mask = self.mask
        mask[rows[rows >= FIRST_TRACK_ROW] - FIRST_TRACK_ROW] = False
        return Allowed(mask)


_KEPT: Final = 2_048
_ROWS_AT_ONCE: Final = 65_536


def tracks_allowed(wanted: Filter, attributes: Attributes, tracks: int) -> Allowed:
    """Return the tracks that satisfy a filter. Raises BadFilter or UnknownAttribute, as `check_filter` does."""
    check_filter(wanted, attributes)
    mask = _truth(wanted, attributes).yes
    if attributes.changes is not None:
        mask = np.concatenate([mask, np.zeros(tracks - len(mask), dtype=np.bool_)])
        mask[attributes.changes.rows - FIRST_TRACK_ROW] = _truth(wanted, attributes.changes.attributes).yes
    return Allowed(mask)


def check_filter(wanted: Filter, attributes: Attributes) -> None:
    """Raise UnknownAttribute or BadFilter unless the filter fits the attributes. Fast: no track is looked at."""
    if isinstance(wanted, Every | Some):
        for part in wanted.parts:
            check_filter(part, attributes)
    elif isinstance(wanted, Not):
        check_filter(wanted.part, attributes)
    else:
        _values_for(wanted, attributes[wanted.name].kind)


# --- reading ---


def read_filter(given: object) -> Filter:
    """Read a filter: a JSON object, JSON text, or text in the compact form. Raises BadFilter."""
    if isinstance(given, str):
        if len(given) > MAX_TEXT:
            raise BadFilter(f"the filter has {len(given):,} characters, expected at most {MAX_TEXT:,}")
        is_compact = not given.lstrip().startswith("{")
        try:
            read = _compact(given) if is_compact else _of_object(parse_json(given), 1)
        except ValueError as error:
            raise BadFilter(f"the filter {_shown(given)} is no JSON: {error}") from error
    else:
        read = _of_object(given, 1)
    values = sum(len(part.values) if isinstance(part, OneOf) else 2 for part in _conditions(read))
    if values > MAX_VALUES:
        raise BadFilter(f"the filter has {values:,} values, expected at most {MAX_VALUES:,}")
    return read


def _of_object(given: object, depth: int) -> Filter:
    if depth > MAX_DEPTH:
        raise BadFilter(f"the filter has more than {MAX_DEPTH} levels: nest fewer of all, any and not")
    if not isinstance(given, dict) or not given:
        raise BadFilter(f'{_shown(given)} is no filter: expected an object of conditions, such as {{"genre": "jazz"}}')
    parts: list[Filter] = []
    for name, value in given.items():
        if name in ("all", "any"):
            if not isinstance(value, list) or not value:
                raise BadFilter(f"{name} is {_shown(value)}, expected a list of filters")
            inner = tuple(_of_object(part, depth + 1) for part in value)
            parts.append(Every(inner) if name == "all" else Some(inner))
        elif name == "not":
            parts.append(Not(_of_object(value, depth + 1)))
        else:
            parts.append(_condition(str(name), value))
    return parts[0] if len(parts) == 1 else Every(tuple(parts))


def _condition(name: str, value: object) -> Filter:
    if isinstance(value, dict):
        if not value or not set(value) <= {"min", "max"}:
            raise BadFilter(f"{name[:100]} is {_shown(value)}: a range has min, max or both")
        return Between(name, *(_value(name, value[end]) if end in value else None for end in ("min", "max")))
    values = value if isinstance(value, list) else [value]
    if not values:
        raise BadFilter(f"{name[:100]} is an empty list, which no track satisfies: name at least one value")
    return OneOf(name, tuple(_value(name, one) for one in values))


def _value(name: str, value: object) -> Value:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and not _SURROGATE.search(value):
        return value
    if isinstance(value, int | float) and abs(value) < _LARGEST:
        return float(value)
    raise BadFilter(f"{name[:100]} is {_shown(value)}, expected a text, a finite number, true or false")


_SURROGATE: Final = re.compile("[\ud800-\udfff]")  # half of a character, which no attribute can have
_LARGEST: Final = 1e300
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_TERM: Final = re.compile(rf"(?P<negated>!?)(?P<name>{NAME_PATTERN}):")
_VALUE: Final = re.compile(rf'(?P<quoted>{_QUOTED})|(?P<plain>(?:(?!\.\.)[^",|])+)')


def _compact(text: str) -> Filter:
    parts: list[Filter] = []
    at = 0
    while True:
        term = _TERM.match(text, at)
        if term is None:
            raise BadFilter(f"the filter {_shown(text)} has no condition name:value at character {at + 1}")
        condition, at = _compact_values(text, term["name"], term.end())
        parts.append(Not(condition) if term["negated"] else condition)
        if at == len(text):
            break
        if text[at] != ",":
            raise BadFilter(f"the filter {_shown(text)} has {text[at]!r} at character {at + 1}, expected , or |")
        at += 1
    return parts[0] if len(parts) == 1 else Every(tuple(parts))


def _compact_values(text: str, name: str, at: int) -> tuple[Filter, int]:
    """Read the values of a condition from the position `at`. Return the condition and the position behind it."""
    first, at = _compact_value(text, at)
    if text.startswith("..", at):
        last, at = _compact_value(text, at + 2)
        if first is None and last is None:
            raise BadFilter(f"{name}:.. has no bound: write {name}:MIN.., {name}:..MAX or {name}:MIN..MAX")
        return Between(name, first, last), at
    values = [first]
    while values[-1] is not None and text.startswith("|", at):
        value, at = _compact_value(text, at + 1)
        values.append(value)
    known = tuple(value for value in values if value is not None)
    if len(known) < len(values):
        raise BadFilter(f"{name}: has no value at character {at + 1} of the filter {_shown(text)}")
    return OneOf(name, known), at


def _compact_value(text: str, at: int) -> tuple[str | None, int]:
    found = _VALUE.match(text, at)
    if found is None or (found["plain"] is not None and not found["plain"].strip()):
        return None, at
    if found["quoted"] is None:
        return str(_value("a value", found["plain"].strip())), found.end()
    try:
        text = json.loads(found["quoted"])
    except ValueError as error:
        raise BadFilter(f"{_shown(found['quoted'])} in the filter is no JSON string: {error}") from error
    return str(_value("a value", text)), found.end()


def _conditions(read: Filter) -> Iterator[OneOf | Between]:
    if isinstance(read, Every | Some):
        for part in read.parts:
            yield from _conditions(part)
    elif isinstance(read, Not):
        yield from _conditions(read.part)
    else:
        yield read


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return repr(text[:100])


# --- evaluating ---


class _Truth(NamedTuple):
    """The tracks for which a filter holds, and those for which it does not hold. [tracks] each; unknown: neither."""

    yes: Bool
    no: Bool


def _truth(wanted: Filter, attributes: Attributes) -> _Truth:
    if isinstance(wanted, Not):
        inner = _truth(wanted.part, attributes)
        return _Truth(inner.no, inner.yes)
    if isinstance(wanted, Every | Some):
        first, *others = (_truth(part, attributes) for part in wanted.parts)
        yes, no = first
        for other in others:
            both, either = (yes & other.yes, no | other.no), (yes | other.yes, no & other.no)
            yes, no = both if isinstance(wanted, Every) else either
        return _Truth(yes, no)
    attribute = attributes[wanted.name]
    holds = _of_values(wanted, attribute)
    yes, no = (holds.fill_null(value=False).to_numpy(), (~holds).fill_null(value=False).to_numpy())
    return _Truth(yes[attribute.codes], no[attribute.codes])


def _of_values(condition: OneOf | Between, attribute: Attribute) -> pl.Series:
    """Return whether a condition holds for each distinct value of an attribute; null for a missing value."""
    values = attribute.values
    if isinstance(condition, Between):
        low, high = _values_for(condition, attribute.kind)
        at_least = values >= low if low is not None else values.is_not_null()
        at_most = values <= high if high is not None else values.is_not_null()
        return pl.select(pl.when(values.is_not_null()).then(at_least & at_most)).to_series()
    wanted = _values_for(condition, attribute.kind)
    holds = pl.Series(np.zeros(len(values), dtype=np.bool_))
    for value in wanted:
        holds |= values.list.contains(value) if attribute.kind == "set" else values == value
    return pl.select(pl.when(values.is_not_null()).then(holds.fill_null(value=False))).to_series()


_EXPECTED: Final[dict[Kind, str]] = {
    "boolean": "true or false",
    "text": "a text",
    "set": "a text, one of its members",
    "number": "a number",
    "date": "a date such as 2026-11-29",
}


def _values_for(condition: OneOf | Between, kind: Kind) -> list[Any]:
    """Return the values of a condition as values of the kind. Raises BadFilter."""
    if isinstance(condition, OneOf):
        return [_converted(condition.name, value, kind) for value in condition.values]
    if kind not in ("number", "date"):
        raise BadFilter(f"{condition.name} is a {kind}: a range needs a number or a date")
    ends = (condition.low, condition.high)
    low, high = (None if end is None else _converted(condition.name, end, kind) for end in ends)
    if low is not None and high is not None and low > high:
        raise BadFilter(f"{condition.name}: {ends[0]} to {ends[1]} is no range: give the lower end first")
    return [low, high]


def _converted(name: str, value: Value, kind: Kind) -> Any:
    convert = {"boolean": _as_boolean, "number": _as_number, "date": _as_date}.get(kind, _as_text)
    converted = convert(value)
    if converted is None:
        shown = value if isinstance(value, str) else json.dumps(value)
        raise BadFilter(f"{name} is a {kind}, and the filter compares it with {shown[:100]!r}: give {_EXPECTED[kind]}")
    return converted


def _as_boolean(value: Value) -> bool | None:
    return {"true": True, "false": False}.get(str(value).lower()) if isinstance(value, bool | str) else None


def _as_text(value: Value) -> str | None:
    return value if isinstance(value, str) else None


def _as_date(value: Value) -> date | None:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        return None
    try:
        return date.fromisoformat(value)
    except ValueError:
        return None


def _as_number(value: Value) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", value):
        return None
    number = float(value)
    return number if abs(number) < _LARGEST else None
