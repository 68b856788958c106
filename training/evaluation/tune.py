"""Hyperparameter search with Optuna (Akiba et al., KDD 2019). The objective is validation HR@10.

The search never uses the test targets. An interrupted search can be resumed.

The default search space is from section 4.1.2 of the paper: the listed values of alpha, beta and the learning rate.
You can search any other option of a model instead. One folder contains all files of a search:

    study.journal       the Optuna study: the options of every trial and its HR@10 after each epoch
    trial-N/            the release of the best trial, trial N
    trial-N.run/        the training log of trial N
    trial-N.training/   the checkpoint of a trial that is not finished
    best.toml           the best options as a recipe
"""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import optuna
import tomli_w
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from segue.errors import BadOption, BadRelease
from training.data.dataset import Dataset
from training.data.splits import Split, Targets
from training.options import Options, check_options
from training.registry import MODELS
from training.run import TrainingJob, train

Space: TypeAlias = Mapping[str, Sequence[Any]]  # option name to candidate values

PAPER_WEIGHTS: Final = (0.1, 0.2, 0.5, 0.75, 1.0)
PAPER_SPACE: Final[dict[str, Sequence[Any]]] = {
    "alpha": PAPER_WEIGHTS,
    "beta": PAPER_WEIGHTS,
    "learning_rate": (0.0001, 0.0005, 0.001, 0.005),
}
STUDY: Final = "study.journal"
BEST: Final = "best.toml"


@dataclass(frozen=True)
class StudySpec:
    """The settings of a search: model, search space, dataset and output folder."""

    model: str
    options: Options  # fixed options of every trial; values from `space` override them
    space: Space
    dataset: Dataset
    split: Split
    out: Path
    trials: int
    targets: Targets = "last"
    identity: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        """Validate the search space and compute `identity`.

        Raises:
            BadOption: The model has no such option, or a value is out of range.

        """
        for name, values in self.space.items():
            for value in values:
                changed(self.options, {name: value})
        named: dict[str, Any] = {"model": self.model, "dataset": self.dataset.facts.fingerprint, "split": self.split}
        named |= {f"--search {name}": ",".join(map(str, values)) for name, values in self.space.items()}
        named |= {} if self.targets == "last" else {"targets": self.targets}
        fixed = {key: value for key, value in self.options.model_dump().items() if key not in self.space}
        object.__setattr__(self, "identity", {key: str(value) for key, value in (named | fixed).items()})


OnProgress: TypeAlias = Callable[[FrozenTrial, Study], None]


def changed(options: Options, values: Mapping[str, Any]) -> Options:
    """Return a copy of `options` with `values` replaced.

    Raises:
        BadOption: A name is unknown or a value is out of range.

    """
    return check_options(type(options), {**options.model_dump(), **values})


def tune(tuning: StudySpec, on_progress: OnProgress) -> Study:
    """Run trials until the study has `tuning.trials` finished trials, and write the best options as a recipe.

    To resume an interrupted search, repeat the call. An interrupted trial resumes from its checkpoint. `on_progress` is
    called after every finished trial.

    Raises:
        BadOption: The folder contains a study with other settings, or no trial produced a release.

    """
    tuning.out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _open_study(tuning)
    _resume_interrupted_trial(study)
    study.sampler = _sampler(tuning, len(study.trials))
    remaining = tuning.trials - len(_finished(study))
    if remaining > 0:
        study.optimize(
            lambda trial: _value(trial, tuning),
            n_trials=remaining,
            callbacks=[lambda study, trial: _keep(study, trial, tuning, on_progress)],
        )
    write_best(study, tuning)
    return study


def write_best(study: Study, tuning: StudySpec) -> Path:
    """Write best.toml atomically: the tuned options, and others that differ from the defaults, except the seed.

    A tuned option is written even if it equals the default, so that the recipe stays the same if a default changes.

    Raises:
        BadOption: No trial produced a release.

    """
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        refused = [str(trial.user_attrs["refused"]) for trial in study.trials if "refused" in trial.user_attrs]
        raise BadOption(f"none of the choices came to a release ({' '.join(refused[:1])}): choose others to --search")
    best = changed(tuning.options, study.best_params)
    defaults = MODELS[tuning.model].options().model_dump()
    values = {
        key: value
        for key, value in best.model_dump().items()
        if key != "seed" and (key in study.best_params or value != defaults[key])
    }
    header = (
        f"# Chosen by validation HR@10 ({study.best_value:.4f}) among {len(_finished(study))} trials, "
        f"{datetime.now(UTC):%Y-%m-%d}: segue tune, model {tuning.model},\n"
        f"# {tuning.split} split of {tuning.dataset.facts.source}, {tuning.dataset.facts.fingerprint[:12]}.\n"
    )
    unfinished = tuning.out / f"{BEST}.unfinished"
    unfinished.write_text(header + tomli_w.dumps({tuning.model: values}), encoding="utf-8")
    return unfinished.rename(tuning.out / BEST)


def _open_study(tuning: StudySpec) -> Study:
    storage = JournalStorage(JournalFileBackend(str(tuning.out / STUDY)))
    study = optuna.create_study(
        storage=storage,
        study_name="segue",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=5),
    )
    found = study.user_attrs.get("identity")
    if found is not None and found != tuning.identity:
        keys = sorted(key for key in found | tuning.identity if found.get(key) != tuning.identity.get(key))
        what = ", ".join(f"{key} {found.get(key)} there, {tuning.identity.get(key)} here" for key in keys[:3])
        raise BadOption(f"{tuning.out} holds the study of something else ({what}): choose another --out")
    study.set_user_attr("identity", tuning.identity)
    return study


def _sampler(tuning: StudySpec, done: int) -> optuna.samplers.BaseSampler:
    """Return a grid sampler if the trials cover all combinations, else a TPE sampler (Bergstra et al., NeurIPS 2011).

    `done` is the number of trials in the study. It changes the seed of the TPE sampler.
    """
    if math.prod(len(values) for values in tuning.space.values()) <= tuning.trials:
        return optuna.samplers.GridSampler({name: list(values) for name, values in tuning.space.items()}, seed=0)
    return optuna.samplers.TPESampler(seed=tuning.options.seed + done)


def _resume_interrupted_trial(study: Study) -> None:
    """Enqueue interrupted trials again, so that they run first. They resume from the checkpoints in their folders."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        folder = trial.user_attrs.get("folder", trial.number)
        study.enqueue_trial(trial.params, user_attrs={"folder": folder}, skip_if_exists=False)


def _finished(study: Study) -> list[FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def _value(trial: Trial, tuning: StudySpec) -> float:
    """Train with one combination of options and return its validation HR@10.

    If an earlier trial had the same options, return the value of that trial without training.
    """
    params: dict[str, Any] = {
        name: trial.suggest_categorical(name, list(values)) for name, values in tuning.space.items()
    }
    if "folder" not in trial.user_attrs:
        trial.set_user_attr("folder", trial.number)
    for earlier in trial.study.get_trials(states=(TrialState.COMPLETE,)):
        if earlier.params == params and earlier.value is not None:
            return earlier.value
    folder = tuning.out / f"trial-{trial.user_attrs['folder']}"
    options = changed(tuning.options, params)
    job = TrainingJob(
        tuning.model, options, tuning.dataset, tuning.split, folder, overwrite=True, targets=tuning.targets
    )
    try:
        release = train(job, _Pruning(trial))
    except BadRelease as error:  # these options give an invalid release, and would do so again
        trial.set_user_attr("refused", str(error))
        raise optuna.TrialPruned from error
    return float(release.manifest.evaluation["validation"]["HR@10"])


def _keep(study: Study, trial: FrozenTrial, tuning: StudySpec, on_progress: OnProgress) -> None:
    """Delete the releases and logs of all trials except the best trial, update best.toml and call `on_progress`."""
    folder = tuning.out / f"trial-{trial.user_attrs.get('folder', trial.number)}"
    if trial.state is TrialState.PRUNED:
        shutil.rmtree(folder.with_name(f"{folder.name}.training"), ignore_errors=True)
    elif trial.state is TrialState.COMPLETE:
        best = f"trial-{study.best_trial.user_attrs.get('folder', study.best_trial.number)}"
        for release in tuning.out.glob("trial-*"):
            if release.stem != best:  # `stem` also matches the best trial's `.run` folder
                shutil.rmtree(release)
        write_best(study, tuning)
    on_progress(trial, study)


class _Pruning:
    """Reports every epoch to Optuna and prunes the trial if its HR@10 is below the median of earlier trials."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None:
        """Do nothing: pruning happens only after an epoch."""

    def epoch(self, line: dict[str, float]) -> None:
        """Report the validation HR@10 of a finished epoch.

        Raises:
            optuna.TrialPruned: The value is below the median of earlier trials.

        """
        self._trial.report(line["HR@10"], int(line["epoch"]))
        if self._trial.should_prune():
            raise optuna.TrialPruned
