"""How large each measurement is: on a card, and in the dry run that keeps the code working where there is none."""

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from index.faiss_cpu import FaissIndex
    from segue.arrays import Float32


@dataclass(frozen=True)
class Sizes:
    """The sizes of one run. Catalogues are (small, medium, large) numbers of tracks."""

    dry_run: bool
    catalogues: tuple[int, int, int]
    dimension: int
    batches: tuple[int, ...]  # queries searched together
    queries: int  # that recall is measured on
    recalls: tuple[float, float, float]  # recall@20 to reach, by catalogue
    repeat_s: float  # seconds that one search setting is repeated for
    parity_tracks: int
    load_s: float  # seconds of one measurement under load
    connections: tuple[int, ...]  # closed loops against the service
    sessions: int  # of the training set, 15 plays each on average
    tracks: int  # of the training set
    epochs: int
    steps: int  # that each training variant is timed for, after a warm-up
    batch_sizes: tuple[int, ...]  # sessions a training step
    run_s: float  # seconds after which the training of all epochs stops itself

    @property
    def device(self) -> Literal["cpu", "gpu"]:
        """The index device: in the dry run the CPU index stands in through the same interface."""
        return "cpu" if self.dry_run else "gpu"

    @property
    def torch_device(self) -> Literal["cpu", "cuda"]:
        """The same for torch."""
        return "cpu" if self.dry_run else "cuda"

    def placed(self, index: "FaissIndex", embeddings: "Float32") -> "FaissIndex":
        """A CPU index copied to the device. `embeddings` [num_rows, dim] float32 are what it was built from."""
        from index.faiss_gpu import GpuIndex

        return index if self.dry_run else GpuIndex(index, embeddings)

    @property
    def twin(self) -> ModuleType:
        """The module with `build` and `load` for the device."""
        from index import faiss_cpu, faiss_gpu

        return faiss_cpu if self.dry_run else faiss_gpu


# The paper's MSSD extract: 600,000 sessions, 9 million plays, 600,000 tracks.
FULL: Final = Sizes(
    dry_run=False,
    catalogues=(600_000, 1_000_000, 10_000_000),
    dimension=128,
    batches=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    queries=400,
    recalls=(0.99, 0.99, 0.95),
    repeat_s=0.4,
    parity_tracks=50_000,
    load_s=8,
    connections=(32, 128),
    sessions=600_000,
    tracks=600_000,
    epochs=20,
    steps=150,
    batch_sizes=(64, 1024),
    run_s=460,
)
DRY: Final = Sizes(
    dry_run=True,
    catalogues=(2_000, 3_000, 4_000),
    dimension=32,
    batches=(1, 8),
    queries=60,
    recalls=(0.9, 0.9, 0.9),
    repeat_s=0.01,
    parity_tracks=4_000,
    load_s=1.5,
    connections=(8,),
    sessions=600,
    tracks=500,
    epochs=2,
    steps=4,
    batch_sizes=(64, 128),
    run_s=30,
)
