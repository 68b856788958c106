"""The loss of a batch: L = alpha * NLL + beta * NCE (paper, section 3.2), from what an encoder predicts in it."""

from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function

from segue.catalogue import PAD_ROW
from training.data.batches import Batch
from training.losses import (
    Negatives,
    Total,
    info_nce,
    info_nce_as_published,
    itself,
    sampled_softmax,
    uniform_log_q,
)
from training.models.encoders.encoder import SessionEncoder
from training.models.encoders.tensor_ops import picked
from training.options import NeuralOptions


class Terms(NamedTuple):
    """The loss of a step and its parts, scalars."""

    loss: Tensor
    nll: Tensor
    nce: Tensor


def step_terms(
    encoder: SessionEncoder, batch: Batch, negatives: Tensor, options: NeuralOptions, total: Total = itself
) -> Terms:
    """The loss of one batch. `negatives` [n] int64 are the rows of the sampled softmax's uniform negatives."""
    with record_function("segue: encoder"):
        predicted, asked = encoder.predict(batch)  # [batch, window, dimension]
    zero = predicted.new_zeros(())
    nll = _nll(encoder, predicted, asked, negatives, total) if options.alpha else zero
    nce = _NCE[options.pairing](encoder, predicted, asked, options.temperature, total) if options.beta else zero
    return Terms(options.alpha * nll + options.beta * nce, nll, nce)


def _nll(encoder: SessionEncoder, predicted: Tensor, batch: Batch, negatives: Tensor, total: Total) -> Tensor:
    """Rank each step's target, a track of its session, alongside the others and the uniform negatives it holds not."""
    own = batch.session_tracks  # [batch, window + 1]
    own_scores = predicted @ encoder.item_embeddings(own).transpose(1, 2)  # [batch, window, window + 1]
    own_scores = own_scores.masked_fill((own == PAD_ROW)[:, None, :], -torch.inf)
    real = (batch.targets != PAD_ROW).flatten().nonzero()[:, 0]  # [steps], of all columns
    session = real // batch.targets.shape[1]  # of each step
    target = batch.targets.flatten().index_select(0, real)
    seen = found_in(own, negatives)
    log_q = uniform_log_q(len(negatives), encoder.item_embeddings.num_embeddings - 1) if encoder.options.log_q else 0.0
    return sampled_softmax(
        picked(predicted.flatten(0, 1), real),
        picked(own_scores.flatten(0, 1), real),
        (own.index_select(0, session) == target[:, None]).int().argmax(dim=1),
        session,
        Negatives(encoder.item_embeddings(negatives), seen, log_q),
        total,
    )


def found_in(own: Tensor, negatives: Tensor) -> Tensor:
    """Which negatives each session holds. [batch, n] and [negatives] int64 -> [batch, negatives] bool."""
    tracks, which = negatives.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    places = torch.searchsorted(tracks, own).clamp_(max=len(tracks) - 1)
    held = (tracks[places] == own).flatten().nonzero()[:, 0]
    lines = held // own.shape[1] * len(tracks) + places.flatten()[held]
    table = torch.zeros(len(own), len(tracks), dtype=torch.bool, device=own.device)
    table.view(-1).index_fill_(0, lines, True)
    return table.index_select(1, which)


def _nce(encoder: SessionEncoder, predicted: Tensor, batch: Batch, temperature: float, total: Total) -> Tensor:
    skips = batch.session_skips
    other = skips[:, None, :] != batch.positives[:, :, None]  # a track is no negative of itself
    return info_nce(
        predicted,
        encoder.item_embeddings(batch.positives),
        encoder.item_embeddings(skips),
        steps=batch.positives != PAD_ROW,
        contrasts=(skips != PAD_ROW)[:, None, :] & other,
        temperature=temperature,
        total=total,
    )


def _published_nce(
    encoder: SessionEncoder, predicted: Tensor, batch: Batch, temperature: float, total: Total
) -> Tensor:
    first = (batch.plays != PAD_ROW).int().argmax(dim=1, keepdim=True)
    instead = batch.plays.gather(1, first).expand_as(batch.positives)
    return info_nce_as_published(
        predicted,
        encoder.item_embeddings(torch.where(batch.positives != PAD_ROW, batch.positives, instead)),
        encoder.item_embeddings(torch.where(batch.skipped, batch.tracks, PAD_ROW)),
        steps=batch.targets != PAD_ROW,
        temperature=temperature,
        total=total,
    )


_NCE: Final = {"session": _nce, "published": _published_nce}
