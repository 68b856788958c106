"""Building, tuning and opening the index of a release."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from index import faiss_cpu
from index import tuning as choose
from index.exact import ExactIndex, recall_at_k
from index.faiss_cpu import FaissIndex
from index.faiss_gpu import gpu_available
from index.tuning import KINDS, IndexFacts, build_index, index_release, open_index, read_facts
from segue.arrays import Float32
from segue.errors import BadOption, BadRelease
from segue.release import (
    INDEX,
    INDEX_FACTS,
    ITEM_EMBEDDINGS,
    DatasetFacts,
    Release,
    ReleaseMetadata,
    WindowFacts,
    open_release,
    with_index,
    write_release,
)
from tests.catalogues import catalogue_of

TRACKS, DIMENSION = 3_000, 16


def made(path: Path, tracks: int = TRACKS, encoder: bytes | None = b"") -> Release:
    rng = np.random.default_rng(tracks)
    embeddings = rng.standard_normal((tracks + 1, DIMENSION), dtype=np.float32)
    draft = ReleaseMetadata(
        model="sasrec",
        options={},
        loss=None,
        window=WindowFacts(length=20),
        dimension=DIMENSION if encoder is not None else None,
        dataset=DatasetFacts(fingerprint="0", source="planted", split="last-play"),
        source_commit=None,
        evaluation={},
    )
    arrays = {ITEM_EMBEDDINGS: embeddings} if encoder is not None else {}
    return write_release(path, draft, catalogue_of([f"t{i}" for i in range(tracks)]), arrays, encoder)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return made(tmp_path / "release")


@pytest.fixture(scope="module")
def queries() -> Float32:
    return np.random.default_rng(5).standard_normal((80, DIMENSION), dtype=np.float32)


class TestBuilding:
    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("auto", "exact", "ivf-pq")])
    def test_what_index_json_states_is_measured(self, kind: str, release: Release, queries: Float32) -> None:
        release, facts = index_release(release, queries, kind, recall_target=0.95)
        assert json.loads((release.path / INDEX_FACTS).read_text()) == facts.model_dump(mode="json")
        assert (facts.kind, facts.tracks, facts.dimension, facts.queries) == (kind, TRACKS, DIMENSION, 40)
        assert facts.recall >= 0.95
        assert facts.search_ms > 0
        assert facts.exact_ms > 0
        test_queries = queries[1::2]
        exact = ExactIndex(release.item_embeddings).search(test_queries, facts.recall_k)
        found = open_index(release).search(test_queries, facts.recall_k)
        assert recall_at_k(found.rows, exact, test_queries, release.item_embeddings) == facts.recall

    def test_the_curve_rises_to_the_setting_that_was_chosen(self, release: Release, queries: Float32) -> None:
        _, facts = build_index(release, queries, "ivf", recall_target=0.9)
        assert [point.value for point in facts.tried][:4] == [1, 2, 3, 4]
        assert facts.tried[-1].value == facts.parameters.nprobe
        assert facts.tried[0].recall < 0.9 <= facts.tried[-1].recall

    def test_a_higher_target_is_reached_with_more_work(self, release: Release, queries: Float32) -> None:
        low, high = (build_index(release, queries, "ivf", recall_target=target)[1] for target in (0.5, 0.99))
        assert (low.parameters.nprobe or 0) < (high.parameters.nprobe or 0)

    def test_a_kind_that_misses_the_target_gives_way_to_a_stronger_one(
        self, release: Release, queries: Float32, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(choose, "_STEPS", choose._STEPS | {"hnsw": ("ef_search", 1, 2)})
        monkeypatch.setattr(faiss_cpu, "_LEAST_ASKED", 1)
        _, facts = build_index(release, queries, "hnsw-sq8", recall_target=1.0)
        assert facts.kind == "ivf"
        assert [point.kind for point in facts.tried][:4] == ["hnsw-sq8", "hnsw-sq8", "hnsw", "hnsw"]
        assert facts.recall == 1.0

    def test_a_small_catalogue_is_searched_exactly_and_needs_no_file(self, release: Release, queries: Float32) -> None:
        content, facts = build_index(release, queries)
        assert content is None
        assert (facts.kind, facts.recall, facts.tried) == ("exact", 1.0, ())

    def test_auto_compares_kinds_for_a_larger_catalogue(
        self, release: Release, queries: Float32, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(choose, "SMALL_CATALOGUE", 1_000)
        _, facts = build_index(release, queries, recall_target=0.9)
        assert {point.kind for point in facts.tried} >= {"ivf-pq4", "hnsw"}
        assert facts.recall >= 0.9
        assert facts.search_ms <= facts.exact_ms or facts.kind == "exact"

    def test_one_query_is_enough_to_build_with(self, release: Release, queries: Float32) -> None:
        assert build_index(release, queries[:1], "hnsw")[1].queries == 1

    def test_a_catalogue_of_fewer_tracks_than_are_asked_for_can_be_indexed(
        self, tmp_path: Path, queries: Float32
    ) -> None:
        assert build_index(made(tmp_path / "tiny", tracks=3), queries, "ivf")[1].recall == 1.0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kind": "annoy"}, "index kind 'annoy' is unknown: choose one of auto, exact, flat"),
            ({"device": "tpu"}, "device 'tpu' is unknown: choose cpu or gpu"),
            ({"recall_target": 1.5}, "recall target 1.5 is out of range"),
            ({"recall_target": 0.0}, "recall target 0.0 is out of range"),
        ],
    )
    def test_wrong_options_are_refused(
        self, options: dict[str, object], message: str, release: Release, queries: Float32
    ) -> None:
        with pytest.raises(BadOption, match=message):
            build_index(release, queries, **options)  # type: ignore[arg-type]

    @pytest.mark.skipif(gpu_available(), reason="there is a CUDA device here")
    def test_a_missing_device_is_refused_before_any_work(self, release: Release, queries: Float32) -> None:
        with pytest.raises(BadOption, match="device gpu: FAISS finds no CUDA device"):
            build_index(release, queries, device="gpu")
        with pytest.raises(BadOption, match="device gpu: FAISS finds no CUDA device"):
            open_index(release, device="gpu")

    def test_a_release_without_an_encoder_is_refused(self, tmp_path: Path, queries: Float32) -> None:
        with pytest.raises(BadRelease, match="has no encoder"):
            build_index(made(tmp_path / "baseline", encoder=None), queries)


class TestOpening:
    def test_a_release_that_was_never_indexed_is_searched_exactly(self, release: Release) -> None:
        assert read_facts(release) is None
        assert isinstance(open_index(release), ExactIndex)

    def test_an_index_can_be_replaced_and_taken_away(self, release: Release, queries: Float32) -> None:
        release, _ = index_release(release, queries, "ivf")
        assert isinstance(open_index(release), FaissIndex)
        release, _ = index_release(release, queries, "exact")
        assert isinstance(open_index(release), ExactIndex)
        assert not (release.path / INDEX).exists()

    def test_an_opened_index_outlives_the_replacement_of_its_file(self, release: Release, queries: Float32) -> None:
        release, _ = index_release(release, queries, "hnsw")
        opened = open_index(release)
        before = opened.search(queries, 10)
        index_release(release, queries, "flat")
        np.testing.assert_array_equal(opened.search(queries, 10).rows, before.rows)

    def test_a_damaged_file_is_refused_by_the_release(self, release: Release, queries: Float32) -> None:
        release, _ = index_release(release, queries, "flat")
        content = bytearray((release.path / INDEX).read_bytes())
        content[-1] ^= 1
        (release.path / INDEX).write_bytes(content)
        with pytest.raises(BadRelease, match="sha256 differs"):
            open_release(release.path)

    def test_the_index_of_another_release_is_refused(self, release: Release, queries: Float32, tmp_path: Path) -> None:
        foreign, facts = build_index(made(tmp_path / "other", tracks=TRACKS + 1), queries, "flat")
        with pytest.raises(BadRelease, match="does not belong to this release"):
            open_index(with_index(release, foreign, facts.model_dump(mode="json")))
        claimed = facts.model_copy(update={"tracks": TRACKS})
        with pytest.raises(BadRelease, match="does not belong to this release"):
            open_index(with_index(release, foreign, claimed.model_dump(mode="json")))
        claimed = claimed.model_copy(update={"embeddings_sha256": None})
        with pytest.raises(BadRelease, match="indexes 3001 tracks"):
            open_index(with_index(release, foreign, claimed.model_dump(mode="json")))

    @pytest.mark.parametrize("encoder", [b"", None])  # None: a release without some of the files
    def test_a_release_that_was_replaced_meanwhile_gets_no_index(
        self, release: Release, queries: Float32, tmp_path: Path, encoder: bytes | None
    ) -> None:
        content, facts = build_index(release, queries, "flat")
        shutil.rmtree(release.path)
        other = made(tmp_path / "release", TRACKS + 1, encoder)
        with pytest.raises(BadRelease, match=r"was replaced by sasrec-.* meanwhile"):
            with_index(release, content, facts.model_dump(mode="json"))
        assert open_release(other.path).name == other.name

    def test_facts_and_file_must_come_together(self, release: Release, queries: Float32) -> None:
        content, facts = build_index(release, queries, "flat")
        with pytest.raises(BadRelease, match="does not belong"):
            open_index(with_index(release, None, facts.model_dump(mode="json")))
        exact = build_index(release, queries, "exact")[1]
        with pytest.raises(BadRelease, match="no facts about it"):
            open_index(with_index(release, content, exact.model_dump(mode="json")))

    @pytest.mark.parametrize("change", [{"kind": "annoy"}, {"recall": 2}, {"surprise": 1}])
    def test_facts_that_make_no_sense_are_refused(
        self, change: dict[str, object], release: Release, queries: Float32
    ) -> None:
        content, facts = build_index(release, queries, "flat")
        with pytest.raises(BadRelease, match=next(iter(change))):
            open_index(with_index(release, content, facts.model_dump(mode="json") | change))

    def test_facts_without_the_search_parameter_are_refused(self, release: Release, queries: Float32) -> None:
        content, facts = build_index(release, queries, "ivf")
        told = facts.model_dump(mode="json")
        told["parameters"]["nprobe"] = None
        with pytest.raises(BadRelease, match="an index of the kind ivf needs nprobe"):
            open_index(with_index(release, content, told))

    def test_every_field_of_index_json_survives_the_round_trip(self, release: Release, queries: Float32) -> None:
        release, facts = index_release(release, queries, "hnsw-sq8")
        assert read_facts(release) == facts
        assert isinstance(facts, IndexFacts)
