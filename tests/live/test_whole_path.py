"""From synthetic sessions to a running service: offline evaluation and the service give the same recommendations."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("torch")

from segue.errors import SegueError
from segue.ranking_metrics import LIST_LENGTH
from segue.release import Release
from segue.window import Sessions
from service.releases.loaded import recommender_of
from tests.preloaded import COMMANDS, SEGUE, preloaded, segue
from training.evaluation.http_recommender import HttpRecommender

SMALL = ["epochs=4", "dimension=32", "heads=4", "negatives=200"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("path") / "dataset"
    segue("simulate", "--tracks", 1000, "--sessions", 1200, "--out", out)
    return out


@pytest.fixture(scope="module")
def release(dataset: Path) -> Path:
    out = dataset.parent / "release"
    segue("train", dataset, "--out", out, *(f"--set={setting}" for setting in SMALL))
    return out


@pytest.fixture(scope="module", params=["exact", pytest.param("hnsw-sq8", marks=pytest.mark.slow)])
def indexed(request: pytest.FixtureRequest, release: Path) -> Path:
    """The release, once with exact search and once with an approximate index."""
    facts = json.loads(segue("index", release, "--kind", request.param, "--recall", 0.95, "--json"))
    assert facts["kind"] == request.param
    assert facts["recall"] >= 0.95
    assert json.loads((release / "index.json").read_text())["recall"] == facts["recall"]
    return release


@pytest.mark.timeout(900)  # half a minute on two idle cores
def test_the_same_sessions_offline_and_over_http_give_identical_lists_and_figures(
    indexed: Path, dataset: Path, tmp_path: Path, start_service: Callable[..., Any]
) -> None:
    from segue.release import open_release
    from segue.sessions import repeat_policy
    from training.data.dataset import open_dataset
    from training.evaluation.evaluate import LocalRecommender, Question

    service = start_service(release=indexed)
    url = service.address()
    offline, through = tmp_path / "offline.json", tmp_path / "through.json"
    is_exact = json.loads((indexed / "index.json").read_text())["kind"] == "exact"
    for repeat, caution in (("allow", 0), ("after:5", 0), ("after:5", 2))[0 if is_exact else 2 :]:
        options = "--repeat", repeat, "--caution", caution, "--output"
        segue("evaluate", indexed, dataset, *options, offline)
        segue("evaluate", indexed, dataset, *options, through, "--url", url)
        results = [json.loads(path.read_text()) for path in (offline, through)]
        for result in results:  # a service does not return the scores that these measures need
            for name in ("pairwise_auc", "responsiveness", "caution_effect", "reasons"):
                del result["skip_measures"][name]
        assert results[0] == results[1]
        assert (results[0]["repeat"], results[0]["caution"]) == (repeat, caution)

    opened, data = open_release(indexed), open_dataset(dataset)
    question = Question(data, opened, "last-play")
    inputs = question.examples().inputs.select(slice(0, 100))
    recommender = LocalRecommender(recommender_of(opened), question.to_release())
    answers: list[list[int]] = []
    for policy in map(repeat_policy, ("allow", "never", "after:1", "after:5")):
        local = recommender.lists(inputs, policy)
        with HttpRecommender(url, data.catalogue, opened) as served:
            for (rows, scores), (rows_served, scores_served) in zip(local, served.lists(inputs, policy), strict=True):
                assert len(rows) == 100
                assert rows.tolist() == rows_served.tolist()
                assert np.allclose(scores, scores_served, atol=1e-5)
        answers.append([row for rows, _ in local for row in rows.tolist()])
    assert len({*map(tuple, answers)}) == 4  # the policies differ in these sessions


def test_a_service_of_another_release_is_not_measured_by_mistake(
    release: Path, dataset: Path, start_service: Callable[..., Any]
) -> None:
    url = start_service().address()  # serves the tiny release
    done = preloaded(COMMANDS).run(SEGUE, "evaluate", release, dataset, "--url", url)
    assert done.returncode == 2
    assert "serve the release that you evaluate" in done.stderr


def test_every_list_is_of_the_evaluated_release_and_its_model(
    tiny_release: Release, releases_dir: Path, tmp_path: Path, start_service: Callable[..., Any]
) -> None:
    """Neither an A/B test nor a swap gives lists of another release, and a fallback is no list of the model."""
    catalogue = tiny_release.catalogue
    of_session = Sessions(np.array([1]), np.array([False]), np.array([0, 1]))
    folders = {"release": releases_dir / "first", "releases_dir": releases_dir}
    url = start_service(**folders, experiment="second:1").address()
    with HttpRecommender(url, catalogue, tiny_release) as served:
        [(rows, scores)] = served.lists(of_session)
    [local] = recommender_of(tiny_release).recommend(of_session, LIST_LENGTH)
    assert rows.tolist() == local.rows.tolist()
    assert np.allclose(scores, local.scores, atol=1e-5)

    url = start_service(**folders, data_dir=tmp_path / "swapped").address()
    with HttpRecommender(url, catalogue, tiny_release) as served:
        assert httpx.put(f"{url}/releases/current", json={"name": "second"}, trust_env=False).status_code == 200
        with pytest.raises(SegueError, match=tiny_release.name):
            served.lists(of_session)

    broken = (
        "import service.releases.rankers as o; encode = o.OnnxEncoder.encode;"
        "o.OnnxEncoder.encode = lambda self, windows: 1 / 0 if (windows.tracks == 14).any() else encode(self, windows)"
    )
    url = start_service(prelude=broken, data_dir=tmp_path / "broken").address()
    with HttpRecommender(url, catalogue, tiny_release) as served:
        with pytest.raises(SegueError, match="answered with popular tracks"):
            served.lists(replace(of_session, rows=np.array([14])))
        assert len(served.lists(replace(of_session, offsets=np.array([0, 0])))[0][0]) > 0  # not a failure


def test_a_service_with_keys_is_asked_with_the_one_in_the_environment(
    release: Path, dataset: Path, tmp_path: Path, start_service: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGUE_API_KEY", segue("keys", "new", "e", "--scope", "admin", "--file", tmp_path / "k").strip())
    url = start_service(api_keys=tmp_path / "k").address()  # serves the tiny release
    segue("evaluate", release, dataset, "--url", url, code=2)
    monkeypatch.setenv("SEGUE_API_KEY", "wrong")
    segue("evaluate", release, dataset, "--url", url, code=1)


def test_torch_and_onnx_runtime_agree_on_the_releases_own_windows(release: Path) -> None:
    """The weights went through training, export and the file; the windows are real ones from validation."""
    import onnx

    from segue.release import open_release
    from service.releases.rankers import OnnxEncoder

    opened = open_release(release)
    windows = opened.sample_windows
    assert len(windows) == 1000
    queries = OnnxEncoder(release / "encoder.onnx").encode(windows)
    one_by_one = [OnnxEncoder(release / "encoder.onnx").encode(windows.select(slice(i, i + 1)))[0] for i in range(3)]
    assert np.allclose(queries[:3], one_by_one, atol=1e-4)
    graph = onnx.load(str(release / "encoder.onnx"), load_external_data=False).graph
    external = [t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert len(external) == 1


@pytest.mark.slow
def test_a_baseline_is_evaluated_but_not_served(dataset: Path, tmp_path: Path) -> None:
    segue("train", dataset, "--model", "markov", "--out", tmp_path / "markov")
    result = json.loads(segue("evaluate", tmp_path / "markov", dataset, "--json"))
    assert result["groups"]["all"]["HR@10"]["value"] > 0.05
    done = preloaded(COMMANDS).run(SEGUE, "serve", tmp_path / "markov")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "markov" in done.stderr


@pytest.mark.slow
def test_new_sessions_are_held_out_and_asked_for(dataset: Path, tmp_path: Path) -> None:
    segue("train", dataset, "--model", "markov", "--split", "new-sessions", "--out", tmp_path / "m")
    result = json.loads(segue("evaluate", tmp_path / "m", dataset, "--split", "new-sessions", "--json"))
    assert 150 < result["groups"]["all"]["sessions"] < 330
    segue("evaluate", tmp_path / "m", dataset, code=2)


def test_the_shell_recommends_in_the_order_of_what_happened(release: Path) -> None:
    ids = ["t0000001", "t0000002"]

    def ask(*arguments: str) -> list[str]:
        answer = json.loads(segue("recommend", release, *arguments, "-k", 5, "--json"))
        return [item["track_id"] for item in answer["items"]]

    played = ask("--play", ids[0], "--play", ids[1])
    skipped = ask("--play", ids[0], "--play", ids[1], "--skip", ids[1])
    swapped = ask("--play", ids[1], "--play", ids[0])
    assert len(played) == len(skipped) == 5
    assert played != skipped
    assert played != swapped
