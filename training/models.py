"""Every model that `segue train` knows, and the way from a dataset to a release. A new encoder is a line in MODELS."""

import resource
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from segue.arrays import Int
from segue.catalogue import Catalogue
from segue.errors import BadDataset
from segue.folders import refuse_existing
from segue.release import (
    ITEM_EMBEDDINGS,
    MANIFEST,
    DatasetFacts,
    Draft,
    Loss,
    Release,
    WindowFacts,
    sample_arrays,
    write_release,
)
from segue.window import Sessions, to_windows
from training.baselines.markov import MarkovRanker
from training.checkpoint import Checkpoints
from training.dataset import Dataset
from training.encoders.bert4rec import Bert4Rec, Bert4RecOptions
from training.encoders.caser import Caser, CaserOptions
from training.encoders.contract import SessionEncoder
from training.encoders.gru4rec import Gru4Rec, Gru4RecOptions
from training.encoders.sasrec import SasRec, SasRecOptions
from training.export_onnx import check_parity, export_encoder, item_embeddings
from training.fit import Fitted, Reporter, fit
from training.options import NeuralOptions, Options
from training.splits import Split, examples, training_part

SAMPLE_WINDOWS: Final = 1000


@dataclass(frozen=True)
class Model:
    """A line of the table: the class of a model's options and, for one with an encoder, the encoder's class."""

    options: type[Options]
    encoder: Callable[..., SessionEncoder] | None = None


MODELS: Final[dict[str, Model]] = {
    "sasrec": Model(SasRecOptions, SasRec),
    "bert4rec": Model(Bert4RecOptions, Bert4Rec),
    "gru4rec": Model(Gru4RecOptions, Gru4Rec),
    "caser": Model(CaserOptions, Caser),
    "popularity": Model(Options),
    "markov": Model(Options),
}


@dataclass(frozen=True)
class Job:
    """What is to be trained, on what, and where the release goes."""

    model: str
    options: Options
    dataset: Dataset
    split: Split
    out: Path
    overwrite: bool = False
    device: str = "cpu"

    @property
    def checkpoint_folder(self) -> Path:
        """Beside the release to be; it is removed once the release is written."""
        return self.out.parent / f"{self.out.name}.training"


def train(job: Job, reporter: Reporter) -> Release:
    """Train a model and write its release. Interrupted, the same call goes on where it stopped."""
    refuse_existing(job.out, overwrite=job.overwrite, marker=MANIFEST)
    part = training_part(job.dataset, job.split)
    if not (part.lengths >= 2).any():
        raise BadDataset(f"{job.dataset.path} leaves no two plays in a row to train on: it needs longer sessions")
    catalogue = _counted(job.dataset.catalogue, part)
    if isinstance(job.options, NeuralOptions):
        return _train_encoder(job, job.options, part, catalogue, reporter)
    arrays = MarkovRanker.fit(part, catalogue.num_rows, catalogue.plays).arrays() if job.model == "markov" else {}
    return write_release(job.out, _draft(job, {}), catalogue, arrays, overwrite=job.overwrite)


def new_encoder(job: Job, options: NeuralOptions, num_rows: int) -> SessionEncoder:
    """An encoder with its first weights, drawn from the seed."""
    build = MODELS[job.model].encoder
    assert build is not None, job.model
    encoder = build(num_rows, options)
    encoder.initialise(torch.Generator().manual_seed(options.seed))
    return encoder


def _train_encoder(
    job: Job, options: NeuralOptions, part: Sessions, catalogue: Catalogue, reporter: Reporter
) -> Release:
    checkpoints = Checkpoints(job.checkpoint_folder, _identity(job))
    validation = examples(job.dataset, job.split, "validation")
    encoder = new_encoder(job, options, catalogue.num_rows)
    fitted = fit(encoder, part, validation, checkpoints, reporter, job.device)
    sample = to_windows(validation.inputs.select(slice(0, SAMPLE_WINDOWS)), options.window)
    release = write_release(
        job.out,
        _draft(job, _summary(fitted)),
        catalogue,
        {ITEM_EMBEDDINGS: item_embeddings(fitted.encoder), **sample_arrays(sample)},
        export_encoder(fitted.encoder),
        overwrite=job.overwrite,
        check=lambda folder: check_parity(folder, fitted.encoder, sample),
    )
    checkpoints.remove()
    return release


def _summary(fitted: Fitted) -> dict[str, object]:
    return {
        "validation": {"protocol": "full", "group": "all", "HR@10": fitted.validation_hr10},
        "best_epoch": fitted.best_epoch + 1,
        "epochs": len(fitted.history),
        "history": fitted.history,
        "training": _cost(fitted.seconds) | {"epochs": len(fitted.history), "validation HR@10": fitted.validation_hr10},
    }


def _cost(seconds: float) -> dict[str, float]:
    """What a training took: seconds, and the largest resident memory that this process has had."""
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(seconds, 2), "peak_memory_bytes": peak_kib * 1024}


def _draft(job: Job, evaluation: dict[str, object]) -> Draft:
    neural = job.options if isinstance(job.options, NeuralOptions) else None
    fields = ("objective", "alpha", "beta", "temperature", "negatives")
    return Draft(
        model=job.model,
        options=job.options.model_dump(),
        loss=None if neural is None else Loss(**{name: getattr(neural, name) for name in fields}),
        window=WindowFacts(length=job.options.window),
        dimension=None if neural is None else neural.dimension,
        dataset=DatasetFacts(
            fingerprint=job.dataset.facts.fingerprint, source=job.dataset.facts.source, split=job.split
        ),
        source_commit=source_commit(),
        evaluation=evaluation,
    )


def _identity(job: Job) -> dict[str, object]:
    return {
        "model": job.model,
        **job.options.model_dump(),
        "dataset": job.dataset.facts.fingerprint,
        "split": job.split,
        "device": job.device,
    }


def _counted(catalogue: Catalogue, part: Sessions) -> Catalogue:
    """The catalogue with the counts of the training part alone, so that no later play is known to any ranker."""
    plays: Int = np.bincount(part.rows, minlength=catalogue.num_rows)
    skips: Int = np.bincount(part.rows[part.skipped], minlength=catalogue.num_rows)
    return catalogue.with_counts(plays, skips)


def source_commit() -> str | None:
    """The commit that this code was checked out at, None where it was installed from a wheel."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None
