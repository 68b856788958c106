"""Validation of a model during training, before a release exists. Every target is ranked among all tracks.

torch is imported only when an encoder is scored.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from segue.arrays import Float64, Int
from segue.catalogue import FIRST_TRACK_ROW
from segue.ranking_metrics import LIST_LENGTH, hit, mean_rank, rank_in_list, reciprocal_rank
from segue.recommend import Ranker
from segue.window import Windows, to_windows
from training.data.splits import Examples

if TYPE_CHECKING:
    from torch import Tensor

    from training.models.encoders.encoder import Encoder, RankCounts

# Validation only selects the best epoch and stops training early. More examples would be slower, but not better.
MAX_EXAMPLES: Final = 20_000
_BATCH: Final = 512
_SCORES_AT_ONCE: Final = 1 << 27  # 512 MiB of float32; for a large catalogue the batch size is reduced


def encoder_score(
    encoder: "Encoder", examples: Examples, device: str = "cpu", counts: "RankCounts | None" = None
) -> tuple[float, float]:
    """Return HR@10 and MRR@10 of `encoder` on the first MAX_EXAMPLES examples, or zeros if there are no examples.

    Compare two models by HR@10 first and by MRR@10 second. Equal values of HR@10 are common in a catalogue of a few
    dozen tracks. `counts` computes the ranks from embedding rows that are sharded over several processes. If `counts`
    is None, use the embedding table of `encoder`.
    """
    encoder.eval()
    most = max(_SCORES_AT_ONCE // encoder.item_embeddings.num_embeddings, 1)
    batches = validation_batches(examples, encoder.options.window, min(_BATCH, most))
    ranks = [_ranks(encoder, windows, targets, device, counts or _counts_in_table) for windows, targets in batches]
    if not ranks:
        return 0.0, 0.0
    all_ranks = np.concatenate(ranks)
    return float(hit(all_ranks, 10).mean()), float(reciprocal_rank(all_ranks, 10).mean())


def ranker_score(ranker: Ranker, examples: Examples, window: int) -> float:
    """Return HR@10 of `ranker` on the first MAX_EXAMPLES examples, or 0 if there are no examples."""
    ranks = [
        rank_in_list(rows, scores, target)
        for windows, targets in validation_batches(examples, window)
        for rows, scores, target in zip(*ranker.rank(windows, LIST_LENGTH), targets.tolist(), strict=True)
    ]
    return float(hit(np.array(ranks), 10).mean()) if ranks else 0.0


def validation_batches(examples: Examples, window: int, size: int = _BATCH) -> Iterator[tuple[Windows, Int]]:
    """Yield windows and targets of the first MAX_EXAMPLES examples in batches of `size`. Targets are [batch] int64."""
    count = min(len(examples.targets), MAX_EXAMPLES)
    for start in range(0, count, size):
        which = slice(start, min(start + size, count))
        yield to_windows(examples.inputs.select(which), window), examples.targets[which]


def _ranks(encoder: "Encoder", windows: Windows, targets: Int, device: str, counts: "RankCounts") -> Float64:
    import torch

    with torch.no_grad():
        arrays = (windows.tracks, windows.skipped, targets)
        higher, equal = counts(encoder, *(torch.from_numpy(array).to(device) for array in arrays)).cpu().numpy()
    return mean_rank(higher, equal - 1)


def _counts_in_table(encoder: "Encoder", tracks: "Tensor", skipped: "Tensor", targets: "Tensor") -> "Tensor":
    """Count the tracks with a higher score than the target, and the tracks with an equal score. [2, batch] int64.

    The second count includes the target. `tracks` [batch, window] int64 and `skipped` [batch, window] bool are the
    sessions, `targets` [batch] int64 are rows.
    """
    import torch

    scores = encoder.query(tracks, skipped) @ encoder.item_embeddings.weight[FIRST_TRACK_ROW:].T
    at_target = scores.gather(1, targets[:, None] - FIRST_TRACK_ROW)
    return torch.stack([(scores > at_target).sum(dim=1), (scores == at_target).sum(dim=1)])
