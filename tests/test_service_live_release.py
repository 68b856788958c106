"""A release made ready to answer, without HTTP."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from segue.errors import BadRelease, UnknownTrack
from segue.release import DatasetFacts, Release, ReleaseMetadata, WindowFacts, open_release, write_release
from segue.sessions import Outcome, Play, repeat_policy
from segue.window import Windows, to_sessions, to_windows
from service.releases.loaded import LoadedRelease, load_release, recommender_of
from service.releases.rankers import OnnxEncoder
from tests.catalogues import catalogue_of


@pytest.fixture(scope="module")
def live(tiny_release: Release) -> LoadedRelease:
    return load_release(tiny_release.path)


def test_the_encoder_answers_what_its_graph_says(tiny_release: Release) -> None:
    """Worked out by hand: the sum of the window's embeddings, skipped ones times -2."""
    plays = [Play("g1-t00"), Play("g1-t01"), Play("g2-t00", Outcome.SKIPPED)]
    windows = to_windows(to_sessions([plays, []], tiny_release.catalogue), 5)
    queries = OnnxEncoder(tiny_release.path / "encoder.onnx").encode(windows)
    assert queries.dtype == np.float32
    np.testing.assert_allclose(queries[0], [0, 2, -2, 0, 0, 0, 0.060 + 0.059 - 2 * 0.048], atol=1e-6)
    np.testing.assert_array_equal(queries[1], np.zeros(7))


def test_what_is_evaluated_is_what_is_served(tiny_release: Release, live: LoadedRelease) -> None:
    plays = [Play("g1-t00"), Play("g3-t01", Outcome.SKIPPED)]
    for exact, repeat in itertools.product((True, False), ("allow", "never", "after:1")):
        served = live.recommend(plays, 20, repeat=repeat)
        recommender = recommender_of(open_release(tiny_release.path), exact=exact)
        sessions = to_sessions([plays], tiny_release.catalogue)
        [found] = recommender.recommend(sessions, 20, repeat=repeat_policy(repeat))
        assert [tiny_release.catalogue.track_id(row) for row in found.rows] == [one.track_id for one in served.tracks]


def test_an_answer_is_as_long_as_the_catalogue_allows(live: LoadedRelease) -> None:
    assert len(live.recommend([], 1000).tracks) == 72
    assert len(live.recommend([Play("g0-t00")], 1000).tracks) == 72
    assert len(live.recommend([Play("g0-t00")], 1000, repeat="never").tracks) == 71
    assert len(live.similar("g0-t00", 1000)) == 71
    assert len(live.search("", 1000)) == 72


def test_an_unknown_track_is_told(live: LoadedRelease) -> None:
    with pytest.raises(UnknownTrack, match="'nobody' is not in the catalogue of 72 tracks"):
        live.similar("nobody", 3)
    assert live.unknown(["nobody", "g0-t00", "knows", "nobody"]) == ["nobody", "knows"]


def test_a_release_without_an_encoder_is_refused(tmp_path: Path) -> None:
    draft = ReleaseMetadata(
        model="popularity",
        options={},
        loss=None,
        window=WindowFacts(length=5),
        dimension=None,
        dataset=DatasetFacts(fingerprint="0", source="tests", split="last-play"),
        source_commit=None,
        evaluation={},
    )
    write_release(tmp_path / "r", draft, catalogue_of(["a"]), {})
    with pytest.raises(
        BadRelease,
        match="was trained as popularity, which has no encoder and no transition counts: it can be evaluated, not",
    ):
        load_release(tmp_path / "r")


def test_a_file_that_is_no_encoder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"not a model")
    with pytest.raises(BadRelease, match="is not an encoder that ONNX Runtime can run") as caught:
        OnnxEncoder(tmp_path / "encoder.onnx")
    assert "\n" not in str(caught.value)


def test_a_model_of_another_signature_is_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "other", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "encoder.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadRelease, match=r"has the inputs \{'x': 'tensor\(float\)'\}, expected"):
        OnnxEncoder(tmp_path / "encoder.onnx")


def test_an_encoder_that_does_not_fit_the_manifest_is_refused(tiny_release: Release, tmp_path: Path) -> None:
    path = tmp_path / "r"
    shutil.copytree(tiny_release.path, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["window"]["length"] = 6  # the graph is made for 5
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadRelease, match="the encoder fails on a window of 6") as caught:
        load_release(path)
    assert "\n" not in str(caught.value)


def test_a_batch_of_any_size_is_encoded(tiny_release: Release) -> None:
    encoder = OnnxEncoder(tiny_release.path / "encoder.onnx")
    for batch in (1, 3, 64):
        windows = Windows(np.ones((batch, 5), dtype=np.int64), np.zeros((batch, 5), dtype=np.bool_))
        assert encoder.encode(windows).shape == (batch, 7)
