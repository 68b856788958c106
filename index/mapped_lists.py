"""Inverted lists of four-bit codes that processes share: one file, mapped and never copied.

FAISS keeps such lists in blocks of 32 tracks (BlockInvertedLists), which it writes whole and reads into memory of each
process. Its OnDiskInvertedLists find a list by (size, capacity, offset) in a mapped file, codes first, then positions
(int64), each `capacity` long. With the capacity rounded up to whole blocks these are the same bytes. So index.faiss is
an index with OnDiskInvertedLists, followed by what they point to, in the same file.
"""

import ctypes
from pathlib import Path
from typing import Any, Final

import faiss as faiss_module
import numpy as np
from numpy.typing import NDArray

faiss: Any = faiss_module

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
