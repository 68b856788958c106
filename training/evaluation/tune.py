"""Choosing options by validation HR@10 with Optuna (Akiba et al., KDD 2019), resumable; test targets are never asked.

The search space is the paper's (section 4.1.2): alpha, beta and the learning rate out of the values that it names;
any option of a model can be searched instead. Everything lies in one folder:

    study.journal   the study: every trial with its options and its value after each epoch
    trial-N/        release of trial N; its checkpoint while it is under way
    best.toml       the best options as a recipe
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
from training.data.dataset import Dataset, Split
from training.options import Options, check_options
from training.registry import MODELS
from training.run import TrainingJob, train

Space: TypeAlias = Mapping[str, Sequence[Any]]  # option: its values

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
    """What is tuned, on what, and where the study is kept."""

    model: str
    options: Options  # what every trial starts from
    space: Space
    dataset: Dataset
    split: Split
    out: Path
    trials: int
    identity: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        """Refuse a space that the model does not have. Raises BadOption."""
        for name, values in self.space.items():
            for value in values:
                changed(self.options, {name: value})
        named: dict[str, Any] = {"model": self.model, "dataset": self.dataset.facts.fingerprint, "split": self.split}
        named |= {f"--search {name}": ",".join(map(str, values)) for name, values in self.space.items()}
        fixed = {key: value for key, value in self.options.model_dump().items() if key not in self.space}
        object.__setattr__(self, "identity", {key: str(value) for key, value in (named | fixed).items()})


Told: TypeAlias = Callable[[FrozenTrial, Study], None]


def changed(options: Options, values: Mapping[str, Any]) -> Options:
    """The options with other values. Raises BadOption for an unknown name or a value out of range."""
    return check_options(type(options), {**options.model_dump(), **values})


def tune(tuning: StudySpec, told: Told) -> Study:
    """Run trials until the study has `tuning.trials`, and write the best as a recipe.

    Interrupted, the same call goes on, in the middle of a trial too. `told` hears of every finished trial.
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
            callbacks=[lambda study, trial: _keep(study, trial, tuning, told)],
        )
    write_best(study, tuning)
    return study


def write_best(study: Study, tuning: StudySpec) -> Path:
    """Write best.toml whole: every option that is not the model's default, in the table of the model.

    Raises BadOption where no trial came to a release.
    """
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        refused = [str(trial.user_attrs["refused"]) for trial in study.trials if "refused" in trial.user_attrs]
        raise BadOption(f"none of the choices came to a release ({' '.join(refused[:1])}): choose others to --search")
    best = changed(tuning.options, study.best_params)
    defaults = MODELS[tuning.model].options().model_dump()
    values = {key: value for key, value in best.model_dump().items() if value != defaults[key] and key != "seed"}
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
    """Every choice once where the trials suffice for that, else the likeliest ones (Bergstra et al., NeurIPS 2011)."""
    if math.prod(len(values) for values in tuning.space.values()) <= tuning.trials:
        return optuna.samplers.GridSampler({name: list(values) for name, values in tuning.space.items()}, seed=0)
    return optuna.samplers.TPESampler(seed=tuning.options.seed + done)


def _resume_interrupted_trial(study: Study) -> None:
    """A trial that was interrupted is asked for again first; its checkpoint lies in the folder that it names."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        folder = trial.user_attrs.get("folder", trial.number)
        study.enqueue_trial(trial.params, user_attrs={"folder": folder}, skip_if_exists=False)


def _finished(study: Study) -> list[FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def _value(trial: Trial, tuning: StudySpec) -> float:
    """Validation HR@10 of one choice out of the space; a choice made before keeps its value."""
    params: dict[str, Any] = {
        name: trial.suggest_categorical(name, list(values)) for name, values in tuning.space.items()
    }
    if "folder" not in trial.user_attrs:
        trial.set_user_attr("folder", trial.number)
    for earlier in trial.study.get_trials(states=(TrialState.COMPLETE,)):
        if earlier.params == params and earlier.value is not None:
            return earlier.value
    folder = tuning.out / f"trial-{trial.user_attrs['folder']}"
    job = TrainingJob(
        tuning.model, changed(tuning.options, params), tuning.dataset, tuning.split, folder, overwrite=True
    )
    try:
        release = train(job, _Pruning(trial))
    except BadRelease as error:  # what these options come to cannot be served, and would not be the next time
        trial.set_user_attr("refused", str(error))
        raise optuna.TrialPruned from error
    return float(release.manifest.evaluation["validation"]["HR@10"])


def _keep(study: Study, trial: FrozenTrial, tuning: StudySpec, told: Told) -> None:
    """Keep the best trial's release alone, its recipe up to date, and say how the trial went."""
    folder = tuning.out / f"trial-{trial.user_attrs.get('folder', trial.number)}"
    if trial.state is TrialState.PRUNED:
        shutil.rmtree(folder.with_name(f"{folder.name}.training"), ignore_errors=True)
    elif trial.state is TrialState.COMPLETE:
        best = f"trial-{study.best_trial.user_attrs.get('folder', study.best_trial.number)}"
        for release in tuning.out.glob("trial-*"):
            if release.stem != best:  # its folder `.run` stays as well
                shutil.rmtree(release)
        write_best(study, tuning)
    told(trial, study)


class _Pruning:
    """Reports every epoch to the study, and prunes a trial below the median of the earlier ones."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None:
        """Ignore a finished step; pruning considers only epochs."""

    def epoch(self, line: dict[str, float]) -> None:
        """Report the validation HR@10 of an epoch; raises TrialPruned if it is below the median of earlier trials."""
        self._trial.report(line["HR@10"], int(line["epoch"]))
        if self._trial.should_prune():
            raise optuna.TrialPruned
