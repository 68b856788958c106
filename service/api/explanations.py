"""The body of an answer's explanation: who pulls and who pushes, what was left out, where it is on the map."""

import math
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, Field

from segue.arrays import Float32
from segue.sessions import Outcome
from service.api.track_bodies import TrackBody
from service.releases.live_map import Places
from service.releases.loaded import RANKED_AGAIN, Explanation, RecommendResult


class ExplainedPlay(TrackBody):
    """A play that the encoder saw."""

    outcome: Outcome


class ExplainedItem(BaseModel):
    """Why a track is where it is."""

    track_id: str
    contributions: list[float] = Field(
        description="What each of `plays` adds to the score, negative where it pushes the track away; they add up to "
        "the score. Shapley values, estimated; empty where popularity answered"
    )
    rank_without_skips: int | None = Field(
        default=None, description=f"Its rank if nothing had been skipped; absent where that is beyond {RANKED_AGAIN}"
    )


class FilteredTrack(TrackBody):
    """A track that ranks within the answer and was left out."""

    rank: int = Field(ge=1, description="Its rank among all tracks")
    reason: Literal["heard", "excluded"]


Place = Annotated[list[float], Field(min_length=2, max_length=2)]


class PlacesBody(BaseModel):
    """Where these are on the release's map, each as [x, y] from -1 to 1."""

    query: Place | None = Field(
        default=None, description="Where the encoder's query stands: among the places of the tracks nearest to it"
    )
    path: list[Place | None] = Field(
        description="Of every play of the session, in the order of `GET /sessions/{session_id}`; null for a track that "
        "the release does not hold"
    )
    plays: list[Place] = Field(description="Of `plays`, in their order")
    items: list[Place] = Field(description="Of `items`, in their order")

    @classmethod
    def of(cls, places: Places) -> Self:
        """The body for places."""
        query = None if places.query is None else _rounded(places.query)
        path = [None if math.isnan(place[0]) else place for place in _rounded(places.path)]
        return cls(query=query, path=path, plays=_rounded(places.plays), items=_rounded(places.items))


class ExplanationBody(BaseModel):
    """Why an answer is as it is."""

    plays: list[ExplainedPlay] = Field(description="What the encoder saw, oldest first")
    items: list[ExplainedItem] = Field(description="In the answer's order")
    filtered: list[FilteredTrack] = Field(description="Best first")
    places: PlacesBody | None = Field(default=None, description="Absent where the release has no map")

    @classmethod
    def of(cls, answer: RecommendResult, explanation: Explanation) -> Self:
        """The body for an answer's explanation."""
        outcomes = (Outcome.PLAYED, Outcome.SKIPPED)
        table = answer.release.table
        lines = zip(answer.rows, explanation.contributions.tolist(), explanation.ranks_without_skips, strict=True)
        return cls(
            plays=[
                ExplainedPlay(outcome=outcomes[skipped], **TrackBody.of(track).model_dump())
                for track, skipped in explanation.plays
            ],
            items=[
                ExplainedItem(track_id=table.track_id(row), contributions=line, rank_without_skips=rank)
                for row, line, rank in lines
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
