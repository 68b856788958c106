"""What `segue recommend` prints: the tracks, their scores, and how each play and skip contributes to them."""

from functools import partial
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from segue.cli.terminal import bar, first_that_fits, shares, titled

if TYPE_CHECKING:
    from service.releases.explanation import Explanation
    from service.releases.lists import Move
    from service.releases.loaded import RecommendResult, Track

_WIDE, _NARROW = 16, 6  # characters of a bar
_WHOLE_ID = 40  # characters of an id that a narrow terminal shows in one line


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

    `room` is the width of the terminal in characters; None: no limit. If the columns do not fit, titles and
    explanations are in the lines of one column.
    """
    columns = [partial(_next_tracks, answer, explanation, width) for width in (_WIDE, _NARROW)]
    return first_that_fits([*columns, partial(_stacked, answer, explanation)], room)


def _next_tracks(answer: "RecommendResult", explanation: "Explanation | None", width: int) -> Table:
    table = titled(_title(answer), _excluded(explanation))
    for name in ("rank", "track_id", _score_name(answer), ""):
        table.add_column(name, no_wrap=True, justify="left" if name in {"track_id", ""} else "right")
    for name in ("title", "artist"):
        table.add_column(name)
    if explanation is not None:
        for name in ("raised by", "lowered by"):
            table.add_column(name)
        table.add_column("rank without skips", justify="right")
        if explanation.moves is not None:
            table.add_column("moved by")
    tracks = answer.tracks
    for place, (track, share) in enumerate(zip(tracks, shares([t.score or 0.0 for t in tracks]), strict=True)):
        cells: list[str | Text] = [
            str(place + 1),
            Text(track.track_id),
            _score(answer, track),
            bar(share, width, "cyan"),
            Text(track.title or ""),
            Text(track.artist or "", "dim"),
        ]
        if explanation is not None:
            cells += _reasons(explanation, place)
            if explanation.moves is not None:
                cells.append(_moved_by(explanation.moves[place]))
        table.add_row(*cells)
    return table


def _stacked(answer: "RecommendResult", explanation: "Explanation | None") -> Table:
    """Return a table for narrow terminals: title, artist and explanation of a track are lines of one column."""
    table = titled(_title(answer), _excluded(explanation))
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("track_id", no_wrap=max((len(t.track_id) for t in answer.tracks), default=0) <= _WHOLE_ID)
    table.add_column(_score_name(answer), justify="right", no_wrap=True)
    table.add_column("title, artist" if explanation is None else "title, artist, what raised or lowered it most")
    for place, track in enumerate(answer.tracks):
        words = Text(", ".join(filter(None, (track.title, track.artist))) or track.track_id)
        if explanation is not None:
            raised, lowered, rank = _reasons(explanation, place)
            for label, reason in (("raised by ", raised), ("lowered by ", lowered)):
                if reason.plain:
                    words.append("\n").append(label, "dim").append_text(reason)
            words.append(f"\nrank without skips {rank}", "dim")
            if explanation.moves is not None and (moves := explanation.moves[place]):
                words.append(f"\nmoved by {_moved_by(moves)}", "dim")
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


def _moved_by(moves: "list[Move]") -> str:
    """Return the steps that moved a track: `boost from 5 to 2, spacing from 2 to 1 (artist_gap)`."""
    return ", ".join(
        f"{move.step} from {move.from_rank or '-'} to {move.to_rank}"
        + (f" ({', '.join(move.rules)})" if move.rules else "")
        for move in moves
    )


def _play(play: "tuple[Track, bool]", amount: float) -> Text:
    track, skipped = play
    outcome = ", skipped" if skipped else ""
    return Text(f"{amount:+.3f} {track.title or track.track_id}{outcome}", "yellow" if amount < 0 else "green")


def _excluded(explanation: "Explanation | None") -> Text | None:
    if explanation is None or not explanation.filtered:
        return None
    named = (f"{one.track.track_id} (rank {one.rank})" for one in explanation.filtered)
    return Text(f"excluded (already played): {', '.join(named)}")
