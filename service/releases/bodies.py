"""Facts about releases as `GET /releases` and `GET /releases/current` answer them."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field

from service.releases.loaded import LoadedRelease


class ReleaseBody(BaseModel):
    """Facts about what is served, from the release's manifest."""

    name: str = Field(description="What answers call the release")
    folder: str = Field(description="Its folder: what `PUT /releases/current` takes to serve it again")
    model: str
    tracks: int = Field(description="Tracks in the catalogue")
    dimension: int | None = Field(description="Columns of the item embeddings")
    window: int = Field(description="Latest plays that the encoder sees")
    loss: dict[str, Any] | None = Field(description="The training objective")
    created: datetime
    dataset: dict[str, Any] = Field(description="What the release was trained on")
    evaluation: dict[str, Any] = Field(description="Validation summary of the finished model")
    index: dict[str, Any] = Field(description="How near tracks are searched")

    @classmethod
    def of(cls, live: LoadedRelease) -> Self:
        """The body for a release."""
        manifest = live.release.manifest
        return cls(
            name=manifest.name,
            folder=live.folder,
            model=manifest.model,
            tracks=manifest.tracks,
            dimension=manifest.dimension,
            window=manifest.window.length,
            loss=manifest.loss.model_dump() if manifest.loss is not None else None,
            created=manifest.created,
            dataset=manifest.dataset.model_dump(),
            evaluation=manifest.evaluation,
            index=live.index_facts(),
        )


class ListedRelease(BaseModel):
    """A folder of `SEGUE_RELEASES_DIR`, by its manifest, whose files have not been looked at."""

    folder: str = Field(description="What `PUT /releases/current` takes")
    name: str | None = Field(default=None, description="What answers call the release")
    model: str | None = None
    created: datetime | None = None
    tracks: int | None = None
    validation_hr10: float | None = Field(default=None, description="HR@10 on validation targets, where it is known")
    problem: str | None = Field(default=None, description="Why it cannot be served, where that is seen at a glance")


class Releases(BaseModel):
    """What the service can be swapped to."""

    items: list[ListedRelease] = Field(description="Newest first, at most 1,000")
    can_swap: bool = Field(description="Whether there is a folder of releases (`SEGUE_RELEASES_DIR`)")
    current: str = Field(description="The folder of what is served")
    before: str | None = Field(
        default=None, description="The folder served before it: what to put to roll back. Absent where none is known"
    )
