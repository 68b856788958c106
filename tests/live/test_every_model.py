"""`segue serve` works with a release of every model that has vectors or counts: a skip moves the list of most."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from segue.cli import main
from training.registry import MODELS, RankerModel

pytestmark = pytest.mark.slow

SMALL = {"epochs": 1, "dimension": 8, "heads": 2, "window": 8, "negatives": 50, "iterations": 2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("every") / "dataset"
    assert main(["simulate", "--tracks", "1000", "--sessions", "300", "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("model", [name for name, line in MODELS.items() if not isinstance(line, RankerModel)])
def test_it_is_trained_indexed_and_served(model: str, dataset: Path, tmp_path: Path, start_service: Any) -> None:
    release = tmp_path / model
    settings = [f"--set={key}={value}" for key, value in SMALL.items() if key in MODELS[model].options.model_fields]
    assert main(["train", str(dataset), "--model", model, *settings, "--out", str(release)]) == 0
    has_vectors = model != "ngram"
    assert main(["index", str(release), "--kind", "hnsw", "--recall", "0.5"]) == (0 if has_vectors else 2)
    with start_service(release=release).client() as client:
        served = client.get("/releases/current").json()
        assert served["name"].startswith(f"{model}-")
        tracks = [item["track_id"] for item in client.get("/tracks", params={"query": "", "limit": 3}).json()["items"]]
        events = [{"type": "play", "track_id": track} for track in tracks]
        client.post("/sessions/s/events", json={"events": events}).raise_for_status()
        before = client.get("/recommendations", params={"session_id": "s", "k": 20}).json()
        assert before["source"] == "model"
        client.post(
            "/sessions/s/events", json={"events": [{"type": "skip", "track_id": tracks[-1]}]}
        ).raise_for_status()
        after = client.get("/recommendations", params={"session_id": "s", "k": 20}).json()
        scores = [[item["score"] for item in answer["items"]] for answer in (before, after)]
        assert (scores[0] == scores[1]) == (model in ("wrmf", "bpr"))  # blind to skips, as in the original


@pytest.mark.parametrize("model", [name for name, line in MODELS.items() if isinstance(line, RankerModel)])
def test_one_without_vectors_says_so(model: str, dataset: Path, tmp_path: Path, capfd: Any) -> None:
    release = tmp_path / model
    assert main(["train", str(dataset), "--model", model, "--out", str(release)]) == 0
    assert main(["serve", str(release), "--port", "0"]) == 2
    assert f"was trained as {model}, which has no encoder" in capfd.readouterr().err
