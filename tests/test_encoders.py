"""What holds for every encoder; a new one adds three lines at the end."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from segue.catalogue import PAD_ROW  # noqa: E402 (after the check that torch is there)
from segue.release import ENCODER, ITEM_EMBEDDINGS  # noqa: E402
from segue.window import Sessions, Windows  # noqa: E402
from service.releases.rankers import OnnxEncoder  # noqa: E402
from training.data.loader import Batch, make_batch  # noqa: E402
from training.export_onnx import check_parity, export_encoder, item_embeddings  # noqa: E402
from training.models.encoders.bert4rec import Bert4Rec, random_truncate  # noqa: E402
from training.models.encoders.caser import Caser  # noqa: E402
from training.models.encoders.encoder import CausalEncoder, SessionEncoder, drop_skipped  # noqa: E402
from training.models.encoders.gru4rec import Gru4Rec  # noqa: E402
from training.models.encoders.sasrec import SasRec  # noqa: E402
from training.options import Bert4RecOptions, CaserOptions, Gru4RecOptions, NeuralOptions, SasRecOptions  # noqa: E402

ROWS, WINDOW = 50, 8


def random_windows(count: int, seed: int = 0) -> Windows:
    rng = np.random.default_rng(seed)
    tracks = rng.integers(1, ROWS, (count, WINDOW))
    tracks[np.arange(WINDOW) < rng.integers(0, WINDOW, (count, 1))] = PAD_ROW
    return Windows(tracks, (rng.random(tracks.shape) < 0.4) & (tracks != PAD_ROW))


def random_sessions(count: int, seed: int = 0) -> Sessions:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(2, WINDOW + 2, count))])
    return Sessions(rng.integers(1, ROWS, offsets[-1]), rng.random(offsets[-1]) < 0.4, offsets)


def long_sessions(count: int) -> Sessions:
    """Sessions of different tracks that fill a batch's window + 1 plays."""
    rows = np.random.default_rng(0).permuted(np.tile(np.arange(1, ROWS), (count, 1)), axis=1)[:, : WINDOW + 1]
    return Sessions(rows.ravel(), rows.ravel() % 2 == 0, np.arange(0, rows.size + 1, WINDOW + 1))


class EncoderContract:
    """Subclass and give `encoder`."""

    def encoder(self) -> SessionEncoder:
        raise NotImplementedError

    @pytest.fixture
    def trained_like(self) -> SessionEncoder:
        """An encoder with large random weights, so that differences show."""
        encoder = self.encoder()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                scale = name.endswith("norm.weight")
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + float(scale))
            encoder.item_embeddings.weight[PAD_ROW] = 0
        return encoder.eval()

    def ask(self, encoder: SessionEncoder, windows: Windows) -> Any:
        with torch.no_grad():
            return encoder.query(torch.from_numpy(windows.tracks), torch.from_numpy(windows.skipped))

    def test_a_window_gives_a_query(self, trained_like: SessionEncoder) -> None:
        found = self.ask(trained_like, random_windows(5))
        assert found.shape == (5, trained_like.options.dimension)
        assert torch.isfinite(found).all()

    def test_every_step_that_has_a_target_is_predicted(self, trained_like: SessionEncoder) -> None:
        predicted, asked = trained_like.predict(make_batch(random_sessions(5), WINDOW, "next"))
        assert predicted.shape == (*asked.targets.shape, trained_like.options.dimension)
        assert torch.isfinite(predicted[asked.targets != PAD_ROW]).all()
        assert (asked.targets[:, -1] != PAD_ROW).all()

    def test_a_skip_changes_the_query(self, trained_like: SessionEncoder) -> None:
        windows = random_windows(20)
        flipped = Windows(windows.tracks, windows.skipped ^ (windows.tracks != PAD_ROW))
        difference = (self.ask(trained_like, windows) - self.ask(trained_like, flipped)).abs().max(dim=1).values
        assert (difference > 1e-3).all()

    def test_a_session_alone_is_encoded_as_among_others(self, trained_like: SessionEncoder) -> None:
        windows = random_windows(6)
        together = self.ask(trained_like, windows)
        alone = torch.stack([self.ask(trained_like, windows.select(slice(i, i + 1)))[0] for i in range(6)])
        assert torch.allclose(together, alone, atol=1e-5)

    def test_first_weights_are_truncated_and_depend_on_the_seed_alone(self) -> None:
        first, second, other = self.encoder(), self.encoder(), self.encoder()
        first.initialise(torch.Generator().manual_seed(1))
        second.initialise(torch.Generator().manual_seed(1))
        other.initialise(torch.Generator().manual_seed(2))
        weights = first.item_embeddings.weight
        assert torch.equal(weights, second.item_embeddings.weight)
        assert not torch.equal(weights, other.item_embeddings.weight)
        assert weights.abs().max() <= 0.02
        # normal(0, 1) cut at 0.02 is all but uniform there: its standard deviation is 0.02 / sqrt(3)
        assert weights[1:].std().item() == pytest.approx(0.02 / 3**0.5, rel=0.05)
        assert (weights[PAD_ROW] == 0).all()

    def test_onnx_runtime_gives_the_same_queries(self, trained_like: SessionEncoder, tmp_path: Path) -> None:
        (tmp_path / ENCODER).write_bytes(export_encoder(trained_like))
        np.save(tmp_path / ITEM_EMBEDDINGS, item_embeddings(trained_like))
        windows = random_windows(64)
        assert check_parity(tmp_path, trained_like, windows) <= 1e-4
        served = OnnxEncoder(tmp_path / ENCODER)
        for count in (1, 7):
            few = windows.select(slice(0, count))
            assert np.allclose(served.encode(few), self.ask(trained_like, few).numpy(), atol=1e-4)
        # The embeddings are kept once: the graph refers to the array's file.
        content = (tmp_path / ENCODER).read_bytes()
        assert trained_like.item_embeddings.weight.detach().numpy().tobytes() not in content
        assert str(Path(__file__).parents[1]).encode() not in content  # nor where on which machine it was made

    def test_encoders_of_one_architecture_share_a_graph(
        self, trained_like: SessionEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        export_encoder(trained_like)
        monkeypatch.setattr("training.export_onnx._traced", None)  # traced once
        options = trained_like.options.model_copy(update={"seed": 5, "epochs": 3, "beta": 0.25, "dropout": 0.1})
        other = type(trained_like)(3 * ROWS, options)
        other.initialise(torch.Generator().manual_seed(4))
        (tmp_path / ENCODER).write_bytes(export_encoder(other))
        np.save(tmp_path / ITEM_EMBEDDINGS, item_embeddings(other))
        assert check_parity(tmp_path, other, random_windows(64)) <= 1e-4
        served = OnnxEncoder(tmp_path / ENCODER).encode(random_windows(64))
        assert not np.allclose(served, self.ask(trained_like, random_windows(64)).numpy(), atol=1e-2)

    def test_the_options_that_a_query_depends_on_are_the_architecture(self) -> None:
        """Other options that are read have no effect on a query."""
        read: set[str] = set()

        class Recording:
            def __init__(self, options: NeuralOptions) -> None:
                self._options = options

            def __getattr__(self, name: str) -> Any:
                read.add(name)
                return getattr(self._options, name)

        given = self.encoder().options
        encoder = type(self.encoder())(ROWS, Recording(given)).eval()  # type: ignore[arg-type]
        self.ask(encoder, random_windows(2))
        without_effect = {"dropout", "masking", "duplication_factor"}
        assert read - without_effect <= {*given.architecture_options} <= {*type(given).model_fields}
        assert encoder.architecture == self.encoder().architecture

    def test_a_differing_export_is_refused(self, trained_like: SessionEncoder, tmp_path: Path) -> None:
        from segue.errors import BadRelease

        (tmp_path / ENCODER).write_bytes(export_encoder(trained_like))
        np.save(tmp_path / ITEM_EMBEDDINGS, item_embeddings(trained_like)[::-1])
        with pytest.raises(BadRelease, match="differs from the trained one"):
            check_parity(tmp_path, trained_like, random_windows(4))

    def test_shown_played_tracks_alone_it_answers_as_if_no_other_had_been(self) -> None:
        encoder = self.encoder().eval()
        encoder.initialise(torch.Generator().manual_seed(0))
        encoder.options = encoder.options.model_copy(update={"plays": "played", "beta": 0.0})
        tracks = np.array([[0, 0, 0, 0, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0, 3, 5]])
        skipped = np.array([[False] * 5 + [True, False, True], [False] * 8])
        first, second = self.ask(encoder, Windows(tracks, skipped))
        assert torch.allclose(first, second, atol=1e-6)


class CausalContract(EncoderContract):
    def test_a_step_sees_no_later_play(self, trained_like: CausalEncoder) -> None:
        windows = random_windows(20)
        changed = Windows(windows.tracks.copy(), windows.skipped.copy())
        changed.tracks[:, -1] = changed.tracks[:, -1] % (ROWS - 1) + 1
        changed.skipped[:, -1] ^= True
        with torch.no_grad():
            before, after = (
                trained_like(torch.from_numpy(w.tracks), torch.from_numpy(w.skipped)) for w in (windows, changed)
            )
        assert torch.allclose(before[:, :-1], after[:, :-1], atol=1e-5)
        assert not torch.allclose(before[:, -1], after[:, -1], atol=1e-3)


class TestSasRec(CausalContract):
    def encoder(self) -> SessionEncoder:
        return SasRec(ROWS, SasRecOptions(dimension=16, heads=4, window=WINDOW))

    @pytest.mark.parametrize("norm", ["post", "pre"])
    def test_trained_on_real_steps_alone_it_predicts_and_learns_as_with_padding(
        self, norm: Literal["post", "pre"]
    ) -> None:
        encoder = SasRec(ROWS, SasRecOptions(dimension=16, heads=4, window=WINDOW, dropout=0.0, norm=norm))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        windows = random_windows(9)
        tracks, skipped = torch.from_numpy(windows.tracks), torch.from_numpy(windows.skipped)
        real = tracks != PAD_ROW
        wanted = torch.randn(int(real.sum()), 16, generator=generator)
        found: list[list[Any]] = []
        for training in (True, False):
            encoder.train(training).zero_grad()
            predicted = encoder(tracks, skipped)[real]
            (predicted * wanted).sum().backward()
            gradients = [parameter.grad for parameter in encoder.parameters()]
            found.append([predicted.detach(), *(one.clone() for one in gradients if one is not None)])
        for packed, padded in zip(*found, strict=True):
            torch.testing.assert_close(packed, padded, atol=1e-4, rtol=1e-4)


class TestBert4Rec(EncoderContract):
    def encoder(self) -> SessionEncoder:
        return Bert4Rec(ROWS, Bert4RecOptions(dimension=16, heads=4, window=WINDOW))


class TestGru4Rec(CausalContract):
    def encoder(self) -> SessionEncoder:
        return Gru4Rec(ROWS, Gru4RecOptions(dimension=16, window=WINDOW))


class TestCaser(CausalContract):
    def encoder(self) -> SessionEncoder:
        return Caser(ROWS, CaserOptions(dimension=16, window=WINDOW))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_query_is_the_newest_of_sasrecs_steps(norm: str) -> None:
    """It skips what the last block would work out for older steps."""
    options = SasRecOptions.model_validate({"dimension": 16, "heads": 4, "window": WINDOW, "norm": norm})
    encoder = SasRec(ROWS, options).eval()
    encoder.initialise(torch.Generator().manual_seed(0))
    windows = random_windows(20)
    tracks, skipped = torch.from_numpy(windows.tracks), torch.from_numpy(windows.skipped)
    torch.testing.assert_close(encoder.encode(tracks, skipped), encoder(tracks, skipped)[:, -1])


def test_without_skip_input_sasrec_does_not_see_skips() -> None:
    encoder = SasRec(ROWS, SasRecOptions(dimension=16, heads=4, window=WINDOW, skip_input=False)).eval()
    encoder.initialise(torch.Generator().manual_seed(0))
    windows = random_windows(4)
    tracks, skipped = torch.from_numpy(windows.tracks), torch.from_numpy(windows.skipped)
    assert torch.equal(encoder.query(tracks, skipped), encoder.query(tracks, ~skipped))


def test_caser_sees_its_latest_plays_alone() -> None:
    encoder = Caser(ROWS, CaserOptions(dimension=16, window=WINDOW, order=3)).eval()
    encoder.initialise(torch.Generator().manual_seed(0))
    tracks = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 0, 0, 0, 6, 7, 8], [0, 0, 0, 0, 0, 0, 7, 8]])
    first, second, third = encoder.query(tracks, torch.zeros_like(tracks, dtype=torch.bool))
    assert torch.allclose(first, second, atol=1e-6)
    assert not torch.allclose(first, third, rtol=1e-3, atol=0)


def test_only_played_pads_anew_and_keeps_the_order() -> None:
    tracks = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    skipped = torch.tensor([[False, False, True, False], [True, True, True, True]])
    kept, flags = drop_skipped(tracks, skipped)
    assert kept.tolist() == [[0, 0, 1, 3], [0, 0, 0, 0]]
    assert not flags.any()


class TestMasking:
    def test_neither_a_hidden_track_nor_its_outcome_is_seen(self) -> None:
        encoder = Bert4Rec(ROWS, Bert4RecOptions(dimension=16, heads=4, window=WINDOW)).eval()
        encoder.initialise(torch.Generator().manual_seed(0))
        tracks = torch.arange(1, WINDOW + 2)[None].repeat(2, 1)
        skipped = torch.zeros(2, WINDOW + 1, dtype=torch.bool)
        masked = torch.zeros_like(skipped)
        masked[:, 4] = True
        tracks[1, 4], skipped[1, 4] = 33, True
        assert torch.equal(*encoder(tracks, skipped, masked))
        tracks[1, 5] = 34  # seen from both sides
        assert not torch.equal(*encoder(tracks, skipped, masked)[:, 4])

    def test_the_share_of_hidden_plays_is_the_one_asked_for(self) -> None:
        options = Bert4RecOptions(dimension=16, heads=4, window=WINDOW, masking=0.3, duplication_factor=50)
        torch.manual_seed(0)
        batch = make_batch(long_sessions(20), WINDOW, "next")
        _, asked = Bert4Rec(ROWS, options).eval().predict(batch)
        assert len(asked.targets) == 50 * 20
        assert (asked.targets[:, -1] == asked.plays[:, -1]).all()  # the last play is always hidden
        before_last = (asked.plays[:, :-2] != PAD_ROW) & (asked.plays[:, 1:-1] != PAD_ROW)
        assert (asked.targets[:, :-1] != PAD_ROW)[before_last].float().mean().item() == pytest.approx(0.3, abs=0.02)

    def test_no_step_is_contrasted_whose_positive_is_seen(self) -> None:
        options = Bert4RecOptions(dimension=16, heads=4, window=WINDOW, masking=0.5, duplication_factor=20)
        torch.manual_seed(0)
        _, asked = Bert4Rec(ROWS, options).eval().predict(make_batch(long_sessions(20), WINDOW, "next"))
        assert (asked.positives[:, :-1] == PAD_ROW).all()
        assert (asked.positives[:, -1] != PAD_ROW).any()
        assert (asked.targets[:, :-1] != PAD_ROW).any()

    def test_sessions_are_cut_after_every_play_alike(self) -> None:
        torch.manual_seed(0)
        batch = make_batch(long_sessions(1), WINDOW, "next")
        many = Batch(*(tensor.repeat(2000, 1) for tensor in batch))
        early, late = (random_truncate(many, part, 2) for part in (0, 1))
        assert ((early.plays != PAD_ROW).sum(dim=1) <= 1 + WINDOW // 2).all()
        assert ((late.plays != PAD_ROW).sum(dim=1) > 1 + WINDOW // 2).all()
        cut = Batch(*(torch.cat(both) for both in zip(early, late, strict=True)))
        lengths = (cut.plays != PAD_ROW).sum(dim=1)
        counts = torch.bincount(lengths, minlength=WINDOW + 2)
        assert counts[:2].sum() == 0  # one play alone predicts nothing
        assert (counts[2:] / 4000).numpy() == pytest.approx(np.full(WINDOW, 1 / WINDOW), abs=0.02)
        for line in cut.plays[:5]:
            real = line[line != PAD_ROW]
            assert torch.equal(real, batch.plays[0, : len(real)])  # the oldest plays stay, at the right end
        follows = cut.targets != PAD_ROW
        assert torch.equal(cut.targets[follows], cut.plays[:, 1:][follows])
