"""Nearest tracks with FAISS on a CUDA device: the twin of `index.faiss_cpu`, with the same build and load.

Needs the extra `gpu` (the faiss-gpu wheel). index.faiss has one format for both devices: an index is built on the CPU,
kept in that form, and copied to the device when it is opened, flat ones in half precision. Scores are exact, as they
are there. Questions that wait together come as one batch (service.batching); torch has no part in it.
"""

import threading
from pathlib import Path
from typing import Final

from index import faiss_cpu
from index.faiss_cpu import FaissIndex, Kind, Parameters, faiss
from segue.arrays import Float32, Int
from segue.errors import BadOption

KINDS: Final[tuple[Kind, ...]] = ("flat", "ivf", "ivf-sq8")
_MOST_CANDIDATES: Final = 2048  # FAISS's limit on k and nprobe on a device


def gpu_available() -> bool:
    """Whether the installed FAISS can use a CUDA device and one is there."""
    return hasattr(faiss, "StandardGpuResources") and int(faiss.get_num_gpus()) > 0


class GpuIndex(FaissIndex):
    """A FAISS index copied to the first CUDA device. Asked for more than 2,048 candidates, it gives 2,048."""

    def __init__(self, on_cpu: FaissIndex, embeddings: Float32) -> None:
        """`embeddings` [num_rows, dim] float32. Raises BadOption without a device or for a kind it cannot hold."""
        refuse_unfit(on_cpu.kind)
        resources = faiss.StandardGpuResources()
        options = faiss.GpuClonerOptions()
        options.useFloat16 = on_cpu.kind == "flat"  # every query reads all of it: half the bytes, half the time
        on_gpu = faiss.index_cpu_to_gpu(resources, 0, on_cpu.structure, options)
        super().__init__(on_gpu, on_cpu.kind, _within_limits(on_cpu.kind, on_cpu.parameters), embeddings)
        self._on_cpu = on_cpu
        self._resources = resources  # FAISS does not keep them alive
        self._one_at_a_time = threading.Lock()  # the resources' scratch memory is not for several threads

    def tuned(self, parameters: Parameters) -> "GpuIndex":
        """See FaissIndex; the copy on the device is shared."""
        other = GpuIndex.__new__(GpuIndex)
        other.__dict__.update(self.__dict__)
        other.parameters = _within_limits(self.kind, parameters)
        return other

    def to_bytes(self) -> bytes:
        """The content of index.faiss, which a CPU opens as well."""
        return self._on_cpu.to_bytes()

    def _most(self) -> int:
        return min(super()._most(), _MOST_CANDIDATES)

    def _positions(self, queries: Float32, count: int) -> Int:
        with self._one_at_a_time:
            return super()._positions(queries, count)


def build(embeddings: Float32, kind: Kind, *, seed: int = 0) -> GpuIndex:
    """See `index.faiss_cpu.build`; `embeddings` [num_rows, dim] float32. Raises BadOption without a device."""
    refuse_unfit(kind)
    return GpuIndex(faiss_cpu.build(embeddings, kind, seed=seed), embeddings)


def load(path: Path, kind: Kind, parameters: Parameters, embeddings: Float32) -> GpuIndex:
    """See `index.faiss_cpu.load`; `embeddings` [num_rows, dim] float32. Raises BadOption without a device."""
    refuse_unfit(kind)
    return GpuIndex(faiss_cpu.load(path, kind, parameters, embeddings), embeddings)


def refuse_missing_device(asked: str = "device gpu") -> None:
    """Raise BadOption if FAISS cannot use a CUDA device here; the message begins with `asked`."""
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


def refuse_unfit(kind: str) -> None:
    """Raise BadOption if there is no CUDA device for FAISS, or none can hold an index of this kind."""
    refuse_missing_device()
    if kind not in KINDS:
        raise BadOption(f"kind {kind!r} does not run on device gpu: choose {', '.join(KINDS)}, or device cpu")


def _within_limits(kind: Kind, parameters: Parameters) -> Parameters:
    nprobe = parameters.nprobe and min(parameters.nprobe, _MOST_CANDIDATES)
    # Half precision finds candidates for the exact scores to choose from.
    rerank = max(parameters.rerank, 2) if kind == "flat" else parameters.rerank
    return parameters.model_copy(update={"nprobe": nprobe, "rerank": rerank})
