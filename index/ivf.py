"""Inverted-file indexes (the `ivf` kinds): build, serialise and open memory-mapped.

K-means divides the tracks into lists. Each track belongs to the list of the nearest centroid. A centroid is the mean of
its tracks and is not normalised. A query visits the lists whose centroids have the largest inner products with the
query. Embeddings of large norm tend to have the largest inner products, and the unnormalised centroids rank their lists
first. With tens of thousands of lists, normalised centroids need to visit three times as many tracks for the same
recall. With two thousand lists there is no difference (benchmarks/README.md). Tracks are assigned to lists by L2
distance, because inner products would assign nearly all tracks to the lists with the longest centroids.

The kind `ivf-pq4` stores four-bit codes in a file that several processes can map. FAISS normally stores such codes in
blocks of 32 tracks (BlockInvertedLists) and loads them into the memory of each process. The FAISS class
OnDiskInvertedLists instead reads the lists from a mapped file. A table gives the size, capacity and offset of each
list. The file contains `capacity` codes per list, followed by `capacity` positions (int64). With capacities that are
multiples of 32, both classes have the same byte layout. The file index.faiss therefore contains an index with
OnDiskInvertedLists, followed by the lists.

Sources: Johnson, Douze and Jégou, "Billion-scale similarity search with GPUs", 2017, https://arxiv.org/abs/1702.08734;
for product quantisation with codes in registers, André, Kermarrec and Le Scouarnec, VLDB 2015,
https://doi.org/10.14778/2856318.2856324.
"""

import ctypes
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import faiss as faiss_module
import numpy as np
from numpy.typing import NDArray

from segue.arrays import Float32
from segue.catalogue import FIRST_TRACK_ROW

faiss: Any = faiss_module

IvfKind: TypeAlias = Literal["ivf", "ivf-sq8", "ivf-pq", "ivf-pq4"]

ROWS_AT_ONCE: Final = (
    65_536  # rows per call of FAISS, so that memory-mapped embeddings are never fully copied to memory
)
_TRAINING_ROWS_PER_LIST: Final = 40  # FAISS recommends at least 39 training vectors per centroid
_TRAINING_ROWS_PER_SHORT_LIST: Final = 20
_CODE_TRAINING_ROWS: Final = 100_000  # rows of the training sample for the quantiser, at least
_KMEANS_ROUNDS: Final = 10
# Number of lists from which an HNSW graph selects the lists of a query. Comparing the query with so large a number of
# centroids would be the slowest part of the search.
_MANY_LISTS: Final = 4096
_MOST_IN_A_LIST: Final = (
    512  # mean tracks per list, at most, with an HNSW graph: the graph makes additional lists cheap
)
_NEIGHBOURS: Final = 32  # neighbours of a centroid in the HNSW graph
_EF_LISTS: Final = 128  # candidate centroids during construction and search of the HNSW graph
# Candidate centroids while the index is built, when only the nearest list of a track is needed. With 32,768 lists it is
# the nearest one for 86 % of the tracks, for 88 % with 128 candidates, in a third of the time.
_EF_ASSIGNED: Final = 32
_CODE_FLOATS: Final = 4  # dimensions per byte of a product code, about


def lists(kind: str, tracks: int) -> int:
    """Return the number of lists for an index of `tracks` tracks.

    The number is the largest power of two that is at most 4 * sqrt(tracks) and at most tracks / 39, but at least 1. An
    `ivf-pq4` index with an HNSW graph has more lists if needed, so that a list has at most 512 tracks on average.
    """
    most = min(4 * tracks**0.5, tracks / 39)
    usual = 1 << (int(most).bit_length() - 1) if most >= 1 else 1
    if kind != "ivf-pq4" or not uses_hnsw_quantizer(kind, usual):
        return usual
    return max(usual, 1 << (-(-tracks // _MOST_IN_A_LIST) - 1).bit_length())


def uses_hnsw_quantizer(kind: str, nlist: int) -> bool:
    """Return whether an HNSW graph of the centroids selects the lists of a query."""
    return kind == "ivf-pq4" and nlist >= _MANY_LISTS


def build(embeddings: Float32, kind: IvfKind, nlist: int, rng: np.random.Generator, seed: int) -> Any:
    """Build a faiss.IndexIVF over the tracks of `embeddings` [num_rows, dim] float32.

    `rng` draws the training sample. `seed` determines the k-means centroids and the HNSW graph.
    """
    a_list = _TRAINING_ROWS_PER_SHORT_LIST if uses_hnsw_quantizer(kind, nlist) else _TRAINING_ROWS_PER_LIST
    sample = sample_of(embeddings, max(_CODE_TRAINING_ROWS, a_list * nlist), rng)
    centroids = _centroids(sample, kind, nlist, seed)
    nearest = _coarse_quantizer(kind, nlist, sample.shape[1], faiss.METRIC_L2, seed, _EF_ASSIGNED)
    nearest.add(centroids)
    index = _empty(kind, nearest, nlist)
    index.train(sample)  # trains only the quantiser of the codes: the centroids are already trained
    for first in range(FIRST_TRACK_ROW, len(embeddings), ROWS_AT_ONCE):
        index.add(np.ascontiguousarray(embeddings[first : first + ROWS_AT_ONCE]))
    visited = _coarse_quantizer(kind, nlist, sample.shape[1], faiss.METRIC_INNER_PRODUCT, seed, _EF_LISTS)
    visited.add(centroids)
    index.quantizer = visited
    index.referenced_objects = [visited]  # FAISS stores only a pointer, so Python must keep the object alive
    return index


def sample_of(embeddings: Float32, wanted: int, rng: np.random.Generator) -> Float32:
    """Return the embeddings of at most `wanted` random tracks. [n, dim] float32.

    The tracks are sorted by row, so that a memory-mapped file is read sequentially.
    """
    tracks = len(embeddings) - FIRST_TRACK_ROW
    if tracks <= wanted:
        return np.ascontiguousarray(embeddings[FIRST_TRACK_ROW:])
    rows = np.sort(rng.choice(tracks, wanted, replace=False)) + FIRST_TRACK_ROW
    return np.ascontiguousarray(embeddings[rows])


def _centroids(sample: Float32, kind: IvfKind, nlist: int, seed: int) -> Float32:
    """Return the k-means centroids of the lists. [nlist, dim] float32."""
    clustering = faiss.Clustering(sample.shape[1], nlist)
    clustering.seed, clustering.niter = seed, _KMEANS_ROUNDS
    clustering.min_points_per_centroid = 1  # no warning on stderr for a small catalogue
    quantizer = _coarse_quantizer(kind, nlist, sample.shape[1], faiss.METRIC_L2, seed, _EF_ASSIGNED)
    clustering.train(sample, quantizer)  # each iteration rebuilds the quantizer
    return np.asarray(faiss.vector_to_array(clustering.centroids), dtype=np.float32).reshape(nlist, -1)


def _coarse_quantizer(kind: IvfKind, nlist: int, dimension: int, metric: int, seed: int, ef: int) -> Any:
    """Return an empty coarse quantizer: an HNSW graph for many lists, otherwise a flat index.

    `ef` is the number of candidates of a search in the graph.
    """
    if not uses_hnsw_quantizer(kind, nlist):
        return faiss.IndexFlat(dimension, metric)
    graph = faiss.IndexHNSWFlat(dimension, _NEIGHBOURS, metric)
    graph.hnsw.efConstruction = _EF_LISTS
    graph.hnsw.efSearch = ef
    graph.hnsw.rng = faiss.RandomGenerator(seed)
    return graph


def _empty(kind: IvfKind, nearest: Any, nlist: int) -> Any:
    """Return an index of the kind without tracks. The coarse quantizer `nearest` assigns tracks to lists."""
    metric, dimension = faiss.METRIC_INNER_PRODUCT, nearest.d
    if kind == "ivf":
        return faiss.IndexIVFFlat(nearest, dimension, nlist, metric)
    if kind == "ivf-pq4":
        # Four bits for each dimension of the residual. FAISS compares 32 tracks at a time, in SIMD registers.
        return faiss.IndexIVFPQFastScan(nearest, dimension, nlist, dimension, 4, metric)
    if kind == "ivf-pq":
        parts = max(parts for parts in range(1, dimension // _CODE_FLOATS + 2) if dimension % parts == 0)
        return faiss.IndexIVFPQ(nearest, dimension, nlist, parts, 8, metric)
    return faiss.IndexIVFScalarQuantizer(nearest, dimension, nlist, faiss.ScalarQuantizer.QT_8bit, metric)


_BLOCK: Final = 32  # tracks that one step of the search compares: the block size of the FAISS layout
_PAGE: Final = 4096
_POSITION: Final = 8  # bytes of one position
_SIZE, _CAPACITY, _OFFSET = range(3)  # the columns of `_table`


def to_bytes(index: Any) -> bytes:
    """Serialise an IndexIVFPQFastScan in the file format of `read`. The index is not changed."""
    lists = index.invlists
    numbers = range(lists.nlist)
    code_bytes = index.M2 // 2
    sizes = np.array([lists.list_size(number) for number in numbers], dtype=np.uint64)
    capacities = -(-sizes // np.uint64(_BLOCK)) * np.uint64(_BLOCK)
    ends = np.cumsum(capacities * np.uint64(code_bytes + _POSITION))

    pointers = faiss.OnDiskInvertedLists(lists.nlist, code_bytes, "")
    table = _table(pointers)
    table[:, _SIZE], table[:, _CAPACITY] = sizes, capacities
    start = -(-len(_head(index, pointers)) // _PAGE) * _PAGE  # the length of the header does not depend on the offsets
    table[:, _OFFSET] = start + np.concatenate([[0], ends[:-1]]).astype(np.uint64)
    pointers.totsize = start + int(ends[-1])

    head = _head(index, pointers)
    parts: list[Any] = [head, bytes(start - len(head))]
    for number, size, capacity in zip(numbers, sizes.tolist(), capacities.tolist(), strict=True):
        if size:
            positions = np.full(capacity, -1, dtype=np.int64)
            positions[:size] = faiss.rev_swig_ptr(lists.get_ids(number), size)
            parts += [faiss.rev_swig_ptr(lists.get_codes(number), capacity * code_bytes), positions]
    return b"".join(parts)


def read(path: Path, flags: int) -> Any:
    """Read an index file and map its lists into memory.

    `flags` are the IO flags of faiss.read_index. Raises RuntimeError, like FAISS, if the file is not a valid index.
    """
    # With IO_FLAG_SKIP_IVF_DATA, FAISS does not open the file of the lists that the index names.
    index = faiss.read_index(str(path), flags | faiss.IO_FLAG_SKIP_IVF_DATA)
    if type(index) is not faiss.IndexIVFPQFastScan:
        return index  # the caller rejects an index of another class
    lists = faiss.downcast_InvertedLists(index.invlists)
    if not isinstance(lists, faiss.OnDiskInvertedLists):
        raise RuntimeError("its lists cannot be mapped")
    length = path.stat().st_size
    if lists.code_size != index.M2 // 2 or lists.nlist != index.nlist or not _within(_table(lists), lists, length):
        raise RuntimeError("its lists do not lie within the file")
    lists.filename, lists.totsize, lists.read_only = str(path), length, True
    lists.prefetch_nthread = 0  # no prefetch threads per search: the lists are mapped
    lists.do_mmap()
    return index


def _within(table: NDArray[np.uint64], lists: Any, length: int) -> bool:
    """Return whether every list is inside a file of `length` bytes.

    The table may contain any values. The comparisons avoid integer overflow.
    """
    capacity, offset = table[table[:, _CAPACITY] > 0][:, [_CAPACITY, _OFFSET]].T
    line = np.uint64(lists.code_size + _POSITION)
    return bool(
        (table[:, _SIZE] <= table[:, _CAPACITY]).all()
        and (capacity % np.uint64(_BLOCK) == 0).all()
        and (offset <= length).all()
        and (capacity <= (np.uint64(length) - offset) // line).all()
        and (offset % np.uint64(_BLOCK) == 0).all()
    )


def _table(lists: Any) -> NDArray[np.uint64]:
    """Return a view of the memory of `lists.lists`: size, capacity and offset of each list. [nlist, 3] uint64."""
    first = ctypes.cast(int(lists.lists.data().this), ctypes.POINTER(ctypes.c_uint64))
    return np.ctypeslib.as_array(first, (lists.lists.size(), 3))


def _head(index: Any, pointers: Any) -> bytes:
    """Serialise `index` with FAISS, with the inverted lists replaced by `pointers`."""
    lists, owned = index.invlists, index.own_invlists
    index.own_invlists = False
    index.replace_invlists(pointers, False)
    try:
        return bytes(faiss.serialize_index(index).data)
    finally:
        index.replace_invlists(lists, owned)
