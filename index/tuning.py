"""Build the index of a release, tune the index to a recall target, record the measurements, and open the index.

The caller passes query vectors that the release's encoder computed for real windows. Every second query is used to
choose the search-time parameter. The other queries are held out, and give the recall and the times in index.json.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from index import faiss_cpu, faiss_gpu
from index.exact import RECALL_K, ExactIndex, RecallBenchmark
from index.faiss_cpu import FaissIndex, Parameters
from segue.arrays import Float32
from segue.catalogue import FIRST_TRACK_ROW
from segue.errors import BadOption, BadRelease
from segue.recommend import NearestTracks
from segue.release import INDEX, INDEX_FACTS, ITEM_EMBEDDINGS, Release, with_index
from segue.safe_files import read_json

Device: TypeAlias = Literal["cpu", "gpu"]
Kind: TypeAlias = Literal["exact", faiss_cpu.Kind]
KINDS: Final[tuple[str, ...]] = ("auto", "exact", *faiss_cpu.KINDS)
DEVICES: Final[tuple[str, ...]] = get_args(Device)
SMALL_CATALOGUE: Final = 50_000  # tracks; exact search is used below this size: it takes about 1 ms and needs no file

_SEED: Final = 0
_LARGE_CATALOGUE: Final = 1_500_000  # tracks; from this size on, `auto` builds no HNSW graph, which would take hours
# If a kind misses the recall target at every setting, the kind given here is built instead.
_FALLBACK_KIND: Final[dict[str, faiss_cpu.Kind]] = {
    "hnsw-sq8": "hnsw",
    "hnsw": "ivf",
    "ivf-pq": "ivf-sq8",
    "ivf-pq4": "ivf",
    "ivf-sq8": "ivf",
    "ivf": "flat",
    "flat-sq8": "flat",
}

# The search-time parameter of each kind, with its first and its last value. The last value of nprobe is the number of
# lists of the index.
_STEPS: Final[dict[str, tuple[Literal["nprobe", "ef_search", "rerank"], int, int]]] = {
    "flat": ("rerank", 1, 64),
    "ivf": ("nprobe", 1, 1),
    "hnsw": ("ef_search", 16, 2048),
}


class TrialPoint(BaseModel):
    """One measurement of recall and search time during tuning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    parameter: Literal["nprobe", "ef_search", "rerank"] | None = Field(description="None where there is none to tune")
    value: int | None
    recall: float = Field(ge=0, le=1, description="Recall@recall_k over the queries that tune")
    ms: float = Field(ge=0, description="Median milliseconds of one query alone, one thread")


class IndexFacts(BaseModel):
    """The content of `index.json`: the kind, parameters and measurements of an index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    device: Device = Field(description="Where it was measured; a file opens on either device if the kind allows")
    parameters: Parameters
    recall_target: float = Field(gt=0, le=1)
    recall: float = Field(ge=0, le=1, description="Recall@recall_k over the held-out queries, ties allowed")
    recall_k: int = Field(ge=1)
    queries: int = Field(ge=1, description="Held-out queries")
    search_ms: float = Field(ge=0, description="Median milliseconds of one held-out query alone")
    exact_ms: float = Field(ge=0, description="The same with exact search on CPU, in the same run")
    build_s: float = Field(ge=0, description="Seconds that building took, all threads")
    seed: int
    tracks: int = Field(ge=0)
    dimension: int = Field(ge=1)
    embeddings_sha256: str | None = Field(default=None, description="Of the item embeddings that it was built from")
    tried: tuple[TrialPoint, ...] = ()

    @model_validator(mode="after")
    def _searchable(self) -> "IndexFacts":
        needed = _STEPS[_structure(self.kind)][0] if self.kind != "exact" else "rerank"
        if getattr(self.parameters, needed) is None:
            raise ValueError(f"an index of the kind {self.kind} needs {needed}")
        return self


def build_index(
    release: Release,
    queries: Float32,
    kind: str = "auto",
    device: str = "cpu",
    recall_target: float = 0.99,
) -> tuple[bytes | None, IndexFacts]:
    """Build the index of a release and tune the index to a recall target.

    If a kind misses the target at every setting, a kind with higher recall is built instead. The last of these kinds
    is `flat`, which searches exactly. The kind `auto` compares several kinds and selects the fastest.

    Args:
        release: The release. Its item embeddings are indexed.
        queries: [n, dim] float32, query vectors that the encoder computed for real windows. A few hundred are enough.
        kind: One of KINDS.
        device: One of DEVICES.
        recall_target: The required recall@RECALL_K, above 0 and at most 1.

    Returns:
        The content of index.faiss, or None for exact search, and the facts for index.json.

    Raises:
        BadOption: If `kind`, `device`, `recall_target` or `queries` is invalid.
        BadRelease: If the release has no encoder.

    """
    _check_options(kind, device, recall_target)
    embeddings = _embeddings_of(release)
    exam = RecallBenchmark.of(queries, embeddings)
    tried: list[TrialPoint] = []
    search = _Search(exam, "gpu" if device == "gpu" else "cpu", recall_target, tried)
    best = search.best(kind)
    facts = IndexFacts(
        kind=best.kind,
        device=search.device,
        parameters=best.parameters,
        recall_target=recall_target,
        recall=best.recall,
        recall_k=RECALL_K,
        queries=len(exam.test_queries.queries),
        search_ms=best.ms,
        exact_ms=exam.exact_ms,
        build_s=best.build_s,
        seed=_SEED,
        tracks=len(embeddings) - FIRST_TRACK_ROW,
        dimension=embeddings.shape[1],
        embeddings_sha256=release.manifest.files[ITEM_EMBEDDINGS].sha256,
        tried=tuple(tried),
    )
    return (None if best.index is None else best.index.to_bytes()), facts


def index_release(
    release: Release,
    queries: Float32,
    kind: str = "auto",
    device: str = "cpu",
    recall_target: float = 0.99,
) -> tuple[Release, IndexFacts]:
    """Build an index as `build_index` does, and replace the release by one that contains the index.

    `queries` [n, dim] float32 are query vectors of the encoder. Returns the new release and the facts of the index.
    """
    content, facts = build_index(release, queries, kind, device, recall_target)
    return with_index(release, content, facts.model_dump(mode="json")), facts


def open_index(release: Release, device: str = "cpu") -> NearestTracks:
    """Open the index of a release memory-mapped. A release without an index is searched exactly.

    Raises BadRelease if the index does not match the item embeddings or index.json. Raises BadOption if `device` is
    unavailable or does not support the kind of the index.
    """
    _check_device(device)
    embeddings = _embeddings_of(release)
    facts = read_facts(release)
    if facts is None or facts.kind == "exact":
        if release.has_index:
            raise BadRelease(f"{release.path} holds {INDEX} but no facts about it: run segue index again")
        return ExactIndex(embeddings) if device == "cpu" else faiss_gpu.build(embeddings, "flat")
    expected = (len(embeddings) - FIRST_TRACK_ROW, embeddings.shape[1])
    own = release.manifest.files[ITEM_EMBEDDINGS].sha256
    built_from = facts.embeddings_sha256 or own  # older indexes have no hash
    if not release.has_index or (facts.tracks, facts.dimension, built_from) != (*expected, own):
        raise BadRelease(
            f"{release.path / INDEX_FACTS} describes a {facts.kind} index of {facts.tracks} tracks and dimension "
            f"{facts.dimension} that does not belong to this release: run segue index again"
        )
    index: NearestTracks = _backend(device).load(release.path / INDEX, facts.kind, facts.parameters, embeddings)
    return index


def read_facts(release: Release) -> IndexFacts | None:
    """Read the index.json of a release. Return None if the release has no such file.

    Raises BadRelease if the file is damaged.
    """
    if INDEX_FACTS not in release.manifest.files:
        return None
    file = release.path / INDEX_FACTS
    try:
        return IndexFacts.model_validate(read_json(file))
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join([*(str(part) for part in first["loc"]), first["msg"]])
        raise BadRelease(f"{file}: {what}; run segue index again") from error
    except ValueError as error:
        raise BadRelease(f"{file} is damaged: {error}; run segue index again") from error


@dataclass(frozen=True)
class _TunedIndex:
    """An index that reached the recall target, with its parameters and measurements."""

    kind: Kind
    index: FaissIndex | None  # None for exact search
    parameters: Parameters
    recall: float
    ms: float
    build_s: float


@dataclass(frozen=True)
class _Search:
    """Builds and tunes the candidate kinds of an index. Every measurement is appended to `tried`."""

    exam: RecallBenchmark
    device: Device
    target: float
    tried: list[TrialPoint]

    def best(self, kind: str) -> _TunedIndex:
        """Return the fastest index among the candidate kinds for `kind`.

        Each candidate uses its first setting that reaches the target.
        """
        tracks = len(self.exam.tuning.embeddings) - FIRST_TRACK_ROW
        best = min((self._pass(candidate) for candidate in _kinds(kind, self.device, tracks)), key=lambda p: p.ms)
        if kind == "auto" and self.device == "cpu" and best.ms > self.exam.exact_ms:
            return self._exact()
        return best

    def _exact(self) -> _TunedIndex:
        return _TunedIndex("exact", None, Parameters(), 1.0, self.exam.exact_ms, 0.0)

    def _pass(self, kind: Kind) -> _TunedIndex:
        """Build an index of `kind` and return it with the first setting that reaches the target.

        If no setting reaches the target, the fallback kind of `kind` is tried next.
        """
        if kind == "exact":
            return self._exact()
        embeddings = self.exam.tuning.embeddings
        started = time.perf_counter()
        index = _backend(self.device).build(embeddings, kind, seed=_SEED)
        build_s = time.perf_counter() - started
        for parameter, value, tuned in settings(index):
            recall, ms = self.exam.tuning.recall(tuned), self.exam.tuning.ms(tuned)
            self.tried.append(TrialPoint(kind=kind, parameter=parameter, value=value, recall=recall, ms=ms))
            if recall < self.target and kind != "flat":
                continue
            recall = self.exam.test_queries.recall(tuned)
            if recall >= self.target or kind == "flat":
                return _TunedIndex(kind, tuned, tuned.parameters, recall, self.exam.test_queries.ms(tuned), build_s)
        return self._pass(_FALLBACK_KIND[kind])


def _structure(kind: str) -> str:
    """Return the structure of a kind without the suffix for its codes, for example `ivf` for `ivf-pq`."""
    return kind.partition("-")[0]


def _kinds(kind: str, device: Device, tracks: int) -> tuple[Kind, ...]:
    """Return the kinds to compare: only `kind`, or the likely fastest kinds for `auto`."""
    if kind != "auto":
        return (kind,)  # type: ignore[return-value]
    if device == "gpu":
        return ("flat", "ivf") if tracks >= _LARGE_CATALOGUE else ("flat",)
    if tracks < SMALL_CATALOGUE:
        return ("exact",)
    return ("ivf-pq4",) if tracks >= _LARGE_CATALOGUE else ("ivf-pq4", "hnsw")


def _backend(device: str) -> ModuleType:
    """Return the FAISS module for a device. Both modules have functions `build` and `load` with the same signatures."""
    return faiss_cpu if device == "cpu" else faiss_gpu


def settings(index: FaissIndex) -> Iterator[tuple[Any, int | None, FaissIndex]]:
    """Yield settings of the search-time parameter of an index, in ascending order.

    Each item is the name of the parameter, its value, and the index with this value. A `flat` index has no such
    parameter: its only item is (None, None, index).
    """
    if index.kind == "flat":
        yield None, None, index
        return
    name, value, most = _STEPS[_structure(index.kind)]
    most = index.parameters.nlist or most
    while True:
        yield name, value, index.tuned(index.parameters.model_copy(update={name: value}))
        if value == most:
            return
        # Four values per doubling: 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20 ...
        value = min(most, value + max(1, (1 << (value.bit_length() - 1)) // 4))


def _embeddings_of(release: Release) -> Float32:
    if not release.has_encoder:
        raise BadRelease(f"{release.path} has no encoder, so there is nothing to index: {release.manifest.model}")
    return release.item_embeddings


def _check_device(device: str) -> None:
    if device not in DEVICES:
        raise BadOption(f"device {device!r} is unknown: choose {' or '.join(DEVICES)}")


def _check_options(kind: str, device: str, recall_target: float) -> None:
    _check_device(device)
    if kind not in KINDS:
        raise BadOption(f"index kind {kind!r} is unknown: choose one of {', '.join(KINDS)}")
    if not 0 < recall_target <= 1:
        raise BadOption(f"recall target {recall_target} is out of range: more than 0, at most 1")
    if device == "gpu":
        faiss_gpu.check_gpu_support("flat" if kind == "auto" else kind)
