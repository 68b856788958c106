"""What `segue recommend` shows of an answer: the tracks, how they score, and what each play and skip adds to that."""

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from segue.cli.terminal import bar, shares, titled

if TYPE_CHECKING:
    from service.releases.explanation import Explanation
    from service.releases.loaded import RecommendResult, Track

_WIDE, _NARROW = 16, 6  # characters of a bar
_ROOM, _ROOM_TO_EXPLAIN = 90, 140  # of a terminal that has room for the wide one


def items(answer: "RecommendResult") -> list[dict[str, Any]]:
    """The tracks for programs."""
    return [
        {"rank": rank, "track_id": t.track_id, "score": t.score, "title": t.title, "artist": t.artist}
        for rank, t in enumerate(answer.tracks, start=1)
    ]


def explained(explanation: "Explanation") -> dict[str, Any]:
    """Why, for programs; `contributions` are in the order of the items, and each in that of the plays."""
    return {
        "plays": [
            {"track_id": track.track_id, "outcome": "skipped" if skipped else "played"}
            for track, skipped in explanation.plays
        ],
        "contributions": explanation.contributions.tolist(),
        "ranks_without_skips": explanation.ranks_without_skips,
        "filtered": [
            {"track_id": one.track.track_id, "rank": one.rank, "reason": "heard" if one.heard else "excluded"}
            for one in explanation.filtered
        ],
    }


def next_tracks(answer: "RecommendResult", explanation: "Explanation | None", room: int) -> Table:
    """The tracks for people; with an explanation, what pulls each of them most and what pushes it away most.

    `room` is the terminal's width in characters.
    """
    width = _WIDE if room >= (_ROOM if explanation is None else _ROOM_TO_EXPLAIN) else _NARROW
    table = titled(_title(answer), _left_out(explanation) if explanation is not None else None)
    for name in ("rank", "track_id", "score", ""):  # where there is little room, the others are cut
        table.add_column(name, no_wrap=True, justify="right" if name in {"rank", "score"} else "left")
    for name in ("title", "artist"):
        table.add_column(name)
    if explanation is not None:
        for name in ("pulled by", "pushed by"):
            table.add_column(name)
        table.add_column("no skips", no_wrap=True, justify="right")
    tracks = answer.tracks
    for place, (track, share) in enumerate(zip(tracks, shares([t.score or 0.0 for t in tracks]), strict=True)):
        cells: list[str | Text] = [
            str(place + 1),
            Text(track.track_id),
            Text(f"{track.score:.4f}", style="bold"),
            bar(share, width, "cyan"),
            _cut(track.title or ""),
            _cut(track.artist or "", "dim"),
        ]
        table.add_row(*cells, *(_why(explanation, place) if explanation is not None else ()))
    return table


def _title(answer: "RecommendResult") -> str:
    if answer.source == "popularity":
        return f"the most played tracks of {answer.release.name}: nothing was played or skipped that it knows"
    heard = f"{answer.window_plays} played and {answer.window_skips} skipped"
    return f"next tracks by {answer.release.name}, which saw {heard}"


def _why(explanation: "Explanation", place: int) -> list[Text | str]:
    """The strongest pull, the strongest push, and the rank without skips, of one track."""
    line = explanation.contributions[place].tolist()
    best = max(range(len(line)), key=line.__getitem__, default=None)
    worst = min(range(len(line)), key=line.__getitem__, default=None)
    rank = explanation.ranks_without_skips[place]
    return [
        _play(explanation.plays[best], line[best]) if best is not None and line[best] > 0 else "",
        _play(explanation.plays[worst], line[worst]) if worst is not None and line[worst] < 0 else "",
        str(rank) if rank is not None else "-",
    ]


def _play(play: "tuple[Track, bool]", amount: float) -> Text:
    track, skipped = play
    outcome = ", skipped" if skipped else ""
    return _cut(f"{amount:+.3f} {track.title or track.track_id}{outcome}", "yellow" if amount < 0 else "green")


def _cut(text: str, style: str = "") -> Text:
    """Text that is cut where its column is too narrow, so that each track has one line."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _left_out(explanation: "Explanation") -> Text | None:
    if not explanation.filtered:
        return None
    named = (f"{one.track.track_id} (rank {one.rank})" for one in explanation.filtered)
    return Text(f"left out, as heard: {', '.join(named)}")
