"""One training by several processes, as torchrun starts them: what each does of a step, and what they tell each other.

Every process takes its share of a step's sessions. Losses are sums over the share divided by the steps of all, and
gradients are added up, so that all take the step that one process would take on the whole batch, each on its own copy
of the weights. Of the item embeddings only the rows of the batch travel; all know these, as the order of the sessions
comes from the seed. The first process leads: it alone writes, and what the clock decides, it decides for all.

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

from segue.errors import BadOption, ProcessLost
from segue.window import SessionViews
from training.data.loader import Batch
from training.data.splits import Examples
from training.losses import Terms
from training.models.encoders.encoder import SessionEncoder
from training.options import NeuralOptions
from training.processes import Processes, StepTerms, is_distributed
from training.validation import SESSIONS

# The leader writes the release while the others wait; drawing the map of millions of tracks takes minutes.
_LONGEST_WAIT: Final = timedelta(hours=2)
# Until all have met; those who have not by then end, and torchrun starts them again.
_LONGEST_START: Final = timedelta(seconds=60)
_LONGEST_FAREWELL: Final = timedelta(seconds=5)


class DistributedProcesses(Processes):
    """One of several processes that have joined."""

    def __init__(self, device: str, *, sharded: bool) -> None:
        super().__init__(device)
        self.sharded = sharded
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    def check(self, options: NeuralOptions) -> None:
        """See Processes."""
        if options.negative_pairing == "published":
            raise BadOption(
                f"negative_pairing=published contrasts sessions of the whole batch, and {self.world} processes hold a "
                "share each: train in one process, or with negative_pairing=session"
            )

        if self.sharded and (options.updates == "all" or options.ema_decay):
            raise BadOption("--sharded goes with updates=touched and ema_decay=0: other options need the whole table")

    def agree(self, facts: Mapping[str, object]) -> None:
        """See Processes."""
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

    def together(self, encoder: SessionEncoder, terms: StepTerms) -> StepTerms:
        """See Processes. All start from the leader's weights."""
        table = encoder.item_embeddings.weight
        table.requires_grad_(False)  # what has no gradient now, DistributedDataParallel leaves alone
        step = DistributedDataParallel(_Step(encoder, terms))
        table.requires_grad_(True)
        step.register_comm_hook(None, _added_up)
        return step

    def share(self, batch: Batch) -> Batch:
        """See Processes."""
        mine = Batch(*(tensor[self.rank :: self.world] for tensor in batch))
        return mine if len(mine.plays) else Batch(*(F.pad(tensor, (0, 0, 0, 1)) for tensor in mine))

    def share_of(self, validation: Examples) -> Examples:
        """See Processes."""
        if self.sharded:
            return validation  # each ranks all targets among its own tracks
        which = slice(self.rank, SESSIONS, self.world)
        return Examples(
            SessionViews.of(validation.inputs.select(which)),
            validation.targets[which],
            validation.target_skipped[which],
            validation.sessions[which],
        )

    def total(self, count: Tensor) -> Tensor:
        """See Processes."""
        everywhere = count.clone()
        self.add_up(everywhere)
        return everywhere

    def add_up(self, tensor: Tensor) -> None:
        """See Processes."""
        distributed.all_reduce(tensor)

    def sums(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """See Processes."""
        everywhere = torch.stack([value.detach() for value in values.values()])
        self.add_up(everywhere)
        return dict(zip(values, everywhere.tolist(), strict=True))

    def score(self, score: tuple[float, float], targets: int) -> tuple[float, float]:
        """See Processes."""
        if self.sharded:
            return score  # of all targets already: see `share_of`
        sums = torch.tensor([*score, 1.0], dtype=torch.float64) * targets
        self.add_up(sums)
        first, second, count = sums.tolist()
        return first / max(count, 1.0), second / max(count, 1.0)

    def agreed(self, due: bool) -> bool:
        """See Processes."""
        if not self.sharded:
            return due
        leaders = torch.tensor([due], dtype=torch.uint8)
        distributed.broadcast(leaders, 0)
        return bool(leaders.item())

    def any(self, asked: bool) -> bool:
        """See Processes."""
        some = torch.tensor([asked], dtype=torch.uint8)
        distributed.all_reduce(some, distributed.ReduceOp.MAX)
        return bool(some.item())

    def wait(self) -> None:
        """See Processes."""
        self.add_up(torch.zeros(1))  # on the CPU, where a process that waits for long keeps no GPU busy


class _Step(nn.Module):
    """The terms of a step as a module that owns the encoder, which is what DistributedDataParallel takes."""

    def __init__(self, encoder: SessionEncoder, terms: StepTerms) -> None:
        super().__init__()
        self.encoder = encoder
        self.terms = terms

    def forward(self, batch: Batch, negatives: Tensor) -> Terms:
        return self.terms(batch, negatives)


def _added_up(_: object, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """Sums instead of DistributedDataParallel's means: the losses are divided by the steps of all already."""
    work = distributed.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    future: torch.futures.Future[list[Tensor]] = work.get_future()
    return future.then(lambda done: done.value()[0])


@contextmanager
def init_distributed(device: str, *, sharded: bool = False) -> Iterator[Processes]:
    """Within, this process is one of those that it was started with; started alone, it is alone.

    `device` is cpu or cuda; each process of a machine takes a GPU of its own. `sharded`: each holds a part of the item
    embeddings alone. Raises BadOption where there are fewer,
    and ProcessLost where another process ends before its time.
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
        store, rank, world = next(rendezvous("env://", timeout=_LONGEST_START))
        names = distributed_c10d.PrefixStore(_start_name(), store)
        if device != "cpu":
            refuse_shared_gpu(names, rank, world, str(torch.cuda.get_device_properties(device).uuid))
        distributed.init_process_group(backend, timeout=_LONGEST_START, store=names, rank=rank, world_size=world)
        distributed_c10d._set_pg_timeout(_LONGEST_WAIT)
        yield DistributedProcesses(device, sharded=sharded)
    except RuntimeError as error:
        if _of_the_connection(error):
            raise ProcessLost(
                "another process of this training has ended or is not reached: the same command goes on from the last "
                "checkpoint"
            ) from error
        raise
    # Not after an error: it would wait for processes that have none.
    distributed.destroy_process_group()


def _start_name() -> str:
    """What addresses are told under: those of a start before, which torchrun keeps, lead nowhere.

    Machines do not count restarts alike, so that several go by the same names each time, as torch does.
    """
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') if alone else '0'}"


def _own_gpu() -> str:
    number, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= gpus:
        raise BadOption(f"--nproc-per-node asks for more processes than this machine has GPUs: start at most {gpus}")
    torch.cuda.set_device(number)
    return f"cuda:{number}"


def refuse_shared_gpu(store: distributed_c10d.Store, rank: int, world: int, gpu: str) -> None:
    """Raise BadOption where two processes have the same GPU, which NCCL cannot serve.

    `gpu` is what identifies this process's GPU everywhere. All processes that share one raise.
    """
    store.set(f"gpu of {rank}", gpu)
    gpus = [store.get(f"gpu of {other}").decode() for other in range(world)]
    store.set(f"gpus seen by {rank}", "")
    sharing = [str(other) for other, theirs in enumerate(gpus) if theirs == gpu]
    if len(sharing) == 1:
        return
    # A process may own the store: it must not end before the others have read it.
    with suppress(RuntimeError):
        store.wait([f"gpus seen by {other}" for other in range(world)], _LONGEST_FAREWELL)
    raise BadOption(
        f"processes {' and '.join(sharing)} use the same GPU ({gpu}): each needs a GPU of its own; start fewer "
        "processes, or give each another CUDA_VISIBLE_DEVICES"
    )


def _of_the_connection(error: RuntimeError) -> bool:
    """Whether it is about the others. gloo raises plain RuntimeErrors that name its sources."""
    found: Any = getattr(distributed, "DistError", ())
    return isinstance(error, found) or "gloo" in str(error).lower()
