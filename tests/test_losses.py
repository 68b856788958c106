"""The losses: numbers worked out by hand, and references with plain loops over every step."""

import math
from typing import Any, Literal, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from segue.catalogue import PAD_ROW  # noqa: E402 (after the check that torch is there)
from segue.window import Sessions, distinct  # noqa: E402
from training.data.loader import Batch, make_batch, next_played, trainable  # noqa: E402
from training.losses import (  # noqa: E402
    Negatives,
    info_nce,
    info_nce_as_published,
    sampled_softmax,
    seen_mask,
    step_terms,
    uniform_log_q,
)
from training.models.encoders.encoder import SessionEncoder  # noqa: E402
from training.models.encoders.sasrec import SasRec  # noqa: E402
from training.options import SasRecOptions  # noqa: E402

Tensor: TypeAlias = Any

Session = list[tuple[int, bool]]  # rows and whether they were skipped


def sessions_of(*sessions: Session) -> Sessions:
    flat = [play for session in sessions for play in session]
    return Sessions(
        np.array([row for row, _ in flat], dtype=np.int64),
        np.array([skipped for _, skipped in flat], dtype=np.bool_),
        np.cumsum([0, *(len(session) for session in sessions)]).astype(np.int64),
    )


def softmax_of(positive: list[float], others: list[list[float]], seen: list[list[bool]], log_q: float = 0.0) -> Tensor:
    """The loss of steps of one dimension, so that a score is the query times the embedding."""
    steps = torch.arange(len(positive))
    return sampled_softmax(
        torch.ones(len(positive), 1),
        torch.tensor(positive)[:, None],
        torch.zeros_like(steps),
        steps,
        Negatives(torch.tensor(others), torch.tensor(seen, dtype=torch.bool), log_q),
    )


class TestSampledSoftmax:
    def test_by_hand(self) -> None:
        # exp(1) against exp(1) + exp(0) + exp(0): two negatives, and one that the session holds.
        loss = softmax_of([1.0], [[0.0], [0.0], [9.0]], [[False, False, True]])
        assert loss.item() == pytest.approx(-math.log(math.e / (math.e + 2)))

    def test_the_perfect_score_costs_nothing(self) -> None:
        assert softmax_of([99.0], [[0.0]] * 5, [[False] * 5]).item() == 0.0

    def test_equal_scores_cost_the_logarithm_of_the_candidates(self) -> None:
        assert softmax_of([0.0] * 3, [[0.0]] * 7, [[False] * 7] * 3).item() == pytest.approx(math.log(8))

    def test_no_step_is_no_loss(self) -> None:
        none = torch.zeros(0, dtype=torch.int64)
        negatives = Negatives(torch.zeros(4, 2), torch.zeros(3, 4, dtype=torch.bool))
        assert sampled_softmax(torch.zeros(0, 2), torch.zeros(0, 3), none, none, negatives).item() == 0.0

    @pytest.mark.parametrize("log_q", [0.0, -1.5])
    @pytest.mark.parametrize("block", [1, 3, 100])
    def test_it_equals_the_plain_formula_with_its_gradients(
        self, monkeypatch: pytest.MonkeyPatch, block: int, log_q: float
    ) -> None:
        """Scores of everything at once, differentiated by torch."""
        monkeypatch.setattr("training.losses._STEPS_PER_THREAD", block)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        rng = torch.Generator().manual_seed(0)
        steps, sessions, tracks, number, dimension = 8, 3, 5, 11, 4
        leaves = [
            torch.randn(shape, generator=rng, dtype=torch.float64, requires_grad=True)
            for shape in ((steps, dimension), (steps, tracks), (number, dimension))
        ]
        queries, own, embeddings = leaves
        held = own.masked_fill(torch.rand(steps, tracks, generator=rng) < 0.3, -torch.inf)
        held = torch.cat([own[:, :1], held[:, 1:]], dim=1)  # the target is always there
        target, session = torch.zeros(steps, dtype=torch.int64), torch.arange(steps) % sessions
        seen = torch.rand(sessions, number, generator=rng) < 0.3
        others = (queries @ embeddings.T - log_q).masked_fill(seen[session], -torch.inf)
        plain = (torch.logsumexp(torch.cat([held, others], dim=1), dim=1) - held[:, 0]).mean()
        loss = sampled_softmax(queries, held, target, session, Negatives(embeddings, seen, log_q))
        torch.testing.assert_close(loss, plain)
        wanted = torch.autograd.grad(plain * 3, leaves, retain_graph=True)
        for found, expected in zip(torch.autograd.grad(loss * 3, leaves), wanted, strict=True):
            torch.testing.assert_close(found, expected)

    def test_inputs_stay_as_they_are(self) -> None:
        queries, own, embeddings = torch.ones(2, 1), torch.ones(2, 2), torch.ones(3, 1)
        step = torch.arange(2)
        sampled_softmax(queries, own, step, step, Negatives(embeddings, torch.ones(2, 3, dtype=torch.bool)))
        assert all((tensor == 1).all() for tensor in (queries, own, embeddings))


class TestInfoNce:
    def test_by_hand(self) -> None:
        # Query along x; the positive at 60 degrees (cosine 0.5), the one skip at 90 degrees (cosine 0); lengths vary.
        positive = torch.tensor([0.5, math.sqrt(3) / 2]) * 7
        loss = info_nce(
            queries=torch.tensor([[[3.0, 0.0]]]),
            positives=positive[None, None],
            negatives=torch.tensor([[[0.0, 2.0]]]),
            steps=torch.tensor([[True]]),
            contrasts=torch.tensor([[[True]]]),
            temperature=0.1,
        )
        assert loss.item() == pytest.approx(math.log(1 + math.exp(-5)), rel=1e-4)

    def test_a_session_without_skips_has_no_term(self) -> None:
        vectors = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
        steps, contrasts = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, 3, dtype=torch.bool)
        assert info_nce(vectors, vectors, vectors, steps, contrasts, 0.1).item() == 0.0

    def test_padding_vectors_of_zeros_leave_finite_gradients(self) -> None:
        queries = torch.zeros(1, 2, 3, requires_grad=True)
        zeros = torch.zeros(1, 2, 3, requires_grad=True)
        steps = torch.tensor([[False, True]])
        contrasts = torch.tensor([[[False, False], [True, False]]])
        loss = info_nce(queries, zeros, zeros, steps, contrasts, 0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.item() == pytest.approx(math.log(2))
        assert queries.grad is not None
        assert torch.isfinite(queries.grad).all()


class TestTargets:
    def test_what_a_batch_holds_by_hand(self) -> None:
        # 1 played, 2 skipped, 3 played, 2 skipped again, 4 skipped
        batch = make_batch(sessions_of([(1, False), (2, True), (3, False), (2, True), (4, True)]), 6, "next")
        assert batch.tracks.tolist() == [[0, 0, 1, 2, 3, 2]]
        assert batch.skipped.tolist() == [[False, False, False, True, False, True]]
        assert batch.targets.tolist() == [[0, 0, 2, 3, 2, 4]]
        assert batch.positives.tolist() == [[0, 0, 3, 3, 0, 0]]
        assert sorted(batch.session_skips[0][batch.session_skips[0] != PAD_ROW].tolist()) == [2, 4]
        assert sorted(batch.session_tracks[0][batch.session_tracks[0] != PAD_ROW].tolist()) == [1, 2, 3, 4]

    def test_the_objective_next_played_passes_over_skips(self) -> None:
        batch = make_batch(sessions_of([(1, False), (2, True), (3, False), (4, True)]), 3, "next-played")
        assert batch.targets.tolist() == [[3, 3, 0]]

    @given(
        st.lists(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=6, max_size=6), min_size=1, max_size=4)
    )
    def test_next_played_and_distinct_equal_plain_loops(self, lines: list[Session]) -> None:
        rows = np.array([[row for row, _ in line] for line in lines])
        skipped = np.array([[flag for _, flag in line] for line in lines])
        found, once = next_played(rows, skipped), distinct(rows)
        for i, line in enumerate(lines):
            for t in range(len(line)):
                wanted = next((row for row, flag in line[t:] if row != PAD_ROW and not flag), PAD_ROW)
                assert found[i, t] == wanted
                assert once[i, t] == (PAD_ROW if line[t][0] in [row for row, _ in line[:t]] else line[t][0])

    @given(st.lists(st.integers(0, 30), max_size=5), st.integers(2, 6))
    def test_long_sessions_are_cut_so_that_every_play_but_the_first_is_predicted_once(
        self, lengths: list[int], window: int
    ) -> None:
        sessions = sessions_of(*([(row, False) for row in range(1, length + 1)] for length in lengths))
        pieces = trainable(sessions, window).gathered()
        predicted = [
            pieces.rows[start + 1 : end].tolist()
            for start, end in zip(pieces.offsets[:-1], pieces.offsets[1:], strict=True)
        ]
        assert [row for piece in predicted for row in piece] == [r for n in lengths for r in range(2, n + 1)]
        assert all(2 <= length <= window + 1 for length in pieces.lengths)


def reference(encoder: SessionEncoder, batch: Batch, negatives: list[int]) -> tuple[float, float]:
    """NLL and NCE of a batch by loops over sessions, steps and tracks, from the text of the paper."""
    weight: Tensor = encoder.item_embeddings.weight
    predicted = encoder(batch.tracks, batch.skipped)
    nll, nce = [], []
    for b in range(len(batch.tracks)):
        own = {int(row) for row in batch.session_tracks[b]} - {PAD_ROW}
        skips = {int(row) for row in batch.session_skips[b]} - {PAD_ROW}
        for t in range(batch.tracks.shape[1]):
            query = predicted[b, t]
            if target := int(batch.targets[b, t]):
                candidates = [r for r in own if r != target] + [r for r in negatives if r not in own]
                scores = torch.stack([query @ weight[r] for r in [target, *candidates]])
                nll.append(-torch.log_softmax(scores, 0)[0])
            positive = int(batch.positives[b, t])
            contrast = sorted(skips - {positive})
            if positive and contrast:
                cosines = [torch.cosine_similarity(query, weight[r], dim=0) for r in [positive, *contrast]]
                nce.append(-torch.log_softmax(torch.stack(cosines) / encoder.options.temperature, 0)[0])
    return tuple(torch.stack(terms).mean().item() if terms else 0.0 for terms in (nll, nce))  # type: ignore[return-value]


class TestStep:
    @given(
        st.lists(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=2, max_size=7), min_size=1, max_size=4),
        st.lists(st.integers(1, 9), min_size=1, max_size=6),
        st.sampled_from(["next", "next-played"]),
    )
    @settings(max_examples=40, deadline=None)
    def test_the_loss_of_a_batch_equals_plain_loops(
        self, sessions: list[Session], negatives: list[int], objective: Literal["next", "next-played"]
    ) -> None:
        options = SasRecOptions(dimension=8, heads=2, window=6, dropout=0.0, objective=objective, alpha=0.7, beta=0.3)
        encoder = SasRec(10, options)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            encoder.item_embeddings.weight[PAD_ROW] = 0
        batch = make_batch(sessions_of(*sessions), 6, options.objective)
        terms = step_terms(encoder, batch, torch.tensor(negatives), options)
        nll, nce = reference(encoder, batch, negatives)
        assert terms.nll.item() == pytest.approx(nll, abs=1e-4)
        assert terms.nce.item() == pytest.approx(nce, abs=1e-4)
        assert terms.loss.item() == pytest.approx(0.7 * nll + 0.3 * nce, abs=1e-4)


class TestPublishedPairing:
    """The authors' public code, not their text (FACTS of the paper in docs/evaluation.md)."""

    def test_against_a_loop_over_every_query(self) -> None:
        generator = torch.Generator().manual_seed(0)
        batch, window = 3, 4
        queries, positives, plays = (torch.randn(batch, window, 5, generator=generator) for _ in range(3))
        skipped = torch.rand(batch, window, generator=generator) < 0.5
        steps = torch.rand(batch, window, generator=generator) < 0.8
        found = info_nce_as_published(queries, positives, plays * skipped[..., None], steps, temperature=0.1)
        terms = []
        for n in range(batch * window):
            b, t = divmod(n, window)
            if not steps[b, t]:
                continue
            query = queries[b, t]
            to_positive = math.exp(torch.cosine_similarity(query, positives[b, t], dim=0).item() / 0.1)
            other = n % batch  # the session whose skips this query meets
            against = [
                math.exp(torch.cosine_similarity(query, plays[other, i], dim=0).item() / 0.1)
                if skipped[other, i]
                else 1.0
                for i in range(window)
            ]
            terms.append(-math.log(to_positive / (to_positive + sum(against))))
        assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)

    def test_a_step_without_a_later_played_track_is_drawn_to_the_first_track(self) -> None:
        """All of the session after its first play is skipped: the text has no term there, the public code has."""
        sessions = sessions_of([(1, False), (2, True), (3, True)])
        terms = {}
        for pairing in ("session", "published"):
            options = SasRecOptions(
                dimension=8, heads=2, window=4, dropout=0.0, alpha=0.0, beta=1.0, negative_pairing=pairing
            )
            encoder = SasRec(6, options)
            encoder.initialise(torch.Generator().manual_seed(0))
            batch = make_batch(sessions, 4, "next")
            terms[pairing] = step_terms(encoder, batch, torch.tensor([4, 5]), options).nce.item()
        assert terms["session"] == 0.0
        assert terms["published"] > 0.0


def test_log_q_makes_uniform_negatives_an_unbiased_estimate_of_all_tracks() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(500, generator=generator)
    drawn = torch.randint(0, 500, (4_000, 100), generator=generator)
    estimates = (scores[drawn] - uniform_log_q(100, 500)).exp().sum(dim=1)
    assert estimates.mean().item() == pytest.approx(scores.exp().sum().item(), rel=0.01)


def test_the_negatives_that_a_session_holds_are_found_however_often_they_were_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    own = torch.randint(0, 30, (6, 7), generator=generator)
    for negatives in (torch.randint(1, 30, (40,), generator=generator), torch.tensor([29]), torch.tensor([40, 40])):
        assert torch.equal(seen_mask(own, negatives), (own[:, :, None] == negatives).any(dim=1))
