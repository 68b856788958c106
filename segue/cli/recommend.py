"""What `segue recommend` prints: the tracks, their scores, and how each play and skip contributes to them."""

from functools import partial
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from segue.cli.terminal import bar, first_that_fits, shares, titled

if TYPE_CHECKING:
    from service.releases.explanation import Explanation
    from service.releases.loaded import RecommendResult, Track

_WIDE, _NARROW = 16, 6  # characters of a bar
_ROOM_FOR_COLUMNS = 120  # characters of a terminal that shows an explanation in columns, not below each track


def items(answer: "RecommendResult") -> list[dict[str, Any]]:
    """Return the tracks for JSON output."""
    return [
        {"rank": rank, "track_id": t.track_id, "score": t.score, "title": t.title, "artist": t.artist}
        for rank, t in enumerate(answer.tracks, start=1)
    ]


def explained(explanation: "Explanation") -> dict[str, Any]:
    """Return the explanation for JSON output. `contributions` has a list per track with a value per play."""
    return {
        "plays": [
            {"track_id": track.track_id, "outcome": "skipped" if skipped else "played"}
            for track, skipped in explanation.plays
        ],
        "contributions": explanation.contributions.tolist(),
        "ranks_without_skips": explanation.ranks_without_skips,
        **({} if explanation.moves is None else {"moved_by": [[m._asdict() for m in of] for of in explanation.moves]}),
        "filtered": [
            {"track_id": one.track.track_id, "rank": one.rank, "reason": "heard" if one.heard else "excluded"}
            for one in explanation.filtered
        ],
    }


def next_tracks(answer: "RecommendResult", explanation: "Explanation | None", room: int | None = None) -> Table:
    """Return the table of recommended tracks; with an explanation, what raises and lowers each of them most.

    `room` is the width of the terminal in characters; None: no limit.
    """
    if explanation is not None and room is not None and room < _ROOM_FOR_COLUMNS:
        return _explained_below(answer, explanation)
    return first_that_fits([partial(_next_tracks, answer, explanation, width) for width in (_WIDE, _NARROW)], room)


def _next_tracks(answer: "RecommendResult", explanation: "Explanation | None", width: int) -> Table:
    table = titled(_title(answer), _excluded(explanation))
    for name in ("rank", "track_id", _score_name(answer), ""):  # these columns are never cut
        table.add_column(name, no_wrap=True, justify="left" if name in {"track_id", ""} else "right")
    for name in ("title", "artist"):
        table.add_column(name)
    if explanation is not None:
        for name in ("raised by", "lowered by"):
            table.add_column(name)
        table.add_column("rank without skips", justify="right")
    tracks = answer.tracks
    for place, (track, share) in enumerate(zip(tracks, shares([t.score or 0.0 for t in tracks]), strict=True)):
        cells: list[str | Text] = [
            str(place + 1),
            Text(track.track_id),
            _score(answer, track),
            bar(share, width, "cyan"),
            _cut(track.title or ""),
            _cut(track.artist or "", "dim"),
        ]
        table.add_row(*cells, *(_reasons(explanation, place) if explanation is not None else ()))
    return table


def _explained_below(answer: "RecommendResult", explanation: "Explanation") -> Table:
    """Return a table for narrow terminals: the explanation is on a second line of each track."""
    table = titled(_title(answer), _excluded(explanation))
    for name in ("rank", "track_id", _score_name(answer)):
        table.add_column(name, no_wrap=True, justify="left" if name == "track_id" else "right")
    table.add_column("track, and what raised or lowered it most")
    for place, track in enumerate(answer.tracks):
        raised, lowered, rank = _reasons(explanation, place)
        named = ", ".join(filter(None, (track.title, track.artist))) or track.track_id
        words = Text.assemble(named, "\n")
        for label, reason in (("raised by ", raised), ("lowered by ", lowered)):
            if reason.plain:
                words.append(label, "dim").append_text(reason).append("\n")
        words.append(f"rank without skips {rank}", "dim")
        table.add_row(str(place + 1), Text(track.track_id), _score(answer, track), words)
    return table


def _score_name(answer: "RecommendResult") -> str:
    return "plays" if answer.source == "popularity" else "score"


def _score(answer: "RecommendResult", track: "Track") -> Text:
    text = f"{track.score:,.0f}" if answer.source == "popularity" else f"{track.score:.4f}"
    return Text(text, style="bold")


def _title(answer: "RecommendResult") -> str:
    top = f"Top {len(answer.tracks)} from {answer.release.name}"
    if answer.source == "popularity":
        return f"{top} by popularity (the session has no known track)"
    return f"{top} (session: {answer.window_plays} played, {answer.window_skips} skipped)"


def _reasons(explanation: "Explanation", place: int) -> tuple[Text, Text, str]:
    """Return the play that raises a track most, the play that lowers it most, and its rank without skips."""
    line = explanation.contributions[place].tolist()
    best = max(range(len(line)), key=line.__getitem__, default=None)
    worst = min(range(len(line)), key=line.__getitem__, default=None)
    rank = explanation.ranks_without_skips[place]
    return (
        _play(explanation.plays[best], line[best]) if best is not None and line[best] > 0 else Text(),
        _play(explanation.plays[worst], line[worst]) if worst is not None and line[worst] < 0 else Text(),
        str(rank) if rank is not None else "-",
    )


def _play(play: "tuple[Track, bool]", amount: float) -> Text:
    track, skipped = play
    outcome = ", skipped" if skipped else ""
    return _cut(f"{amount:+.3f} {track.title or track.track_id}{outcome}", "yellow" if amount < 0 else "green")


def _cut(text: str, style: str = "") -> Text:
    """Return text that is cut if its column is too narrow, so that each track has one line."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _excluded(explanation: "Explanation | None") -> Text | None:
    if explanation is None or not explanation.filtered:
        return None
    named = (f"{one.track.track_id} (rank {one.rank})" for one in explanation.filtered)
    return Text(f"excluded (already played): {', '.join(named)}")
