"""The bodies of tracks in answers."""

from typing import Self

from pydantic import BaseModel, Field

from service.releases.loaded import Track


class TrackBody(BaseModel):
    """A track of the catalogue."""

    track_id: str
    title: str | None = Field(default=None, description="Absent where the catalogue does not know it")
    artist: str | None = Field(default=None, description="Absent where the catalogue does not know it")

    @classmethod
    def of(cls, track: Track) -> Self:
        """The body for a track."""
        return cls(track_id=track.track_id, title=track.title, artist=track.artist)


class RankedTrackBody(BaseModel):
    """A track in an order."""

    rank: int = Field(ge=1, description="1 is the best")
    track_id: str
    score: float = Field(description="Larger is better; comparable within one answer only")
    title: str | None = Field(default=None, description="Absent where the catalogue does not know it")
    artist: str | None = Field(default=None, description="Absent where the catalogue does not know it")

    @classmethod
    def list_of(cls, tracks: list[Track]) -> list[Self]:
        """The bodies for tracks, best first."""
        return [
            cls(rank=rank, track_id=track.track_id, title=track.title, artist=track.artist, score=track.score or 0.0)
            for rank, track in enumerate(tracks, start=1)
        ]


class FoundTracks(BaseModel):
    """Tracks found by title, artist or id, most played first."""

    items: list[TrackBody]


class SimilarTracks(BaseModel):
    """Tracks near another, nearest first."""

    items: list[RankedTrackBody]
