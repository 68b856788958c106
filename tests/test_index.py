"""Every index against the exact answer, on real FAISS."""

import functools
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import faiss_cpu, faiss_gpu
from index import ivf as inverted_file
from index.exact import ExactIndex, RecallBenchmark, ranked, recall_at_k
from index.faiss_cpu import FaissIndex, Kind, Parameters, faiss
from segue.arrays import Float32
from segue.errors import BadOption, BadRelease
from segue.recommend import NearestTracks, Ranked

TRACKS, DIMENSION = 20_000, 32
FOR_FEW = [kind for kind in faiss_cpu.KINDS if not kind.startswith("ivf-pq")]


def clustered(tracks: int, dimension: int, seed: int) -> tuple[Float32, Float32]:
    """Item embeddings [tracks + 1, dimension] around 100 centres, and 300 queries near them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((100, dimension), dtype=np.float32)
    embeddings = centres[rng.integers(100, size=tracks + 1)]
    embeddings += 0.5 * rng.standard_normal(embeddings.shape, dtype=np.float32)
    # A padding row that would win every search if it were searched.
    embeddings[0] = 1000
    queries = centres[rng.integers(100, size=300)] + 0.5 * rng.standard_normal((300, dimension), dtype=np.float32)
    return embeddings, queries.astype(np.float32)


EMBEDDINGS, QUERIES = clustered(TRACKS, DIMENSION, seed=7)


@pytest.fixture(scope="module")
def exact() -> ExactIndex:
    return ExactIndex(EMBEDDINGS)


@functools.cache
def built(kind: Kind) -> FaissIndex:
    """An index over EMBEDDINGS, set to search thoroughly."""
    index = faiss_cpu.build(EMBEDDINGS, kind, seed=1)
    thorough = {"nprobe": 32 if kind.startswith("ivf") else None, "ef_search": 256}
    return index.tuned(index.parameters.model_copy(update=thorough))


def brute_force(embeddings: Float32, queries: Float32, k: int) -> Ranked:
    scores = queries.astype(np.float64) @ embeddings[1:].T.astype(np.float64)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return Ranked(rows + 1, np.take_along_axis(scores, rows, axis=1).astype(np.float32))


def same(one: Ranked, other: Ranked) -> None:
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.scores, other.scores)


class TestExactSearch:
    def test_a_hand_worked_case(self) -> None:
        embeddings = np.array([[9, 9], [1, 0], [0, 1], [1, 1], [-1, 0]], dtype=np.float32)
        found = ExactIndex(embeddings).search(np.array([[2, 1]], dtype=np.float32), 3)
        assert found.rows.tolist() == [[3, 1, 2]]
        assert found.scores.tolist() == [[3, 2, 1]]
        assert (found.rows.dtype.name, found.scores.dtype.name) == ("int64", "float32")

    def test_it_is_what_sorting_all_scores_gives(self, exact: ExactIndex) -> None:
        found, expected = exact.search(QUERIES, 20), brute_force(EMBEDDINGS, QUERIES, 20)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
        # Processors round float32 sums differently, so tracks whose scores agree to six digits may change places.
        true = np.einsum("bd,bkd->bk", QUERIES.astype(np.float64), EMBEDDINGS[found.rows].astype(np.float64))
        np.testing.assert_allclose(true, expected.scores, rtol=1e-6)
        assert all(len(set(rows)) == 20 for rows in found.rows.tolist())

    def test_equal_scores_go_by_the_lower_row_across_blocks(self) -> None:
        embeddings = np.tile(EMBEDDINGS[5], (70_000, 1))
        found = ExactIndex(embeddings).search(QUERIES[:3], 30)
        np.testing.assert_array_equal(found.rows, np.tile(np.arange(1, 31), (3, 1)))
        assert (found.scores == found.scores[:, :1]).all()

    def test_repeated_embeddings_tie_exactly_wherever_they_lie(self) -> None:
        embeddings = EMBEDDINGS[:9_001].copy()
        copies = np.array([1, 17, 1_024, 4_095, 4_096, 4_097, 8_191, 9_000])
        embeddings[copies] = 3 * QUERIES[0]
        found = ExactIndex(embeddings).search(QUERIES[:2], len(copies))
        assert found.rows[0].tolist() == copies.tolist()
        assert len(set(found.scores[0].tolist())) == 1

    def test_it_stays_exact_when_the_best_tracks_come_last(self) -> None:
        rising = np.arange(1, 100_002, dtype=np.float32)[:, None] * np.ones((1, 4), dtype=np.float32)
        found = ExactIndex(rising).search(np.ones((2, 4), dtype=np.float32), 3)
        assert found.rows.tolist() == [[100_000, 99_999, 99_998]] * 2

    def test_embeddings_that_are_not_finite_are_refused(self) -> None:
        embeddings = EMBEDDINGS[:100].copy()
        embeddings[42, 3] = np.nan
        with pytest.raises(BadRelease, match="row 42 is not finite"):
            ExactIndex(embeddings)

    def test_queries_of_another_dimension_are_refused(self, exact: ExactIndex) -> None:
        with pytest.raises(ValueError, match=r"\[batch, 32\]"):
            exact.search(np.zeros((1, 31), dtype=np.float32), 5)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_it_agrees_with_a_stable_sort_for_any_small_integers(self, data: st.DataObject) -> None:
        # Small integers multiply without rounding, so even the order of ties must agree.
        tracks, dimension = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 5))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        embeddings = rng.integers(-2, 3, (tracks + 1, dimension)).astype(np.float32)
        queries = rng.integers(-2, 3, (data.draw(st.integers(0, 6)), dimension)).astype(np.float32)
        k = data.draw(st.integers(0, 50))
        found, expected = ExactIndex(embeddings).search(queries, k), brute_force(embeddings, queries, k)
        full = min(k, tracks)
        np.testing.assert_array_equal(found.rows[:, :full], expected.rows)
        np.testing.assert_array_equal(found.scores[:, :full], expected.scores)
        assert (found.rows[:, full:] == 0).all()
        assert np.isneginf(found.scores[:, full:]).all()


class TestEveryIndex:
    """What NearestTracks promises, for exact search and all kinds of FAISS index."""

    @pytest.fixture(params=["exact", *faiss_cpu.KINDS])
    def index(self, request: pytest.FixtureRequest, exact: ExactIndex) -> NearestTracks:
        return exact if request.param == "exact" else built(request.param)

    def test_it_finds_nearly_all_of_the_best(self, index: NearestTracks, exact: ExactIndex) -> None:
        found = index.search(QUERIES, 20)
        assert recall_at_k(found.rows, exact.search(QUERIES, 20), QUERIES, EMBEDDINGS) >= 0.99

    def test_scores_are_exact_and_fall(self, index: NearestTracks) -> None:
        found = index.search(QUERIES, 20)
        expected = np.einsum("bd,bkd->bk", QUERIES.astype(np.float64), EMBEDDINGS[found.rows].astype(np.float64))
        np.testing.assert_allclose(found.scores, expected, atol=1e-4)
        assert (np.diff(found.scores, axis=1) <= 0).all()

    def test_the_padding_row_is_never_returned_though_it_would_win(self, index: NearestTracks) -> None:
        assert index.search(np.ones((1, DIMENSION), dtype=np.float32), 20).rows.min() >= 1

    def test_no_track_appears_twice(self, index: NearestTracks) -> None:
        assert all(len(set(rows)) == 50 for rows in index.search(QUERIES[:50], 50).rows.tolist())

    def test_one_query_and_many_give_the_same_lists(self, index: NearestTracks) -> None:
        together = index.search(QUERIES, 20)
        for i in range(0, len(QUERIES), 29):
            alone = index.search(QUERIES[i : i + 1], 20)
            same(alone, Ranked(together.rows[i : i + 1], together.scores[i : i + 1]))

    def test_a_query_that_is_not_finite_gets_no_tracks_and_harms_no_other(self, index: NearestTracks) -> None:
        broken = QUERIES[:4].copy()
        broken[1, 0], broken[2, 5] = np.nan, np.inf
        found, sound = index.search(broken, 10), index.search(QUERIES[:4], 10)
        assert (found.rows[1:3] == 0).all()
        assert np.isneginf(found.scores[1:3]).all()
        same(Ranked(found.rows[[0, 3]], found.scores[[0, 3]]), Ranked(sound.rows[[0, 3]], sound.scores[[0, 3]]))

    def test_no_queries_and_no_places_are_answered_with_empty_arrays(self, index: NearestTracks) -> None:
        assert index.search(QUERIES[:0], 5).rows.shape == (0, 5)
        assert index.search(QUERIES[:3], 0).scores.shape == (3, 0)

    def test_it_does_not_change_its_queries(self, index: NearestTracks) -> None:
        queries = QUERIES[:5].copy()
        queries.setflags(write=False)
        index.search(queries, 5)

    def test_threads_that_search_at_once_get_their_own_answers(self, index: NearestTracks) -> None:
        expected = [index.search(QUERIES[i : i + 10], 10) for i in range(0, 100, 10)]
        found: dict[int, Ranked] = {}

        def ask(i: int) -> None:
            found[i] = index.search(QUERIES[10 * i : 10 * i + 10], 10)

        threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i in range(10):
            same(found[i], expected[i])


class TestFewTracks:
    @pytest.mark.parametrize("kind", FOR_FEW)
    @pytest.mark.parametrize("tracks", [1, 2, 7])
    def test_places_beyond_the_last_track_are_padded(self, kind: Kind, tracks: int) -> None:
        embeddings = EMBEDDINGS[: tracks + 1]
        index = faiss_cpu.build(embeddings, kind)
        found, expected = index.search(QUERIES[:3], tracks + 4), ExactIndex(embeddings).search(QUERIES[:3], tracks + 4)
        same(found, expected)
        assert (found.rows[:, tracks:] == 0).all()
        assert np.isneginf(found.scores[:, tracks:]).all()

    def test_product_codes_are_refused_for_too_few_tracks(self) -> None:
        with pytest.raises(BadRelease, match="9,983 tracks are too few for ivf-pq, which needs 9,984: choose ivf-sq8"):
            faiss_cpu.build(EMBEDDINGS[:9_984], "ivf-pq")

    def test_exact_search_of_no_tracks_finds_none(self) -> None:
        assert ExactIndex(EMBEDDINGS[:1]).search(QUERIES[:2], 3).rows.tolist() == [[0, 0, 0]] * 2

    def test_faiss_refuses_to_index_no_tracks(self) -> None:
        with pytest.raises(BadRelease, match="without tracks"):
            faiss_cpu.build(EMBEDDINGS[:1], "ivf")

    def test_an_ivf_index_that_visits_too_few_lists_pads(self) -> None:
        index = faiss_cpu.build(EMBEDDINGS, "ivf")
        found = index.tuned(Parameters(nlist=index.parameters.nlist, nprobe=1)).search(QUERIES[:5], 5_000)
        assert (found.rows[:, -1] == 0).all()
        assert (found.rows[:, 0] > 0).all()


class TestCandidates:
    def test_ties_go_by_the_lower_row_and_padding_is_passed_over(self) -> None:
        embeddings = np.array([[9, 9], [1, 1], [2, 2], [1, 1]], dtype=np.float32)
        rows = np.array([[3, 0, 1, 2]])
        found = ranked(np.ones((1, 2), dtype=np.float32), rows, embeddings, 5)
        assert found.rows.tolist() == [[2, 1, 3, 0, 0]]
        assert found.scores.tolist() == [[4, 2, 2, -np.inf, -np.inf]]

    def test_a_quantised_index_without_reranking_finds_less(self, exact: ExactIndex) -> None:
        index = faiss_cpu.build(EMBEDDINGS, "flat-sq8")
        expected = exact.search(QUERIES, 20)
        rough = index.tuned(Parameters(rerank=1)).search(QUERIES, 20)
        fine = index.tuned(Parameters(rerank=3)).search(QUERIES, 20)
        recalls = [recall_at_k(found.rows, expected, QUERIES, EMBEDDINGS) for found in (rough, fine)]
        assert recalls[0] < recalls[1] == 1.0


@pytest.mark.parametrize("kind", ["ivf-pq", "ivf-pq4"])
def test_product_codes_are_small_and_their_candidates_hold_the_best(kind: Kind, exact: ExactIndex) -> None:
    index = built(kind)
    index = index.tuned(index.parameters.model_copy(update={"nprobe": index.parameters.nlist}))
    expected = exact.search(QUERIES, 20).rows
    found = index.search(QUERIES, 20).rows
    assert np.mean([len(set(a) & set(b)) / 20 for a, b in zip(found.tolist(), expected.tolist(), strict=True)]) > 0.97
    assert len(index.to_bytes()) < EMBEDDINGS.nbytes / 3


def test_many_lists_are_found_by_a_graph(exact: ExactIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_file, "_MANY_LISTS", 16)
    index = faiss_cpu.build(EMBEDDINGS, "ivf-pq4", seed=1)
    assert "HNSW" in type(faiss_cpu.faiss.downcast_index(index.structure.quantizer)).__name__
    assert index.parameters.rerank == 4
    index = index.tuned(index.parameters.model_copy(update={"nprobe": 64}))
    expected, found = exact.search(QUERIES, 20), index.search(QUERIES, 20)
    assert recall_at_k(found.rows, expected, QUERIES, EMBEDDINGS) > 0.97
    (tmp_path / "index.faiss").write_bytes(index.to_bytes())
    same(faiss_cpu.load(tmp_path / "index.faiss", "ivf-pq4", index.parameters, EMBEDDINGS).search(QUERIES, 20), found)


def test_lists_of_long_tracks_are_visited_first() -> None:
    """An inner product finds long tracks most: centroids that told no length would lead past them."""
    rng = np.random.default_rng(3)
    directions = rng.normal(size=(400, 1, 16)) + 0.2 * rng.normal(size=(400, 50, 16))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    embeddings = np.zeros((20_001, 16), dtype=np.float32)
    embeddings[1:] = (directions * rng.uniform(0.5, 2.0, size=(400, 1, 1))).reshape(-1, 16)
    queries = rng.normal(size=(200, 16)).astype(np.float32)
    expected = ExactIndex(embeddings).search(queries, 20)
    index = faiss_cpu.build(embeddings, "ivf", seed=1)
    index = index.tuned(index.parameters.model_copy(update={"nprobe": 8}))
    with_lengths = recall_at_k(index.search(queries, 20).rows, expected, queries, embeddings)
    centroids = index.structure.quantizer.reconstruct_n(0, index.structure.nlist)
    index.structure.quantizer.reset()
    index.structure.quantizer.add(centroids / np.linalg.norm(centroids, axis=1, keepdims=True))
    without = recall_at_k(index.search(queries, 20).rows, expected, queries, embeddings)
    assert with_lengths > 0.95
    assert without < with_lengths - 0.1


class TestMappedLists:
    """Lists of four-bit codes, which FAISS alone would read into each process."""

    @pytest.fixture
    def index(self) -> faiss_cpu.FaissIndex:
        return faiss_cpu.build(EMBEDDINGS, "ivf-pq4", seed=1)

    def test_codes_are_where_the_file_is_mapped(self, index: faiss_cpu.FaissIndex, tmp_path: Path) -> None:
        file = tmp_path / "index.faiss"
        file.write_bytes(index.to_bytes())
        opened = faiss_cpu.load(file, "ivf-pq4", index.parameters, EMBEDDINGS)
        codes = [int(opened.structure.invlists.get_codes(number)) for number in range(index.structure.nlist)]
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
        spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
        assert all(any(low <= code < high for low, high in spans) for code in codes if code)
        assert {line[1][:2] for line in maps} == {"r-"}

    def test_a_file_may_be_moved_and_written_again_from_what_was_opened(
        self, index: faiss_cpu.FaissIndex, tmp_path: Path
    ) -> None:
        content = index.to_bytes()
        (tmp_path / "one").write_bytes(content)
        moved = (tmp_path / "one").rename(tmp_path / "another")
        moved.chmod(0o444)
        opened = faiss_cpu.load(moved, "ivf-pq4", index.parameters, EMBEDDINGS)
        assert opened.to_bytes() == content
        same(opened.search(QUERIES, 20), index.search(QUERIES, 20))

    @pytest.mark.parametrize(
        ("column", "value"), [(0, 1 << 40), (1, 1 << 62), (1, 33), (2, 1 << 40), (2, (1 << 64) - 64), (2, 5)]
    )
    def test_lists_outside_the_file_are_refused(
        self, index: faiss_cpu.FaissIndex, tmp_path: Path, column: int, value: int
    ) -> None:
        """Size, capacity and offset of a list are what a file says: none may lead out of it."""
        content = bytearray(index.to_bytes())
        first = content.index(b"ilod") + 28  # behind the name: lists, bytes of a code, and the length of the table
        size = index.structure.invlists.list_size(0)
        assert struct.unpack_from("<2Q", content, first) == (size, -(-size // 32) * 32)
        struct.pack_into("<Q", content, first + 8 * column, value)
        (tmp_path / "index.faiss").write_bytes(content)
        with pytest.raises(BadRelease, match="do not lie within the file"):
            faiss_cpu.load(tmp_path / "index.faiss", "ivf-pq4", index.parameters, EMBEDDINGS)

    def test_a_file_cut_within_its_lists_is_refused(self, index: faiss_cpu.FaissIndex, tmp_path: Path) -> None:
        (tmp_path / "index.faiss").write_bytes(index.to_bytes()[:-8])
        with pytest.raises(BadRelease, match="do not lie within the file"):
            faiss_cpu.load(tmp_path / "index.faiss", "ivf-pq4", index.parameters, EMBEDDINGS)

    def test_lists_that_faiss_wrote_itself_are_refused(self, index: faiss_cpu.FaissIndex, tmp_path: Path) -> None:
        faiss_cpu.faiss.write_index(index.structure, str(tmp_path / "index.faiss"))
        with pytest.raises(BadRelease, match=r"cannot be mapped.*run segue index again"):
            faiss_cpu.load(tmp_path / "index.faiss", "ivf-pq4", index.parameters, EMBEDDINGS)

    def test_lists_grow_in_number_so_that_none_is_long(self) -> None:
        assert faiss_cpu._parameters("ivf-pq4", 1_000_000).nlist == 2048
        assert faiss_cpu._parameters("ivf-pq4", 2_000_000).nlist == 4096
        assert faiss_cpu._parameters("ivf-pq4", 10_000_000).nlist == 32_768
        assert faiss_cpu._parameters("ivf-sq8", 10_000_000).nlist == 8192


class TestFile:
    @pytest.mark.parametrize("kind", faiss_cpu.KINDS)
    def test_an_index_comes_back_from_its_file_and_answers_alike(self, kind: Kind, tmp_path: Path) -> None:
        index = built(kind)
        file = tmp_path / "index.faiss"
        file.write_bytes(index.to_bytes())
        again = faiss_cpu.load(file, kind, index.parameters, EMBEDDINGS)
        same(again.search(QUERIES, 20), index.search(QUERIES, 20))

    def test_the_same_seed_gives_the_same_file(self) -> None:
        one, two, other = (faiss_cpu.build(EMBEDDINGS[:5_000], "ivf-sq8", seed=s).to_bytes() for s in (3, 3, 4))
        assert one == two
        assert one != other

    def test_embeddings_that_are_mapped_and_read_only_do(self, tmp_path: Path) -> None:
        np.save(tmp_path / "e.npy", EMBEDDINGS[:3_000])
        mapped = np.load(tmp_path / "e.npy", mmap_mode="r")
        expected = ExactIndex(EMBEDDINGS[:3_000]).search(QUERIES, 10)
        same(ExactIndex(mapped).search(QUERIES, 10), expected)
        same(faiss_cpu.build(mapped, "flat").search(QUERIES, 10), expected)
        index = faiss_cpu.build(mapped, "ivf-sq8")
        (tmp_path / "i").write_bytes(index.to_bytes())
        same(
            faiss_cpu.load(tmp_path / "i", "ivf-sq8", index.parameters, mapped).search(QUERIES, 10),
            index.search(QUERIES, 10),
        )

    @pytest.mark.parametrize("content", [b"", b"not an index, at any length at all" * 50])
    def test_a_file_that_is_no_index_is_refused(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "index.faiss").write_bytes(content)
        with pytest.raises(BadRelease, match="not a readable FAISS index"):
            faiss_cpu.load(tmp_path / "index.faiss", "flat", Parameters(), EMBEDDINGS)

    @pytest.mark.parametrize("kind", FOR_FEW)
    def test_a_file_cut_short_is_refused(self, kind: Kind, tmp_path: Path) -> None:
        index = faiss_cpu.build(EMBEDDINGS[:500], kind)
        content = index.to_bytes()
        for length in (20, len(content) // 2):
            (tmp_path / "index.faiss").write_bytes(content[:length])
            with pytest.raises(BadRelease, match="run segue index again"):
                faiss_cpu.load(tmp_path / "index.faiss", kind, index.parameters, EMBEDDINGS[:500])

    @pytest.mark.parametrize("rows", [slice(0, 400), (slice(0, 500), slice(0, 16))])
    def test_an_index_of_other_embeddings_is_refused(self, rows: Any, tmp_path: Path) -> None:
        index = faiss_cpu.build(EMBEDDINGS[:500], "flat")
        (tmp_path / "index.faiss").write_bytes(index.to_bytes())
        with pytest.raises(BadRelease, match="indexes 499 tracks of dimension 32"):
            faiss_cpu.load(tmp_path / "index.faiss", "flat", index.parameters, EMBEDDINGS[rows])

    def test_an_index_of_another_kind_or_metric_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "hnsw").write_bytes(faiss_cpu.build(EMBEDDINGS[:500], "hnsw").to_bytes())
        with pytest.raises(BadRelease, match="IndexHNSWFlat, not of the kind ivf"):
            faiss_cpu.load(tmp_path / "hnsw", "ivf", Parameters(nlist=8, nprobe=2), EMBEDDINGS[:500])
        euclidean = faiss.IndexFlatL2(DIMENSION)
        euclidean.add(EMBEDDINGS[1:500])
        faiss.write_index(euclidean, str(tmp_path / "l2"))
        with pytest.raises(BadRelease, match="not of the kind flat"):
            faiss_cpu.load(tmp_path / "l2", "flat", Parameters(), EMBEDDINGS[:500])


class TestThreads:
    def test_searching_leaves_the_number_of_openmp_threads_alone(self) -> None:
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(2)
        try:
            built("ivf").search(QUERIES[:1], 5)
            built("ivf").search(QUERIES, 5)
            assert faiss.omp_get_max_threads() == 2
        finally:
            faiss.omp_set_num_threads(before)


class TestRecall:
    """Three queries along one axis; the tracks' scores are 4, 3, 3, 3, 1."""

    embeddings = np.array([[9], [4], [3], [3], [3], [1]], dtype=np.float32)
    queries = np.ones((1, 1), dtype=np.float32)

    def recall(self, found: list[int], k: int) -> float:
        exact = ExactIndex(self.embeddings).search(self.queries, k)
        return recall_at_k(np.array([found]), exact, self.queries, self.embeddings)

    @pytest.mark.parametrize(
        ("found", "recall"),
        [([1, 2], 1.0), ([2, 1], 1.0), ([1, 4], 1.0), ([3, 4], 1.0), ([1, 5], 0.5), ([5, 0], 0.0), ([1, 1], 0.5)],
    )
    def test_a_track_that_ties_for_the_last_place_counts(self, found: list[int], recall: float) -> None:
        assert self.recall(found, k=2) == recall

    def test_more_found_than_asked_gives_no_more_than_one(self) -> None:
        assert self.recall([1, 2, 3, 4], k=2) == 1.0

    def test_the_share_is_of_the_tracks_that_there_are(self) -> None:
        assert self.recall([1, 2, 3, 4, 0], k=9) == 0.8

    def test_it_is_the_mean_over_queries(self) -> None:
        queries = np.array([[1], [-1]], dtype=np.float32)
        exact = ExactIndex(self.embeddings).search(queries, 1)
        assert recall_at_k(np.array([[1], [1]]), exact, queries, self.embeddings) == 0.5

    def test_a_difference_within_the_tolerance_is_a_tie(self) -> None:
        embeddings = np.array([[0], [1], [1 - 1e-6], [1 - 1e-3]], dtype=np.float32)
        exact = ExactIndex(embeddings).search(self.queries, 1)
        assert [recall_at_k(np.array([[r]]), exact, self.queries, embeddings) for r in (1, 2, 3)] == [1, 1, 0]

    def test_nothing_to_find_misses_nothing(self) -> None:
        exact = ExactIndex(self.embeddings[:1]).search(self.queries, 3)
        assert recall_at_k(np.zeros((1, 3), dtype=np.int64), exact, self.queries, self.embeddings) == 1.0
        assert (
            recall_at_k(exact.rows[:0], Ranked(exact.rows[:0], exact.scores[:0]), self.queries[:0], self.embeddings)
            == 1.0
        )


class TestExam:
    def test_tuning_and_held_out_queries_share_none(self) -> None:
        exam = RecallBenchmark.of(QUERIES, EMBEDDINGS)
        assert len(exam.tuning.queries) == len(exam.test_queries.queries) == 150
        both = np.concatenate([exam.tuning.queries, exam.test_queries.queries])
        assert len(np.unique(both, axis=0)) == 300

    @pytest.mark.parametrize("queries", [QUERIES[:0], QUERIES[:, :5], QUERIES[0], QUERIES[:2] * np.nan])
    def test_unfit_queries_are_refused(self, queries: Float32) -> None:
        with pytest.raises(BadOption, match=r"finite queries of the shape \[n, 32\]"):
            RecallBenchmark.of(queries, EMBEDDINGS)


class TestGpu:
    @pytest.mark.gpu
    @pytest.mark.skipif(
        not faiss_gpu.gpu_available(), reason="FAISS finds no CUDA device here (segue[gpu] not installed?)"
    )
    @pytest.mark.parametrize("kind", faiss_gpu.KINDS)
    def test_the_device_answers_as_the_cpu_does(self, kind: Kind, exact: ExactIndex, tmp_path: Path) -> None:
        index = faiss_gpu.build(EMBEDDINGS, kind, seed=1)
        tuned = index.tuned(index.parameters.model_copy(update={"nprobe": 32 if kind != "flat" else None}))
        found = tuned.search(QUERIES, 20)
        assert recall_at_k(found.rows, exact.search(QUERIES, 20), QUERIES, EMBEDDINGS) >= 0.99
        (tmp_path / "index.faiss").write_bytes(tuned.to_bytes())
        for backend in (faiss_cpu, faiss_gpu):
            again = backend.load(tmp_path / "index.faiss", kind, tuned.parameters, EMBEDDINGS)
            rows = again.search(QUERIES, 20).rows
            assert recall_at_k(rows, exact.search(QUERIES, 20), QUERIES, EMBEDDINGS) >= 0.99

    @pytest.mark.skipif(faiss_gpu.gpu_available(), reason="there is a CUDA device here")
    def test_without_a_device_the_error_says_what_to_do(self) -> None:
        with pytest.raises(BadOption, match=r"^device gpu: FAISS finds no CUDA device; "):
            faiss_gpu.build(EMBEDDINGS[:100], "flat")
