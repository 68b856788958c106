"""Tuning: on validation alone, resumable, and a recipe that `segue train` takes."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("optuna")

from segue.errors import BadOption, BadRelease
from training.data.dataset import Dataset
from training.data.synthetic import simulate
from training.evaluation.tune import BEST, PAPER_SPACE, StudySpec, tune
from training.options import read_options
from training.registry import MODELS
from training.run import train

SMALL = ["epochs=2", "dimension=8", "heads=2", "negatives=20", "batch_size=64"]
SPACE = {"learning_rate": [1e-6, 0.02], "beta": [0.0, 0.5]}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return simulate(1000, 150, tmp_path_factory.mktemp("tune") / "dataset")


def tuning(dataset: Dataset, out: Path, trials: int, **changed: Any) -> StudySpec:
    options = read_options(MODELS["sasrec"].options, None, SMALL)
    given: dict[str, Any] = {"model": "sasrec", "options": options, "space": SPACE, "split": "last-play"}
    return StudySpec(dataset=dataset, out=out, trials=trials, **(given | changed))


def silent(*_: object) -> None: ...


def test_the_papers_space() -> None:
    assert PAPER_SPACE["alpha"] == PAPER_SPACE["beta"] == (0.1, 0.2, 0.5, 0.75, 1.0)
    assert PAPER_SPACE["learning_rate"] == (0.0001, 0.0005, 0.001, 0.005)


def test_the_best_options_become_a_recipe_and_the_study_goes_on(dataset: Dataset, tmp_path: Path) -> None:
    first = tune(tuning(dataset, tmp_path / "study", 2), silent)
    before = [trial.params for trial in first.trials]
    assert len(before) == 2
    heard: list[int] = []
    study = tune(tuning(dataset, tmp_path / "study", 4), lambda trial, _: heard.append(trial.number))
    assert [trial.params for trial in study.trials[:2]] == before
    assert heard == [2, 3]
    values = [trial.value for trial in study.trials if trial.value is not None]
    assert study.best_value == max(values)
    options = read_options(MODELS["sasrec"].options, tmp_path / "study" / BEST, [], "sasrec")
    assert {key: getattr(options, key) for key in SPACE} == study.best_params
    assert options.model_dump()["epochs"] == 2  # what was fixed is in the recipe too
    assert len({path.stem for path in (tmp_path / "study").glob("trial-*")}) == 1  # the best one alone


def test_an_interrupted_trial_is_taken_up_again(dataset: Dataset, tmp_path: Path, monkeypatch: Any) -> None:
    import training.evaluation.tune as module

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(module._Pruning, "epoch", killed)
    with pytest.raises(Killed):
        tune(tuning(dataset, tmp_path / "study", 1), silent)
    monkeypatch.undo()
    (unfinished,) = (tmp_path / "study").glob("trial-*.training")
    study = tune(tuning(dataset, tmp_path / "study", 1), silent)
    complete = [trial for trial in study.trials if trial.value is not None]
    assert [trial.user_attrs["folder"] for trial in complete] == [0]
    assert complete[0].params == study.trials[0].params
    assert not unfinished.exists()


def test_a_study_of_something_else_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    tune(tuning(dataset, tmp_path / "study", 1), silent)
    with pytest.raises(BadOption, match=r"study of something else .split last-play there, new-sessions here"):
        tune(tuning(dataset, tmp_path / "study", 1, split="new-sessions"), silent)


def test_other_values_to_search_are_another_study(dataset: Dataset, tmp_path: Path) -> None:
    tune(tuning(dataset, tmp_path / "study", 1), silent)
    with pytest.raises(BadOption, match=r"holds the study of something else .*--search"):
        tune(tuning(dataset, tmp_path / "study", 2, space={name: [*of, 0.3] for name, of in SPACE.items()}), silent)


def test_options_whose_release_is_refused_are_a_trial_that_ended(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import training.evaluation.tune as module

    calls: list[int] = []

    def sometimes(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise BadRelease("the exported encoder differs")
        return train(*arguments)

    monkeypatch.setattr(module, "train", sometimes)
    study = tune(tuning(dataset, tmp_path / "study", 2), silent)
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "COMPLETE"]
    assert study.trials[0].user_attrs["refused"] == "the exported encoder differs"
    assert len(tune(tuning(dataset, tmp_path / "study", 2), silent).trials) == 2


def test_a_study_whose_releases_are_all_refused_says_so(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import training.evaluation.tune as module

    def refused(*_: Any) -> Any:
        raise BadRelease("the exported encoder differs")

    monkeypatch.setattr(module, "train", refused)
    with pytest.raises(BadOption, match=r"none of the choices came to a release \(the exported encoder differs"):
        tune(tuning(dataset, tmp_path / "study", 2), silent)


def test_an_unknown_option_is_refused_before_anything_is_trained(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="unknown option 'momentum'"):
        tuning(dataset, tmp_path, 1, space={"momentum": [0.9]})
    with pytest.raises(BadOption, match="learning_rate = -1"):
        tuning(dataset, tmp_path, 1, space={"learning_rate": [0.1, -1]})
