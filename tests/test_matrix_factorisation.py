"""WRMF and BPR: what is learnt from skips, the fold-in against numpy, agreement with `implicit`, and export."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("implicit")

import scipy.sparse  # noqa: E402 (after the check that torch is there)
from implicit.cpu.als import AlternatingLeastSquares  # noqa: E402
from implicit.cpu.bpr import BayesianPersonalizedRanking  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

from segue.arrays import Float64, Int  # noqa: E402
from segue.catalogue import PAD_ROW  # noqa: E402
from segue.errors import BadDataset  # noqa: E402
from segue.ranking_metrics import bootstrap, hit, mean_rank, reciprocal_rank  # noqa: E402
from segue.release import ENCODER, ITEM_EMBEDDINGS  # noqa: E402
from segue.window import Sessions, Windows, to_windows  # noqa: E402
from service.releases.rankers import OnnxEncoder  # noqa: E402
from training.data.synthetic import simulate_sessions  # noqa: E402
from training.export_onnx import check_parity, export_encoder, item_embeddings  # noqa: E402
from training.models.baselines.bpr import Bpr, Draws, Factors, Sampler, descend, factorise, fit_bpr  # noqa: E402
from training.models.baselines.wrmf import (  # noqa: E402  # noqa: E402
    Version,
    Wrmf,
    cell_values,
    confidences,
    distinct_outcomes,
    distinct_pairs,
    fit_wrmf,
    freshness,
)
from training.models.encoders.encoder import Encoder  # noqa: E402
from training.options import BprOptions, WrmfOptions  # noqa: E402

VERSIONS: tuple[Version, ...] = ("orig", "bl", "nr")
ROWS, WINDOW = 40, 7


def sessions_of(*texts: str) -> Sessions:
    """`"ab-c"` is a session in which a was played, b skipped, c played; a is row 1."""
    tracks = [(ord(c) - 96, text[i + 1 : i + 2] == "-") for text in texts for i, c in enumerate(text) if c != "-"]
    lengths = [len(text.replace("-", "")) for text in texts]
    rows, skipped = zip(*tracks, strict=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Sessions(np.array(rows, dtype=np.int64), np.array(skipped), offsets)


def random_sessions(count: int, seed: int = 0) -> Sessions:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(2, 2 * WINDOW, count))])
    return Sessions(rng.integers(1, ROWS, offsets[-1]), rng.random(offsets[-1]) < 0.4, offsets)


def ask(encoder: Encoder, windows: Windows) -> Any:
    with torch.no_grad():
        return encoder.query(torch.from_numpy(windows.tracks), torch.from_numpy(windows.skipped)).numpy()


def scores(encoder: Encoder, sessions: Sessions) -> Any:
    return ask(encoder, to_windows(sessions, encoder.options.window)) @ item_embeddings(encoder).T


def small(family: str, version: Version, sessions: Sessions | None = None, **options: Any) -> Encoder:
    if family == "wrmf":
        wanted = WrmfOptions(**({"dimension": 8, "window": WINDOW, "regularization": 0.5} | options))
        return fit_wrmf(sessions or random_sessions(60), ROWS, wanted, version)
    chosen = BprOptions(**({"dimension": 8, "window": WINDOW, "epochs": 30, "batch_size": 100} | options))
    return fit_bpr(sessions or random_sessions(60), ROWS, chosen, version)


class TestFeedback:
    def test_pairs_by_hand(self) -> None:
        pairs = distinct_pairs(sessions_of("b-ab", "c-c-"), 4)
        assert pairs.sessions.tolist() == [0, 0, 1]
        assert pairs.tracks.tolist() == [1, 2, 3]
        assert pairs.played.tolist() == [True, True, False]  # b was skipped first and played then

    def test_tracks_outside_the_catalogue_and_sessions_of_them_alone_make_no_pair(self) -> None:
        rows = np.array([PAD_ROW, PAD_ROW, 3])
        pairs = distinct_pairs(Sessions(rows, rows < 0, np.array([0, 1, 3])), 4)
        assert (pairs.sessions.tolist(), pairs.tracks.tolist()) == ([1], [3])

    def test_a_window_counts_a_track_once_where_it_holds_it_last(self) -> None:
        tracks = torch.tensor([[0, 5, 5, 6, 7, 6]])
        skipped = torch.tensor([[False, False, True, True, False, True]])
        played, only_skipped = distinct_outcomes(tracks, skipped)
        assert played.tolist() == [[False, False, True, False, True, False]]
        assert only_skipped.tolist() == [[False, False, False, False, False, True]]

    def test_freshness_halves(self) -> None:
        assert freshness(3, 1.0, torch.zeros(1)).tolist() == [0.25, 0.5, 1.0]
        assert freshness(3, 0.0, torch.zeros(1)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("family", ["wrmf", "bpr"])
class TestBothFamilies:
    # A and B or C follow each other; C is always skipped, and presented a little more often than B.
    LOG = sessions_of(*["abd"] * 12, *["ac-d"] * 13, *["efgh"] * 12, *["efig"] * 12)

    def test_a_track_that_is_always_skipped_ranks_below_by_versions(self, family: str) -> None:
        options = {"regularization": 1.0, "skip_weight": 5.0} if family == "wrmf" else {"epochs": 150}
        found = {v: scores(small(family, v, self.LOG, **options), sessions_of("da"))[0] for v in VERSIONS}
        b, c = 2, 3
        assert found["orig"][c] > found["orig"][b]
        assert found["bl"][b] > found["bl"][c]
        assert found["nr"][b] > found["nr"][c]

    def test_orig_is_blind_to_outcomes_and_the_others_are_not(self, family: str) -> None:
        sessions = random_sessions(20, seed=1)
        flipped = Sessions(sessions.rows, ~sessions.skipped, sessions.offsets)
        for version in VERSIONS:
            model = small(family, version)
            assert np.array_equal(scores(model, sessions), scores(model, flipped)) == (version == "orig")

    def test_the_seed_decides_the_result(self, family: str) -> None:
        first, second, other = (item_embeddings(small(family, "nr", seed=seed)) for seed in (1, 1, 2))
        assert np.array_equal(first, second)
        assert not np.allclose(first, other)

    @pytest.mark.parametrize("version", VERSIONS)
    def test_windows_without_plays_or_with_skips_alone_have_finite_queries(self, family: str, version: Version) -> None:
        windows = Windows(np.array([[0] * WINDOW, [0] * (WINDOW - 1) + [3]]), np.array([[False] * WINDOW] * 2))
        windows.skipped[1, -1] = True
        assert np.isfinite(ask(small(family, version), windows)).all()

    def test_onnx_runtime_gives_the_same_queries(self, family: str, tmp_path: Path) -> None:
        model = small(family, "nr")
        (tmp_path / ENCODER).write_bytes(export_encoder(model))
        np.save(tmp_path / ITEM_EMBEDDINGS, item_embeddings(model))
        windows = to_windows(random_sessions(64, seed=2), WINDOW)
        assert check_parity(tmp_path, model, windows) <= 1e-4
        alone = windows.select(slice(0, 1))
        assert np.allclose(OnnxEncoder(tmp_path / ENCODER).encode(alone), ask(model, alone), atol=1e-4)

    def test_progress_is_reported(self, family: str) -> None:
        told: list[tuple[int, int]] = []
        if family == "wrmf":
            fit_wrmf(self.LOG, ROWS, WrmfOptions(dimension=2, iterations=3), "bl", lambda *done: told.append(done))
        else:
            fit_bpr(self.LOG, ROWS, BprOptions(dimension=2, epochs=3), "bl", lambda *done: told.append(done))
        assert told == [(1, 3), (2, 3), (3, 3)]


class TestWrmfFoldIn:
    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("half_life", [0.0, 2.0])
    def test_it_is_the_minimum_of_the_loss(self, version: Version, half_life: float) -> None:
        model = small("wrmf", version, half_life=half_life, positive_weight=3.0, skip_weight=0.4)
        factors = item_embeddings(model).astype(np.float64)
        windows = to_windows(random_sessions(30, seed=1), WINDOW)
        for window, skips, found in zip(windows.tracks, windows.skipped, ask(model, windows), strict=True):
            weight, wanted = np.ones(ROWS), np.zeros(ROWS)
            for track in set(window.tolist()) - {PAD_ROW}:
                places = np.flatnonzero(window == track)
                fresh = 0.5 ** ((WINDOW - 1 - places[-1]) / half_life) if half_life else 1.0
                positive = version == "orig" or not skips[places].all()
                own = 3.0 if positive else {"bl": 0.0, "nr": 0.4}[version]
                weight[track] = 1 + fresh * (own - 1)
                wanted[track] = fresh * own * positive
            normal = (factors * weight[:, None]).T @ factors + 0.5 * np.eye(8)
            assert found == pytest.approx(np.linalg.solve(normal, factors.T @ wanted), abs=1e-4)

    @pytest.mark.parametrize("version", VERSIONS)
    def test_it_is_what_implicit_computes_for_the_session(self, version: Version) -> None:
        model = small("wrmf", version, half_life=0.0, window=2 * WINDOW, skip_weight=3.0)
        assert isinstance(model, Wrmf)
        sessions = random_sessions(30, seed=1)
        cells = confidences(distinct_pairs(sessions, ROWS), 30, ROWS, cell_values(model.options, version))
        with threadpool_limits(1, "blas"):
            als = AlternatingLeastSquares(factors=8, regularization=0.5, num_threads=1)
            als.item_factors = item_embeddings(model)[1:]
            expected = als.recalculate_user(np.arange(30), cells)
        assert ask(model, to_windows(sessions, 2 * WINDOW)) == pytest.approx(expected, abs=1e-4)

    def test_the_cells_by_hand(self) -> None:
        pairs = distinct_pairs(sessions_of("ab-", "c"), 5)
        cells = confidences(pairs, 2, 5, cell_values(WrmfOptions(positive_weight=7, skip_weight=2), "nr"))
        assert cells.toarray().tolist() == [[7, -2, 0, 0], [0, 0, 7, 0]]
        kept = confidences(pairs, 2, 5, cell_values(WrmfOptions(positive_weight=7), "bl"))
        assert kept.data.tolist() == [7, 0, 7]  # the zero is stored: weight 0, not a missing pair's 1

    def test_large_weights_need_no_pivot(self) -> None:
        model = small("wrmf", "nr", half_life=0.0, positive_weight=1e4, skip_weight=1e3, regularization=1e-3)
        assert np.isfinite(ask(model, to_windows(random_sessions(50), WINDOW))).all()


class TestBprDraws:
    def sampler(self, sessions: Sessions, rows: int, version: Version, **options: Any) -> Sampler:
        return Sampler(distinct_pairs(sessions, rows), rows, BprOptions(**options), version)

    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("negatives", ["uniform", "popular"])
    def test_each_version_draws_what_it_says(self, version: Version, negatives: str) -> None:
        sessions = random_sessions(200)
        sampler = self.sampler(sessions, ROWS, version, negative_sampling=negatives, skip_share=0.25)
        pairs = distinct_pairs(sessions, ROWS)
        outcome = {(s, t): p for s, t, p in zip(*(column.tolist() for column in pairs), strict=True)}
        draws = list(zip(*(column.tolist() for column in sampler.epoch(np.random.default_rng(0))), strict=True))
        liked = [outcome[session, track] for session, track, _ in draws]
        others = [outcome.get((session, track)) for session, _, track in draws]
        assert all(liked) == (version != "orig")
        assert True not in others
        contrasts = others.count(False)
        assert contrasts == (round(0.25 * sampler.draws) if version == "nr" else 0)
        assert len(draws) > (0.99 if negatives == "uniform" else 0.6) * sampler.draws

    def test_uniform_tracks_are_uniform_and_popular_ones_are_popular(self) -> None:
        log = sessions_of("ab", *["cd"] * 6, *["ce"] * 2)
        for negatives, expected in (("uniform", [1, 1, 1]), ("popular", [8, 6, 2])):
            sampler = self.sampler(log, 6, "orig", negative_sampling=negatives)
            rng = np.random.default_rng(0)
            drawn = [sampler.epoch(rng) for _ in range(3000)]
            others = np.concatenate([draws.others[draws.sessions == 0] for draws in drawn])
            counts = np.bincount(others, minlength=6)[3:]
            assert counts / counts.sum() == pytest.approx(np.array(expected) / sum(expected), abs=0.02)

    def test_a_session_that_holds_every_track_is_never_asked_for_another(self) -> None:
        sampler = self.sampler(sessions_of("abc-", "ab"), 4, "orig")
        assert set(sampler.epoch(np.random.default_rng(0)).sessions.tolist()) <= {1}
        contrasting = self.sampler(sessions_of("abc-"), 4, "nr", skip_share=0.1)
        assert set(contrasting.epoch(np.random.default_rng(0)).others.tolist()) == {3}

    def test_without_both_kinds_of_feedback_nr_draws_what_bl_draws(self) -> None:
        first, second = (
            self.sampler(sessions_of("ab", "c-d-"), 9, v).epoch(np.random.default_rng(0)) for v in VERSIONS[1:]
        )
        assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))

    def test_nothing_to_prefer_is_one_clear_line(self) -> None:
        cases: list[tuple[str, Version]] = [("abc-", "orig"), ("abc-", "bl"), ("abc", "nr"), ("a-b-", "bl")]
        for log, version in cases:
            with pytest.raises(BadDataset, match="no track to prefer over another"):
                self.sampler(sessions_of(log), 4, version)

    def test_a_step_descends_the_gradient_of_the_loss(self) -> None:
        generator = torch.Generator().manual_seed(0)
        sessions = torch.randn(5, 4, generator=generator)
        sessions[:, -1] = 1.0
        start = Factors(sessions, torch.randn(6, 4, generator=generator))
        draws = Draws(np.array([0, 0, 3]), np.array([1, 2, 1]), np.array([2, 4, 5]))
        p, q = (part.clone().requires_grad_() for part in start)
        u, i, j = p[draws.sessions], q[draws.liked], q[draws.others]
        penalty = sum((part**2).sum() for part in (u[:, :-1], i, j)) / 2
        loss = -torch.nn.functional.logsigmoid((u * (i - j)).sum(dim=1)).sum() + 0.3 * penalty
        of_p, of_q = torch.autograd.grad(loss, (p, q))
        of_p[:, -1] = 0.0
        moved = Factors(*(part.clone() for part in start))
        descend(moved, draws, 0.1, 0.3)
        assert torch.allclose(moved.sessions, start.sessions - 0.1 * of_p, atol=1e-6)
        assert torch.allclose(moved.tracks, start.tracks - 0.1 * of_q, atol=1e-6)


class TestBprFoldIn:
    def model(self, version: Version, half_life: float) -> Bpr:
        model = Bpr(4, BprOptions(dimension=1, window=3, half_life=half_life), version)
        fold = torch.tensor([[2.0], [-1.0]])[: len(model.fold)]
        model.set_factors(torch.tensor([[0.0, 0.0], [1.0, 0.1], [3.0, 0.2], [8.0, 0.3]]), fold)
        return model

    def test_by_hand(self) -> None:
        windows = Windows(np.array([[1, 2, 3]]), np.array([[False, False, True]]))
        # equal weights: all (1 + 3 + 8) / 3 = 4, played (1 + 3) / 2 = 2, skipped 8; the map doubles and subtracts
        cases: list[tuple[Version, float]] = [("orig", 8.0), ("bl", 4.0), ("nr", -4.0)]
        for version, expected in cases:
            assert ask(self.model(version, 0.0), windows).tolist() == [[expected, 1.0]]
        # weights 1/4, 1/2, 1
        assert ask(self.model("bl", 1.0), windows)[0, 0] == pytest.approx(2 * (0.25 * 1 + 0.5 * 3) / 0.75)

    def test_without_a_played_track_the_biases_rank(self) -> None:
        windows = Windows(np.array([[0, 0, 3]]), np.array([[False, False, True]]))
        assert ask(self.model("bl", 1.0), windows).tolist() == [[0.0, 1.0]]

    def test_it_comes_close_to_the_factors_that_training_gave_the_session(self) -> None:
        part, _, _, rows = planted(2000)
        options = BprOptions(dimension=16, epochs=40, half_life=0.0)
        factors = factorise(Sampler(distinct_pairs(part, rows), rows, options, "orig"), len(part), rows, options)
        folded = ask(fit_bpr(part, rows, options, "orig"), to_windows(part, options.window))[:, :-1]
        trained = factors.sessions.numpy()[:, :-1]
        cosine = (folded * trained).sum(axis=1) / np.linalg.norm(folded, axis=1) / np.linalg.norm(trained, axis=1)
        assert np.median(cosine) > 0.9


def planted(sessions: int, seed: int = 0) -> tuple[Sessions, Int, Any, int]:
    """Planted sessions without their last play, and that play: what it was and whether it was skipped."""
    world = simulate_sessions(1000, sessions, seed)
    whole = Sessions(world.track + 1, world.skipped, world.offsets)
    last = whole.offsets[1:] - 1
    return whole.cut(whole.offsets[:-1], last), whole.rows[last], whole.skipped[last], 1001


def ranks(scored: Any, sessions: Sessions, targets: Int) -> Float64:
    """Ranks of targets among the tracks that their sessions do not hold."""
    pairs = distinct_pairs(sessions, scored.shape[1])
    scored = scored.copy()
    scored[:, PAD_ROW] = -np.inf
    own = scored[np.arange(len(targets)), targets][:, None]
    scored[pairs.sessions, pairs.tracks] = -np.inf
    return mean_rank((scored > own).sum(axis=1), (scored == own).sum(axis=1) - 1)


class TestAgreementWithImplicit:
    """On the same matrix, HR@10 of ours lies within the noise that implicit's own has from its seeds."""

    SEEDS = range(4)

    def hr(self, sessions: Any, tracks: Any, part: Sessions, targets: Int) -> float:
        return float(hit(ranks(sessions @ tracks.T, part, targets), 10).mean())

    def check(self, ours: list[float], theirs: list[float]) -> None:
        assert abs(np.mean(ours) - np.mean(theirs)) <= 3 * np.std(theirs, ddof=1), (ours, theirs)

    def matrix(self, part: Sessions, rows: int) -> Any:
        session = np.repeat(np.arange(len(part)), part.lengths)
        cells = scipy.sparse.csr_matrix((np.ones(len(session), np.float32), (session, part.rows)), (len(part), rows))
        cells.data[:] = 1.0
        return cells

    def test_wrmf_folded_in_against_the_factors_that_implicit_trained(self) -> None:
        part, targets, _, rows = planted(3000)
        ours, theirs = [], []
        for seed in self.SEEDS:
            options = WrmfOptions(dimension=32, seed=seed, half_life=0.0, positive_weight=20, regularization=10)
            model = fit_wrmf(part, rows, options, "orig")
            ours.append(float(hit(ranks(scores(model, part), part, targets), 10).mean()))
            with threadpool_limits(1, "blas"):
                als = AlternatingLeastSquares(32, 10.0, alpha=20.0, num_threads=1, random_state=100 + seed)
                als.fit(self.matrix(part, rows), show_progress=False)
            theirs.append(self.hr(als.user_factors, als.item_factors, part, targets))
        self.check(ours, theirs)

    def test_bpr_by_the_factors_of_its_training_sessions(self) -> None:
        part, targets, _, rows = planted(3000)
        ours, theirs = [], []
        for seed in self.SEEDS:
            options = BprOptions(
                dimension=16, epochs=25, seed=seed, negative_sampling="popular", learning_rate=0.05, regularization=0.01
            )
            factors = factorise(Sampler(distinct_pairs(part, rows), rows, options, "orig"), len(part), rows, options)
            ours.append(self.hr(factors.sessions.numpy(), factors.tracks.numpy(), part, targets))
            bpr = BayesianPersonalizedRanking(
                16, iterations=25, num_threads=1, random_state=seed, learning_rate=0.05, regularization=0.01
            )
            bpr.fit(self.matrix(part, rows), show_progress=False)
            theirs.append(self.hr(bpr.user_factors, bpr.item_factors, part, targets))
        assert np.mean(theirs) > 0.1  # of 1,000 tracks: chance is 0.01
        self.check(ours, theirs)


@pytest.mark.parametrize("family", ["wrmf", "bpr"])
def test_on_planted_sessions_feedback_brings_played_tracks_up_and_skipped_ones_down(family: str) -> None:
    part, targets, skipped, rows = planted(6000, seed=1)
    found: dict[str, tuple[Any, Any]] = {}
    for version in VERSIONS:
        if family == "wrmf":
            model: Encoder = fit_wrmf(part, rows, WrmfOptions(dimension=32, iterations=8), version)
        else:
            model = fit_bpr(part, rows, BprOptions(dimension=32, epochs=30), version)
        scored = scores(model, part)
        scored[:, PAD_ROW] = -np.inf
        own = scored[np.arange(len(targets)), targets][:, None]
        rank = mean_rank((scored > own).sum(axis=1), (scored == own).sum(axis=1) - 1)
        rng = np.random.default_rng(0)
        found[version] = bootstrap(hit(rank[~skipped], 10), rng), bootstrap(reciprocal_rank(rank[skipped], 10), rng)
    played_before, skipped_before = found["orig"]
    for version in ("bl", "nr"):
        played_now, skipped_now = found[version]
        assert skipped_now.high < skipped_before.low, (version, skipped_before, skipped_now)
        assert played_now.high > played_before.low, (version, played_before, played_now)
    assert found["nr"][0].low > played_before.high or family == "bpr", found
