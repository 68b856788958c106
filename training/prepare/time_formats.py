"""The values of --time-format that read a time whose day and month are numbers, for messages."""

import re
from collections.abc import Sequence
from typing import Final

import polars as pl

_NOTED_VALUES: Final = 100  # per block: messages show a few examples


def fitting_formats(columns: Sequence[pl.Series]) -> pl.Series:
    """For the first ambiguous values, the formats that read them."""
    values, are_ambiguous = columns
    places = are_ambiguous.arg_true().head(_NOTED_VALUES)
    notes = pl.Series([None], dtype=pl.String).new_from_index(0, len(values))
    if not len(places):
        return notes
    return notes.scatter(places, pl.Series([_told(text) for text in values.gather(places)], dtype=pl.String))


def _told(text: str) -> str:
    """The formats that read a time such as 8/3/2026 6:27:09 PM, for a message."""
    text = text.strip()
    numbers = re.match(r"([0-9]+)([-/.])([0-9]+)[-/.]([0-9]+)", text)
    if numbers is None:
        return "give the order of day and month"
    first, sign, second, year = numbers.groups()
    hour = "%I" if re.search(r"[ap]\.?m\b", text, re.I) else "%H"
    rest = re.sub(r"[0-9]+:[0-9]+", f"{hour}:%M", text[numbers.end() :], count=1)
    rest = re.sub(r"%M:[0-9]+", "%M:%S", rest)
    rest = re.sub(r"(?<=%S)\.[0-9]+", "%.f", rest)
    rest = re.sub(r"[+-][0-9]{2}:?[0-9]{2}$", "%z", re.sub(r"[ap]m\b", "%p", rest, flags=re.I))
    year = "%Y" if len(year) == 4 else "%y"
    orders = {"month": f"%m{sign}%d{sign}{year}{rest}", "day": f"%d{sign}%m{sign}{year}{rest}"}
    usual = ("day", "month") if sign == "." else ("month", "day")
    fitting = {what: orders[what] for what in usual if _reads(orders[what], text)}
    if not fitting:
        return "give the order of day and month"
    if len(fitting) == 1:
        what, form = fitting.popitem()
        return f"{first if what == 'day' else second} is the day: --time-format '{form}'"
    told = (f"--time-format '{form}' if {first} is the {what}" for what, form in fitting.items())
    return ", or ".join(told)


def _reads(time_format: str, text: str) -> bool:
    return pl.Series([text]).str.to_datetime(time_format, strict=False).null_count() == 0
