"""A training job: train a model, write its release, record the run, and explain an out-of-memory error.

This module does not import torch. The modules that need torch are imported when a model needs them.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import numpy as np

from segue.arrays import Int
from segue.catalogue import Catalogue
from segue.errors import BadDataset, BadOption, OutOfMemory
from segue.release import (
    ITEM_EMBEDDINGS,
    MANIFEST,
    TRACK_MAP,
    DatasetFacts,
    Loss,
    Release,
    ReleaseMetadata,
    WindowFacts,
    sample_arrays,
    write_release,
)
from segue.safe_files import CHECKPOINT_SUFFIX, RUN_SUFFIX, check_output_free
from segue.window import SessionViews, to_windows
from training.checkpoint import Checkpoints
from training.data.dataset import Dataset
from training.data.splits import Split, Targets, examples, training_part
from training.notes import training_notes
from training.options import NeuralOptions, Options, ServedOptions
from training.processes import Processes, is_distributed
from training.registry import MODELS, ModelJob, TrainedModel
from training.run_log import MultiReporter, RunFolder, environment

if TYPE_CHECKING:
    from training.models.encoders.encoder import Encoder
    from training.trainer import Reporter

SAMPLE_WINDOWS: Final = 1000


@dataclass(frozen=True)
class TrainingJob:
    """The model to train, its options, its data and the path of the release."""

    model: str  # a key of training.registry.MODELS
    options: Options
    dataset: Dataset
    split: Split
    out: Path
    overwrite: bool = False
    device: str = "cpu"
    origin: Release | None = None  # the release to fine-tune
    resume: bool = False  # fail if there is no checkpoint
    targets: Targets = "last"

    @property
    def checkpoint_folder(self) -> Path:
        """Return the path of the checkpoint folder, next to the release. It is deleted after the release is written."""
        return self.out.with_name(f"{self.out.name}{CHECKPOINT_SUFFIX}")

    @property
    def run_folder(self) -> Path:
        """Return the path of the run folder, next to the release. The folder contains the log of the training run."""
        return self.out.with_name(f"{self.out.name}{RUN_SUFFIX}")


def started_processes(device: str, *, sharded: bool = False) -> AbstractContextManager[Processes]:
    """Return a context manager for the processes that torchrun started, or for a single process without torchrun.

    `device` is `cpu` or `cuda`. If `sharded` is true, each process stores a shard of the item embeddings. The errors
    are those of `training.distributed.init_distributed`.
    """
    if not sharded and not is_distributed():
        return nullcontext(Processes(device))
    from training.distributed import init_distributed

    return init_distributed(device, sharded=sharded)


def end_process() -> NoReturn:
    """End one of several processes successfully, without the shutdown of the interpreter. Call it last.

    During that shutdown, a thread of torch that needs the interpreter can abort the process ("terminate called without
    an active exception"). torchrun would then report a failure of a training that has succeeded, and restart it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


OnNote: TypeAlias = Callable[[str], None]


def train(job: TrainingJob, reporter: "Reporter", on_note: OnNote | None = None) -> Release:
    """Train a model in this process and write its release. To resume an interrupted training, repeat the call.

    `on_note` and the errors are those of `train_distributed`.
    """
    release = train_distributed(job, reporter, Processes(job.device), on_note)
    assert release is not None  # a single process is the main one
    return release


def train_distributed(
    job: TrainingJob, reporter: "Reporter", processes: Processes, on_note: OnNote | None = None
) -> Release | None:
    """Train a model in one or several processes and write its release. Every process must call this function.

    Return the release in the main process, and None in all other processes. Before the training, the main process
    calls `on_note` with each sentence of `training_notes`. The release keeps them.

    Raises:
        BadDataset: No session of the training part has two plays.
        BadOption: The options of the job are invalid, or the checkpoint belongs to another run.
        BadRelease: The release cannot be fine-tuned, or the trained model gives an invalid release.
        InputError: The output path exists and `job.overwrite` is false, or the existing folder is not a release.
        Interrupted: SIGINT or SIGTERM arrived. Training wrote a checkpoint before the error.
        OutOfMemory: The memory is not sufficient.

    """
    check_output_free(job.out, overwrite=job.overwrite, marker=MANIFEST)
    checkpoints = Checkpoints(job.checkpoint_folder, _identity(job))
    _check_job(job, checkpoints)
    if job.origin is not None:
        job = _with_tracks_of(job.origin, job)
    part = training_part(job.dataset, job.split, job.targets)
    if not (part.lengths >= 2).any():
        raise BadDataset(f"{job.dataset.path} leaves no two plays in a row to train on: it needs longer sessions")
    catalogue = _with_training_counts(job.dataset.catalogue, part)
    if processes.world > 1 and not isinstance(job.options, NeuralOptions):
        raise BadOption(f"--model {job.model} is trained by one process: start it without torchrun")
    model = MODELS[job.model]
    importlib.import_module(model.module)  # before `environment()`, which reports on torch only if torch is imported
    run, reporters, commit = None, reporter, None
    if processes.is_main:
        start = environment() | {"processes": processes.world}
        commit = start["commit"]  # of the code that trains: a checkout may change during hours of training
        run = RunFolder(job.run_folder, _identity(job), start, resumed=checkpoints.exist())
        reporters = MultiReporter(run, reporter)
    validation = examples(job.dataset, job.split, "validation", job.targets)
    notes = training_notes(job.model, job.options, job.dataset, job.split, job.targets)
    if on_note is not None and processes.is_main:
        for note in notes:
            on_note(note)
    work = ModelJob(job.options, part, catalogue, validation, checkpoints, reporters, processes, job.origin, job.split)
    release = None
    with oom_hint(job.options, checkpoints, fixed=frozenset({"dimension"} if job.origin else ())):
        trained = model.train(work)
        if processes.is_main:
            trained = _with_play_head(
                job, trained._replace(evaluation=_with_facts(trained, job, catalogue, notes)), part
            )
            release = _write(job, trained, catalogue, commit)
    if run is not None and release is not None:
        run.finish(release.name, trained.history)
        checkpoints.remove()
    processes.barrier()
    return release


def _check_job(job: TrainingJob, checkpoints: Checkpoints) -> None:
    """Check the options `resume`, `targets`, `origin` and `epochs` of the job.

    Raises:
        BadOption: An option is invalid.
        BadRelease: The release `origin` cannot be fine-tuned.

    """
    if job.resume and not checkpoints.exist():
        raise BadOption(
            f"--resume: {checkpoints.folder} holds no checkpoint: leave --resume out to train from the start"
        )
    if job.targets == "known" and not job.dataset.has_outcomes:
        raise BadOption(
            f"--targets known: {job.dataset.path} does not tell skipped from played tracks, so no play has a known "
            "outcome: use --targets last"
        )
    if isinstance(job.options, ServedOptions) and job.options.caution > 0:
        part = training_part(job.dataset, job.split, job.targets)
        if not job.dataset.has_outcomes or not any(block.skipped.any() for block in part.blocks()):
            raise BadOption(
                f"caution = {job.options.caution:g}: {job.dataset.path} has no skips to predict: set caution=0, or "
                "train on a log with skips"
            )
    if job.origin is not None:
        from training.warm_start import check_can_fine_tune, check_same_split

        check_can_fine_tune(job.origin)
        check_same_split(job.origin, job.split, job.targets)
    elif isinstance(job.options, NeuralOptions) and job.options.epochs == 0:
        raise BadOption(
            "epochs=0 trains nothing: expected 1 or more, or --init-from with a release to take the weights of"
        )


def _with_tracks_of(origin: Release, job: TrainingJob) -> TrainingJob:
    from training.warm_start import with_tracks_of

    return replace(job, dataset=with_tracks_of(origin, job.dataset))


def _with_facts(trained: TrainedModel, job: TrainingJob, catalogue: Catalogue, notes: Sequence[str]) -> dict[str, Any]:
    """Return the training facts of the manifest with the notes, the targets, and the plays and skips trained on."""
    counted = {"plays": int(catalogue.plays.sum()), "skips": int(catalogue.frame["skips"].sum())}
    facts = trained.evaluation | {"training": {**trained.evaluation["training"], **counted}}
    if notes:
        facts["notes"] = list(notes)
    if job.targets != "last":
        facts["targets"] = job.targets
    return facts


def _with_play_head(job: TrainingJob, trained: TrainedModel, part: SessionViews) -> TrainedModel:
    """Add the play head to a model that can be served, if the log tells skipped from played tracks."""
    if not isinstance(job.options, ServedOptions) or not job.dataset.has_outcomes:
        return trained
    from training.models.play_head import fit_play_head, held_out, measure

    options = job.options
    fitted = fit_play_head(part, job.dataset.catalogue.num_rows, options.window, options.seed)
    if fitted is None:
        return trained
    validation = held_out(examples(job.dataset, job.split, "validation", job.targets), options.window)
    facts = trained.evaluation | {"play_head": measure(fitted, validation)}
    return trained._replace(evaluation=facts, arrays={**trained.arrays, **fitted.head.arrays()})


def _write(job: TrainingJob, trained: TrainedModel, catalogue: Catalogue, commit: str | None) -> Release:
    if trained.encoder is None:
        draft = _draft(job, trained, None, commit)
        return write_release(job.out, draft, catalogue, trained.arrays, overwrite=job.overwrite)
    return _write_encoder(job, trained, trained.encoder, catalogue, commit)


def _write_encoder(
    job: TrainingJob, trained: TrainedModel, encoder: "Encoder", catalogue: Catalogue, commit: str | None
) -> Release:
    from training.export_onnx import check_parity, export_encoder, item_embeddings
    from training.models.encoders.encoder import SessionEncoder
    from training.track_map import track_map
    from training.warm_start import ENCODER_WEIGHTS, encoder_weights

    inputs = examples(job.dataset, job.split, "validation", job.targets).inputs
    if len(inputs) == 0:
        inputs = training_part(job.dataset, job.split, job.targets)
    sample = to_windows(inputs.select(slice(0, SAMPLE_WINDOWS)), job.options.window)
    matrix = item_embeddings(encoder)
    weights = {ENCODER_WEIGHTS: encoder_weights(encoder)} if isinstance(encoder, SessionEncoder) else {}
    return write_release(
        job.out,
        _draft(job, trained, encoder.item_embeddings.embedding_dim, commit),
        catalogue,
        {
            ITEM_EMBEDDINGS: matrix,
            TRACK_MAP: track_map(matrix, catalogue.plays),
            **weights,
            **sample_arrays(sample),
            **trained.arrays,
        },
        export_encoder(encoder),
        overwrite=job.overwrite,
        check=lambda folder: check_parity(folder, encoder, sample),
    )


def _draft(job: TrainingJob, trained: TrainedModel, dimension: int | None, commit: str | None) -> ReleaseMetadata:
    neural = job.options if isinstance(job.options, NeuralOptions) else None
    fields = ("objective", "alpha", "beta", "temperature", "negatives")
    return ReleaseMetadata(
        model=job.model,
        options=job.options.model_dump(),
        loss=None if neural is None else Loss(**{name: getattr(neural, name) for name in fields}),
        window=WindowFacts(length=job.options.window),
        dimension=dimension,
        dataset=DatasetFacts(
            fingerprint=job.dataset.facts.fingerprint, source=job.dataset.facts.source, split=job.split
        ),
        source_commit=commit,
        evaluation=trained.evaluation,
    )


def _identity(job: TrainingJob) -> dict[str, object]:
    return {
        "model": job.model,
        **job.options.model_dump(),
        "dataset": job.dataset.facts.fingerprint,
        "split": job.split,
        "device": job.device,
        "from": None if job.origin is None else job.origin.name,
        **({} if job.targets == "last" else {"targets": job.targets}),
    }


def _with_training_counts(catalogue: Catalogue, part: SessionViews) -> Catalogue:
    """Replace the counts of plays and skips by those of the training part, so that no held-out play is counted."""
    plays: Int = np.zeros(catalogue.num_rows, dtype=np.int64)
    skips: Int = np.zeros(catalogue.num_rows, dtype=np.int64)
    for block in part.blocks():
        plays += np.bincount(block.rows, minlength=catalogue.num_rows)
        skips += np.bincount(block.rows[block.skipped], minlength=catalogue.num_rows)
    return catalogue.with_counts(plays, skips)


# Options that increase the memory of a step. They are sorted by the accuracy that a lower value costs, least first.
_LOWERED: Final = ("batch_size", "negatives", "duplication_factor", "dimension")
# Error messages of torch's CPU allocator, in lower case.
_HOST: Final = ("not enough memory", "can't allocate memory", "cannot allocate memory")


@contextmanager
def oom_hint(options: Options, checkpoints: Checkpoints, *, fixed: frozenset[str] = frozenset()) -> Iterator[None]:
    """Return a context manager that converts out-of-memory errors of torch and NumPy to OutOfMemory.

    The message of the error lists the options to lower. `fixed` contains options that cannot be changed in this
    training. An existing checkpoint is kept.

    Raises:
        OutOfMemory: The memory is not sufficient.

    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _short_of_memory(error):
            raise
        raise OutOfMemory(_advice(str(error), options, checkpoints, fixed)) from error


def _short_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # if torch is not imported, it cannot have raised the error
    known = isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))
    return known or any(words in str(error).lower() for words in _HOST)


def _advice(message: str, options: Options, checkpoints: Checkpoints, fixed: frozenset[str]) -> str:
    names = [name for name in _LOWERED if name in type(options).model_fields and name not in fixed]
    named = [f"{name} (now {getattr(options, name)})" for name in names]
    lower = f"lower {_listed(named)} with --set" if named else "train on fewer sessions or a machine with more memory"
    kept = (
        f"; the checkpoint stays in {checkpoints.folder}: the same command resumes where there is more memory, lower "
        "options need another --out"
        if checkpoints.exist()
        else ""
    )
    return f"out of memory{_requested(message)}: {lower}{kept}"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _requested(message: str) -> str:
    """Return the amount of memory that could not be allocated, or an empty string if the message has no amount."""
    found = re.search(r"allocate ([\d.]+) (bytes|[KMGTP]i?B)", message)
    if found is None:
        return ""
    amount, unit = float(found[1]), found[2]
    size = f"{amount / 2**30:,.1f} GiB" if unit == "bytes" else f"{amount:g} {unit}"
    return f" ({size} more were requested)"
