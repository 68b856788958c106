"""Nearest tracks with FAISS on a CUDA device: the twin of `index.faiss_cpu`, with the same build and load.

Needs the extra `gpu` (the faiss-gpu wheel). The file index.faiss has the same format for both devices: an index is
built on the CPU, stored in that form, and copied to the device when it is opened, flat ones in half precision. Scores
are exact, as on the CPU. The service batches concurrent queries (service.batching). torch is not needed.
"""

import threading
from pathlib import Path
from typing import Final

from index import faiss_cpu
from index.faiss_cpu import FaissIndex, Kind, Parameters, faiss
from segue.arrays import Float32, Int
from segue.errors import BadOption
from segue.filters import Allowed

KINDS: Final[tuple[Kind, ...]] = ("flat", "ivf", "ivf-sq8")
_MAX_CANDIDATES: Final = 2048  # FAISS's limit on k and nprobe on a device


def gpu_available() -> bool:
    """Whether the installed FAISS supports CUDA and a CUDA device is available."""
    return hasattr(faiss, "StandardGpuResources") and int(faiss.get_num_gpus()) > 0


class GpuIndex(FaissIndex):
    """A FAISS index copied to the first CUDA device. It returns at most 2,048 candidates per query.

    FAISS cannot restrict a search on a device to some tracks: a filter is answered by exact scores on the CPU.
    """

    _selects = False

    def __init__(self, on_cpu: FaissIndex, embeddings: Float32) -> None:
        """`embeddings` [num_rows, dim] float32. Raises BadOption without a device or for an unsupported kind."""
        check_gpu_support(on_cpu.kind)
        resources = faiss.StandardGpuResources()
        options = faiss.GpuClonerOptions()
        options.useFloat16 = on_cpu.kind == "flat"  # every query reads the whole index: half the bytes, half the time
        on_gpu = faiss.index_cpu_to_gpu(resources, 0, on_cpu.structure, options)
        super().__init__(on_gpu, on_cpu.kind, _within_limits(on_cpu.kind, on_cpu.parameters), embeddings)
        self._on_cpu = on_cpu
        self._resources = resources  # FAISS does not keep them alive
        self._one_at_a_time = threading.Lock()  # the resources' scratch memory is not for several threads

    def tuned(self, parameters: Parameters) -> "GpuIndex":
        """Return the same index with other search parameters; the copy on the device is shared."""
        other = GpuIndex.__new__(GpuIndex)
        other.__dict__.update(self.__dict__)
        other.parameters = _within_limits(self.kind, parameters)
        return other

    def to_bytes(self) -> bytes:
        """Return the content of index.faiss, which a CPU can open too."""
        return self._on_cpu.to_bytes()

    def _max_candidates(self) -> int:
        return min(super()._max_candidates(), _MAX_CANDIDATES)

    def _positions(self, queries: Float32, count: int, allowed: Allowed | None) -> Int:
        with self._one_at_a_time:
            return super()._positions(queries, count, allowed)


def build(embeddings: Float32, kind: Kind, *, seed: int = 0) -> GpuIndex:
    """Build an index on the CPU and copy it to the device; `embeddings` [num_rows, dim] float32.

    Raises BadOption without a device, and BadRelease as `index.faiss_cpu.build`.
    """
    check_gpu_support(kind)
    return GpuIndex(faiss_cpu.build(embeddings, kind, seed=seed), embeddings)


def load(path: Path, kind: Kind, parameters: Parameters, embeddings: Float32) -> GpuIndex:
    """Open an index file and copy it to the device; `embeddings` [num_rows, dim] float32.

    Raises BadOption without a device, and BadRelease as `index.faiss_cpu.load`.
    """
    check_gpu_support(kind)
    return GpuIndex(faiss_cpu.load(path, kind, parameters, embeddings), embeddings)


def refuse_missing_device(asked: str = "device gpu") -> None:
    """Raise BadOption if FAISS cannot use a CUDA device here; the message begins with the text in `asked`."""
    if not hasattr(faiss, "StandardGpuResources"):
        raise BadOption(
            f"{asked}: FAISS finds no CUDA device; install segue[gpu] in place of segue[service], whose FAISS is built "
            "without CUDA, on a machine with one, or choose device cpu"
        )
    if not gpu_available():
        raise BadOption(
            f"{asked}: FAISS finds no CUDA device; check that nvidia-smi lists one and that its driver supports CUDA "
            "12, or choose device cpu"
        )


def check_gpu_support(kind: str) -> None:
    """Raise BadOption if FAISS has no CUDA device or does not support this kind on one."""
    refuse_missing_device()
    if kind not in KINDS:
        raise BadOption(f"kind {kind!r} does not run on device gpu: choose {', '.join(KINDS)}, or device cpu")


def _within_limits(kind: Kind, parameters: Parameters) -> Parameters:
    nprobe = parameters.nprobe and min(parameters.nprobe, _MAX_CANDIDATES)
    # Half precision finds candidates for the exact scores to choose from.
    rerank = max(parameters.rerank, 2) if kind == "flat" else parameters.rerank
    return parameters.model_copy(update={"nprobe": nprobe, "rerank": rerank})
