"""The page of `segue describe --html`."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from training.data.describe import texts
from training.data.describe.charts import charts
from training.data.describe.description import Description
from training.reports.html import html_page
from training.reports.tables import Table


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
