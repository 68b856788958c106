"""Datasets to describe, written from sessions of (track, skipped), and their figures in plain Python."""

import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from training.data.dataset import Dataset, RawInteractions, write_listening
from training.data.log_facts import DataWarning, LogFacts, LogFile, PrepareStep, SkipSources

Sessions = Sequence[Sequence[tuple[int, bool]]]


def written(
    path: Path,
    sessions: Sessions,
    *,
    tracks: int | Sequence[str] = 30,
    starts: Sequence[datetime | None] | None = None,
    last_known: Sequence[bool] | None = None,
    source: str = "events",
    **facts: Any,
) -> Dataset:
    """A dataset of these sessions. A track is a position in the ids `tracks`, or in t00, t01, ..."""
    ids = [f"t{number:02}" for number in range(tracks)] if isinstance(tracks, int) else tracks
    plays = [play for session in sessions for play in session]
    listening = RawInteractions(
        tracks=pl.DataFrame({"track_id": ids, "title": [f"Title of {name}" for name in ids]}),
        codes=np.array([track for track, _ in plays], dtype=np.int64),
        skipped=np.array([skipped for _, skipped in plays], dtype=np.bool_),
        offsets=np.concatenate([[0], np.cumsum([len(session) for session in sessions])]).astype(np.int64),
        session_ids=pl.Series([f"s{number}" for number in range(len(sessions))], dtype=pl.String),
        started_at=None if starts is None else pl.Series(starts, dtype=pl.Datetime("ms", "UTC")),
        last_known=None if last_known is None else np.array(last_known, dtype=np.bool_),
    )
    return write_listening(path, listening, source, facts.pop("options", None), **facts)


def week_of_listening(path: Path) -> Dataset:
    """A dataset with everything that a description may show: files, steps, warnings, times, unknown outcomes."""
    rng = np.random.default_rng(7)
    sessions = []
    for _ in range(120):
        tracks = (rng.random(int(rng.integers(3, 26))) ** 2 * 30).astype(int).tolist()
        sessions.append([(track, bool(rng.random() < 0.15 + 0.02 * place)) for place, track in enumerate(tracks)])
    known = rng.random(120) < 0.75
    for session, is_known in zip(sessions, known, strict=True):
        if not is_known:
            session[-1] = (session[-1][0], False)
    plays = sum(map(len, sessions))
    first = datetime(2024, 3, 1, 18, tzinfo=UTC).timestamp()
    log = LogFacts(
        files=[
            LogFile(name="phone.csv", plays=1_000, skips=400),
            LogFile(name="<b>radio & co</b>.csv", plays=712, skips=9),
        ],
        skips_from=SkipSources(flag=1_000, time=plays - 1_000 - int((~known).sum())),
        unknown_outcomes=int((~known).sum()),
        skipped_by=SkipSources(flag=409, time=103),
        same_second_skips=31,
        merged=12,
        ignored={"podcast": 3},
        columns={"track": "track_id", "time": "played_at"},
        unused_columns=["country"],
        notes=["no zone was given: times were read as UTC"],
        steps=[
            PrepareStep(step="lines read", removed=0, plays=plays + 20),
            PrepareStep(step="malformed lines left out", removed=8, plays=plays + 12, option="--max-malformed"),
            PrepareStep(step="repeated reports merged", removed=12, plays=plays, sessions=120, option="--merge-within"),
        ],
        warnings=[
            DataWarning(
                code="started_again",
                message="the same listener starts the track of 12 plays again within 2 seconds. These are probably "
                "second reports: --merge-within 2 merges them",
            )
        ],
    )
    starts = [datetime.fromtimestamp(first + 3_600 * number, UTC) for number in range(120)]
    options = {"idle_gap_s": 1200, "max_session_plays": 25}
    return written(
        path, sessions, starts=starts, last_known=known.tolist(), log=log, malformed_lines=8, options=options
    )


def rate(outcomes: Sequence[bool | None]) -> dict[str, Any]:
    known = [outcome for outcome in outcomes if outcome is not None]
    skips = sum(known)
    return {"plays": len(known), "skips": skips, "skip_rate": skips / len(known) if known else None}


def figures(sessions: Sessions, last_known: Sequence[bool], tracks: int) -> dict[str, Any]:
    """What a description must say about these sessions, counted play by play."""
    outcomes = [
        [None if place == len(session) - 1 and not known else skipped for place, (_, skipped) in enumerate(session)]
        for session, known in zip(sessions, last_known, strict=True)
    ]
    everything = [outcome for session in outcomes for outcome in session]
    lengths = sorted(len(session) for session in sessions)
    played = Counter(track for session in sessions for track, _ in session)
    most = sorted(played.values(), reverse=True)
    earlier = [
        (number, place)
        for number, session in enumerate(sessions)
        for place, (track, _) in enumerate(session)
        if track in [other for other, _ in session[:place]]
    ]
    neighbours = [
        (session[place], session[place + 1], outcomes[number][place + 1])
        for number, session in enumerate(sessions)
        for place in range(len(session) - 1)
    ]
    half = next(n for n in range(1, len(most) + 1) if 2 * sum(most[:n]) >= sum(most))
    apart = sum(abs(one - other) for one in most for other in most)
    return {
        "plays": len(everything),
        "skips": sum(outcome is True for outcome in everything),
        "count": len(sessions),
        "mean_length": sum(lengths) / len(lengths),
        "quantiles": {
            f"{share:g}": lengths[max(math.ceil(share * len(lengths)), 1) - 1]
            for share in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
        },
        "with_skip": sum(any(session) for session in outcomes),
        "only_skips": sum(all(session) for session in outcomes),
        "with_targets": sum(length >= 3 for length in lengths),
        "positions": {
            place + 1: rate([session[place] for session in outcomes if len(session) > place])
            for place in range(lengths[-1])
        },
        "lengths": Counter(lengths),
        "first_play": rate([session[0] for session in outcomes]),
        "after_play": rate([after for (_, before), _, after in neighbours if not before]),
        "after_skip": rate([after for (_, before), _, after in neighbours if before]),
        "last_plays": rate([session[-1] for session in outcomes]),
        "repeated_last": sum(session[-1][0] in [track for track, _ in session[:-1]] for session in sessions),
        "repeats": len(earlier),
        "repeating_sessions": len({number for number, _ in earlier}),
        "immediate": sum(before[0] == after[0] for before, after, _ in neighbours),
        "immediate_after_skip": sum(before[0] == after[0] and before[1] for before, after, _ in neighbours),
        "played": len(most),
        "played_once": most.count(1),
        "top_1_percent": sum(most[: math.ceil(len(most) / 100)]) / sum(most),
        "top_10_percent": sum(most[: math.ceil(len(most) / 10)]) / sum(most),
        "tracks_of_half": half,
        # The mean difference of two tracks, relative to twice the mean: the definition of the Gini index.
        "gini": apart / (2 * len(most) * sum(most)),
        "track_plays": played,
        "track_skips": Counter(
            track
            for session, known in zip(sessions, outcomes, strict=True)
            for (track, _), outcome in zip(session, known, strict=True)
            if outcome
        ),
        "never_played": tracks - len(most),
    }
