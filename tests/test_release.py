"""A release appears whole or not at all, and nothing that differs from its manifest is opened."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segue.errors import BadRelease, InputError
from segue.release import (
    CATALOGUE,
    ENCODER,
    INDEX,
    INDEX_FACTS,
    ITEM_EMBEDDINGS,
    MANIFEST,
    DatasetFacts,
    Release,
    ReleaseMetadata,
    WindowFacts,
    open_release,
    with_index,
    write_release,
)
from tests.catalogues import catalogue_of

FROZEN = Path(__file__).parent / "releases" / "v1"


def draft() -> ReleaseMetadata:
    return ReleaseMetadata(
        model="sasrec",
        options={"epochs": 1},
        loss=None,
        window=WindowFacts(length=4),
        dimension=3,
        dataset=DatasetFacts(fingerprint="f", source="planted", split="last-play"),
        source_commit=None,
        evaluation={},
    )


def write(path: Path, **rest: object) -> Release:
    embeddings = np.arange(9, dtype=np.float32).reshape(3, 3)
    return write_release(path, draft(), catalogue_of(["a", "b"]), {ITEM_EMBEDDINGS: embeddings}, b"onnx", **rest)  # type: ignore[arg-type]


class TestWriting:
    def test_what_was_written_is_read_back(self, tmp_path: Path) -> None:
        written = write(tmp_path / "r")
        read = open_release(tmp_path / "r")
        assert read.manifest == written.manifest
        assert read.catalogue.track_ids == ["a", "b"]
        assert read.item_embeddings.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
        assert read.has_encoder
        assert not read.has_index
        assert read.name.startswith("sasrec-")

    def test_the_same_content_has_the_same_name(self, tmp_path: Path) -> None:
        assert write(tmp_path / "a").name == write(tmp_path / "b").name

    def test_an_existing_folder_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / "mine.txt").write_text("precious")
        with pytest.raises(InputError, match="already exists"):
            write(tmp_path / "r")
        with pytest.raises(InputError, match=r"holds no manifest\.json, so it is not replaced"):
            write(tmp_path / "r", overwrite=True)
        assert (tmp_path / "r" / "mine.txt").read_text() == "precious"

    def test_a_release_is_replaced_when_asked(self, tmp_path: Path) -> None:
        write(tmp_path / "r")
        write(tmp_path / "r", overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["r"]

    def test_a_failed_check_leaves_nothing_behind(self, tmp_path: Path) -> None:
        def refuse(folder: Path) -> None:
            assert (folder / ENCODER).is_file()
            raise BadRelease("differs")

        with pytest.raises(BadRelease, match="differs"):
            write(tmp_path / "r", check=refuse)
        assert list(tmp_path.iterdir()) == []

    def test_no_file_is_a_pickle(self, tmp_path: Path) -> None:
        for file in write(tmp_path / "r").path.iterdir():
            assert not file.read_bytes().startswith(b"\x80\x04")


class TestIndexing:
    def test_an_index_is_added_and_taken_away(self, tmp_path: Path) -> None:
        release = write(tmp_path / "r")
        indexed = with_index(release, b"index", {"kind": "flat"})
        assert indexed.has_index
        assert json.loads((tmp_path / "r" / INDEX_FACTS).read_text())["kind"] == "flat"
        assert indexed.name == release.name
        without = with_index(indexed, None, {"kind": "exact"})
        assert not without.has_index
        assert not (tmp_path / "r" / INDEX).exists()
        assert [path.name for path in tmp_path.iterdir()] == ["r"]


def damage_byte(path: Path) -> None:
    content = bytearray((path / ITEM_EMBEDDINGS).read_bytes())
    content[-1] ^= 1
    (path / ITEM_EMBEDDINGS).write_bytes(content)


def set_manifest(**change: object) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        content = json.loads((path / MANIFEST).read_text())
        (path / MANIFEST).write_text(json.dumps(content | change))

    return do


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_byte, "sha256 differs"),
        (lambda path: (path / ENCODER).write_bytes(b"longer than before"), "18 bytes, the manifest says 4"),
        (lambda path: (path / CATALOGUE).unlink(), "catalogue.parquet is missing"),
        (lambda path: (path / MANIFEST).unlink(), "is not a release"),
        (lambda path: (path / MANIFEST).write_text("{"), "is damaged"),
        (lambda path: (path / MANIFEST).write_text("[]"), "format version None"),
        (set_manifest(format_version=2), "format version 2, this Segue reads 1"),
        (set_manifest(files={"../secret": {"sha256": "0" * 64, "bytes": 1}}), "no plain file name"),
        (set_manifest(tracks=7), "2 tracks, the manifest 7"),
        (set_manifest(dimension=5), r"float32 \(3, 3\), the manifest asks for float32 \(3, 5\)"),
        (set_manifest(surprise=1), "surprise"),
        (set_manifest(window={"length": 0}), r"window\.length"),
    ],
)
def test_a_damaged_release_is_refused_with_one_line(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    write(tmp_path / "r")
    damage(tmp_path / "r")
    with pytest.raises(BadRelease, match=message) as caught:
        open_release(tmp_path / "r")
    assert "\n" not in str(caught.value)


class TestFrozenSample:
    """Format 1 as it was written once (from synthetic sessions): later versions must go on reading it."""

    def test_it_opens(self) -> None:
        release = open_release(FROZEN)
        assert release.manifest.model == "sasrec"
        assert release.manifest.dataset.source == "planted"
        assert len(release.sample_windows) > 0

    def test_it_recommends_what_it_recommended_when_it_was_frozen(self) -> None:
        pytest.importorskip("onnxruntime")
        from segue.sessions import Outcome, Play
        from service.releases.loaded import load_release

        expected = json.loads((FROZEN.parent / "v1-answers.json").read_text())
        live = load_release(FROZEN)
        for case in expected:
            plays = [Play(track_id, Outcome(outcome)) for track_id, outcome in case["plays"]]
            answer = live.recommend(plays, 10, [], repeat="never")
            assert [track.track_id for track in answer.tracks] == case["tracks"]
            assert [track.score for track in answer.tracks] == pytest.approx(case["scores"], abs=1e-4)
