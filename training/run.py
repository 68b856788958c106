"""Every model that `segue train` knows, and the way from a dataset to a release. A new encoder is a line in MODELS."""

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from segue.arrays import Int
from segue.catalogue import Catalogue
from segue.errors import BadDataset, BadOption
from segue.recommend import PopularityRanker, Ranker
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
from segue.window import Sessions, SessionViews, to_windows
from training.checkpoint import Checkpoints
from training.data.dataset import Dataset
from training.data.splits import Split, examples, training_part
from training.export_onnx import check_parity, export_encoder, item_embeddings
from training.memory_advice import oom_hint
from training.models.baselines.bpr import fit_bpr
from training.models.baselines.knn import VmisKnn
from training.models.baselines.markov import MarkovRanker
from training.models.baselines.wrmf import fit_wrmf
from training.models.encoders.bert4rec import Bert4Rec
from training.models.encoders.caser import Caser
from training.models.encoders.encoder import Encoder, SessionEncoder
from training.models.encoders.gru4rec import Gru4Rec
from training.models.encoders.sasrec import SasRec
from training.options import (
    Bert4RecOptions,
    BprOptions,
    CaserOptions,
    Gru4RecOptions,
    NeuralOptions,
    Options,
    SasRecOptions,
    VmisKnnOptions,
    WrmfOptions,
)
from training.processes import Processes
from training.run_log import MultiReporter, RunFolder, environment, source_commit
from training.track_map import track_map
from training.trainer import Reporter, fit
from training.validation import encoder_score, ranker_score
from training.warm_start import (
    ENCODER_WEIGHTS,
    check_can_fine_tune,
    check_same_split,
    encoder_weights,
    take_over,
    with_tracks_of,
)

SAMPLE_WINDOWS: Final = 1000

Fold = Callable[
    ..., Encoder
]  # sessions, number of rows, options, report of rounds -> an encoder that folds sessions in
Count = Callable[[Sessions, Catalogue, Options], Ranker]


@dataclass(frozen=True)
class Model:
    """A line of the table: the class of a model's options, and one way to train it."""

    options: type[Options]
    encoder: Callable[..., SessionEncoder] | None = None  # the class of a neural encoder
    fold: Fold | None = None  # a matrix factorisation
    count: Count | None = None  # a ranker without vectors, which cannot be served
    seeded: bool = True  # whether anything is drawn at random


def _popularity(_: Sessions, catalogue: Catalogue, __: Options) -> Ranker:
    return PopularityRanker(catalogue.plays)


def _markov(part: Sessions, catalogue: Catalogue, _: Options) -> Ranker:
    return MarkovRanker.fit(part, catalogue.num_rows, catalogue.plays)


def _vmis_knn(part: Sessions, catalogue: Catalogue, options: Options) -> Ranker:
    assert isinstance(options, VmisKnnOptions)
    return VmisKnn.fit(part, catalogue.num_rows, catalogue.plays, options)


MODELS: Final[dict[str, Model]] = {
    "sasrec": Model(SasRecOptions, encoder=SasRec),
    "bert4rec": Model(Bert4RecOptions, encoder=Bert4Rec),
    "gru4rec": Model(Gru4RecOptions, encoder=Gru4Rec),
    "caser": Model(CaserOptions, encoder=Caser),
    "wrmf": Model(WrmfOptions, fold=partial(fit_wrmf, version="orig")),
    "wrmf-bl": Model(WrmfOptions, fold=partial(fit_wrmf, version="bl")),
    "wrmf-nr": Model(WrmfOptions, fold=partial(fit_wrmf, version="nr")),
    "bpr": Model(BprOptions, fold=partial(fit_bpr, version="orig")),
    "bpr-bl": Model(BprOptions, fold=partial(fit_bpr, version="bl")),
    "bpr-nr": Model(BprOptions, fold=partial(fit_bpr, version="nr")),
    "vmis-knn": Model(VmisKnnOptions, count=_vmis_knn, seeded=False),
    "markov": Model(Options, count=_markov, seeded=False),
    "popularity": Model(Options, count=_popularity, seeded=False),
}


@dataclass(frozen=True)
class TrainingJob:
    """What is to be trained, on what, and where the release goes."""

    model: str
    options: Options
    dataset: Dataset
    split: Split
    out: Path
    overwrite: bool = False
    device: str = "cpu"
    origin: Release | None = None  # the release that training goes on from
    resume: bool = False  # whether there must be a checkpoint to resume from

    @property
    def checkpoint_folder(self) -> Path:
        """Beside the release to be; it is removed once the release is written."""
        return self.out.with_name(f"{self.out.name}{CHECKPOINT_SUFFIX}")

    @property
    def run_folder(self) -> Path:
        """Beside the release to be; it stays and says how the release was trained."""
        return self.out.with_name(f"{self.out.name}{RUN_SUFFIX}")


class TrainedModel(NamedTuple):
    """A trained model: an encoder, or a ranker without one."""

    model: Encoder | Ranker
    evaluation: dict[str, object]  # what the manifest says of it
    history: Sequence[dict[str, float]] = ()  # of every epoch


def train(job: TrainingJob, reporter: Reporter) -> Release:
    """Train a model and write its release. Interrupted, the same call goes on where it stopped."""
    release = train_distributed(job, reporter, Processes(job.device))
    assert release is not None  # who is alone leads
    return release


def train_distributed(job: TrainingJob, reporter: Reporter, processes: Processes) -> Release | None:
    """`train` by several processes, which all call this alike: the release in the first, None in the others."""
    check_output_free(job.out, overwrite=job.overwrite, marker=MANIFEST)
    checkpoints = Checkpoints(job.checkpoint_folder, _identity(job))
    _refuse_unfit(job, checkpoints)
    if job.origin is not None:
        job = replace(job, dataset=with_tracks_of(job.origin, job.dataset))
    part = training_part(job.dataset, job.split)
    if not (part.lengths >= 2).any():
        raise BadDataset(f"{job.dataset.path} leaves no two plays in a row to train on: it needs longer sessions")
    catalogue = _with_training_counts(job.dataset.catalogue, part)
    if processes.world > 1 and not isinstance(job.options, NeuralOptions):
        raise BadOption(f"--model {job.model} is trained by one process: start it without torchrun")
    run, told = None, reporter
    if processes.is_main:
        start = environment() | {"processes": processes.world}
        run = RunFolder(job.run_folder, _identity(job), start, resumed=checkpoints.exist())
        told = MultiReporter(run, reporter)
    release = None
    with oom_hint(job.options, checkpoints, fixed=frozenset({"dimension"} if job.origin else ())):
        trained = _trained(job, part, catalogue, checkpoints, told, processes)
        if processes.is_main:
            release = _write(job, trained, catalogue)
    if run is not None and release is not None:
        run.finish(release.name, trained.history)
        checkpoints.remove()
    processes.wait()
    return release


def _refuse_unfit(job: TrainingJob, checkpoints: Checkpoints) -> None:
    """Raise BadOption or BadRelease for a job that cannot be done."""
    if job.resume and not checkpoints.exist():
        raise BadOption(
            f"--resume: {checkpoints.folder} holds no checkpoint: leave --resume out to train from the start"
        )
    if job.origin is not None:
        check_can_fine_tune(job.origin)
        check_same_split(job.origin, job.split)
    elif isinstance(job.options, NeuralOptions) and job.options.epochs == 0:
        raise BadOption(
            "epochs=0 trains nothing: expected 1 or more, or --init-from with a release to take the weights of"
        )


def new_encoder(job: TrainingJob, options: NeuralOptions, num_rows: int) -> SessionEncoder:
    """An encoder with its first weights, drawn from the seed."""
    build = MODELS[job.model].encoder
    assert build is not None, job.model
    encoder = build(num_rows, options)
    encoder.initialise(torch.Generator().manual_seed(options.seed))
    return encoder


def _trained(
    job: TrainingJob,
    part: SessionViews,
    catalogue: Catalogue,
    checkpoints: Checkpoints,
    reporter: Reporter,
    processes: Processes,
) -> TrainedModel:
    if not isinstance(job.options, NeuralOptions):
        return _train_baseline(job, part, catalogue, reporter)
    encoder = new_encoder(job, job.options, catalogue.num_rows)
    if job.origin is not None:
        take_over(encoder, job.origin, catalogue, part.gathered())
    validation = examples(job.dataset, job.split, "validation")
    continued = job.origin is not None
    fitted = fit(encoder, part, validation, checkpoints, reporter, processes, continued=continued)
    return TrainedModel(
        fitted.encoder,
        {
            "validation": _validation(fitted.validation_hr10),
            "training": _cost(fitted.seconds) | {"epochs": len(fitted.history)},
            "best_epoch": fitted.best_epoch + 1,
            "epochs": len(fitted.history),
            "history": fitted.history,
        },
        fitted.history,
    )


def _train_baseline(job: TrainingJob, part: SessionViews, catalogue: Catalogue, reporter: Reporter) -> TrainedModel:
    line, started = MODELS[job.model], time.monotonic()
    sessions = part.gathered()  # the baselines work on all plays at once, in memory
    validation = examples(job.dataset, job.split, "validation")
    if line.fold is not None:
        encoder = line.fold(
            sessions, catalogue.num_rows, job.options, report=lambda done, total: reporter.step(0, done, total, {})
        )
        cost, score = _cost(time.monotonic() - started), encoder_score(encoder, validation)[0]
        return TrainedModel(encoder, {"validation": _validation(score), "training": cost})
    assert line.count is not None, job.model
    ranker = line.count(sessions, catalogue, job.options)
    cost, score = _cost(time.monotonic() - started), ranker_score(ranker, validation, job.options.window)
    return TrainedModel(ranker, {"validation": _validation(score), "training": cost})


def _validation(hr10: float) -> dict[str, object]:
    return {"protocol": "full", "group": "all", "HR@10": hr10}


def _cost(seconds: float) -> dict[str, float]:
    """What a training took: seconds, and the largest resident memory that this process has had."""
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(seconds, 2), "peak_memory_bytes": peak_kib * 1024}


def _write(job: TrainingJob, trained: TrainedModel, catalogue: Catalogue) -> Release:
    model = trained.model
    if not isinstance(model, Encoder):
        arrays: Mapping[str, NDArray[Any]] = getattr(model, "arrays", dict)()
        return write_release(job.out, _draft(job, trained, None), catalogue, arrays, overwrite=job.overwrite)
    inputs = examples(job.dataset, job.split, "validation").inputs
    if len(inputs) == 0:
        inputs = training_part(job.dataset, job.split)
    sample = to_windows(inputs.select(slice(0, SAMPLE_WINDOWS)), job.options.window)
    matrix = item_embeddings(model)
    weights = {ENCODER_WEIGHTS: encoder_weights(model)} if isinstance(model, SessionEncoder) else {}
    return write_release(
        job.out,
        _draft(job, trained, model.item_embeddings.embedding_dim),
        catalogue,
        {ITEM_EMBEDDINGS: matrix, TRACK_MAP: track_map(matrix, catalogue.plays), **weights, **sample_arrays(sample)},
        export_encoder(model),
        overwrite=job.overwrite,
        check=lambda folder: check_parity(folder, model, sample),
    )


def _draft(job: TrainingJob, trained: TrainedModel, dimension: int | None) -> ReleaseMetadata:
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
        source_commit=source_commit(),
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
    }


def _with_training_counts(catalogue: Catalogue, part: SessionViews) -> Catalogue:
    """The catalogue with the counts of the training part alone, so that no later play is known to any ranker."""
    plays: Int = np.zeros(catalogue.num_rows, dtype=np.int64)
    skips: Int = np.zeros(catalogue.num_rows, dtype=np.int64)
    for block in part.blocks():
        plays += np.bincount(block.rows, minlength=catalogue.num_rows)
        skips += np.bincount(block.rows[block.skipped], minlength=catalogue.num_rows)
    return catalogue.with_counts(plays, skips)
