"""What every call uses: the parts of the running service, and parameters that several calls share."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Query, Request
from fastapi import Path as PathParameter
from pydantic import BaseModel, Field, WithJsonSchema, field_validator

from segue.attributes import NAME_PATTERN
from segue.filters import MAX_TEXT, Every, Filter, read_filter
from segue.list_steps import MAX_GAP, Spacing
from segue.policy import NAME_PATTERN as POLICY_PATTERN
from segue.policy import Policy
from segue.recommend import MAX_CAUTION
from segue.release import RELEASE_NAME_PATTERN
from segue.sessions import (
    ALLOW_REPEATS,
    MAX_ID_LENGTH,
    REPEAT_PATTERN,
    SESSION_ID_PATTERN,
    TEXT_PATTERN,
    RepeatPolicy,
    repeat_policy,
    whole_number,
)
from service.api.stream import SessionStreams, StationBody
from service.ops.status import Readiness, ServiceStatus
from service.releases.experiment import Attribution
from service.releases.loaded import LoadedRelease
from service.releases.policies import Policies
from service.releases.registry import ReleaseRegistry
from service.releases.served_lists import ServedLists
from service.sessions.store import SessionStore
from service.telemetry import Telemetry
from service.threads import Threads

MAX_TRACKS = 100  # in an answer, and in `exclude`
DEFAULT_K = 20
REPEAT_DESCRIPTION = (
    "Whether tracks of the session may be recommended. `allow`: yes. `never`: no. `after:N`, with N from 1 to 1000: a "
    "track may be recommended again once N plays of any tracks, skipped ones included, have followed its latest play. "
    "Default: that of the policy, or `allow`"
)


@dataclass(slots=True)
class AppState:
    """What the lifespan opened. A request takes its release once, as `releases` may give the next request another."""

    releases: ReleaseRegistry
    policies: Policies
    attribution: Attribution
    served_lists: ServedLists | None  # None: lists are not logged
    store: SessionStore
    streams: SessionStreams
    threads: Threads
    telemetry: Telemetry
    status: ServiceStatus
    readiness: Readiness
    max_request_bytes: int
    fallback: bool  # answer by popularity while the store or the model is unavailable
    model_error_logged_at: float = -math.inf  # time.monotonic()

    async def without_model(self, call: Callable[..., object], *arguments: object) -> None:
        """Run a slow call that needs no model in a ranking thread, or in another one if the model hangs in all."""
        if self.threads.exhausted:
            await asyncio.to_thread(call, *arguments)
        else:
            await self.threads.run(call, *arguments)


async def _service(request: Request) -> AppState:  # async, or FastAPI would call it in a thread
    service: AppState = request.app.state.service
    return service


def link_responses(**links: tuple[str, dict[str, str]]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI links from an answer to the calls that may follow it: `name=(operation, parameters)`."""
    described = {
        name: {"operationId": operation, "parameters": given} for name, (operation, given) in sorted(links.items())
    }
    return {200: {"links": described}}


Service = Annotated[AppState, Depends(_service)]

SessionId = Annotated[
    str,
    PathParameter(pattern=SESSION_ID_PATTERN, description="Your id of the session", examples=["s-42"]),
]
SessionIdQuery = Annotated[str, Query(pattern=SESSION_ID_PATTERN, description="The session to continue")]
TrackIdPath = Annotated[
    str,
    PathParameter(
        min_length=1, max_length=MAX_ID_LENGTH, pattern=TEXT_PATTERN, description="A track id. It may contain slashes"
    ),
]
K = Annotated[int, Query(ge=1, le=MAX_TRACKS, description="Number of tracks to return")]
Repeat = Annotated[
    str | None,
    Query(pattern=REPEAT_PATTERN, description=REPEAT_DESCRIPTION, examples=["after:20"]),
    WithJsonSchema({"type": "string", "pattern": REPEAT_PATTERN}),
]
FILTER_DESCRIPTION = (
    "Only tracks with these attributes, such as `genre:rock|pop,explicit:false,released:2020-01-01..`, or a JSON "
    "object. A track without a value satisfies neither a condition nor its negation (docs/how-to/filter-tracks.md)"
)
FilterText = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=MAX_TEXT,
        description=FILTER_DESCRIPTION,
        examples=["genre:rock|pop,explicit:false"],
    ),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_TEXT}),
]
Fields = Annotated[
    str | None,
    Query(
        max_length=MAX_TEXT,
        pattern=f"^{NAME_PATTERN}(,{NAME_PATTERN})*$",
        description="Attributes to return with each track, separated by commas",
        examples=["genre,explicit"],
    ),
    WithJsonSchema({"type": "string", "maxLength": MAX_TEXT, "pattern": f"^{NAME_PATTERN}(,{NAME_PATTERN})*$"}),
]
MAX_PER_ARTIST_DESCRIPTION = (
    "Maximum number of tracks of one artist. Given up only if the list would be shorter than `k`. A release with the "
    "attribute `artist_id` uses it, others the artist's name"
)
ARTIST_GAP_DESCRIPTION = (
    "Number of tracks of other artists between two of the same artist, at least. The latest plays of the session "
    "count. Given up only if no other track is left. Default: that of the policy, or 0"
)
MaxPerArtist = Annotated[
    int | None,
    Query(ge=1, le=MAX_TRACKS, description=MAX_PER_ARTIST_DESCRIPTION),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_TRACKS}),
]
ArtistGap = Annotated[
    int | None,
    Query(ge=0, le=MAX_GAP, description=ARTIST_GAP_DESCRIPTION),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": MAX_GAP}),
]
POLICY_DESCRIPTION = (
    "A policy of the service (`GET /policies`): options and steps that make the list. Parameters of the request take "
    "precedence, and both filters must hold (docs/how-to/policies.md)"
)
SEED_DESCRIPTION = "Seed of the policy's exploration: the same request with the same seed gets the same list"
MAX_SEED = 2**31 - 1
PolicyName = Annotated[
    str | None,
    Query(pattern=POLICY_PATTERN, description=POLICY_DESCRIPTION, examples=["radio"]),
    WithJsonSchema({"type": "string", "pattern": POLICY_PATTERN}),
]
Seed = Annotated[
    int | None,
    Query(ge=0, le=MAX_SEED, description=SEED_DESCRIPTION),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": MAX_SEED}),
]
ATTRIBUTES_DESCRIPTION = "The attributes that `fields` names. An attribute without a value is absent"

_read_text = lru_cache(maxsize=1_000)(read_filter)  # the same few texts come with every request


async def filter_of(service: AppState, live: LoadedRelease, given: str | dict[str, Any]) -> Filter:
    """Read the filter of a request and look for its tracks, if no request did before.

    Raises BadFilter, and UnknownAttribute if it names an attribute that the release does not have.
    """
    wanted = _read_text(given) if isinstance(given, str) else read_filter(given)
    await _prepare(service, live, wanted)
    return wanted


class Asked(NamedTuple):
    """The options of a request that its policy may have as well, as the client gave them. None: not given."""

    repeat: str | None = None
    caution: float | None = None
    filter: str | dict[str, Any] | None = None
    max_per_artist: int | None = None
    artist_gap: int | None = None
    policy: str | None = None
    seed: int | None = None


class ListRules(NamedTuple):
    """How a list is made: the fields of Question behind `exclude`, in their order."""

    repeat: RepeatPolicy
    caution: float
    filter: Filter | None
    spacing: Spacing | None
    policy: Policy | None = None
    seed: int | None = None


async def rules_of(service: AppState, live: LoadedRelease, asked: Asked) -> ListRules:
    """Return how to make the list of a request. Its own options take precedence over those of its policy.

    Raises UnknownPolicy, BadFilter, UnknownAttribute, NoPlayHead and NoEmbeddings.
    """
    wanted = None if asked.filter is None else await filter_of(service, live, asked.filter)
    if asked.policy is None:
        most, gap = asked.max_per_artist, asked.artist_gap or 0
        spacing = Spacing(most, gap) if most or gap else None
        if spacing is not None:
            live.check_spacing(spacing)
        repeats = ALLOW_REPEATS if asked.repeat is None else repeat_policy(asked.repeat)
        return ListRules(repeats, live.caution(asked.caution), wanted, spacing)
    policy = service.policies.named(asked.policy)
    if policy.filter is not None:
        wanted = policy.filter if wanted is None else Every((policy.filter, wanted))
        await _prepare(service, live, wanted)
    repeats = (policy.repeat or ALLOW_REPEATS) if asked.repeat is None else repeat_policy(asked.repeat)
    caution = live.caution(policy.caution if asked.caution is None else asked.caution)
    spacing = policy.spacing(asked.max_per_artist, asked.artist_gap)
    if spacing is not None:
        live.check_spacing(spacing)
    if not policy.has_steps:
        return ListRules(repeats, caution, wanted, spacing)
    for needed in live.filters_of(policy, wanted):
        await _prepare(service, live, needed)
    return ListRules(repeats, caution, wanted, spacing, policy, asked.seed)


async def _prepare(service: AppState, live: LoadedRelease, wanted: Filter) -> None:
    if not live.is_ready(wanted):
        await service.without_model(live.recommender_for, wanted)


def fields_of(live: LoadedRelease, fields: str) -> list[str]:
    """Return the attributes that a request asks for, separated by commas. Raises UnknownAttribute."""
    names = fields.split(",") if fields else []
    for name in names:
        live.catalogue.attributes[name]
    return names


Caution = Annotated[
    float | None,
    Query(
        ge=0,
        le=MAX_CAUTION,
        description="Weight of the probability that the listener does not skip a track: tracks are ranked by "
        "log P(next) + caution * log P(played). 0 ranks by the model's score alone. Default: that of the policy, or "
        "the option `caution` that the release was trained with",
    ),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": MAX_CAUTION}),
]
ReleaseName = Annotated[
    str | None,
    Query(
        pattern=RELEASE_NAME_PATTERN,
        description="A live release to ask instead of the session's own. GET /releases/current lists them",
    ),
    WithJsonSchema({"type": "string", "pattern": RELEASE_NAME_PATTERN}),
]


class RankOptions(BaseModel):
    """Options of a body that asks for ranked tracks."""

    repeat: str | None = Field(
        default=None, pattern=REPEAT_PATTERN, description=REPEAT_DESCRIPTION, examples=["after:20"]
    )
    caution: float | None = Field(
        default=None,
        ge=0,
        le=MAX_CAUTION,
        description="Weight of the probability that the listener does not skip a track. Default: that of the policy or "
        "of the release",
    )
    policy: str | None = Field(default=None, pattern=POLICY_PATTERN, description=POLICY_DESCRIPTION, examples=["radio"])


class ListOptions(RankOptions):
    """Options of a body that asks for lists of next tracks."""

    k: int = Field(default=DEFAULT_K, ge=1, le=MAX_TRACKS, description="Number of tracks to return, for each session")
    filter: str | dict[str, Any] | None = Field(default=None, description=FILTER_DESCRIPTION)
    fields: list[str] = Field(
        default_factory=list, max_length=MAX_TRACKS, description="Attributes to return with each track"
    )
    max_per_artist: int | None = Field(default=None, ge=1, le=MAX_TRACKS, description=MAX_PER_ARTIST_DESCRIPTION)
    artist_gap: int | None = Field(default=None, ge=0, le=MAX_GAP, description=ARTIST_GAP_DESCRIPTION)
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description=SEED_DESCRIPTION)
    station: StationBody | None = Field(
        default=None,
        description="Seeds that pull the list, in place of the session's own station (docs/how-to/stations.md)",
    )

    _whole = field_validator("k", "artist_gap", "max_per_artist", "seed", mode="before")(whole_number)

    async def rules(self, service: AppState, live: LoadedRelease) -> ListRules:
        """Return how to make the lists. Raises as `rules_of`."""
        asked = Asked(
            self.repeat, self.caution, self.filter, self.max_per_artist, self.artist_gap, self.policy, self.seed
        )
        return await rules_of(service, live, asked)
