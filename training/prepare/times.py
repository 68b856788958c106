"""Read times: the forms that databases, spreadsheets and programs write, and epochs."""

import re
import time
import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from segue.errors import BadOption
from training.prepare.time_formats import fitting_formats
from training.prepare.values import MISSING_WORDS, Fault, Value

TIMES_ACCEPTED: Final = (
    "ISO 8601 (Z, +hh:mm, or no zone for UTC), or seconds, ms, us or ns since 1970; --time-format for others"
)
FAULTS: Final = -(1 << 63)  # times from here on are numbers of faults
_YEAR_5000_MS: Final = 95_617_584_000_000
_DAY_MS: Final = 86_400_000
_EARLIEST_MS: Final = 631_152_000_000  # 1990-01-01
_OK, _NO_TIME, _DATE, _AMBIGUOUS, _IMPLAUSIBLE, _CLOCK_CHANGE = range(6)

# Digits that are a date, and a date with a time, of 1990 to 2099. As an epoch they are before 1977 or after 2600.
_DAY_DIGITS: Final = (19_900_101, 20_991_231)
_COMPACT_DIGITS: Final = tuple((1990 * 10**zeros, 2100 * 10**zeros) for zeros in (8, 10, 13))

_CLOCK: Final = (
    r"(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]+))?)?"
    r"(?:\s*(?P<half>[ap])\.?m\.?)?"
)
_ZONE: Final = r"(?:\s*(?P<zone>z|(?:utc|gmt|ut)?[+-][0-9]{2}(?::?[0-9]{2})?|utc|gmt|ut)(?:\s*[\[(][^\])]*[\])])?)?"
_WEEKDAY: Final = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+)?"
_MONTH: Final = r"(?P<month>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DAY: Final = r"(?P<day>[0-9]{1,2})"
_YEAR: Final = r"(?P<year>[0-9]{4})"
_YEAR_FIRST: Final = rf"{_YEAR}[-/.](?P<month>[0-9]{{1,2}})[-/.]{_DAY}"
_COMPACT: Final = (
    r"(?P<year>(?:19[0-9]|20[0-9])[0-9])(?P<month>[0-9]{2})(?P<day>[0-9]{2})[t_\s]?"
    r"(?P<hour>[0-9]{2}):?(?P<minute>[0-9]{2})(?::?(?P<second>[0-9]{2})(?:[.,]?(?P<fraction>[0-9]+))?)?"
)
_FORMS: Final = (
    rf"{_YEAR_FIRST}(?:t|,?\s+){_CLOCK}{_ZONE}",
    rf"{_COMPACT}{_ZONE}",
    rf"{_WEEKDAY}{_DAY}[\s-]{_MONTH},?[\s-]{_YEAR},?\s+{_CLOCK}{_ZONE}",
    rf"{_WEEKDAY}{_MONTH}\s+{_DAY},?\s+{_YEAR},?\s+{_CLOCK}{_ZONE}",
    rf"{_WEEKDAY}{_MONTH}\s+{_DAY}\s+{_CLOCK}{_ZONE}\s+{_YEAR}",
)
_NUMERIC_DATE: Final = r"[0-9]{1,2}[-/.][0-9]{1,2}[-/.](?:[0-9]{4}|[0-9]{2})"
_DATES: Final = (
    rf"(?:{_YEAR_FIRST}|{_NUMERIC_DATE}|{_WEEKDAY}{_DAY}[\s-]{_MONTH},?[\s-]{_YEAR}|{_MONTH}\s+{_DAY},?\s+{_YEAR})"
)
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")

# Forms that Polars parses fast. All times of most logs have the form of the first one.
_COMMON: Final = re.compile(
    r"\d{4}-\d\d-\d\d(?P<gap>[T ])\d\d:\d\d:\d\d(?P<fraction>\.\d{1,9})?"
    r"(?P<zone> ?(?:Z|UTC|GMT|(?P<sign>[+-])(?P<hours>\d\d):?(?P<minutes>\d\d)?))?",
    re.ASCII,
)


def _whole(pattern: str) -> str:
    """A pattern for whole values, in which the groups have no names."""
    return rf"(?i)^(?:{re.sub(r'[?]P<[a-z]+>', '?:', pattern)})$"


_ANY_DATE: Final = _whole(_DATES)
_ANY_AMBIGUOUS: Final = _whole(rf"{_NUMERIC_DATE}(?:t|,?\s+){_CLOCK}{_ZONE}")


@dataclass
class TimeReader:
    """Reads the times of one column in milliseconds since 1970 UTC.

    Attributes:
        time_format: The form of the times, as for strftime. Without it, all forms that are not ambiguous are read.
        time_zone: The zone of times that name none, UTC if None. A local time that its zone's change of clocks makes
            ambiguous or skips is a fault.
        plausible: Whether a time before 1990 or after tomorrow is a fault, and so is a date in digits (20240301).

    Raises:
        BadOption: The format or the zone is none.

    """

    time_format: str | None = None
    time_zone: str | None = None
    plausible: bool = True
    no_zone: bool = False  # whether some time that was read named no zone, and `time_zone` is None

    def __post_init__(self) -> None:
        self.latest_ms = int(time.time() * 1000) + _DAY_MS
        if self.time_format is not None:
            self.time_format = checked_format(self.time_format)
        if self.time_zone is not None:
            check_zone(self.time_zone)

    def times(self, name: str, dtype: pl.DataType, first: str | None = None) -> pl.Expr:
        """The times of a column as Int64, FAULTS + the number of the fault for values that are none.

        Polars reads the values that have the form of `first`, one of the texts of the column, and `read` the others.
        """
        column, zoned = pl.col(name), True
        if dtype.is_decimal():
            dtype, column = pl.Float64(), column.cast(pl.Float64)
        fast: pl.Expr = pl.when(column.is_null()).then(pl.lit(None, dtype=pl.Int64))  # none: `read` reads all of them
        if isinstance(dtype, pl.Datetime):
            fast, zoned = column.dt.epoch("ms"), dtype.time_zone is not None
        elif dtype.is_numeric() and self.time_format is None:
            fast = self._epoch(column, is_float=dtype.is_float())
        elif self.time_format is None and first is not None and (found := self._of_form(column, first)):
            fast, zoned = found
        if not zoned and self.time_zone is not None:
            local = fast.cast(pl.Datetime("ms"))
            fast = local.dt.replace_time_zone(self.time_zone, ambiguous="null", non_existent="null").dt.epoch("ms")

        def read(columns: Sequence[pl.Series]) -> pl.Series:
            values, times = columns
            if not zoned and self.time_zone is None and times.null_count() < len(times):
                self.no_zone = True
            times = self._plausible(times)
            if times.null_count() > values.null_count():
                left = (times.is_null() & values.is_not_null()).arg_true()
                times = times.scatter(left, self.read(values.gather(left)))
            return times

        return pl.map_batches([column, fast], read, return_dtype=pl.Int64, is_elementwise=True)

    def read(self, values: pl.Series) -> pl.Series:
        """The same for values of any forms."""
        if isinstance(values.dtype, pl.Datetime):
            at, code = self._of_datetimes(values)
        elif values.dtype == pl.Date:
            at, code = _nothing(len(values)), _codes(values.is_not_null(), _DATE)
        elif values.dtype.is_numeric() and self.time_format is None:
            at, code = self._of_numbers(values.fill_nan(None) if values.dtype.is_float() else values)
        elif self.time_format is not None:
            at, code = self._of_format(values.cast(pl.String), self.time_format)
        else:
            at, code = self._of_any_form(values.str.strip_chars())
        wrong = (code != _OK).arg_true()
        return self._plausible(at).scatter(wrong, code.gather(wrong).cast(pl.Int64) + FAULTS)

    def _of_form(self, column: pl.Expr, first: str) -> tuple[pl.Expr, bool] | None:
        """The times of the form of `first`, null where a value has another form, and whether the form has a zone."""
        if re.fullmatch(r"\d+", first, re.ASCII):
            return self._epoch(column.cast(pl.Int64, strict=False), is_float=False), True
        if re.fullmatch(r"\d+\.\d+", first, re.ASCII):
            return self._epoch(column.cast(pl.Float64, strict=False), is_float=True), True
        match = _COMMON.fullmatch(first)
        if match is None:
            return None
        gap, fraction, zone = match["gap"], match["fraction"], match["zone"]
        time_format = f"%Y-%m-%d{gap}%H:%M:%S{'%.f' if fraction else ''}{zone or ''}"
        times = column.str.to_datetime(time_format, time_unit="ms", strict=False).dt.epoch("ms")
        # The parser also takes other spacings. The other forms decide about those.
        same = column.str.len_bytes() == len(first)
        if fraction:
            same = (column.str.slice(10, 1) == gap) & (column.str.slice(19, 1) == ".")
        if match["hours"]:
            offset_ms = int(f"{match['sign']}1") * (int(match["hours"]) * 60 + int(match["minutes"] or 0)) * 60_000
            times = times - offset_ms if offset_ms else times
        return pl.when(same).then(times), zone is not None

    def _epoch(self, number: pl.Expr, *, is_float: bool) -> pl.Expr:
        """Times of numbers, null where they are dates in digits."""
        if not self.plausible:
            return _epoch_ms(number, is_float=is_float)
        return pl.when(~_is_date_digits(number)).then(_epoch_ms(number, is_float=is_float))

    def _plausible(self, at: pl.Series) -> pl.Series:
        """The times, with a fault instead of those that are before 1990 or after tomorrow."""
        least: Any = at.min()
        most: Any = at.max()
        if not self.plausible or least is None or (least >= _EARLIEST_MS and most <= self.latest_ms):
            return at
        absurd = ((at < _EARLIEST_MS) | (at > self.latest_ms)).arg_true()
        return at.scatter(absurd, FAULTS + _IMPLAUSIBLE)

    def _of_datetimes(self, values: pl.Series) -> tuple[pl.Series, pl.Series]:
        at = values.dt.epoch("ms")
        if isinstance(values.dtype, pl.Datetime) and values.dtype.time_zone is None:
            at = self._from_local(at)
        return at, _codes(at.is_null() & values.is_not_null(), _CLOCK_CHANGE)

    def _of_numbers(self, values: pl.Series) -> tuple[pl.Series, pl.Series]:
        number, is_float = pl.col("number"), values.dtype.is_float()
        frame = pl.DataFrame({"number": values if is_float else values.cast(pl.Int64, strict=False)})
        at, dates = frame.select(at=_epoch_ms(number, is_float=is_float), dates=_is_date_digits(number)).get_columns()
        code = _codes(at.is_null() & values.is_not_null(), _NO_TIME)
        places = dates.fill_null(value=False).arg_true()
        if self.plausible and len(places):
            found, codes = self._of_forms(values.gather(places).cast(pl.Int64).cast(pl.String))
            at, code = at.scatter(places, found), code.scatter(places, codes)
        return at, code

    def _of_format(self, text: pl.Series, time_format: str) -> tuple[pl.Series, pl.Series]:
        stripped = text.str.strip_chars()
        parsed = stripped.str.to_datetime(time_format, time_unit="ms", strict=False)
        at, code = self._of_datetimes(parsed)
        unread = parsed.is_null() & ~stripped.is_in(MISSING_WORDS).fill_null(value=True)
        return at, code.scatter(unread.arg_true(), _NO_TIME)

    def _of_any_form(self, text: pl.Series) -> tuple[pl.Series, pl.Series]:
        at, code = _nothing(len(text)), _codes(~text.is_in(MISSING_WORDS), _NO_TIME)
        whole = text.cast(pl.Int64, strict=False)
        for numbers in (whole, text.cast(pl.Float64, strict=False).fill_nan(None)):
            places = (numbers.is_not_null() & at.is_null()).arg_true()
            if len(places):
                found, codes = self._of_numbers(numbers.gather(places))
                at, code = at.scatter(places, found), code.scatter(places, codes)
        places = (at.is_null() & (code == _NO_TIME)).arg_true()
        if len(places):
            found, codes = self._of_forms(text.gather(places))
            at, code = at.scatter(places, found), code.scatter(places, codes)
        return at, code

    def _of_forms(self, text: pl.Series) -> tuple[pl.Series, pl.Series]:
        """Times in text that are no epochs."""
        at, code = _nothing(len(text)), _codes(text.is_not_null(), _NO_TIME)
        places = pl.arange(len(text), eager=True)
        for form in _FORMS:
            rest = text.gather(places)
            groups = rest.str.extract_groups(f"(?i)^{form}$").struct.unnest()
            matched = groups["year"].is_not_null()
            if matched.any():
                found, codes = self._assembled(groups.filter(matched))
                at, code = at.scatter(places.filter(matched), found), code.scatter(places.filter(matched), codes)
            places = places.filter(~matched)
            if not len(places):
                return at, code
        rest = text.gather(places)
        for pattern, number in ((_ANY_DATE, _DATE), (_ANY_AMBIGUOUS, _AMBIGUOUS)):
            code = code.scatter(places.filter(rest.str.contains(pattern)), number)
        digits = rest.cast(pl.Int64, strict=False).is_between(*_DAY_DIGITS).fill_null(value=False)
        return at, code.scatter(places.filter(digits), _DATE)

    def _assembled(self, groups: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
        """Times from the texts of their parts."""
        part = {name: pl.col(name) if name in groups.columns else pl.lit(None, pl.String) for name in _PARTS}
        number = {name: part[name].cast(pl.Int64).fill_null(0) for name in ("hour", "minute", "second")}
        name_of_month = part["month"].str.to_lowercase()
        month = name_of_month.replace(_MONTHS, [str(place) for place in range(1, 13)])
        day = pl.concat_str(part["year"], month, part["day"], separator="-").str.to_date("%Y-%m-%d", strict=False)
        half = part["half"].str.to_lowercase()
        of_half = pl.when(number["hour"].is_between(1, 12)).then(
            number["hour"] % 12 + pl.when(half == "p").then(12).otherwise(0)
        )
        hour = pl.when(half.is_null()).then(number["hour"]).otherwise(of_half)
        second = hour * 3600 + number["minute"] * 60 + number["second"]
        possible = (number["minute"] < 60) & (number["second"] <= 60) & (second <= 86_400)
        milliseconds = part["fraction"].str.slice(0, 3).str.pad_end(3, "0").cast(pl.Int64).fill_null(0)
        at = day.cast(pl.Datetime("ms")).dt.epoch("ms") + second * 1000 + milliseconds
        zone = part["zone"].str.to_lowercase()
        offset = zone.str.extract_groups(r"(?P<sign>[+-])(?P<hours>[0-9]{2}):?(?P<minutes>[0-9]{2})?$").struct
        minutes = offset.field("hours").cast(pl.Int64) * 60 + offset.field("minutes").cast(pl.Int64).fill_null(0)
        minutes = pl.when(offset.field("sign") == "-").then(-minutes).otherwise(minutes).fill_null(0)
        read = groups.select(at=pl.when(possible).then(at - minutes * 60_000), naive=zone.is_null())
        times, code = read["at"], _codes(read["at"].is_null(), _NO_TIME)
        if read["naive"].any():
            local = self._from_local(times.zip_with(read["naive"], _nothing(len(times))))
            changed = read["naive"] & local.is_null() & times.is_not_null()
            times = local.zip_with(read["naive"], times)
            code = code.scatter(changed.arg_true(), _CLOCK_CHANGE)
        return times, code

    def _from_local(self, at: pl.Series) -> pl.Series:
        """Local times of `time_zone` in UTC, null where a change of clocks makes them ambiguous or skips them."""
        if self.time_zone is None:
            self.no_zone = self.no_zone or at.null_count() < len(at)
            return at
        local = at.cast(pl.Datetime("ms"))
        return local.dt.replace_time_zone(self.time_zone, ambiguous="null", non_existent="null").dt.epoch("ms")


_PARTS: Final = ("year", "month", "day", "hour", "minute", "second", "fraction", "half", "zone")


def _nothing(length: int) -> pl.Series:
    return pl.repeat(None, length, dtype=pl.Int64, eager=True)


def _codes(where: pl.Series, code: int) -> pl.Series:
    return where.cast(pl.UInt8) * pl.Series([code], dtype=pl.UInt8)


def _is_date_digits(number: pl.Expr) -> pl.Expr:
    """Whether a number is a date such as 20240301 or 20240301100000."""
    return pl.any_horizontal(number.is_between(*limits) for limits in (_DAY_DIGITS, *_COMPACT_DIGITS))


# Limits of an epoch in s, ms and us, and its microseconds. Each is after the year 5000 in its unit and before 1975 in
# the next one.
_LIMITS: Final = ((10**11, 1_000_000), (10**14, 1000), (10**17, 1))


def _epoch_ms(number: pl.Expr, *, is_float: bool) -> pl.Expr:
    """Epochs in s, ms, us or ns as milliseconds, rounded down."""
    if is_float:
        # Rounded to microseconds: 1709287200.123 is 1709287200122.9999 ms.
        below = [pl.when(number.abs() < limit).then(number * micro) for limit, micro in _LIMITS]
        return pl.coalesce(*below, number * 1e-3).round().cast(pl.Int64, strict=False) // 1000
    number = number.cast(pl.Int64, strict=False)
    below = [pl.when(number.abs() < limit).then(number * micro // 1000) for limit, micro in _LIMITS]
    return pl.coalesce(*below, number // 1_000_000)


def checked_format(time_format: str) -> str:
    """The format in the spelling of Polars. Raises BadOption if it gives no date and time."""
    read = time_format.replace(".%f", "%.f")
    has_date = re.search(r"%[-_0]?(?:[YyGCFDxcs+])", read)
    has_clock = re.search(r"%[-_0]?(?:[HIklTRXrcs+])", read)
    if not has_date or not has_clock:
        raise BadOption(f"time_format {time_format!r} has no date or no time of day, expected such as '%d/%m/%Y %H:%M'")
    if re.search(r"%[Zf]", read):
        raise BadOption(
            f"time_format {time_format!r} has %Z or %f, expected %z for an offset and %.f for a fraction, or time_zone"
        )
    try:
        pl.Series(["x"]).str.to_datetime(read, strict=False)
    except pl.exceptions.PolarsError as error:
        raise BadOption(f"time_format {time_format!r} is no format: {str(error).splitlines()[0]}") from error
    return read


def check_zone(time_zone: str) -> None:
    """Raise BadOption if there is no time zone of this name."""
    try:
        zoneinfo.ZoneInfo(time_zone)
        pl.Series([0]).cast(pl.Datetime("ms")).dt.replace_time_zone(time_zone)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError, pl.exceptions.PolarsError) as error:
        raise BadOption(f"there is no time zone {time_zone!r}: expected a name such as Europe/Berlin or UTC") from error


def looks_like_time(text: str) -> bool:
    """Whether a text is a time, or one that needs --time-format."""
    found = TimeReader().read(pl.Series([text])).item()
    return bool(found is not None and (found > FAULTS + _CLOCK_CHANGE or found == FAULTS + _AMBIGUOUS))


def time_value(name: str, read: str, reader: TimeReader, shown: pl.Expr) -> Value:
    """The times of a column, with their faults.

    Args:
        name: The name of the column.
        read: The name of the column with the times that the reader has read.
        reader: The reader.
        shown: The times of a reader that takes all of them for plausible, for examples.

    """
    times = pl.col(read)
    known = pl.when(shown.abs() < _YEAR_5000_MS).then(shown).cast(pl.Datetime("ms"))  # others cannot be written
    read_as = pl.format("read as {}", known.dt.to_string("%Y-%m-%d %H:%M:%S"))
    is_ambiguous = times.eq_missing(FAULTS + _AMBIGUOUS)
    formats = pl.map_batches([pl.col(name), is_ambiguous], fitting_formats, return_dtype=pl.String, is_elementwise=True)
    accepted = TIMES_ACCEPTED if reader.time_format is None else f"--time-format {reader.time_format!r}"
    zones = "times with a zone or in UTC"
    faults = {
        _NO_TIME: ("is no time", accepted, None),
        _DATE: ("is a date without a time of day", "times; dates give neither the order of plays nor skips", None),
        _AMBIGUOUS: ("needs --time-format", "ISO 8601, and other forms with --time-format", formats),
        _IMPLAUSIBLE: ("is no plausible time", "times from 1990 to tomorrow", read_as),
        _CLOCK_CHANGE: (f"occurs twice or never in {reader.time_zone}, whose clocks change then", zones, None),
    }
    found = tuple(
        Fault(times.eq_missing(FAULTS + code), reason, name, expected, note)
        for code, (reason, expected, note) in faults.items()
    )
    return Value(pl.when(times > FAULTS + _CLOCK_CHANGE).then(times), found)
