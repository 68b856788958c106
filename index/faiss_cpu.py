"""FAISS indexes on CPU: build, serialise, open memory-mapped and search.

A FAISS position is a catalogue row minus FIRST_TRACK_ROW, because the padding row is never added. FAISS returns
candidates. Their scores are then computed from the float embeddings (`index.exact.ranked`), so every kind returns exact
scores. A quantised kind fetches `rerank` * k candidates, and the exact scores correct their order.

Threads: a batch of fewer than SMALL_BATCH queries is searched only by the calling thread. A server gets its parallelism
from its workers, and starting the OpenMP threads takes longer than one query. Larger batches (evaluation) and index
building use the default number of OpenMP threads, which OMP_NUM_THREADS sets. OpenMP stores the number of threads per
calling thread, so a search does not affect other threads.

Several threads may search one index. A search does not change the index, and search-time parameters are passed with
each call.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast, get_args

import faiss as faiss_module
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from index import ivf
from index.exact import QUERIES_AT_ONCE, best_of, empty_result, finite_rows, ranked, validate_queries
from index.ivf import ROWS_AT_ONCE, sample_of
from segue.arrays import Float32, Int
from segue.catalogue import FIRST_TRACK_ROW
from segue.errors import BadRelease
from segue.filters import Allowed
from segue.recommend import Ranked

faiss: Any = faiss_module  # the type stubs of FAISS describe the C++ classes, not the Python wrappers

Kind: TypeAlias = Literal["flat", "flat-sq8", "ivf", "ivf-sq8", "ivf-pq", "ivf-pq4", "hnsw", "hnsw-sq8"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
SMALL_BATCH: Final = 256
# If a filter allows at most this many tracks, all of them are scored. That takes less than a millisecond.
SCORED_EXACTLY: Final = 8_192
# A filter leaves fewer good tracks in each list and in each neighbourhood of the graph. The search therefore visits
# share ** -EFFORT times as many of them. Measured in benchmarks/README.md, "Filters".
EFFORT: Final = 0.65

_CODE_TRAINING_ROWS: Final = 100_000  # rows of the training sample for the range of each dimension
_NEIGHBOURS: Final = 32
_EF_CONSTRUCTION: Final = 64
_RERANK: Final = {"sq8": 3, "pq": 16, "pq4": 2}
_LEAST_ASKED: Final = (
    48  # minimum k of quantised kinds: quantisation shifts ranks by a few places for any k; the service uses 48
)
# The minimum number of tracks to train the 256 or 16 centroids of a product quantiser.
_LEAST_FOR_CODES: Final[dict[str, int]] = {"ivf-pq": 39 * 256, "ivf-pq4": 39 * 16}
_CLASSES: Final[dict[Kind, Any]] = {
    "flat": faiss.IndexFlatIP,
    "flat-sq8": faiss.IndexScalarQuantizer,
    "ivf": faiss.IndexIVFFlat,
    "ivf-sq8": faiss.IndexIVFScalarQuantizer,
    "ivf-pq": faiss.IndexIVFPQ,
    "ivf-pq4": faiss.IndexIVFPQFastScan,
    "hnsw": faiss.IndexHNSWFlat,
    "hnsw-sq8": faiss.IndexHNSWSQ,
}
# Before version 1.11, FAISS can map only the inverted lists of an index, not its other arrays.
_MAPPED: Final = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP)


class Parameters(BaseModel):
    """Build and search parameters of an index. A parameter is None if the kind does not have it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nlist: int | None = Field(default=None, ge=1, description="ivf: number of lists")
    nprobe: int | None = Field(default=None, ge=1, le=2**24, description="ivf: lists visited per query")
    m: int | None = Field(default=None, ge=2, description="hnsw: neighbours per track")
    ef_construction: int | None = Field(default=None, ge=1, description="hnsw: candidates kept while building")
    ef_search: int | None = Field(
        default=None, ge=1, le=2**16, description="hnsw: candidates kept while searching, at least k"
    )
    rerank: int = Field(default=1, ge=1, description="candidates fetched per requested track, before exact scoring")


class FaissIndex:
    """A FAISS index over the item embeddings, with its search parameters."""

    _selects = True  # whether a search can be restricted to a bitmap of tracks

    def __init__(self, index: Any, kind: Kind, parameters: Parameters, embeddings: Float32) -> None:
        """Wrap a FAISS index that was built from `embeddings` [num_rows, dim] float32.

        `embeddings` may be memory-mapped.
        """
        self.kind: Kind = kind
        self.parameters = parameters
        self._index = index
        self._embeddings = np.asarray(embeddings)

    def search(self, queries: Float32, k: int, allowed: Allowed | None = None) -> Ranked:
        """Return the k best tracks for each of `queries` [b, dim] float32, among the allowed ones.

        If few tracks are allowed, all of them are scored exactly. A query with NaN or infinity gets no tracks: its rows
        are PAD_ROW and its scores -inf.
        """
        queries = validate_queries(queries, self._embeddings.shape[1])
        if allowed is not None and (allowed.count <= SCORED_EXACTLY or not self._selects):
            return best_of(queries, allowed.rows, self._embeddings, k)
        found = empty_result(len(queries), k)
        finite = finite_rows(queries)
        asked = k if self.parameters.rerank == 1 else max(k, _LEAST_ASKED)
        count = min(asked * self.parameters.rerank, self._max_candidates())
        if k <= 0 or count <= 0:
            return found
        with _threads_for(len(finite)):
            for start in range(0, len(finite), QUERIES_AT_ONCE):
                lines = finite[start : start + QUERIES_AT_ONCE]
                rows = self._positions(queries[lines], count, allowed) + FIRST_TRACK_ROW  # FAISS's -1 becomes PAD_ROW
                found.rows[lines], found.scores[lines] = ranked(queries[lines], rows, self._embeddings, k)
        return found

    def tuned(self, parameters: Parameters) -> "FaissIndex":
        """Return an index with other search parameters. Both indexes share one FAISS index."""
        return FaissIndex(self._index, self.kind, parameters, self._embeddings)

    @property
    def structure(self) -> Any:
        """Return the underlying faiss.Index."""
        return self._index

    def to_bytes(self) -> bytes:
        """Return the content of index.faiss."""
        if self.kind == "ivf-pq4":
            return ivf.to_bytes(self._index)
        return bytes(faiss.serialize_index(self._index).data)

    def _max_candidates(self) -> int:
        """Return the maximum number of candidates of one search."""
        return int(self._index.ntotal)

    def _positions(self, queries: Float32, count: int, allowed: Allowed | None) -> Int:
        """Return the FAISS positions of `count` candidates per query. [b, count] int64, -1 for a missing candidate."""
        chosen: dict[str, Any] = {}
        parameters = self.parameters
        if allowed is not None:
            bits = allowed.bits
            chosen["sel"] = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
            parameters = self._harder(allowed.share**-EFFORT)
        if self.kind.startswith("ivf"):
            options = faiss.SearchParametersIVF(nprobe=parameters.nprobe, **chosen)
        elif self.kind.startswith("hnsw"):
            options = faiss.SearchParametersHNSW(efSearch=max(count, parameters.ef_search or 1), **chosen)
        else:
            options = faiss.SearchParameters(**chosen) if chosen else None
        positions: Int
        _, positions = self._index.search(queries, count, params=options)
        return positions

    def _harder(self, effort: float) -> Parameters:
        """Return search parameters that visit `effort` times as many lists or neighbours, at most all."""
        index, before = self._index, self.parameters
        if before.nprobe is not None:
            return before.model_copy(update={"nprobe": min(math.ceil(before.nprobe * effort), int(index.nlist))})
        ef_search = min(math.ceil((before.ef_search or 1) * effort), int(index.ntotal))
        return before.model_copy(update={"ef_search": ef_search})


def build(embeddings: Float32, kind: Kind, *, seed: int = 0) -> FaissIndex:
    """Build an index over `embeddings` [num_rows, dim] float32.

    The seed determines the training sample, the initial centroids and the levels of the HNSW graph. With several OpenMP
    threads, an HNSW graph differs from run to run. With OMP_NUM_THREADS=1, the graph is reproducible. Raises BadRelease
    if there are too few tracks for the kind.
    """
    rng = np.random.default_rng(seed)
    tracks, dimension = len(embeddings) - FIRST_TRACK_ROW, embeddings.shape[1]
    if tracks < 1:
        raise BadRelease("a release without tracks cannot be indexed: search it with the kind exact")
    needed = _LEAST_FOR_CODES.get(kind, 1)
    if tracks < needed:
        raise BadRelease(f"{tracks:,} tracks are too few for {kind}, which needs {needed:,}: choose ivf-sq8")
    parameters = _parameters(kind, tracks)
    if parameters.nlist is not None:
        ivf_kind = cast("ivf.IvfKind", kind)
        index = ivf.build(embeddings, ivf_kind, parameters.nlist, rng, seed)
        return FaissIndex(index, kind, parameters, embeddings)
    index = _empty(kind, dimension, parameters, seed)
    if not index.is_trained:
        index.train(sample_of(embeddings, _CODE_TRAINING_ROWS, rng))
    for first in range(FIRST_TRACK_ROW, len(embeddings), ROWS_AT_ONCE):
        index.add(np.ascontiguousarray(embeddings[first : first + ROWS_AT_ONCE]))
    return FaissIndex(index, kind, parameters, embeddings)


def load(path: Path, kind: Kind, parameters: Parameters, embeddings: Float32) -> FaissIndex:
    """Open an index file memory-mapped, so that several processes share one copy.

    Raises BadRelease if the file is unreadable, has another kind, or does not match `embeddings` [num_rows, dim]
    float32.
    """
    try:
        index = ivf.read(path, _MAPPED) if kind == "ivf-pq4" else faiss.read_index(str(path), _MAPPED)
    except (RuntimeError, MemoryError) as error:  # a damaged size field can request too much memory
        reason = str(error).rpartition(": ")[2]
        raise BadRelease(f"{path} is not a readable FAISS index ({reason}): run segue index again") from error
    expected = (len(embeddings) - FIRST_TRACK_ROW, embeddings.shape[1])
    if (index.ntotal, index.d) != expected:
        raise BadRelease(
            f"{path} indexes {index.ntotal} tracks of dimension {index.d}, the release has {expected[0]} of "
            f"{expected[1]}: run segue index again"
        )
    if type(index) is not _CLASSES[kind] or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise BadRelease(f"{path} is a {type(index).__name__}, not of the kind {kind}: run segue index again")
    if kind.startswith("ivf") and not _centroids_fit(index):
        raise BadRelease(f"{path} has other centroids than lists: run segue index again")
    if kind.startswith("ivf") and not _lists_fit(index.invlists, index.ntotal):
        raise BadRelease(f"{path} names tracks that the release does not hold: run segue index again")
    return FaissIndex(index, kind, parameters, embeddings)


def _centroids_fit(index: Any) -> bool:
    """Return whether the index has one centroid per list.

    FAISS would read invalid memory for a centroid without a list.
    """
    centroids = index.quantizer
    return bool((centroids.ntotal, centroids.d, index.invlists.nlist) == (index.nlist, index.d, index.nlist))


def _lists_fit(lists: Any, tracks: int) -> bool:
    """Return whether the inverted lists contain `tracks` valid positions. A search fails at an invalid position."""
    found = 0
    for number in range(lists.nlist):
        size = lists.list_size(number)
        if size:
            positions = faiss.rev_swig_ptr(lists.get_ids(number), size)
            found += size
            if positions.min() < 0 or positions.max() >= tracks:
                return False
    return found == tracks


def _parameters(kind: Kind, tracks: int) -> Parameters:
    """Return the build parameters and the initial search parameters of a kind.

    `index.tuning` tunes the search parameters.
    """
    rerank = _RERANK.get(kind.rpartition("-")[2], 1)
    if kind.startswith("ivf"):
        nlist = ivf.lists(kind, tracks)
        if ivf.uses_hnsw_quantizer(kind, nlist):
            rerank *= 2  # tracks are closer to each other, so codes distinguish them less reliably
        return Parameters(nlist=nlist, nprobe=min(nlist, 16), rerank=rerank)
    if kind.startswith("hnsw"):
        return Parameters(m=_NEIGHBOURS, ef_construction=_EF_CONSTRUCTION, ef_search=64, rerank=rerank)
    return Parameters(rerank=rerank)


def _empty(kind: Kind, dimension: int, parameters: Parameters, seed: int) -> Any:
    metric, quantiser = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_8bit
    if kind == "flat":
        return faiss.IndexFlatIP(dimension)
    if kind == "flat-sq8":
        return faiss.IndexScalarQuantizer(dimension, quantiser, metric)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, parameters.m, metric)
    else:
        index = faiss.IndexHNSWSQ(dimension, quantiser, parameters.m, metric)
    index.hnsw.efConstruction = parameters.ef_construction
    index.hnsw.rng = faiss.RandomGenerator(seed)
    return index


@contextlib.contextmanager
def _threads_for(batch: int) -> Iterator[None]:
    """Use one OpenMP thread for a small batch and the default number for a large batch, inside the `with` block."""
    before = faiss.omp_get_max_threads()
    if batch < SMALL_BATCH:
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
