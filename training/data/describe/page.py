"""The page of `segue describe --html`, and its charts. training.reports.charts describes how charts are made."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import altair as alt
from pydantic import JsonValue

from training.data.describe import texts
from training.data.describe.description import Description, Lorenz, Period, Rate
from training.reports.charts import ROW, Chart, specification, tooltip
from training.reports.html import html_page
from training.reports.tables import Table

MOST_FILES: Final = 40  # bars of the chart of files
_WIDTH: Final = 520
_HEIGHT: Final = 240
_RATE_COLUMNS: Final = ("plays", "skips", "skip rate")
_DAYS: Final = {"day": 1, "week": 7, "month": 31, "year": 366}


def page(of: Description) -> str:
    """Render the page. The same description gives the same text."""
    drawn = {chart.name: chart for chart in charts(of)}
    return html_page(
        "training.data.describe",
        {f"d-{name}": chart.spec for name, chart in drawn.items()},
        of=of,
        name=Path(of.path).name or of.path,
        charts_of=drawn,
        sentence=texts.sentence,
        no_warnings=texts.NO_WARNINGS,
        overview=_facts("Size and outcomes", texts.overview(of)),
        popularity=_facts("Popularity", texts.popularity(of)),
        top=_top(of),
        reading=_facts("Log", texts.reading(of.log)) if of.log is not None else None,
        steps=Table("Rules of preparation", texts.STEP_COLUMNS, texts.step_cells(of.log))
        if of.log is not None
        else None,
        options=_facts("Options of preparation", {name: _shown(value) for name, value in of.options.items()}),
    )


def _facts(title: str, facts: Mapping[str, str]) -> Table:
    return Table(title, ("figure", "value"), list(facts.items()))


def _shown(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _top(of: Description) -> Table:
    rows = []
    for track in of.popularity.top:
        name, *rate = texts.rate_cells(track.track_id, track)
        rows.append((name, track.title or "", track.artist or "", *rate))
    return Table("Most played tracks", ("track", "title", "artist", "plays", "skips", "skip rate"), rows)


def charts(of: Description) -> list[Chart]:
    """Return all charts that the data have values for, in the order of the page."""
    made = [lengths_chart(of), *_time_charts(of), position_chart(of), previous_chart(of)]
    if of.by_file is not None:
        made.append(files_chart(of))
    return [*made, lorenz_chart(of)]


def lengths_chart(of: Description) -> Chart:
    """Sessions by their number of plays."""
    cells = texts.length_cells(of)
    rows = [
        {"group": group, "value": round(share, 5), "says": f"{group} plays: {count} sessions, {shown}"}
        for (group, count, shown), share in cells
    ]
    return Chart(
        "lengths",
        "Session lengths",
        "Share of the sessions by their number of plays. A peak at the longest length means that sessions were cut.",
        specification(_bars(rows, "plays of the session", "sessions", "played"), "Sessions by their number of plays."),
        Table("Session lengths", ("plays", "sessions", "share"), [cells for cells, _ in cells]),
    )


def position_chart(of: Description) -> Chart:
    """Skip rate by position in the session."""
    return _rates_chart(
        "position",
        "Skip rate by position in the session",
        "Later positions exist only in longer sessions, so a trend may come from the listeners who stay longer.",
        "position",
        texts.by_position(of),
    )


def previous_chart(of: Description) -> Chart:
    """Skip rate by the outcome of the previous play."""
    return _rates_chart(
        "previous",
        "Skip rate by outcome of the previous play",
        "If the rates after a play and after a skip differ, the outcomes of a session depend on each other.",
        "previous play",
        texts.by_previous(of),
        sideways=True,
    )


def files_chart(of: Description) -> Chart:
    """Skip rate of the largest files."""
    files = [(file.name, file) for file in of.by_file or []]
    shown = files[:MOST_FILES]
    which = f"The {MOST_FILES} files with the most plays. " if len(files) > MOST_FILES else ""
    return _rates_chart(
        "files",
        "Skip rate by file",
        f"{which}Files of one log should have similar rates: another rate often means that skips have another meaning.",
        "file",
        shown,
        sideways=True,
    )


def _time_charts(of: Description) -> list[Chart]:
    period = of.times.period
    if period is None:
        return []
    rows = [_period_row(period, one) for one in of.times.periods]
    cells = []
    for one in of.times.periods:
        name, *rate = texts.rate_cells(one.start.date().isoformat(), one)
        cells.append((name, f"{one.sessions:,}", *rate))
    columns = (f"{period} from (UTC)", "sessions", *_RATE_COLUMNS)

    def chart(name: str, title: str, caption: str, value: alt.Y, colour: str) -> Chart:
        drawn = (
            alt.Chart(alt.InlineData(values=rows))
            .mark_bar(stroke="var(--paper)", strokeWidth=1)
            .encode(
                x=alt.X("start:T", title=f"start of the session, by {period} (UTC)", scale=alt.Scale(type="utc")),
                x2="end:T",
                y=value,
                y2=alt.datum(0),
                color=alt.value(f"var(--{colour})"),
                description="says:N",
                tooltip=tooltip(says=title),
            )
            .properties(width=_WIDTH, height=_HEIGHT)
        )
        return Chart(name, title, caption, specification(drawn, f"{title}."), Table(title, columns, cells))

    return [
        chart(
            "time-sessions",
            f"Sessions by {period}",
            "Gaps and jumps show missing or repeated parts of the log.",
            alt.Y("sessions:Q", title="sessions", axis=alt.Axis(format="d", tickMinStep=1)),
            "played",
        ),
        chart(
            "time-rate",
            f"Skip rate by {period}",
            "A jump shows that the source changed how it reports skips.",
            alt.Y("rate:Q", title="skip rate", axis=alt.Axis(format=".0%")),
            "skipped",
        ),
    ]


def _period_row(period: str, of: Period) -> dict[str, Any]:
    name, plays, _, rate = texts.rate_cells(of.start.date().isoformat(), of)
    return {
        "start": of.start.isoformat(),
        "end": _end(period, of.start).isoformat(),
        "sessions": of.sessions,
        "rate": of.skip_rate and round(of.skip_rate, 5),
        "says": f"{period} from {name}: {of.sessions:,} sessions, {plays} plays, skip rate {rate}",
    }


def _end(period: str, start: datetime) -> datetime:
    later = start + timedelta(days=_DAYS[period])
    return later.replace(day=1) if period == "month" else later.replace(month=1, day=1) if period == "year" else later


def lorenz_chart(of: Description) -> Chart:
    """Share of plays of the most played tracks."""
    played = of.popularity
    points = [
        {
            "tracks": round(point.tracks, 5),
            "plays": round(point.plays, 5),
            "says": f"{point.tracks:.1%} of the tracks have {point.plays:.1%} of the plays",
        }
        for point in (Lorenz(tracks=0, plays=0), *played.lorenz)
    ]
    share = alt.Axis(format=".0%")
    encoded: dict[str, Any] = {
        "x": alt.X("tracks:Q", title="share of the tracks, most played first", axis=share),
        "y": alt.Y("plays:Q", title="share of the plays", axis=share, scale=alt.Scale(domain=[0, 1])),
    }
    equal = alt.Chart(alt.InlineData(values=[{"tracks": 0, "plays": 0}, {"tracks": 1, "plays": 1}]))
    equal = equal.mark_line(strokeDash=[4, 4], aria=False).encode(color=alt.value("var(--quiet)"), **encoded)
    base = alt.Chart(alt.InlineData(values=points))
    line = base.mark_line(aria=False).encode(color=alt.value("var(--played)"), **encoded)
    marks = base.mark_point(filled=True, size=30, opacity=1).encode(
        color=alt.value("var(--played)"), description="says:N", tooltip=tooltip(says="popularity"), **encoded
    )
    drawn = alt.layer(equal, line, marks).properties(width=_WIDTH, height=_HEIGHT + 60)
    return Chart(
        "lorenz",
        "Popularity of tracks (Lorenz curve)",
        "The dashed line is a catalogue in which all tracks have equally many plays. The further the curve is from it, "
        "the more a list of popular tracks alone will hit.",
        specification(drawn, "Share of the plays that the most played tracks have."),
        Table(
            "Popularity of tracks",
            ("share of the tracks", "share of the plays"),
            [(f"{point.tracks:.1%}", f"{point.plays:.1%}") for point in played.lorenz],
        ),
    )


def _rates_chart(
    name: str, title: str, caption: str, column: str, rates: Sequence[tuple[str, Rate]], *, sideways: bool = False
) -> Chart:
    cells = [texts.rate_cells(group, rate) for group, rate in rates]
    rows = [
        {
            "group": group,
            "value": rate.skip_rate and round(rate.skip_rate, 5),
            "says": f"{group}: skip rate {shown}, {skips} of {plays} plays",
        }
        for (group, rate), (_, plays, skips, shown) in zip(rates, cells, strict=True)
    ]
    drawn = _bars(rows, column, "skip rate", "skipped", sideways=sideways)
    return Chart(name, title, caption, specification(drawn, f"{title}."), Table(title, (column, *_RATE_COLUMNS), cells))


def _bars(
    rows: Sequence[dict[str, Any]], groups: str, values: str, colour: str, *, sideways: bool = False
) -> alt.Chart:
    """Bars of `value` (a share) by `group`, in the order of the rows."""
    group: dict[str, Any] = {"title": groups, "sort": None}
    value: dict[str, Any] = {"title": values, "axis": alt.Axis(format=".0%")}
    base = alt.Chart(alt.InlineData(values=list(rows))).mark_bar()
    if sideways:
        base = base.encode(x=alt.X("value:Q", **value), y=alt.Y("group:N", **{**group, "title": None}))
        base = base.properties(width=_WIDTH - 120, height={"step": ROW})
    else:
        base = base.encode(x=alt.X("group:N", axis=alt.Axis(labelAngle=-45), **group), y=alt.Y("value:Q", **value))
        base = base.properties(width=_WIDTH, height=_HEIGHT)
    drawn: alt.Chart = base.encode(
        color=alt.value(f"var(--{colour})"), description="says:N", tooltip=tooltip(says=groups)
    )
    return drawn
