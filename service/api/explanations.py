"""The body of an explanation: why the tracks of an answer were recommended."""

import itertools
import math
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, Field

from segue.arrays import Float32
from segue.sessions import Outcome
from service.api.tracks import TrackBody
from service.releases.explanation import RANKED_AGAIN, Explanation, Places
from service.releases.lists import Move
from service.releases.loaded import RecommendResult

MapPosition = Annotated[list[float], Field(min_length=2, max_length=2)]


class ExplainedPlay(TrackBody):
    """A play in the encoder's window."""

    outcome: Outcome


class MoveBody(BaseModel):
    """A step that changed the rank of a track, by itself or as it moved others."""

    step: Literal["boost", "diversity", "spacing", "pin", "exploration"]
    from_rank: int | None = Field(
        default=None, description="Its rank before the step. Absent if it was not among the ranked tracks"
    )
    to_rank: int = Field(description="Its rank after the step")
    rules: list[str] | None = Field(
        default=None,
        description="For `spacing`: the rules that held back the track, or tracks that it overtook, such as "
        "`artist_gap`",
    )

    @classmethod
    def of(cls, move: Move) -> Self:
        """The body for a move."""
        return cls(step=move.step, from_rank=move.from_rank, to_rank=move.to_rank, rules=move.rules or None)


class ExplainedItem(BaseModel):
    """Why a track has its rank."""

    track_id: str
    contributions: list[float] = Field(
        description="The contribution of each of `plays` to the score, negative if the play lowers it. They and "
        "`baseline` add up to the score. Estimated Shapley values; empty if popularity answered"
    )
    baseline: float | None = Field(
        default=None, description="The score without any play. Absent without caution and station, where it is 0"
    )
    parts: dict[str, float] | None = Field(
        default=None,
        description="What each part of a hybrid adds to the score: transition counts (ngram, follow, near, liked), the "
        "session itself (recent, own), popularity, and the encoder. With caution: log P(next) and "
        "caution * log P(played), as `next` and `played`. With a station and no caution: what the plays and the seeds "
        "add, as `session` and `station`. They add up to the score. Absent without counts, caution and station",
    )
    rank_without_skips: int | None = Field(
        default=None, description=f"Its rank if no play had been skipped. Absent beyond rank {RANKED_AGAIN}"
    )
    moved_by: list[MoveBody] | None = Field(
        default=None,
        description="The steps that changed its rank, in their order: from its rank by the score to its rank in the "
        "list. Absent without a policy that has steps, and without spacing",
    )


class FilteredTrack(TrackBody):
    """A track that was excluded, although it would rank among the returned ones."""

    rank: int = Field(ge=1, description="Its rank among all tracks")
    reason: Literal["heard", "excluded"] = Field(
        description="`heard`: excluded by `repeat`, because the session contains the track. `excluded`: by `exclude`, "
        "a dislike or a ban"
    )


class PlacesBody(BaseModel):
    """Positions on the release's map, each as [x, y] from -1 to 1."""

    query: MapPosition | None = Field(
        default=None, description="Position of the session's query vector, interpolated between its nearest tracks"
    )
    path: list[MapPosition | None] = Field(
        description="Position of each play of the session, in the order of `GET /sessions/{session_id}`. Null for a "
        "track that is not in the catalogue"
    )
    plays: list[MapPosition] = Field(description="Positions of `plays`, in the same order")
    items: list[MapPosition] = Field(description="Positions of `items`, in the same order")

    @classmethod
    def of(cls, places: Places) -> Self:
        """The body for these positions."""
        query = None if places.query is None else _rounded(places.query)
        path = [None if math.isnan(place[0]) else place for place in _rounded(places.path)]
        return cls(query=query, path=path, plays=_rounded(places.plays), items=_rounded(places.items))


class ExplanationBody(BaseModel):
    """Why the tracks were recommended."""

    plays: list[ExplainedPlay] = Field(description="The plays in the encoder's window, oldest first")
    items: list[ExplainedItem] = Field(description="In the order of the recommended tracks")
    filtered: list[FilteredTrack] = Field(description="Best first")
    places: PlacesBody | None = Field(default=None, description="Absent if the release has no map")

    @classmethod
    def of(cls, answer: RecommendResult, explanation: Explanation) -> Self:
        """The body for the explanation of an answer."""
        outcomes = (Outcome.PLAYED, Outcome.SKIPPED)
        parts = explanation.parts if explanation.parts is not None else itertools.repeat(None)
        baseline = explanation.baseline if explanation.baseline is not None else itertools.repeat(None)
        moves = explanation.moves if explanation.moves is not None else itertools.repeat(None)
        known = answer.rows, explanation.contributions.tolist(), explanation.ranks_without_skips
        lines = zip(*known, parts, baseline, moves, strict=False)
        track_id = answer.release.catalogue.track_id
        return cls(
            plays=[
                ExplainedPlay(outcome=outcomes[skipped], **TrackBody.of(track).model_dump())
                for track, skipped in explanation.plays
            ],
            items=[
                ExplainedItem(
                    track_id=track_id(row),
                    contributions=line,
                    rank_without_skips=rank,
                    parts=of_parts,
                    baseline=base,
                    moved_by=None if moved is None else [MoveBody.of(move) for move in moved],
                )
                for row, line, rank, of_parts, base, moved in lines
            ],
            filtered=[
                FilteredTrack(
                    rank=one.rank, reason="heard" if one.heard else "excluded", **TrackBody.of(one.track).model_dump()
                )
                for one in explanation.filtered
            ],
            places=PlacesBody.of(explanation.places) if explanation.places is not None else None,
        )


def _rounded(places: Float32) -> Any:
    return np.round(places.astype(np.float64), 5).tolist()
