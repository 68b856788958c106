"""The values of a log's columns: which times, ids, numbers and flags are read, as what, and what is said of others."""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import BadLog, BadOption
from training.prepare.content import PlainFile
from training.prepare.tables import LogTable
from training.prepare.times import FAULTS, TimeReader
from training.prepare.values import Value

NO_TIME, DATE, AMBIGUOUS, IMPLAUSIBLE, CLOCK_CHANGE = (
    "is no time",
    "is a date without a time of day",
    "needs --time-format",
    "is no plausible time",
    "occurs twice or never in Europe/Berlin, whose clocks change then",
)
TEN = datetime(2024, 3, 1, 10, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Reading = Callable[[LogTable, str], Value]


def ms(at: datetime) -> int:
    return (at - EPOCH) // timedelta(milliseconds=1)


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Any]]:
    """The values of a column, each with the reason of its fault instead if it has one."""

    def read_it(values: pl.Series, reading: Reading) -> list[Any]:
        file = tmp_path / "log.parquet"
        values.alias("column").to_frame().write_parquet(file)
        table = LogTable.open(PlainFile(file, "parquet", "log.parquet"))
        value, faults = reading(table, "column")
        where = [fault.where.alias(str(number)) for number, fault in enumerate(faults)]
        frame = table.frame.select(value.alias("value"), *where).collect(engine="streaming")
        rows = []
        for read, *found in frame.iter_rows():
            assert sum(found) <= 1
            assert read is None or not any(found)
            rows.append(faults[found.index(True)].reason if any(found) else read)
        return rows

    return read_it


def times(**options: Any) -> Reading:
    return lambda table, name: table.time_ms(name, **options)


class TestTimes:
    FORMS = (
        *(
            "2024-03-01T10:00:00Z",
            "2024-03-01T10:00:00",
            "2024-03-01 10:00:00",
            "2024-03-01T10:00Z",
            "2024-03-01t10:00z",
        ),
        *("2024-03-01T11:30:00+01:30", "2024-03-01T11:30:00+0130", "2024-03-01T09:00:00-01", "2024-3-1 10:00"),
        *(
            "2024-03-01T10:00:00.000Z",
            "2024-03-01T10:00:00,000000000Z",
            "2024-03-01T24:00:00+14:00",
            " 2024-03-01 10:00 ",
        ),
        *("2024-03-01 10:00:00 UTC", "2024-03-01 10:00:00.000000 UTC"),  # BigQuery
        *("2024-03-01 10:00:00+00", "2024-03-01 10:00:00.0+00", "2024-03-01 15:30:00+0530"),  # PostgreSQL
        *("2024-03-01 10:00:00.000 +0000", "2024-03-01 10:00:00.000 Z"),  # Snowflake
        *("2024-03-01 10:00:00+00:00", "2024-03-01 10:00:00.000000000"),  # pandas
        *("2024/03/01 10:00", "2024-03-01 10:00 AM"),  # spreadsheets
        *("01 Mar 2024, 10:00", "1 March 2024 10:00:00", "Mar 1, 2024, 10:00:00 AM", "01-Mar-2024 10:00"),
        *("Fri, 01 Mar 2024 10:00:00 GMT", "Fri, 1 Mar 2024 11:00:00 +0100"),  # RFC 2822
        *("Fri Mar 01 10:00:00 +0000 2024", "Fri Mar  1 10:00:00 2024", "Fri Mar 01 2024 11:00:00 GMT+0100 (CET)"),
        *("2024-03-01T11:00:00+01:00[Europe/Berlin]", "20240301T100000Z", "20240301T1000", "20240301T10:00:00+0000"),
        *("20240301100000", "202403011000", "20240301100000000", "20240301 100000"),
        *("1709287200", "1709287200.0", "1709287200000", "1709287200000.0", "1709287200000000", "1709287200000000000"),
        *("1.7092872e+09", "1.7092872E9", "1.7092872e12"),
    )

    @pytest.mark.parametrize("form", FORMS)
    def test_of_one_instant_are_read_in_all_forms(self, read: Callable[..., list[Any]], form: str) -> None:
        assert read(pl.Series([form]), times()) == [ms(TEN)]

    @pytest.mark.parametrize("first", [None, *FORMS])
    def test_do_not_depend_on_the_form_of_the_first_one(self, first: str | None) -> None:
        frame = pl.DataFrame({"t": [*self.FORMS, None, "", "NULL", "soon", "03/01/2024 10:00"]})
        found = frame.select(TimeReader().times("t", pl.String(), first)).to_series().to_list()
        assert found == [ms(TEN)] * len(self.FORMS) + [None, None, None, FAULTS + 1, FAULTS + 3]

    @pytest.mark.parametrize(
        ("text", "milliseconds"),
        [
            ("2024-03-01 10:00:00.123456 UTC", 123),
            ("2024-03-01T10:00:00.9999999Z", 999),
            ("2024-03-01T10:00:00,5Z", 500),
            ("1709287200.123", 123),
            ("1709287200123.9", 123),
            ("1709287200123999", 123),
            ("1709287200123456789", 123),
        ],
    )
    def test_have_milliseconds_rounded_down(self, read: Callable[..., list[Any]], text: str, milliseconds: int) -> None:
        assert read(pl.Series([text]), times()) == [ms(TEN) + milliseconds]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            *(
                (text, NO_TIME)
                for text in ("soon", "2024-03-01 10:00:00 EST", "2024-02-30 10:00:00", "10:00:00", "inf")
            ),
            *((text, NO_TIME) for text in ("2024-03-01T25:00:00Z", "2024-03-01T10:60:00Z", "2024-03-0110:00:00")),
            *((text, NO_TIME) for text in ("2024-03-01 13:00 PM", "1709287200s", "9" * 30, "٢٠٢٤-03-01 10:00", "-")),
            *((text, DATE) for text in ("2024-03-01", "20240301", "01 Mar 2024", "March 1, 2024", "03/01/2024")),
            *((text, AMBIGUOUS) for text in ("03/01/2024 10:00:00", "13/01/2024 10:00", "01.03.2024 10:00")),
            *(
                (text, IMPLAUSIBLE)
                for text in ("0", "-1", "7", "45352.416667", "2098-02-11T10:00:00Z", "1989-12-31 23:59")
            ),
            *((text, IMPLAUSIBLE) for text in ("0.0", "1e3", "4102444800", "0001-01-01 00:00:00")),
        ],
    )
    def test_that_are_none_have_a_reason(self, read: Callable[..., list[Any]], text: str, reason: str) -> None:
        assert read(pl.Series([text]), times()) == [reason]

    @pytest.mark.parametrize("word", ["", " ", "\\N", "NULL", "null", "None", "NaN", "nan", "NA", "<NA>", None])
    def test_may_be_missing(self, read: Callable[..., list[Any]], word: str | None) -> None:
        assert read(pl.Series([word, "2024-03-01T10:00:00Z"]), times()) == [None, ms(TEN)]
        assert read(pl.Series(["2024-03-01T10:00:00Z", word]), times()) == [ms(TEN), None]

    def test_outside_the_plausible_span_are_an_order_where_that_is_enough(self, read: Callable[..., list[Any]]) -> None:
        numbers = pl.Series([0, 1, 20240301, None])
        assert read(numbers, times(plausible=False)) == [0, 1000, 20240301000, None]
        assert read(numbers.cast(pl.String), times(plausible=False)) == [0, 1000, 20240301000, None]

    @pytest.mark.parametrize("dtype", [pl.Int64, pl.UInt64, pl.Float64, pl.Decimal(20, 0), pl.String])
    def test_in_numbers_are_epochs_or_digits(self, read: Callable[..., list[Any]], dtype: Any) -> None:
        numbers = pl.Series([1709287200, 1709287200000, 1709287200000000, 20240301100000, 20240301, 3, None])
        expected = [ms(TEN)] * 4 + [DATE, IMPLAUSIBLE, None]
        assert read(numbers.cast(dtype), times()) == expected

    def test_in_numbers_may_be_missing_or_endless(self, read: Callable[..., list[Any]]) -> None:
        assert read(pl.Series([1709287200.25, float("nan"), float("inf")]), times()) == [ms(TEN) + 250, None, NO_TIME]

    def test_in_date_times_have_a_zone_or_are_utc(self, read: Callable[..., list[Any]]) -> None:
        local = TEN.astimezone(timezone(timedelta(hours=1)))
        for unit in ("ms", "us", "ns"):
            column = pl.Series([TEN.replace(tzinfo=None), None], dtype=pl.Datetime(unit))
            assert read(column, times()) == [ms(TEN), None]
            zoned = pl.Series([local, None], dtype=pl.Datetime(unit, "Europe/Berlin"))
            assert read(zoned, times(time_zone="America/New_York")) == [ms(TEN), None]

    def test_in_dates_are_refused_as_in_text(self, read: Callable[..., list[Any]]) -> None:
        assert read(pl.Series([date(2024, 3, 1), None]), times()) == [DATE, None]

    @pytest.mark.parametrize("values", [[True], [[1]], [{"a": 1}], [timedelta(1)]])
    def test_of_other_types_are_refused(self, read: Callable[..., list[Any]], values: list[Any]) -> None:
        with pytest.raises(BadLog, match=r"^log.parquet: column column is of type .*, expected a date-time, text or"):
            read(pl.Series(values), times())

    def test_say_what_was_read_and_what_is_accepted(self, tmp_path: Path) -> None:
        file = tmp_path / "log.csv"
        file.write_text("timestamp\n7\nsoon\n2024-03-01 10:00:00\n")
        table = LogTable.open(PlainFile(file, "text", "log.csv"))
        value, faults = table.time_ms("timestamp")
        by_reason = {fault.reason: fault for fault in faults}
        note = by_reason[IMPLAUSIBLE].note
        assert note is not None
        frame = table.frame.select(note, value.alias("value")).collect()
        assert frame.to_series(0).to_list() == ["read as 1970-01-01 00:00:07", None, "read as 2024-03-01 10:00:00"]
        assert by_reason[IMPLAUSIBLE].accepted == "times from 1990 to tomorrow"
        assert "ISO 8601" in by_reason[NO_TIME].accepted
        assert "--time-format" in by_reason[AMBIGUOUS].accepted
        assert table.no_zone

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("8/3/2026 6:27:09 PM", "--time-format '%m/%d/%Y %I:%M:%S %p' if 8 is the month, or --time-format '%d/%m/"),
            ("3.8.2026 20:00:01.5", "--time-format '%d.%m.%Y %H:%M:%S%.f' if 3 is the day, or --time-format '%m.%d."),
            ("28.11.2025 20:00", "28 is the day: --time-format '%d.%m.%Y %H:%M'"),
            ("11/28/2025 20:00", "28 is the day: --time-format '%m/%d/%Y %H:%M'"),
            ("8-3-26, 6:27 am +02:00", "--time-format '%m-%d-%y, %I:%M %p %z' if 8 is the month"),
            ("99/99/2026 10:00", "give the order of day and month"),
        ],
    )
    def test_with_day_and_month_in_numbers_name_the_formats_that_read_them(
        self, read: Callable[..., list[Any]], tmp_path: Path, text: str, told: str
    ) -> None:
        file = tmp_path / "log.csv"
        file.write_text(f'timestamp\n"{text}"\n')
        table = LogTable.open(PlainFile(file, "text", "log.csv"))
        note = next(fault.note for fault in table.time_ms("timestamp").faults if fault.reason == AMBIGUOUS)
        assert note is not None
        found = table.frame.select(note).collect(engine="streaming").item()
        assert found.startswith(told)
        for time_format in re.findall("--time-format '(.*?)'", found):
            assert isinstance(read(pl.Series([text]), times(time_format=time_format))[0], int)


class TestZones:
    @pytest.mark.parametrize(
        ("text", "hours"),
        [
            ("2024-03-01 11:00:00", 0),
            ("2024-03-01 11:00", 0),
            ("01 Mar 2024, 11:00", 0),
            ("2024-07-01 11:00:00", -1),
            ("2024-03-01T10:00:00Z", 0),
            ("2024-03-01 12:00:00+02", 0),
            ("1709287200", 0),
        ],
    )
    def test_are_of_times_that_name_none(self, read: Callable[..., list[Any]], text: str, hours: int) -> None:
        day = 122 * 86_400_000 if "-07-" in text else 0
        assert read(pl.Series([text]), times(time_zone="Europe/Berlin")) == [ms(TEN) + day + hours * 3_600_000]

    @pytest.mark.parametrize(
        "text", ["2024-03-31 02:30:00", "2024-10-27 02:30:00", "2024-10-27 02:30", "27 Oct 2024, 02:30"]
    )
    def test_change_their_clocks(self, read: Callable[..., list[Any]], text: str) -> None:
        """No rule could say which of two hours was meant, and a wrong one would make skips."""
        around = ["2024-03-31 01:59:59", text, "2024-10-27 03:00:00"]
        expected = [
            ms(datetime(2024, 3, 31, 0, 59, 59, tzinfo=UTC)),
            CLOCK_CHANGE,
            ms(datetime(2024, 10, 27, 2, tzinfo=UTC)),
        ]
        assert read(pl.Series(around), times(time_zone="Europe/Berlin")) == expected
        if len(text) == 19:
            column = pl.Series(around).str.to_datetime()
            assert read(column, times(time_zone="Europe/Berlin")) == expected

    @pytest.mark.parametrize(
        ("values", "time_zone", "expected"),
        [
            (["2024-03-01 10:00:00"], None, True),
            (["2024-03-01 10:00:00Z"], None, False),
            (["1709287200"], None, False),
            (["2024-03-01 10:00:00Z", "2024-03-01 10:00"], None, True),
            (["2024-03-01 10:00:00"], "UTC", False),
            ([""], None, False),
        ],
    )
    def test_that_are_not_named_are_told(
        self, values: list[str], time_zone: str | None, expected: bool, tmp_path: Path
    ) -> None:
        file = tmp_path / "log.csv"
        file.write_text("\n".join(["at,x", *(f"{value},x" for value in values)]))
        table = LogTable.open(PlainFile(file, "text", "log.csv"))
        at = table.time_ms("at", time_zone=time_zone)
        table.frame.select(at.value).collect(engine="streaming")
        assert table.no_zone == expected

    @pytest.mark.parametrize("zone", ["", "Mars/Olympus", "Europe", "../UTC", "/etc/localtime", "\x00", "CET+1"])
    def test_must_exist(self, zone: str) -> None:
        with pytest.raises(BadOption, match=r"there is no time zone .*: expected a name such as Europe/Berlin or UTC"):
            TimeReader(time_zone=zone)


class TestTimeFormats:
    @pytest.mark.parametrize(
        ("time_format", "text"),
        [
            ("%m/%d/%Y %H:%M:%S", "03/01/2024 10:00:00"),
            ("%d/%m/%Y %H:%M", " 01/03/2024 10:00 "),
            ("%d.%m.%Y %H:%M", "01.03.2024 10:00"),
            ("%m/%d/%Y %I:%M %p", "03/01/2024 10:00 AM"),
            ("%Y-%m-%d %H:%M:%S %z", "2024-03-01 12:00:00 +0200"),
            ("%Y-%m-%dT%H:%M:%S.%f", "2024-03-01T10:00:00.000000"),
            ("%Y%m%d-%H%M%S", "20240301-100000"),
        ],
    )
    def test_say_how_times_are_written(self, read: Callable[..., list[Any]], time_format: str, text: str) -> None:
        assert read(pl.Series([text, "", None, "NULL"]), times(time_format=time_format)) == [ms(TEN), None, None, None]

    def test_make_all_other_forms_faults(self, read: Callable[..., list[Any]]) -> None:
        column = pl.Series(["03/01/2024 10:00", "2024-03-01T10:00:00Z", "1709287200", "03/01/1960 10:00"])
        assert read(column, times(time_format="%m/%d/%Y %H:%M")) == [ms(TEN), NO_TIME, NO_TIME, IMPLAUSIBLE]

    def test_apply_to_numbers_and_local_times(self, read: Callable[..., list[Any]]) -> None:
        assert read(pl.Series([240301110000]), times(time_format="%y%m%d%H%M%S", time_zone="Europe/Berlin")) == [
            ms(TEN)
        ]
        column = pl.Series(["27.10.2024 02:30"])
        assert read(column, times(time_format="%d.%m.%Y %H:%M", time_zone="Europe/Berlin")) == [CLOCK_CHANGE]

    @pytest.mark.parametrize(
        "time_format", ["", "x", "%Y-%m-%d", "%H:%M", "%d/%m/%Y %H:%M %Z", "%d %H:%M,%f", "%Y-%m-%d %H"]
    )
    def test_that_give_no_time_are_refused(self, time_format: str) -> None:
        with pytest.raises(BadOption, match="time_format") as caught:
            TimeReader(time_format=time_format)
        assert "\n" not in str(caught.value)


@st.composite
def spellings(draw: st.DrawFn) -> tuple[datetime, list[str]]:
    """An instant in whole milliseconds, and its spellings."""
    at = draw(st.datetimes(datetime(1990, 1, 2), datetime(2026, 1, 1))).replace(tzinfo=UTC)  # noqa: DTZ001  # naive by contract
    at = at.replace(microsecond=at.microsecond // 1000 * 1000)
    offset = draw(st.integers(-14 * 4, 14 * 4)) * 15
    local, since = at.astimezone(timezone(timedelta(minutes=offset))), ms(at)
    texts = [
        *(
            at.isoformat(sep, "milliseconds").removesuffix("+00:00") + zone
            for sep in "T "
            for zone in ("", "Z", "+00", " UTC")
        ),
        local.isoformat(),
        local.strftime("%a, %d %b %Y %H:%M:%S.") + f"{at.microsecond // 1000:03} " + local.strftime("%z"),
        at.strftime("%Y%m%d%H%M%S") + f"{at.microsecond // 1000:03}",
        at.strftime("%Y%m%dT%H%M%S.") + f"{at.microsecond // 1000:03}Z",
        *(str(since * step) for step in (1000, 1_000_000)),
        f"{since // 1000}.{since % 1000:03}",
    ]
    return at, draw(st.permutations(texts))


@given(spellings())
@settings(max_examples=60, deadline=None)
def test_spellings_of_an_instant_are_one_time(case: tuple[datetime, list[str]]) -> None:
    at, texts = case
    found = pl.DataFrame({"t": texts}).select(TimeReader().times("t", pl.String(), texts[0])).to_series()
    assert found.to_list() == [ms(at)] * len(texts)


@given(st.lists(st.text(max_size=30) | st.from_regex(r"\A[0-9T:./ +-]{1,30}\Z"), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_any_text_is_a_time_or_a_fault(texts: list[str]) -> None:
    for reader in (TimeReader(), TimeReader(time_zone="Europe/Berlin"), TimeReader(time_format="%d/%m/%Y %H:%M")):
        found = pl.DataFrame({"t": texts}).select(reader.times("t", pl.String(), texts[0])).to_series()
        assert len(found) == len(texts)
        assert all(time is None or time < FAULTS + 6 or time >= 631_152_000_000 for time in found)


class TestIds:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (pl.Series(["a", " a", "007", "1.0", "NULLs", ""]), ["a", " a", "007", "1.0", "NULLs", None]),
            (pl.Series(["\\N", "NULL", "null", "None", "NaN", "nan", "NA", "<NA>", None]), [None] * 9),
            (pl.Series([1, 2**62, None]), ["1", str(2**62), None]),
            (pl.Series([2**64 - 1], dtype=pl.UInt64), [str(2**64 - 1)]),
            (pl.Series(["a", "NULL", None], dtype=pl.Categorical()), ["a", None, None]),
            (pl.Series(["a", None], dtype=pl.Enum(["a"])), ["a", None]),
            (pl.Series([b"caf\xc3\xa9", b"", None]), ["café", None, None]),
            (pl.Series([1.0, -2.0, 2.0**53 - 1, float("nan"), None]), ["1", "-2", str(2**53 - 1), None, None]),
            (pl.Series([1.5, 2.0**53, float("inf")]), ["is no exact id"] * 3),
            (pl.Series([16_777_216.0], dtype=pl.Float32), ["16777216"]),
            (pl.Series([Decimal("1.00"), Decimal("2.50"), None]), ["1", "is no whole number", None]),
            (pl.Series([Decimal(10**20)], dtype=pl.Decimal(21, 0)), [str(10**20)]),
        ],
    )
    def test_are_text_integers_and_categories(
        self, read: Callable[..., list[Any]], values: pl.Series, expected: list[str | None]
    ) -> None:
        assert read(values, LogTable.id) == expected

    @pytest.mark.parametrize("values", [[True], [["a"]], [{"a": "b"}], [date(2024, 3, 1)], [TEN], [timedelta(1)]])
    def test_of_other_types_are_refused(self, read: Callable[..., list[Any]], values: list[Any]) -> None:
        with pytest.raises(BadLog, match=r"^log.parquet: column column is of type .*, expected ids: text, integers or"):
            read(pl.Series(values), LogTable.id)

    def test_in_bytes_that_are_no_text_are_refused(self, read: Callable[..., list[Any]]) -> None:
        with pytest.raises(BadLog, match=r"^log\.parquet: column column has bytes that are no UTF-8 text"):
            read(pl.Series([b"a", b"\xff"]), LogTable.id)


class TestWholeNumbers:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (["3", " 3 ", "+3", "3.0", "3e0", "-3"], [3, 3, 3, 3, 3, -3]),
            (["", "NULL", None], [None] * 3),
            (["3.5", "x", "inf", "9" * 30, "1,5"], ["is no whole number"] * 5),
            ([3.0, 3.5, float("nan"), None], [3, "is no whole number", None, None]),
            ([3, None], [3, None]),
        ],
    )
    def test_are_read_from_text_and_numbers(
        self, read: Callable[..., list[Any]], values: list[Any], expected: list[Any]
    ) -> None:
        assert read(pl.Series(values), LogTable.whole_number) == expected

    def test_of_other_types_are_refused(self, read: Callable[..., list[Any]]) -> None:
        with pytest.raises(BadLog, match="column column is of type Boolean, expected whole numbers"):
            read(pl.Series([True]), LogTable.whole_number)


class TestFlags:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (["true", "T", "Yes", "y", "1", "1.0", " TRUE "], [True] * 7),
            (["Ja", "OUI", "si", "Sí", "sì", "SIM"], [True] * 6),
            (["Nein", "NON", "no", "NÃO", "nao"], [False] * 5),
            (["false", "f", "NO", "n", "0", "0.0", "False"], [False] * 7),
            (["", "NULL", "NaN", None], [None] * 4),
            (["2", "perhaps", "-1", "tt"], ["is no flag"] * 4),
            ([1, 0, 2, None], [True, False, "is no flag", None]),
            ([1.0, 0.0, 0.5, float("nan")], [True, False, "is no flag", None]),
            ([True, False, None], [True, False, None]),
        ],
    )
    @pytest.mark.parametrize("inverted", [False, True])
    def test_are_read_in_all_spellings(
        self, read: Callable[..., list[Any]], values: list[Any], expected: list[Any], inverted: bool
    ) -> None:
        expected = [not value if isinstance(value, bool) and inverted else value for value in expected]
        assert read(pl.Series(values), lambda table, name: table.parse_bool(name, inverted=inverted)) == expected

    def test_of_other_types_are_refused(self, read: Callable[..., list[Any]]) -> None:
        with pytest.raises(BadLog, match="column column is of type Date, expected true or false"):
            read(pl.Series([date(2024, 3, 1)]), LogTable.parse_bool)


def test_text_is_joined_from_lists_of_text(read: Callable[..., list[Any]]) -> None:
    assert read(pl.Series([["A", "B"], ["C"], None]), LogTable.text) == ["A, B", "C", None]
    assert read(pl.Series([1, None]), LogTable.text) == ["1", None]
    with pytest.raises(BadLog, match="column column is of type Struct"):
        read(pl.Series([{"a": 1}]), LogTable.text)
