"""What holds for every encoder; a new one adds three lines at the end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from segue.catalogue import PAD_ROW  # noqa: E402 (after the check that torch is there)
from segue.release import ENCODER, ITEM_EMBEDDINGS  # noqa: E402
from segue.window import Windows  # noqa: E402
from service.onnx_encoder import OnnxEncoder  # noqa: E402
from training.encoders.contract import SessionEncoder  # noqa: E402
from training.encoders.sasrec import SasRec, SasRecOptions  # noqa: E402
from training.export_onnx import check_parity, export_encoder, item_embeddings  # noqa: E402

ROWS, WINDOW = 50, 8


def random_windows(count: int, seed: int = 0) -> Windows:
    rng = np.random.default_rng(seed)
    tracks = rng.integers(1, ROWS, (count, WINDOW))
    tracks[np.arange(WINDOW) < rng.integers(0, WINDOW, (count, 1))] = PAD_ROW
    return Windows(tracks, (rng.random(tracks.shape) < 0.4) & (tracks != PAD_ROW))


class EncoderContract:
    """Subclass and give `encoder`."""

    causal = True

    def encoder(self) -> SessionEncoder:
        raise NotImplementedError

    @pytest.fixture
    def trained_like(self) -> SessionEncoder:
        """An encoder with large random weights, so that differences show."""
        encoder = self.encoder()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            encoder.item_embeddings.weight[PAD_ROW] = 0
        return encoder.eval()

    def ask(self, encoder: SessionEncoder, windows: Windows) -> Any:
        with torch.no_grad():
            return encoder(torch.from_numpy(windows.tracks), torch.from_numpy(windows.skipped))

    def test_it_predicts_an_embedding_at_every_step(self, trained_like: SessionEncoder) -> None:
        windows = random_windows(5)
        assert self.ask(trained_like, windows).shape == (5, WINDOW, trained_like.options.dimension)
        assert torch.isfinite(self.ask(trained_like, windows)).all()

    def test_a_step_sees_no_later_play(self, trained_like: SessionEncoder) -> None:
        windows = random_windows(20)
        changed = Windows(windows.tracks.copy(), windows.skipped.copy())
        changed.tracks[:, -1] = changed.tracks[:, -1] % (ROWS - 1) + 1
        changed.skipped[:, -1] ^= True
        before, after = self.ask(trained_like, windows), self.ask(trained_like, changed)
        assert torch.allclose(before[:, :-1], after[:, :-1], atol=1e-5)
        assert not torch.allclose(before[:, -1], after[:, -1], atol=1e-3)

    def test_a_skip_changes_the_query(self, trained_like: SessionEncoder) -> None:
        windows = random_windows(20)
        flipped = Windows(windows.tracks, windows.skipped ^ (windows.tracks != PAD_ROW))
        difference = (self.ask(trained_like, windows) - self.ask(trained_like, flipped))[:, -1].abs().max(dim=1).values
        assert (difference > 1e-3).all()

    def test_a_session_alone_is_encoded_as_among_others(self, trained_like: SessionEncoder) -> None:
        windows = random_windows(6)
        together = self.ask(trained_like, windows)[:, -1]
        alone = torch.stack([self.ask(trained_like, windows.select(slice(i, i + 1)))[0, -1] for i in range(6)])
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
            assert np.allclose(served.encode(few), self.ask(trained_like, few)[:, -1].numpy(), atol=1e-4)
        # The embeddings are kept once: the graph refers to the array's file.
        assert trained_like.item_embeddings.weight.detach().numpy().tobytes() not in (tmp_path / ENCODER).read_bytes()

    def test_a_differing_export_is_refused(self, trained_like: SessionEncoder, tmp_path: Path) -> None:
        from segue.errors import BadRelease

        (tmp_path / ENCODER).write_bytes(export_encoder(trained_like))
        np.save(tmp_path / ITEM_EMBEDDINGS, item_embeddings(trained_like)[::-1])
        with pytest.raises(BadRelease, match="differs from the trained one"):
            check_parity(tmp_path, trained_like, random_windows(4))


class TestSasRec(EncoderContract):
    def encoder(self) -> SessionEncoder:
        return SasRec(ROWS, SasRecOptions(dimension=16, heads=4, window=WINDOW))


def test_without_skip_input_sasrec_does_not_see_skips() -> None:
    encoder = SasRec(ROWS, SasRecOptions(dimension=16, heads=4, window=WINDOW, skip_input=False)).eval()
    encoder.initialise(torch.Generator().manual_seed(0))
    windows = random_windows(4)
    tracks, skipped = torch.from_numpy(windows.tracks), torch.from_numpy(windows.skipped)
    assert torch.equal(encoder.query(tracks, skipped), encoder.query(tracks, ~skipped))
