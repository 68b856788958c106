"""The figures of a description as text, for the terminal and the page."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from training.data.describe.description import Description, Rate
from training.data.log_facts import MOST_FILES, LogFacts

NO_WARNINGS: Final = "No rule found anything unusual."


def overview(of: Description) -> dict[str, str]:
    """Return the figures that have no table of their own, by name."""
    sessions, times, repeats, last = of.sessions, of.times, of.repeats, of.last_plays
    shortest, median, longest = (sessions.quantiles[share] for share in ("0", "0.5", "1"))
    return {
        "folder": of.path,
        "source": of.source,
        "sessions": f"{sessions.count:,}",
        "plays": f"{of.plays:,}",
        "tracks": f"{of.popularity.tracks:,}",
        "skipped plays": counted(of.skips, of.plays),
        "first session": _time(times.first),
        "last session": _time(times.last),
        "session length": f"{shortest:,} to {longest:,} plays, median {median:,}, mean {sessions.mean_length:.1f}",
        "sessions with a skip": counted(sessions.with_skip, sessions.count),
        "sessions of skips only": counted(sessions.only_skips, sessions.count),
        "sessions of 3 plays or more": counted(sessions.with_targets, sessions.count),
        "skipped last plays": f"{counted(last.skips, last.plays)}, {last.unknown:,} with unknown outcome",
        "repeated plays": counted(repeats.plays, of.plays),
        "sessions with a repeat": counted(repeats.sessions, sessions.count),
        "immediate repeats": counted(repeats.immediate, of.plays),
        "outcomes from": _outcomes(of),
        "malformed lines": f"{of.malformed_lines:,}",
    }


def popularity(of: Description) -> dict[str, str]:
    """Return how plays are distributed over the tracks."""
    tracks = of.popularity
    return {
        "tracks played": counted(tracks.played, tracks.tracks),
        "tracks played once": counted(tracks.played_once, tracks.played),
        "plays of the top 1% of tracks": f"{tracks.top_1_percent:.1%}",
        "plays of the top 10% of tracks": f"{tracks.top_10_percent:.1%}",
        "tracks with half of the plays": counted(tracks.tracks_of_half, tracks.played),
        "Gini index": f"{tracks.gini:.3f}",
        "tracks with a title": counted(tracks.with_title, tracks.tracks),
    }


def by_position(of: Description) -> list[tuple[str, Rate]]:
    """Return the rate of each group of positions."""
    return [(span(group.first, group.last), group) for group in of.by_position]


def by_previous(of: Description) -> list[tuple[str, Rate]]:
    """Return the rate after each outcome of the previous play."""
    before = of.by_previous
    return [("(first play)", before.first_play), ("played", before.after_play), ("skipped", before.after_skip)]


def rate_cells(name: str, rate: Rate) -> tuple[str, str, str, str]:
    """Return a row of a table: the name, plays, skips, and the skip rate."""
    return name, f"{rate.plays:,}", f"{rate.skips:,}", "-" if rate.skip_rate is None else f"{rate.skip_rate:.1%}"


def length_cells(of: Description) -> list[tuple[Sequence[str], float]]:
    """Return the rows of the histogram of session lengths, each with its share of the sessions."""
    found: list[tuple[Sequence[str], float]] = []
    for group in of.sessions.lengths:
        share = group.sessions / of.sessions.count
        found.append(((span(group.first, group.last), f"{group.sessions:,}", f"{share:.1%}"), share))
    return found


STEP_COLUMNS: Final = ("step", "removed", "plays left", "sessions left", "option")


def step_cells(log: LogFacts) -> list[tuple[str, ...]]:
    """Return a row for each rule of preparation: see STEP_COLUMNS."""
    return [
        (
            step.step,
            f"{step.removed:,}",
            f"{step.plays:,}",
            "-" if step.sessions is None else f"{step.sessions:,}",
            step.option or "",
        )
        for step in log.steps
    ]


def reading(log: LogFacts) -> dict[str, str]:
    """Return how `segue prepare` read the log, by name. Facts that the log does not have are left out."""
    files = f"{len(log.files):,}" if len(log.files) < MOST_FILES else f"at least {MOST_FILES:,}"
    by_time = log.skipped_by.time
    facts = {
        "files": files if log.files else "",
        "sessions": "given by the log" if log.sessions_given else "inferred from pauses",
        "columns read": ", ".join(
            column if role == column else f"{role} from {column}" for role, column in log.columns.items()
        ),
        "columns not used": ", ".join(log.unused_columns),
        "lines ignored": ", ".join(f"{reason} {lines:,}" for reason, lines in log.ignored.items()),
        "repeated reports merged": f"{log.merged:,}",
        "contradictory reports": f"{log.conflicts:,}",
        "skips in the same second": counted(log.same_second_skips, by_time) if by_time else "",
        "notes": " ".join(map(sentence, log.notes)),
    }
    return {name: value for name, value in facts.items() if value}


def sentence(text: str) -> str:
    """Return a text with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def span(first: int, last: int) -> str:
    """Return a range of whole numbers."""
    return f"{first:,}" if first == last else f"{first:,}-{last:,}"


def counted(part: int, whole: int) -> str:
    """Return a number and its share."""
    return f"{part:,} ({part / whole:.1%})" if whole else f"{part:,}"


def _time(time: datetime | None) -> str:
    return "unknown" if time is None else f"{time.date().isoformat()} {time:%H:%M} UTC"


def _outcomes(of: Description) -> str:
    if of.outcomes.sources is None:
        return "simulation" if of.source == "synthetic" else "not recorded"
    counts = of.outcomes.sources.model_dump() | {"unknown": of.outcomes.unknown or 0}
    named = [
        f"{name.replace('_', ' ')} {counted(count, sum(counts.values()))}" for name, count in counts.items() if count
    ]
    return ", ".join(named) or "not recorded"
