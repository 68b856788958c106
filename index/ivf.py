"""Inverted files (the `ivf` kinds): how tracks are divided into lists, which lists a query visits, mapped files.

A list contains the tracks nearest to its centroid (k-means). The centroid is their mean and is not normalised, so it
also carries their length. A query visits the lists whose centroids have the largest inner products with it. Long
embeddings have the largest inner products, so lists of long embeddings come first. With tens of thousands of lists this
finds as many right tracks in a third of the tracks that unit-length centroids would visit; with two thousand lists it
makes no difference (benchmarks/README.md). Assigning tracks by inner product would put everything into the lists with
the longest centroids.

Lists of four-bit codes are stored so that processes share one mapped file. FAISS keeps them in blocks of 32 tracks
(BlockInvertedLists) and reads them into the memory of each process. Its OnDiskInvertedLists find a list by (size,
capacity, offset) in a mapped file: codes first, then positions (int64), each `capacity` long. If the capacity is
rounded up to whole blocks, these are the same bytes. So index.faiss is an index with OnDiskInvertedLists, followed by
the lists, in one file.

Source: Johnson, Douze and Jégou, "Billion-scale similarity search with GPUs", 2017, https://arxiv.org/abs/1702.08734;
product codes within registers: André, Kermarrec and Le Scouarnec, VLDB 2015, https://doi.org/10.14778/2856318.2856324.
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

ROWS_AT_ONCE: Final = 65_536  # rows handed to FAISS at once, so that memory-mapped embeddings are never copied whole
_TRAINING_ROWS_PER_LIST: Final = 40  # FAISS asks for 39 and more to place a centroid well
_TRAINING_ROWS_PER_SHORT_LIST: Final = 20
_CODE_TRAINING_ROWS: Final = 100_000  # for the range of each dimension
_KMEANS_ROUNDS: Final = 10
# Lists from which on a graph finds those next to a query: comparing it with each centroid would take longest of all.
_MANY_LISTS: Final = 4096
_MOST_IN_A_LIST: Final = 512  # tracks, where a graph finds the lists: more of them cost it little
_NEIGHBOURS: Final = 32  # of a centroid in the graph
_EF_LISTS: Final = 128  # centroids kept while searching it
_CODE_FLOATS: Final = 4  # floats of a vector that one byte of a product code stands for


def lists(kind: str, tracks: int) -> int:
    """How many lists. The power of two at or below 4 * sqrt(tracks), at most one for every 39 tracks, at least 1.

    For `ivf-pq4`, as many more as make them short, where that is many anyway.
    """
    most = min(4 * tracks**0.5, tracks / 39)
    usual = 1 << (int(most).bit_length() - 1) if most >= 1 else 1
    if kind != "ivf-pq4" or not uses_hnsw_quantizer(kind, usual):
        return usual
    return max(usual, 1 << (-(-tracks // _MOST_IN_A_LIST) - 1).bit_length())


def uses_hnsw_quantizer(kind: str, nlist: int) -> bool:
    """Whether a graph finds the lists of a query."""
    return kind == "ivf-pq4" and nlist >= _MANY_LISTS


def build(embeddings: Float32, kind: IvfKind, nlist: int, rng: np.random.Generator, seed: int) -> Any:
    """A faiss.IndexIVF over the tracks of `embeddings` [num_rows, dim] float32."""
    a_list = _TRAINING_ROWS_PER_SHORT_LIST if uses_hnsw_quantizer(kind, nlist) else _TRAINING_ROWS_PER_LIST
    sample = sample_of(embeddings, max(_CODE_TRAINING_ROWS, a_list * nlist), rng)
    centroids = _centroids(sample, kind, nlist, seed)
    nearest = _coarse_quantizer(kind, nlist, sample.shape[1], faiss.METRIC_L2, seed)
    nearest.add(centroids)
    index = _empty(kind, nearest, nlist)
    index.train(sample)  # of the codes: the centroids are there
    for first in range(FIRST_TRACK_ROW, len(embeddings), ROWS_AT_ONCE):
        index.add(np.ascontiguousarray(embeddings[first : first + ROWS_AT_ONCE]))
    visited = _coarse_quantizer(kind, nlist, sample.shape[1], faiss.METRIC_INNER_PRODUCT, seed)
    visited.add(centroids)
    index.quantizer = visited
    index.referenced_objects = [visited]  # FAISS keeps its address alone
    return index


def sample_of(embeddings: Float32, wanted: int, rng: np.random.Generator) -> Float32:
    """At most `wanted` tracks, in the order of their rows, which reads a memory-mapped file forwards."""
    tracks = len(embeddings) - FIRST_TRACK_ROW
    if tracks <= wanted:
        return np.ascontiguousarray(embeddings[FIRST_TRACK_ROW:])
    rows = np.sort(rng.choice(tracks, wanted, replace=False)) + FIRST_TRACK_ROW
    return np.ascontiguousarray(embeddings[rows])


def _centroids(sample: Float32, kind: IvfKind, nlist: int, seed: int) -> Float32:
    """Means of the lists by k-means. [nlist, dim] float32."""
    clustering = faiss.Clustering(sample.shape[1], nlist)
    clustering.seed, clustering.niter = seed, _KMEANS_ROUNDS
    clustering.min_points_per_centroid = 1  # a small catalogue is no reason for a warning on stderr
    quantizer = _coarse_quantizer(kind, nlist, sample.shape[1], faiss.METRIC_L2, seed)
    clustering.train(sample, quantizer)  # each round rebuilds the quantizer
    return np.asarray(faiss.vector_to_array(clustering.centroids), dtype=np.float32).reshape(nlist, -1)


def _coarse_quantizer(kind: IvfKind, nlist: int, dimension: int, metric: int, seed: int) -> Any:
    """What finds centroids, without any: a graph of many, else a comparison with each."""
    if not uses_hnsw_quantizer(kind, nlist):
        return faiss.IndexFlat(dimension, metric)
    graph = faiss.IndexHNSWFlat(dimension, _NEIGHBOURS, metric)
    graph.hnsw.efConstruction = _EF_LISTS
    graph.hnsw.efSearch = _EF_LISTS
    graph.hnsw.rng = faiss.RandomGenerator(seed)
    return graph


def _empty(kind: IvfKind, nearest: Any, nlist: int) -> Any:
    """An index of the kind, without tracks; `nearest` says which list a track belongs to."""
    metric, dimension = faiss.METRIC_INNER_PRODUCT, nearest.d
    if kind == "ivf":
        return faiss.IndexIVFFlat(nearest, dimension, nlist, metric)
    if kind == "ivf-pq4":
        # Four bits for each dimension of what a centroid leaves: compared 32 tracks at a time, within registers.
        return faiss.IndexIVFPQFastScan(nearest, dimension, nlist, dimension, 4, metric)
    if kind == "ivf-pq":
        parts = max(parts for parts in range(1, dimension // _CODE_FLOATS + 2) if dimension % parts == 0)
        return faiss.IndexIVFPQ(nearest, dimension, nlist, parts, 8, metric)
    return faiss.IndexIVFScalarQuantizer(nearest, dimension, nlist, faiss.ScalarQuantizer.QT_8bit, metric)


_BLOCK: Final = 32  # tracks that one step of the search compares
_PAGE: Final = 4096
_POSITION: Final = 8  # bytes
_SIZE, _CAPACITY, _OFFSET = range(3)  # the columns of the table


def to_bytes(index: Any) -> bytes:
    """The content of a file that `read` opens. `index` is an IndexIVFPQFastScan; it is left as it was."""
    lists = index.invlists
    numbers = range(lists.nlist)
    code_bytes = index.M2 // 2
    sizes = np.array([lists.list_size(number) for number in numbers], dtype=np.uint64)
    capacities = -(-sizes // np.uint64(_BLOCK)) * np.uint64(_BLOCK)
    ends = np.cumsum(capacities * np.uint64(code_bytes + _POSITION))

    pointers = faiss.OnDiskInvertedLists(lists.nlist, code_bytes, "")
    table = _table(pointers)
    table[:, _SIZE], table[:, _CAPACITY] = sizes, capacities
    start = -(-len(_head(index, pointers)) // _PAGE) * _PAGE  # as long, whatever the offsets
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
    """The index in a file, its lists mapped. Raises RuntimeError, as FAISS does, for a file that holds none.

    `flags` are those of faiss.read_index.
    """
    index = faiss.read_index(str(path), flags | faiss.IO_FLAG_SKIP_IVF_DATA)  # the file that it names is not opened
    if type(index) is not faiss.IndexIVFPQFastScan:
        return index  # the caller refuses it
    lists = faiss.downcast_InvertedLists(index.invlists)
    if not isinstance(lists, faiss.OnDiskInvertedLists):
        raise RuntimeError("its lists cannot be mapped")
    length = path.stat().st_size
    if lists.code_size != index.M2 // 2 or lists.nlist != index.nlist or not _within(_table(lists), lists, length):
        raise RuntimeError("its lists do not lie within the file")
    lists.filename, lists.totsize, lists.read_only = str(path), length, True
    lists.prefetch_nthread = 0  # no threads for each search: the pages are there
    lists.do_mmap()
    return index


def _within(table: NDArray[np.uint64], lists: Any, length: int) -> bool:
    """Whether every list lies within a file of `length` bytes, by numbers that may be of any size."""
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
    """The memory of `lists.lists`: size, capacity and offset of each list. [nlist, 3] uint64."""
    first = ctypes.cast(int(lists.lists.data().this), ctypes.POINTER(ctypes.c_uint64))
    return np.ctypeslib.as_array(first, (lists.lists.size(), 3))


def _head(index: Any, pointers: Any) -> bytes:
    """`index` as FAISS writes it, with `pointers` in place of its lists."""
    lists, owned = index.invlists, index.own_invlists
    index.own_invlists = False
    index.replace_invlists(pointers, False)
    try:
        return bytes(faiss.serialize_index(index).data)
    finally:
        index.replace_invlists(lists, owned)
