"""The models of `segue train`, by name. A new model is a line in MODELS.

There are three kinds, each with a `train` method: neural encoders, matrix factorisations and rankers without vectors.
An entry names the module of its model. The module is imported only when a job trains the model or opens its release, so
`popularity`, `markov` and `vmis-knn` are trained without torch.
"""

import importlib
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol, Self, TypeAlias

from numpy.typing import NDArray

from segue.arrays import Int
from segue.catalogue import Catalogue
from segue.errors import BadOption, BadRelease
from segue.recommend import Ranker
from segue.release import Release
from segue.window import Sessions, SessionViews
from training.checkpoint import Checkpoints
from training.data.dataset import Examples
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
from training.validation import encoder_score, ranker_score

if TYPE_CHECKING:
    from training.models.encoders.encoder import Encoder, SessionEncoder
    from training.trainer import Reporter


@dataclass(frozen=True)
class ModelJob:
    """The data and options that a model is trained with, and what it reports to."""

    options: Options
    sessions: SessionViews  # the training part
    catalogue: Catalogue  # with the counts of the training part
    validation: Examples
    checkpoints: Checkpoints
    reporter: "Reporter"
    processes: Processes
    origin: Release | None = None  # the release to fine-tune


class TrainedModel(NamedTuple):
    """What a release is written from."""

    evaluation: dict[str, object]  # goes into the manifest
    encoder: "Encoder | None"  # None: a ranker without vectors
    arrays: Mapping[str, NDArray[Any]]  # files of a ranker, by name
    history: Sequence[dict[str, float]] = ()  # one entry per epoch


class StoredRanker(Ranker, Protocol):
    """A ranker without vectors. It can be evaluated, but not served."""

    @classmethod
    def fit(cls, sessions: Sessions, num_rows: int, plays: Int, options: Any, /) -> Self:
        """Count the training sessions; `plays` [num_rows] int64."""
        ...

    @classmethod
    def of_release(cls, release: Release) -> Self:
        """Open a release that `arrays` was written to."""
        ...

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """What a release stores, by file name."""
        ...


@dataclass(frozen=True)
class EncoderModel:
    """A neural encoder, trained in epochs by training.trainer."""

    module: str
    name: str  # of the encoder's class
    options: type[NeuralOptions]
    seeded: ClassVar[bool] = True  # whether the seed changes the result

    def new_encoder(self, options: NeuralOptions, num_rows: int) -> "SessionEncoder":
        """An encoder with initial weights drawn from the seed."""
        import torch

        encoder: SessionEncoder = _member(self.module, self.name)(num_rows, options)
        encoder.initialise(torch.Generator().manual_seed(options.seed))
        return encoder

    def train(self, job: ModelJob) -> TrainedModel:
        """Train it in all processes; the checkpoints let an interrupted training resume."""
        from training.trainer import fit
        from training.warm_start import take_over

        assert isinstance(job.options, NeuralOptions)
        encoder = self.new_encoder(job.options, job.catalogue.num_rows)
        fine_tuned = job.origin is not None
        if job.origin is not None:
            take_over(encoder, job.origin, job.catalogue, job.sessions.gathered())
        places = job.checkpoints, job.reporter, job.processes
        fitted = fit(encoder, job.sessions, job.validation, *places, continued=fine_tuned)
        facts = _facts(fitted.validation_hr10, fitted.seconds, epochs=len(fitted.history)) | {
            "best_epoch": fitted.best_epoch + 1,
            "epochs": len(fitted.history),
            "history": fitted.history,
        }
        return TrainedModel(facts, fitted.encoder, {}, fitted.history)


@dataclass(frozen=True)
class FactorisationModel:
    """A matrix factorisation, trained on all plays in memory. It is served as an encoder that folds a session in."""

    module: str
    name: str  # of the function that factorises
    options: type[Options]
    version: str  # how it treats skips: orig, bl or nr (training/models/baselines/wrmf.py)
    seeded: ClassVar[bool] = True

    def train(self, job: ModelJob) -> TrainedModel:
        """Train it in this process."""
        started = time.monotonic()
        encoder: Encoder = _member(self.module, self.name)(
            job.sessions.gathered(),
            job.catalogue.num_rows,
            job.options,
            self.version,
            lambda done, total: job.reporter.step(0, done, total, {}),
        )
        seconds = time.monotonic() - started
        return TrainedModel(_facts(encoder_score(encoder, job.validation)[0], seconds), encoder, {})


@dataclass(frozen=True)
class RankerModel:
    """A ranker without vectors, which counts all plays in memory."""

    module: str
    name: str  # of the ranker's class, a StoredRanker
    options: type[Options]
    seeded: ClassVar[bool] = False

    def train(self, job: ModelJob) -> TrainedModel:
        """Train it in this process."""
        started = time.monotonic()
        counted = job.sessions.gathered(), job.catalogue.num_rows, job.catalogue.plays
        ranker = self._kind().fit(*counted, job.options)
        seconds = time.monotonic() - started
        facts = _facts(ranker_score(ranker, job.validation, job.options.window), seconds)
        return TrainedModel(facts, None, ranker.arrays())

    def open(self, release: Release) -> Ranker:
        """The ranker of a release."""
        return self._kind().of_release(release)

    def _kind(self) -> type[StoredRanker]:
        kind: type[StoredRanker] = _member(self.module, self.name)
        return kind


Model: TypeAlias = EncoderModel | FactorisationModel | RankerModel

_ENCODERS: Final = "training.models.encoders"
_BASELINES: Final = "training.models.baselines"

MODELS: Final[dict[str, Model]] = {
    "sasrec": EncoderModel(f"{_ENCODERS}.sasrec", "SasRec", SasRecOptions),
    "bert4rec": EncoderModel(f"{_ENCODERS}.bert4rec", "Bert4Rec", Bert4RecOptions),
    "gru4rec": EncoderModel(f"{_ENCODERS}.gru4rec", "Gru4Rec", Gru4RecOptions),
    "caser": EncoderModel(f"{_ENCODERS}.caser", "Caser", CaserOptions),
    "wrmf": FactorisationModel(f"{_BASELINES}.wrmf", "fit_wrmf", WrmfOptions, "orig"),
    "wrmf-bl": FactorisationModel(f"{_BASELINES}.wrmf", "fit_wrmf", WrmfOptions, "bl"),
    "wrmf-nr": FactorisationModel(f"{_BASELINES}.wrmf", "fit_wrmf", WrmfOptions, "nr"),
    "bpr": FactorisationModel(f"{_BASELINES}.bpr", "fit_bpr", BprOptions, "orig"),
    "bpr-bl": FactorisationModel(f"{_BASELINES}.bpr", "fit_bpr", BprOptions, "bl"),
    "bpr-nr": FactorisationModel(f"{_BASELINES}.bpr", "fit_bpr", BprOptions, "nr"),
    "vmis-knn": RankerModel(f"{_BASELINES}.knn", "VmisKnn", VmisKnnOptions),
    "markov": RankerModel(f"{_BASELINES}.markov", "MarkovRanker", Options),
    "popularity": RankerModel(f"{_BASELINES}.markov", "Popularity", Options),
}


def model_named(name: str) -> str:
    """The key in MODELS of a name in any case, such as SASRec. Raises BadOption with the names there are."""
    found = name.lower()
    if found in MODELS:
        return found
    hint = "; the skip loss (+nce) is on unless --no-nce is given" if found.removesuffix("+nce") in MODELS else ""
    raise BadOption(f"--model {name!r}: expected one of {', '.join(MODELS)}{hint}")


def system_name(model: str, options: Mapping[str, Any]) -> str:
    """The name of a model trained with these options (those in its release's manifest), everywhere it is shown.

    `sasrec` has no skip loss, `sasrec+nce` has it; other differences follow, as in `sasrec+nce+published-pairing`.
    """
    parts = [model]
    if options.get("beta"):
        parts.append("nce")
        if options.get("negative_pairing") == "published":
            parts.append("published-pairing")
    if options.get("objective") == "next-played":
        parts.append("next-played")
    if options.get("plays") == "played":
        parts.append("played-only")
    return "+".join(parts)


def open_ranker(release: Release) -> Ranker:
    """The ranker of a release without vectors. Raises BadRelease for a model that this version does not know."""
    model = MODELS.get(release.manifest.model)
    if not isinstance(model, RankerModel):
        raise BadRelease(
            f"{release.path} has the model {release.manifest.model}, which this version of Segue cannot evaluate: "
            "update Segue"
        )
    return model.open(release)


def _member(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _facts(hr10: float, seconds: float, **more: int) -> dict[str, object]:
    """Validation result and training cost, with the peak resident memory of this process."""
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cost = {"seconds": round(seconds, 2), "peak_memory_bytes": peak_kib * 1024, **more}
    return {"validation": {"protocol": "full", "group": "all", "HR@10": hr10}, "training": cost}
