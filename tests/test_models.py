"""Every model of the table: trained, measured under both protocols, and asked as the service asks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from segue.errors import BadRelease
from segue.release import Release
from segue.sessions import Outcome, Play, repeat_policy
from training.data.dataset import Dataset
from training.data.splits import examples
from training.data.synthetic import simulate
from training.evaluation.evaluate import LocalRecommender, Question, evaluate
from training.options import check_options
from training.registry import MODELS
from training.run import TrainingJob, train

CORRECTED = {"wrmf-bl", "wrmf-nr", "bpr-bl", "bpr-nr"}  # of families that the everyday suite has already
SMALL = {"epochs": 1, "dimension": 8, "heads": 2, "window": 8, "negatives": 20, "iterations": 2, "beta": 0.5}


class Silent:
    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None: ...

    def epoch(self, line: dict[str, float]) -> None: ...


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return simulate(1000, 120, tmp_path_factory.mktemp("models") / "dataset")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in CORRECTED)) for name in MODELS]
)
def release(request: Any, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Release:
    kind = MODELS[request.param].options
    options = check_options(kind, {key: value for key, value in SMALL.items() if key in kind.model_fields})
    out = tmp_path_factory.mktemp("release") / request.param
    return train(TrainingJob(request.param, options, dataset, "last-play", out), Silent())


def test_it_is_measured_under_both_protocols(release: Release, dataset: Dataset) -> None:
    from segue.cli.train import open_recommender

    for protocol in ("full", "sampled"):
        question = Question(dataset, release, "last-play", protocol=protocol)
        result = evaluate(question, LocalRecommender(open_recommender(release, exact=True), question.to_release()))
        assert result["groups"]["all"]["sessions"] == 120
        assert len(result["ranks"]) == len(result["target_plays"]) == len(result["session_length"]) == 120
        assert result["training"]["seconds"] >= 0
        assert result["training"]["peak_memory_bytes"] > 2**20


def test_its_validation_is_what_evaluation_measures(release: Release, dataset: Dataset) -> None:
    from segue.cli.train import open_recommender

    question = Question(dataset, release, "last-play", "validation")
    result = evaluate(question, LocalRecommender(open_recommender(release, exact=True), question.to_release()))
    told: Any = release.manifest.evaluation["validation"]
    assert result["groups"]["all"]["HR@10"]["value"] == pytest.approx(told["HR@10"], abs=0.01)


def test_it_answers_sessions_as_it_is_served(release: Release, dataset: Dataset) -> None:
    """A model with vectors is served; one without says so. A skip enters the answer of all that can hear it."""
    from service.releases.loaded import load_release

    if not (release.has_encoder or release.has_counts):
        with pytest.raises(BadRelease, match="has no encoder"):
            load_release(release.path)
        return
    live = load_release(release.path)
    ids = dataset.catalogue.track_ids
    plays = [Play(track, Outcome.PLAYED) for track in ids[5:9]]
    played = live.recommend(plays, 20, repeat="never")
    assert played.source == "model"
    assert len({track.track_id for track in played.tracks} - {play.track_id for play in plays}) == 20
    skipped = live.recommend([*plays[:-1], Play(ids[8], Outcome.SKIPPED)], 20, repeat="never")
    before, after = ([track.score for track in answer.tracks] for answer in (played, skipped))
    assert (before == after) == (release.manifest.model in ("wrmf", "bpr"))  # blind to skips, as in the original


def test_a_batch_answers_as_one_question_at_a_time(release: Release, dataset: Dataset) -> None:
    """Whatever a question is batched with: other sessions, lengths, exclusions and numbers of tracks."""
    from service.releases import loaded as live_release

    if not (release.has_encoder or release.has_counts):
        pytest.skip("a model without vectors and counts is not served")
    live = live_release.load_release(release.path)
    ids, rng = dataset.catalogue.track_ids, np.random.default_rng(0)
    questions = [
        live_release.Question(
            plays=[Play(ids[row], Outcome(rng.choice(list(Outcome)))) for row in rng.integers(0, len(ids), length)],
            k=int(rng.integers(1, 60)),
            exclude=[ids[row] for row in rng.integers(0, len(ids), rng.integers(0, 5))],
            repeat=repeat_policy(str(rng.choice(["allow", "never", "after:3"]))),
        )
        for length in rng.integers(0, 40, 50)
    ]
    together, alone = live.answer(questions), [live.answer([question])[0] for question in questions]
    assert [answer.rows for answer in together] == [answer.rows for answer in alone]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)


@pytest.mark.parametrize("model", ["sasrec", "gru4rec", "caser", "bert4rec", "wrmf", "markov", "ngram", "hybrid"])
def test_a_dataset_too_small_for_validation_is_trained_on_all_the_same(model: str, tmp_path: Path) -> None:
    """None of six sessions is for validation: all epochs are gone through, and the last one stays."""
    dataset = simulate(1000, 6, tmp_path / "six")
    assert len(examples(dataset, "new-sessions", "validation").targets) == 0
    small = {"dimension": 8, "epochs": 3, "patience": 1, "heads": 2, "window": 5}
    kind = MODELS[model].options
    options = check_options(kind, {name: value for name, value in small.items() if name in kind.model_fields})
    release = train(TrainingJob(model, options, dataset, "new-sessions", tmp_path / "release"), Silent())
    assert release.manifest.evaluation.get("best_epoch", 3) == 3
    if model not in ("markov", "ngram"):
        assert len(release.sample_windows.tracks) > 0
