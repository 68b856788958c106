"""The registry of models for `segue train`. To add a model, add an entry to MODELS.

There are four kinds of models: neural encoders, matrix factorisations, rankers without embeddings, and transition
counts, alone (`ngram`) or mixed with an encoder (`hybrid`). Each kind has a class with a method `train`. An entry
contains the name of the module that implements the model. The module is imported only when a job trains the model or
opens its release. Training `popularity`, `markov`, `vmis-knn` or `ngram` therefore does not import torch.
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
from training.data.splits import Examples, Split
from training.options import (
    Bert4RecOptions,
    BprOptions,
    CaserOptions,
    Gru4RecOptions,
    NeuralOptions,
    NgramOptions,
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
    """The options, the data, the checkpoints and the reporter for the training of a model."""

    options: Options
    sessions: SessionViews  # sessions of the training part
    catalogue: Catalogue  # plays and skips are counted in the training part
    validation: Examples
    checkpoints: Checkpoints
    reporter: "Reporter"
    processes: Processes
    origin: Release | None = None  # the release to fine-tune
    split: Split = "last-play"


class TrainedModel(NamedTuple):
    """A trained model, and the training facts for the manifest of its release."""

    evaluation: dict[str, Any]  # written to the manifest
    encoder: "Encoder | None"  # None for a ranker without embeddings
    arrays: Mapping[str, NDArray[Any]]  # arrays of a ranker without embeddings or of transition counts, by file name
    history: Sequence[dict[str, float]] = ()  # one entry per epoch


class StoredRanker(Ranker, Protocol):
    """A ranker without embeddings. Its releases can be evaluated, but not served."""

    @classmethod
    def fit(cls, sessions: Sessions, num_rows: int, plays: Int, options: Any, /) -> Self:
        """Return a ranker fitted to the training sessions. `plays` [num_rows] int64 is the play count of each track."""
        ...

    @classmethod
    def of_release(cls, release: Release) -> Self:
        """Return the ranker that is stored in `release`."""
        ...

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Return the arrays to store in a release, by file name."""
        ...


@dataclass(frozen=True)
class EncoderModel:
    """A neural encoder. training.trainer trains it in epochs."""

    module: str
    name: str  # name of the encoder class
    options: type[NeuralOptions]
    seeded: ClassVar[bool] = True  # whether the seed changes the result

    def new_encoder(self, options: NeuralOptions, num_rows: int) -> "SessionEncoder":
        """Return an encoder with random initial weights. `options.seed` determines the weights."""
        import torch

        encoder: SessionEncoder = _member(self.module, self.name)(num_rows, options)
        encoder.initialise(torch.Generator().manual_seed(options.seed))
        return encoder

    def train(self, job: ModelJob) -> TrainedModel:
        """Train the encoder in all processes, and resume from a checkpoint if one exists."""
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
    """A matrix factorisation, trained on all plays in memory.

    The service uses it as an encoder that computes a query vector from the plays of a session (fold-in).
    """

    module: str
    name: str  # name of the training function
    options: type[Options]
    version: str  # treatment of skips: orig, bl or nr (training/models/baselines/wrmf.py)
    seeded: ClassVar[bool] = True

    def train(self, job: ModelJob) -> TrainedModel:
        """Train the factorisation in this process."""
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
    """A ranker without embeddings, fitted to all plays in memory."""

    module: str
    name: str  # name of the ranker class, which implements StoredRanker
    options: type[Options]
    seeded: ClassVar[bool] = False

    def train(self, job: ModelJob) -> TrainedModel:
        """Fit the ranker in this process."""
        started = time.monotonic()
        counted = job.sessions.gathered(), job.catalogue.num_rows, job.catalogue.plays
        ranker = self._kind().fit(*counted, job.options)
        seconds = time.monotonic() - started
        facts = _facts(ranker_score(ranker, job.validation, job.options.window), seconds)
        return TrainedModel(facts, None, ranker.arrays())

    def open(self, release: Release) -> Ranker:
        """Return the ranker that is stored in `release`."""
        return self._kind().of_release(release)

    def _kind(self) -> type[StoredRanker]:
        kind: type[StoredRanker] = _member(self.module, self.name)
        return kind


@dataclass(frozen=True)
class NgramModel:
    """Transition counts, alone or mixed with an encoder. The service serves both."""

    options: type[Options]
    encoder: EncoderModel | None = None
    module: ClassVar[str] = "training.models.ngram"

    @property
    def seeded(self) -> bool:
        """Whether the seed changes the result."""
        return self.encoder is not None

    def train(self, job: ModelJob) -> TrainedModel:
        """Train the encoder in all processes, then count transitions and learn the mixture in the main one."""
        from training.models.ngram import arrays_of, fit_ngram

        trained = None if self.encoder is None else self.encoder.train(job)
        if trained is not None and not job.processes.is_main:
            return trained
        started = time.monotonic()
        stored = {"max_followers": job.options.max_followers} if isinstance(job.options, NgramOptions) else {}
        rescoring = job.options.rescoring if isinstance(job.options, NeuralOptions) else "off"
        ranker = fit_ngram(
            job.sessions,
            job.catalogue,
            job.validation,
            job.split,
            window=job.options.window,
            encoder=None if trained is None else trained.encoder,
            origin=job.origin,
            rescoring=rescoring,
            **stored,
        )
        hr10 = ranker_score(ranker, job.validation, job.options.window)
        seconds = time.monotonic() - started
        if trained is None:
            return TrainedModel(_facts(hr10, seconds), None, arrays_of(ranker))
        facts = dict(trained.evaluation)
        before = facts["validation"]
        facts["validation"] = before | {"HR@10": hr10, "encoder HR@10": before["HR@10"]}
        total = round(facts["training"]["seconds"] + seconds, 2)
        facts["training"] = facts["training"] | {"seconds": total, "counts_seconds": round(seconds, 2)}
        return trained._replace(evaluation=facts, arrays=arrays_of(ranker))


Model: TypeAlias = EncoderModel | FactorisationModel | RankerModel | NgramModel

_ENCODERS: Final = "training.models.encoders"
_BASELINES: Final = "training.models.baselines"

_NEURAL: Final = {
    "sasrec": EncoderModel(f"{_ENCODERS}.sasrec", "SasRec", SasRecOptions),
    "bert4rec": EncoderModel(f"{_ENCODERS}.bert4rec", "Bert4Rec", Bert4RecOptions),
    "gru4rec": EncoderModel(f"{_ENCODERS}.gru4rec", "Gru4Rec", Gru4RecOptions),
    "caser": EncoderModel(f"{_ENCODERS}.caser", "Caser", CaserOptions),
}

MODELS: Final[dict[str, Model]] = {
    "hybrid": NgramModel(SasRecOptions, _NEURAL["sasrec"]),
    **{f"hybrid-{name}": NgramModel(_NEURAL[name].options, _NEURAL[name]) for name in ("bert4rec", "gru4rec", "caser")},
    "ngram": NgramModel(NgramOptions),
    **_NEURAL,
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
    """Return the key in MODELS for a name in upper or lower case, such as `SASRec`.

    Raises:
        BadOption: The name is unknown. The message lists all names.

    """
    found = name.lower()
    if found in MODELS:
        return found
    hint = "; the skip loss (+nce) is on unless --no-nce is given" if found.removesuffix("+nce") in MODELS else ""
    raise BadOption(f"--model {name!r}: expected one of {', '.join(MODELS)}{hint}")


def system_name(model: str, options: Mapping[str, Any]) -> str:
    """Return the display name of `model` trained with `options`, which are the options in the manifest of a release.

    For example, `sasrec` has no skip loss and `sasrec+nce` has the skip loss. Other variants add more suffixes, such
    as `sasrec+nce+published-pairing`.
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
    """Return the ranker that is stored in a release without embeddings.

    Raises:
        BadRelease: The model is not a known ranker without embeddings.

    """
    model = MODELS.get(release.manifest.model)
    if not isinstance(model, RankerModel):
        raise BadRelease(
            f"{release.path} has the model {release.manifest.model}, which this version of Segue cannot evaluate: "
            "update Segue"
        )
    return model.open(release)


def _member(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _facts(hr10: float, seconds: float, **more: int) -> dict[str, Any]:
    """Return the validation result, the training time and the peak resident memory of this process."""
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cost = {"seconds": round(seconds, 2), "peak_memory_bytes": peak_kib * 1024, **more}
    return {"validation": {"protocol": "full", "group": "all", "HR@10": hr10}, "training": cost}
