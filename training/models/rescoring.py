"""Learn the network of segue.hybrid that corrects the most probable tracks, on validation targets.

Minimises the cross-entropy of the target among these tracks with AdamW, over standardised features. The last tenth of
the targets is held out: the weights of the epoch with the lowest loss on it are kept. The output starts at 0, which
changes nothing. The result is the mean of NETWORKS networks that start from different weights: one network with all
their hidden units.
"""

from typing import Final, NamedTuple

import numpy as np
import torch

from segue.arrays import Float32, Float64, Int
from segue.hybrid import HIDDEN, HybridRanker, Network
from training.models.mixture import EXAMPLES, Targets

MIN_TARGETS: Final = 1_000  # fewer do not pay for the number of weights
NETWORKS: Final = 4
HELD_OUT: Final = 0.1
EPOCHS: Final = 15
BATCH: Final = 64
LEARNING_RATE: Final = 3e-3
WEIGHT_DECAY: Final = 1e-2
_AT_ONCE: Final = 256


class _Examples(NamedTuple):
    """The probable tracks of windows whose target is among them."""

    logs: Float32  # [examples, n] log of the mixture, -inf for none
    tracks: Float32  # [examples, n, TRACK_FEATURES]
    windows: Float32  # [examples, REPEAT_FEATURES]
    target: Int  # [examples] int64, the place of the target


def fit_network(ranker: HybridRanker, targets: Targets) -> Network | None:
    """Learn the network for `ranker`, whose mixture is learned already. None with fewer than MIN_TARGETS targets."""
    examples = _examples(ranker, targets)
    if len(examples.target) < MIN_TARGETS:
        return None
    real = np.isfinite(examples.logs)
    tracks, track_mean, track_spread = _standardised(examples.tracks, examples.tracks[real])
    windows, window_mean, window_spread = _standardised(examples.windows, examples.windows)
    tensors = [
        torch.tensor(array)  # a copy that is aligned: sums of unaligned arrays differ in the last bit
        for array in (examples.logs, np.where(real[:, :, None], tracks, np.float32(0)), windows, examples.target)
    ]
    learned = [_learned(*tensors, seed=seed) for seed in range(NETWORKS)]
    by_track, by_window, bias, output = (np.concatenate(one, axis=-1) for one in zip(*learned, strict=True))
    # In terms of features that are not standardised. The first feature of a window is the constant 1.
    by_track /= track_spread[:, None]
    by_window /= window_spread[:, None]
    by_window[0] = bias - track_mean @ by_track - window_mean[1:] @ by_window[1:]
    return Network(by_track, by_window, output / NETWORKS)


def _examples(ranker: HybridRanker, targets: Targets) -> _Examples:
    parts = []
    for start in range(0, min(len(targets.rows), EXAMPLES), _AT_ONCE):
        some = slice(start, min(start + _AT_ONCE, EXAMPLES))
        probable = ranker.probable(targets.windows.select(some))
        hit = (probable.rows == targets.rows[some, None]) & (probable.probabilities > 0)
        kept = hit.any(axis=1)
        logs = np.log(np.maximum(probable.probabilities, 1e-300))
        logs[probable.probabilities <= 0] = -np.inf
        arrays = logs, probable.features, probable.repeat_features
        parts.append((*(array[kept].astype(np.float32) for array in arrays), hit[kept].argmax(axis=1)))
    if not parts:
        empty = np.zeros((0, 0), np.float32)
        return _Examples(empty, empty[:, :, None], empty, np.zeros(0, np.int64))
    return _Examples(*map(np.concatenate, zip(*parts, strict=True)))


def _standardised(features: Float32, counted: Float32) -> tuple[Float32, Float64, Float64]:
    """Return `features` standardised by the mean and spread of `counted`, and both. A constant feature becomes 0."""
    mean, spread = counted.mean(axis=0, dtype=np.float64), counted.std(axis=0, dtype=np.float64)
    spread[spread < 1e-6] = np.inf
    return ((features - mean) / spread).astype(np.float32), mean, spread


def _learned(
    logs: torch.Tensor, tracks: torch.Tensor, windows: torch.Tensor, target: torch.Tensor, *, seed: int
) -> list[Float64]:
    """Return the weights of tracks, of windows, the bias of the hidden units, and the output weights, float64."""
    units = HIDDEN // NETWORKS
    generator = torch.Generator().manual_seed(seed)

    def weights(inputs: int) -> torch.Tensor:
        drawn: torch.Tensor = (2 * torch.rand((inputs, units), generator=generator) - 1) / inputs**0.5
        return drawn.requires_grad_()

    by_track, by_window = weights(tracks.shape[2]), weights(windows.shape[1])
    bias, output = torch.zeros(units, requires_grad=True), torch.zeros(units, requires_grad=True)
    learned = [by_track, by_window, bias, output]

    def loss(some: torch.Tensor | slice) -> torch.Tensor:
        hidden = torch.relu(tracks[some] @ by_track + (windows[some] @ by_window + bias)[:, None])
        return torch.nn.functional.cross_entropy(logs[some] + hidden @ output, target[some])

    count = len(target) - int(len(target) * HELD_OUT)
    batches = max(count // BATCH, 1)
    optimiser = torch.optim.AdamW(learned, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=EPOCHS * batches + 1)
    best, least = [value.detach().clone() for value in learned], np.inf
    for epoch in range(EPOCHS + 1):
        with torch.no_grad():
            held_out = float(loss(slice(count, None)))
        if held_out < least:
            best, least = [value.detach().clone() for value in learned], held_out
        if epoch < EPOCHS:
            for some in torch.split(torch.randperm(count, generator=generator), BATCH)[:batches]:
                optimiser.zero_grad()
                loss(some).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
    return [value.double().numpy() for value in best]
