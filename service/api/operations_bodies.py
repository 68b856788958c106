"""What operators are answered: the bodies of `GET /operations` and `GET /releases`.

Counters count since the service started, over all its workers: rates are made by whoever looks twice
(segue/cli/rates.py, web/ops-figures.js).
"""

from datetime import datetime

from pydantic import BaseModel, Field

from service.api.bodies import ReleaseBody


class RouteNumbers(BaseModel):
    """What was answered on one route."""

    method: str = Field(description="`any` where no route was found")
    route: str = Field(description="The path's template; `none` where no route was found")
    statuses: dict[str, int] = Field(description="Answers by status")
    seconds: float = Field(description="Time that they took, together")
    within: list[int] = Field(
        description="Answers by the time they took: up to each of `bounds_s` and longer than the one before; the last "
        "are those beyond all of them"
    )


class ReleaseNumbers(BaseModel):
    """What became of one release's recommendations."""

    release: str
    in_use: bool
    lists: int = Field(description="Lists answered")
    popularity_lists: int = Field(description="Those of them that came from popularity")
    plays: int = Field(description="Plays of tracks that it had recommended, in the sessions that are looked at")
    skips: int = Field(description="Those of them that were skipped")


class EventNumbers(BaseModel):
    """What was reported."""

    plays: int
    skips: int
    duplicates: int
    unknown_tracks: int
    sessions: int = Field(description="Sessions that began")


class RedisState(BaseModel):
    """The session store. What it says of itself is absent where it is away, or its user may not ask (`+info`)."""

    reachable: bool = Field(description="Whether it answered within a second")
    detail: str | None = Field(default=None, description="What is wrong, or why something is absent")
    workers_away: int = Field(description="Workers that do not ask it for now, as it did not answer (circuit breaker)")
    repeats: int = Field(description="Commands sent again, as a connection had ended")
    version: str | None = None
    nodes: int | None = Field(default=None, description="Servers that take writes")
    clients: int | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = Field(default=None, description="0 for none")
    evicted_keys: int | None = Field(default=None, description="Keys dropped for want of memory: sessions are lost")
    append_only: bool | None = Field(default=None, description="Whether it keeps an append-only file")
    last_write_ok: bool | None = Field(default=None, description="Whether its latest write to disk succeeded")


class LogFile(BaseModel):
    """A file of the event log."""

    name: str
    written_at: datetime
    bytes: int


class EventLogState(BaseModel):
    """The event log."""

    kept: bool = Field(description="Whether events are logged")
    written_here: bool = Field(description="Whether this service writes the files")
    waiting: int | None = Field(default=None, description="Events in Redis that are in no file; absent if it is away")
    oldest_s: float | None = Field(default=None, description="Age of the oldest of them, in seconds")
    last_file: LogFile | None = Field(default=None, description="The latest file, where this service writes them")
    plays_written: int
    dropped: int = Field(description="Events that were dropped as their stream was full: they are in no file")
    failures: int = Field(description="Turns of the writer that failed")


class Experiment(BaseModel):
    """A second release that answers a share of the sessions."""

    release: str
    folder: str
    share: float


class Operations(BaseModel):
    """The service at a moment. Counters count since it started."""

    instance: str = Field(description="Differs for each start and replica: only counters of the same one compare")
    at: float = Field(description="When this was counted, in seconds since 1970")
    bounds_s: list[float] = Field(description="Bounds of `within`, in seconds, rising")
    routes: list[RouteNumbers]
    shed: int = Field(description="Requests and connections refused as the service was full; in no route's numbers")
    events: EventNumbers
    releases: list[ReleaseNumbers]
    fallbacks: dict[str, int] = Field(description="Lists that came from popularity as this had failed")
    redis: RedisState
    event_log: EventLogState
    release: ReleaseBody = Field(description="What is served")
    experiment: Experiment | None = None
    swaps: dict[str, int] = Field(description="Releases that were `loaded` or `rejected`")


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
