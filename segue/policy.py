"""Policies: the options of a request and the steps that make its list, in a TOML file.

    filter = "explicit:false,markets:DE"
    repeat = "after:50"
    max_per_artist = 2
    artist_gap = 3
    diversity = 0.2

    [exploration]
    rate = 0.05           # with this probability, a place of the list gets a track from further down
    depth = 100           # down to this rank

    [[boosts]]
    filter = "released:2026-10-01.."
    weight = 0.7          # added to log P(next): P(next) counts twice as much

    [[pins]]
    tracks = ["jazz-11"]  # the first one that is allowed
    place = 3
    from = 2026-12-01
    until = 2026-12-24

docs/how-to/policies.md describes each key. Reading is strict: an unknown key or a wrong value is an error.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from segue.errors import BadFilter, BadPolicy
from segue.filters import Filter, read_filter
from segue.list_steps import MAX_CANDIDATES, MAX_GAP, Spacing
from segue.recommend import MAX_CAUTION
from segue.sessions import REPEAT_EXPECTED, REPEAT_PATTERN, RepeatPolicy, TrackId, repeat_policy
from segue.validation_messages import expectation

NAME_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"
MAX_RULES: Final = 20  # boosts, and pins
MAX_WEIGHT: Final = 20.0
MAX_BYTES: Final = 2**20
_MAX_SHOWN: Final = 80


def _filter(given: object) -> Filter:
    try:
        return read_filter(given)
    except BadFilter as error:
        raise PydanticCustomError("filter", "{reason}", {"reason": str(error)}) from None


def _repeat(given: object) -> RepeatPolicy:
    if not isinstance(given, str) or not re.fullmatch(REPEAT_PATTERN, given):
        raise PydanticCustomError("repeat", "{reason}", {"reason": f"{REPEAT_EXPECTED}, such as after:20"})
    return repeat_policy(given)


def _instant(given: object, *, end: bool) -> float:
    """Return a date or time in seconds since 1970. A date is the start of its day in UTC, or the end with `end`."""
    expected = PydanticCustomError(
        "date", "expected a date such as 2026-12-01, or a time with an offset such as 2026-12-01T08:00:00Z"
    )
    try:
        if isinstance(given, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", given):
            day = datetime.combine(date.fromisoformat(given), time(), UTC)
            return day.timestamp() + 86_400 * end  # the end of the last possible day is no date
        found = datetime.fromisoformat(given) if isinstance(given, str) else None
    except (ValueError, OverflowError):
        raise expected from None
    if found is None or found.tzinfo is None:
        raise expected
    return found.timestamp()


FilterRule: TypeAlias = Annotated[Filter, PlainValidator(_filter)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class Rule(_Strict):
    """Tracks for which a boost or a pin holds, and the time in which it does."""

    filter: FilterRule | None = None
    tracks: tuple[TrackId, ...] | None = Field(default=None, min_length=1, max_length=MAX_CANDIDATES, strict=False)
    start: Annotated[float, PlainValidator(lambda given: _instant(given, end=False))] = Field(
        default=-math.inf, alias="from"
    )
    until: Annotated[float, PlainValidator(lambda given: _instant(given, end=True))] = math.inf

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.filter is None) == (self.tracks is None):
            raise PydanticCustomError("rule", "expected either filter or tracks")
        if self.start >= self.until:
            raise PydanticCustomError("rule", "until is before from, expected a later one")
        return self

    def is_active(self, now: float) -> bool:
        """Return whether the rule holds at a time, in seconds since 1970."""
        return self.start <= now < self.until


class Boost(Rule):
    """Raises or lowers tracks: `weight` is added to log P(next) + caution * log P(played)."""

    weight: float = Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)


class Pin(Rule):
    """Gives a place of the list to the first of `tracks` that is allowed, or to the best track of a filter."""

    place: int = Field(ge=1, le=MAX_CANDIDATES)


class Exploration(_Strict):
    """Gives each place, with the probability `rate`, to a track of the ranks behind the list down to `depth`."""

    rate: float = Field(ge=0, le=1)
    depth: int = Field(default=100, ge=2, le=MAX_CANDIDATES)


class Policy(_Strict):
    """The contents of a policy file. None: the file does not have the key."""

    filter: FilterRule | None = None
    repeat: Annotated[RepeatPolicy, PlainValidator(_repeat)] | None = None
    caution: float | None = Field(default=None, ge=0, le=MAX_CAUTION)
    max_per_artist: int | None = Field(default=None, ge=1, le=MAX_CANDIDATES)
    artist_gap: int | None = Field(default=None, ge=0, le=MAX_GAP)
    max_per_album: int | None = Field(default=None, ge=1, le=MAX_CANDIDATES)
    album_gap: int | None = Field(default=None, ge=0, le=MAX_GAP)
    diversity: float = Field(default=0.0, ge=0, le=1)
    exploration: Exploration | None = None
    boosts: tuple[Boost, ...] = Field(default=(), max_length=MAX_RULES, strict=False)
    pins: tuple[Pin, ...] = Field(default=(), max_length=MAX_RULES, strict=False)

    _contents: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def contents(self) -> Mapping[str, Any]:
        """The file's keys and values, as JSON has them."""
        return self._contents

    @property
    def has_steps(self) -> bool:
        """Whether the list needs a step besides spacing."""
        return bool(self.diversity or self.boosts or self.pins or self.exploration)

    def spacing(self, max_per_artist: int | None = None, artist_gap: int | None = None) -> Spacing | None:
        """Return the spacing, in which given values take precedence; None for none."""
        found = Spacing(
            self.max_per_artist if max_per_artist is None else max_per_artist,
            (self.artist_gap or 0) if artist_gap is None else artist_gap,
            self.max_per_album,
            self.album_gap or 0,
        )
        return found if found.of_artists or found.of_albums else None


def read_policy(path: Path) -> Policy:
    """Read a policy file. Raises BadPolicy with one line: the file, the key, the value and what is expected."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadPolicy(f"{path} cannot be read ({error.strerror}): give a TOML file") from error
    if len(content) > MAX_BYTES:
        raise BadPolicy(f"{path} has {len(content):,} bytes, expected at most {MAX_BYTES:,}")
    try:
        contents = _as_json(tomllib.loads(content.decode()))
        policy = Policy.model_validate(contents)
    except ValidationError as error:
        raise BadPolicy(f"{path}: {_explained(error)}") from error
    except (ValueError, RecursionError) as error:
        raise BadPolicy(f"{path} is no TOML: {ascii(str(error)[:200])[1:-1]}") from error
    policy._contents = contents
    return policy


def _as_json(value: Any) -> Any:
    """Return a TOML value as JSON has it: dates and times are texts."""
    if isinstance(value, dict):
        return {name: _as_json(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_as_json(one) for one in value]
    return value.isoformat() if isinstance(value, date | time) else value


def _explained(error: ValidationError) -> str:
    """Return the first error in one line, such as `boost 2: weight is 'much', expected a number`."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # it may explain a missing key
    loc = list(first["loc"])
    where, known = "", list(Policy.model_fields)
    for table, kind in (("boosts", Boost), ("pins", Pin)):
        if len(loc) > 1 and loc[0] == table:
            where, loc, known = f"{table[:-1]} {int(loc[1]) + 1}: ", loc[2:], _keys(kind)
    if len(loc) > 1 and loc[0] == "exploration":
        where, loc, known = "exploration: ", loc[1:], list(Exploration.model_fields)
    key = ".".join(ascii(str(part)[:_MAX_SHOWN])[1:-1] for part in loc)
    if first["type"] == "extra_forbidden":
        return f"{where}unknown key {key}, expected one of {', '.join(sorted(known))}"
    if first["type"] == "missing":
        return f"{where}{key} is missing"
    told = _expected(first)
    told = ascii(told)[1:-1].replace("\\'", "'") if not told.isascii() else told
    if not key or first["type"] == "filter":
        return f"{where}{key + ': ' if key else ''}{told}"
    return f"{where}{key} is {_shown(first['input'])}, {told}"


def _expected(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("too_short", "too_long"):
        return f"expected {_BOUNDS[kind]} {context.get('min_length', context.get('max_length')):,}"
    return _KINDS.get(kind) or (error["msg"] if kind in ("filter", "repeat", "date", "rule") else expectation(error))


_BOUNDS: Final = {"too_short": "at least", "too_long": "at most"}
_KINDS: Final = {"tuple_type": "expected a list", "model_type": "expected a table"}


def _keys(kind: type[Rule]) -> list[str]:
    return [field.alias or name for name, field in kind.model_fields.items()]


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else f"a list of {len(value):,} values"
    text = ascii(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
