"""Data-parallel training with several processes started by torchrun.

Each process has a copy of the weights and computes a shard of every batch. The loss of a process is the sum over its
shard, divided by the number of steps in all processes. The gradients are summed over the processes. Every process
therefore takes the same optimizer step as a single process with the whole batch.

For the item embeddings, the processes exchange data only for the rows that the batch uses. The seed determines the
order of the sessions, so every process knows the rows of a batch without communication. With --sharded, each process
stores only a part of the item embeddings. Rank 0 is the main process. The main process writes all files and makes all
decisions that depend on time.

Source: data parallelism as in Li et al., "PyTorch Distributed", VLDB 2020, https://arxiv.org/abs/2006.15704.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from segue.catalogue import PAD_ROW
from segue.errors import BadOption, ProcessLost
from segue.window import SessionViews
from training.data.loader import Batch
from training.data.splits import Examples
from training.losses import Terms
from training.models.encoders.encoder import Encoder, RankCounts, SessionEncoder, scatter_rows
from training.optimizer import ItemRows, Moments, adam, gradient_of
from training.options import NeuralOptions
from training.processes import Processes, StepTerms, is_distributed
from training.validation import MAX_EXAMPLES

# The other processes wait while the main process writes the release. The map of millions of tracks takes minutes.
_COLLECTIVE_TIMEOUT: Final = timedelta(hours=2)
# The maximum time until all processes are connected. A process that times out exits, and torchrun restarts the process.
_START_TIMEOUT: Final = timedelta(seconds=60)
# The maximum time to wait for other processes before an exit with an error.
_FAREWELL_TIMEOUT: Final = timedelta(seconds=5)


class DistributedProcesses(Processes):
    """One of several connected processes. All processes must make the same collective calls in the same order."""

    def __init__(self, device: str, *, sharded: bool) -> None:
        super().__init__(device)
        self.sharded = sharded
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    def check_options(self, options: NeuralOptions) -> None:
        """Raise BadOption for options that do not support several processes or a sharded table."""
        if options.negative_pairing == "published":
            raise BadOption(
                f"negative_pairing=published contrasts sessions of the whole batch, but each of {self.world} processes "
                "has only a shard: train in one process, or set negative_pairing=session"
            )

        if self.sharded and (options.updates == "all" or options.ema_decay):
            raise BadOption(
                "--sharded needs updates=touched and ema_decay=0: other values need the full table of item embeddings"
            )

    def check_consistent(self, facts: Mapping[str, object]) -> None:
        """Check that all processes have the same facts as the main process.

        If any process differs, every process raises BadOption with the names of the differing facts.
        """
        mine = {
            name: zlib.crc32(json.dumps(fact, sort_keys=True, default=str).encode()) for name, fact in facts.items()
        }
        ours = torch.tensor(list(mine.values()))
        leaders = ours.clone()
        distributed.broadcast(leaders, 0)
        differs = (ours != leaders).int()
        distributed.all_reduce(differs, distributed.ReduceOp.MAX)
        differing = [name for name, other in zip(mine, differs.tolist(), strict=True) if other]
        if differing:
            raise BadOption(
                f"the processes differ in their {' and '.join(differing)}: give all of them the same dataset and "
                "options, and an --out in a folder that they share"
            )

    def wrap(self, encoder: SessionEncoder, terms: StepTerms) -> StepTerms:
        """Wrap `terms` in DistributedDataParallel. Every process starts with the weights of the main process."""
        table = encoder.item_embeddings.weight
        table.requires_grad_(False)  # DistributedDataParallel ignores weights without requires_grad
        step = DistributedDataParallel(_Step(encoder, terms))
        table.requires_grad_(True)
        step.register_comm_hook(None, _sum_hook)
        return step

    def shard(self, batch: Batch) -> Batch:
        """Return this process's shard of a batch.

        With N processes, the shard is every N-th session, starting at the index `rank`. An empty shard is replaced by
        one session of padding.
        """
        mine = Batch(*(tensor[self.rank :: self.world] for tensor in batch))
        return mine if len(mine.plays) else Batch(*(F.pad(tensor, (0, 0, 0, 1)) for tensor in mine))

    def validation_shard(self, validation: Examples) -> Examples:
        """Return this process's shard of the validation examples. With a sharded table, return all examples."""
        if self.sharded:
            return validation  # each process ranks all targets, but only among its own tracks
        which = slice(self.rank, MAX_EXAMPLES, self.world)
        return Examples(
            SessionViews.of(validation.inputs.select(which)),
            validation.targets[which],
            validation.target_skipped[which],
            validation.sessions[which],
        )

    def all_reduce_count(self, count: Tensor) -> Tensor:
        """Return the sum of `count` over the processes. The input is unchanged."""
        everywhere = count.clone()
        self.all_reduce_(everywhere)
        return everywhere

    def all_reduce_(self, tensor: Tensor) -> None:
        """Sum `tensor` over the processes, in place."""
        distributed.all_reduce(tensor)

    def all_reduce_scalars(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the sums of scalars over the processes, computed by one collective operation."""
        everywhere = torch.stack([value.detach() for value in values.values()])
        self.all_reduce_(everywhere)
        return dict(zip(values, everywhere.tolist(), strict=True))

    def mean_score(self, score: tuple[float, float], targets: int) -> tuple[float, float]:
        """Return two mean scores over the targets of all processes.

        `score` are the means over the targets of this process, `targets` their number.
        """
        if self.sharded:
            return score  # with a sharded table, `score` already includes all targets
        sums = torch.tensor([*score, 1.0], dtype=torch.float64) * targets
        self.all_reduce_(sums)
        first, second, count = sums.tolist()
        return first / max(count, 1.0), second / max(count, 1.0)

    def broadcast_decision(self, due: bool) -> bool:
        """Return the main process's decision if the table is sharded, otherwise `due`."""
        if not self.sharded:
            return due
        leaders = torch.tensor([due], dtype=torch.uint8)
        distributed.broadcast(leaders, 0)
        return bool(leaders.item())

    def any_process(self, asked: bool) -> bool:
        """Return whether `asked` is true in at least one process."""
        some = torch.tensor([asked], dtype=torch.uint8)
        distributed.all_reduce(some, distributed.ReduceOp.MAX)
        return bool(some.item())

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""
        self.all_reduce_(torch.zeros(1))  # on the CPU, so that a waiting process does not occupy its GPU


class _Step(nn.Module):
    """Module that computes the loss terms of a step. DistributedDataParallel requires a module."""

    def __init__(self, encoder: SessionEncoder, terms: StepTerms) -> None:
        super().__init__()
        self.encoder = encoder
        self.terms = terms

    def forward(self, batch: Batch, negatives: Tensor) -> Terms:
        return self.terms(batch, negatives)


def _sum_hook(_: object, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """Sum gradients over the processes.

    DistributedDataParallel would average them, but the losses are already divided by the steps of all processes.
    """
    work = distributed.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    future: torch.futures.Future[list[Tensor]] = work.get_future()
    return future.then(lambda done: done.value()[0])


@contextmanager
def init_distributed(device: str, *, sharded: bool = False) -> Iterator[Processes]:
    """Connect the processes that torchrun started, inside the `with` block.

    Without torchrun, a single process is yielded.

    Args:
        device: "cpu" or "cuda". Each process of a machine uses a separate GPU.
        sharded: Whether each process stores only a shard of the item embeddings.

    Raises:
        BadOption: If there are fewer GPUs than processes, or if `sharded` is set for a single process.
        ProcessLost: If another process exits early.

    """
    if not is_distributed():
        if sharded:
            raise BadOption("--sharded: one process alone holds all item embeddings; start several with torchrun")
        yield Processes(device)
        return
    if device != "cpu":
        device = _own_gpu()
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    try:
        store, rank, world = next(rendezvous("env://", timeout=_START_TIMEOUT))
        names = distributed_c10d.PrefixStore(_start_name(), store)
        if device != "cpu":
            check_gpus_distinct(names, rank, world, str(torch.cuda.get_device_properties(device).uuid))
        distributed.init_process_group(backend, timeout=_START_TIMEOUT, store=names, rank=rank, world_size=world)
        distributed_c10d._set_pg_timeout(_COLLECTIVE_TIMEOUT)
        yield DistributedProcesses(device, sharded=sharded)
    except RuntimeError as error:
        if _is_connection_error(error):
            raise ProcessLost(
                "another process of this training run exited or cannot be reached: run the same command again to "
                "resume from the last checkpoint"
            ) from error
        raise
    # This call is skipped after an error, because it would wait for the processes that did not fail.
    distributed.destroy_process_group()


def _start_name() -> str:
    """Return a prefix for the keys in the store, different for each restart.

    After a restart, torchrun's store still contains the stale addresses of the previous start. With several machines
    the prefix is constant, as in torch, because the machines can have different restart counts.
    """
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') if alone else '0'}"


def _own_gpu() -> str:
    number, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= gpus:
        raise BadOption(f"--nproc-per-node starts more processes than this machine has GPUs: start at most {gpus}")
    torch.cuda.set_device(number)
    return f"cuda:{number}"


def check_gpus_distinct(store: distributed_c10d.Store, rank: int, world: int, gpu: str) -> None:
    """Raise BadOption if this process shares its GPU with another process, which NCCL does not support.

    `gpu` is the unique id of this process's GPU. If several processes share a GPU, each of them raises this error.
    """
    store.set(f"gpu of {rank}", gpu)
    gpus = [store.get(f"gpu of {other}").decode() for other in range(world)]
    store.set(f"gpus seen by {rank}", "")
    sharing = [str(other) for other, theirs in enumerate(gpus) if theirs == gpu]
    if len(sharing) == 1:
        return
    # The store may run in this process. Wait until the other processes have read from the store before the exit.
    with suppress(RuntimeError):
        store.wait([f"gpus seen by {other}" for other in range(world)], _FAREWELL_TIMEOUT)
    raise BadOption(
        f"processes {' and '.join(sharing)} use the same GPU ({gpu}): each needs its own; start fewer "
        "processes, or set a different CUDA_VISIBLE_DEVICES for each"
    )


def _is_connection_error(error: RuntimeError) -> bool:
    """Return whether an error is a connection error. Errors of gloo are plain RuntimeErrors that contain file names."""
    found: Any = getattr(distributed, "DistError", ())
    return isinstance(error, found) or "gloo" in str(error).lower()


WEIGHTS: Final = "item_embeddings.weight"  # key of the item embeddings in an encoder's state_dict
_ROWS_AT_ONCE: Final = 262_144


class ShardedRows(ItemRows):
    """One process's shard of the item embeddings.

    The shard contains the rows r with r % world == rank. Row r is at index r // world of the shard.
    """

    def __init__(self, embedding: nn.Embedding, weight_decay: float) -> None:
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.rows, self.dimension = embedding.weight.shape
        self.shard = embedding.weight.detach()[self.rank :: self.world].clone()  # [owned, dimension] float32
        embedding.weight = nn.Parameter(embedding.weight.detach().new_empty((0, self.dimension)))
        super().__init__(embedding, weight_decay)
        self.first, self.second = torch.zeros_like(self.shard), torch.zeros_like(self.shard)

    def _gather(self, rows: Tensor | None) -> Tensor:
        """Gather rows from all processes. [n, dimension] float32.

        `rows` [n] int64 must be the same in all processes.
        """
        assert rows is not None, "a sharded table has no process with all rows"
        whole = self.shard.new_zeros((len(rows), self.dimension))
        mine, owned = self._mine(rows)
        whole[mine] = self.shard.index_select(0, owned)
        distributed.all_reduce(whole)  # each row is non-zero in only one process, so the sum is exact
        return nn.Parameter(whole)

    def update(self, rows: Tensor | None, gathered: Tensor, learning_rate: float) -> None:
        """Take one Adam step on the rows that this process owns.

        The gradient of `gathered` [n, dimension] float32 must already be summed over the processes.
        """
        assert rows is not None
        mine, owned = self._mine(rows)
        weights, gradient = gathered.detach()[mine], gradient_of(gathered)[mine]
        first, second = self.first.index_select(0, owned), self.second.index_select(0, owned)
        adam([weights], [gradient], Moments([first], [second], [self.steps]), learning_rate, self.weight_decay)
        for tensor, values in ((self.shard, weights), (self.first, first), (self.second, second)):
            scatter_rows(tensor, owned, values)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moments and the step count by name.

        The main process gets the moments of the full table. The other processes get empty moments. All processes must
        call this method together.
        """
        return {"first": self._gathered(self.first), "second": self._gathered(self.second), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore this process's shard from the state of the full table."""
        self.first.copy_(state["first"][self.rank :: self.world])
        self.second.copy_(state["second"][self.rank :: self.world])
        self.steps.copy_(state["steps"])

    def full_state_dict(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Return the encoder's state dict with the full table in the main process.

        The other processes get an empty table. All processes must call this method together.
        """
        return weights | {WEIGHTS: self._gathered(self.shard)}

    def load_shard(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Load this process's shard of the table from `weights`, and return the state dict for the encoder to load.

        The returned state dict has an empty table.
        """
        self.shard.copy_(weights[WEIGHTS][self.rank :: self.world])
        return weights | {WEIGHTS: self.table.detach()}

    def finalize(self) -> None:
        """Give the encoder an uninitialised full table, into which trained weights can be loaded."""
        self.embedding.weight = nn.Parameter(self.shard.new_empty((self.rows, self.dimension)))

    @property
    def sharded_counts(self) -> RankCounts:
        """Return a function that ranks targets among the rows of all processes.

        All processes must call the function together.
        """
        return self._counts

    def _counts(self, encoder: Encoder, tracks: Tensor, skipped: Tensor, targets: Tensor) -> Tensor:
        rows = torch.cat([tracks.new_full((1,), PAD_ROW), tracks.flatten()]).unique()  # type: ignore[no-untyped-call]
        with self.gathered_rows(rows):
            query = encoder.query(torch.searchsorted(rows, tracks), skipped)
        scores = query @ self.shard.T  # [batch, owned]
        if self.rank == PAD_ROW % self.world:
            scores[:, PAD_ROW // self.world] = -torch.inf
        mine, owned = self._mine(targets)
        at_target = scores.new_zeros(len(targets))
        at_target[mine] = scores[mine].gather(1, owned[:, None])[:, 0]
        distributed.all_reduce(at_target)
        counts = torch.stack([(scores > at_target[:, None]).sum(dim=1), (scores == at_target[:, None]).sum(dim=1)])
        distributed.all_reduce(counts)
        return counts

    def _mine(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Find the rows that this process owns. Return their positions in `rows` and their indices in the shard."""
        mine = (rows % self.world == self.rank).nonzero()[:, 0]
        return mine, rows[mine] // self.world

    def _gathered(self, shard: Tensor) -> Tensor:
        """Gather the shards of all processes, in parts. Return the full table on the CPU.

        The result is [rows, dimension] in the main process, and empty in the other processes.
        """
        leads = self.rank == 0
        whole = torch.empty((self.rows if leads else 0, self.dimension), dtype=shard.dtype)
        step = max(_ROWS_AT_ONCE // self.world, 1)
        for start in range(0, -(-self.rows // self.world), step):
            part = shard.new_zeros((step, self.dimension))
            part[: len(shard[start : start + step])] = shard[start : start + step]
            parts = [torch.empty_like(part) for _ in range(self.world)] if leads else None
            distributed.gather(part, parts)
            for rank, theirs in enumerate(parts or []):
                place = whole[start * self.world + rank : (start + step) * self.world : self.world]
                place.copy_(theirs[: len(place)])
        return whole
