"""How good a model is on validation targets while it is trained, without a release: all tracks ranked, all targets."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch

from segue.arrays import Float64, Int
from segue.catalogue import FIRST_TRACK_ROW
from segue.ranking_metrics import LIST_LENGTH, hit, mean_rank, rank_in_list, reciprocal_rank
from segue.recommend import Ranker
from segue.window import Windows, to_windows
from training.data.splits import Examples
from training.models.encoders.encoder import Encoder

# Validation steers early stopping alone: beyond this many sessions it gets slower, not better.
SESSIONS: Final = 20_000
_BATCH: Final = 512
_SCORES_AT_ONCE: Final = 1 << 27  # 512 MiB of float32: of a large catalogue, fewer sessions at a time


def encoder_score(encoder: Encoder, examples: Examples, device: str = "cpu") -> tuple[float, float]:
    """HR@10 and MRR@10 of the first SESSIONS questions; 0 where there are none.

    One model is better than another by HR@10; where that is equal, as on a catalogue of a few dozen tracks, by MRR@10.
    """
    encoder.eval()
    most = max(_SCORES_AT_ONCE // encoder.item_embeddings.num_embeddings, 1)
    windows_of = validation_batches(examples, encoder.options.window, min(_BATCH, most))
    ranks = [_ranks(encoder, windows, targets, torch.device(device)) for windows, targets in windows_of]
    if not ranks:
        return 0.0, 0.0
    all_ranks = np.concatenate(ranks)
    return float(hit(all_ranks, 10).mean()), float(reciprocal_rank(all_ranks, 10).mean())


def ranker_score(ranker: Ranker, examples: Examples, window: int) -> float:
    """HR@10 of the first SESSIONS questions; 0 where there are none."""
    ranks = [
        rank_in_list(rows, scores, target)
        for windows, targets in validation_batches(examples, window)
        for rows, scores, target in zip(*ranker.rank(windows, LIST_LENGTH), targets.tolist(), strict=True)
    ]
    return float(hit(np.array(ranks), 10).mean()) if ranks else 0.0


def validation_batches(examples: Examples, window: int, size: int = _BATCH) -> Iterator[tuple[Windows, Int]]:
    """The first SESSIONS questions: windows and their targets, a part at a time."""
    count = min(len(examples.targets), SESSIONS)
    for start in range(0, count, size):
        which = slice(start, min(start + size, count))
        yield to_windows(examples.inputs.select(which), window), examples.targets[which]


def _ranks(encoder: Encoder, windows: Windows, targets: Int, device: torch.device) -> Float64:
    with torch.no_grad():
        tracks, skipped = torch.from_numpy(windows.tracks).to(device), torch.from_numpy(windows.skipped).to(device)
        scores = encoder.query(tracks, skipped) @ encoder.item_embeddings.weight[FIRST_TRACK_ROW:].T
        at_target = scores.gather(1, torch.from_numpy(targets - FIRST_TRACK_ROW).to(device)[:, None])
        greater, equal = (scores > at_target).sum(dim=1), (scores == at_target).sum(dim=1) - 1
    return mean_rank(greater.cpu().numpy(), equal.cpu().numpy())
