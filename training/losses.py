"""Losses as pure functions of tensors, and the loss of a batch.

L = alpha * NLL + beta * NCE (paper, section 3.2)
"""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from segue.catalogue import PAD_ROW
from training.data.loader import Batch
from training.models.encoders.encoder import SessionEncoder
from training.models.encoders.tensor_ops import gather_rows
from training.options import NeuralOptions

Total: TypeAlias = Callable[[Tensor], Tensor]

# A block has so many steps for each thread. With a thousand negatives their scores are 2 MB, in the thread's cache or
# the next. Fewer steps make more blocks, each of a dozen calls, and were no faster.
_STEPS_A_THREAD: Final = 512
_STEPS_A_BLOCK_ON_GPU: Final = 16_384


def itself(count: Tensor) -> Tensor:
    """How many steps a mean is over, where one process sees them all; several add theirs up instead."""
    return count


class Negatives(NamedTuple):
    """Uniform negatives, shared by the sessions of a batch."""

    embeddings: Tensor  # [negatives, dimension] float
    seen: Tensor  # [batch, negatives] bool, True where the session holds the track, which is then no negative of it
    log_q: float = 0.0  # taken off their scores: see `uniform_log_q`


def sampled_softmax(
    queries: Tensor, own: Tensor, target: Tensor, session: Tensor, negatives: Negatives, total: Total = itself
) -> Tensor:
    """Negative log-likelihood of the target among the session's tracks and sampled negatives (paper, section 4.1.1).

    Of a large batch the scores of the negatives are never held at once: a block of steps is scored, and what it adds
    to the gradient is kept instead (as in Wijmans et al., "Cut your losses in large-vocabulary language models", ICLR
    2025, https://arxiv.org/abs/2411.09009).

    Args:
        queries: [steps, dimension] float, the predicted embedding of each step.
        own: [steps, n] float, scores of the session's distinct tracks, -inf where there is none.
        target: [steps] int64, which of them is the target.
        session: [steps] int64, the step's line of `negatives.seen`.
        negatives: the others that the target is told from.
        total: of the number of steps makes what the sum is divided by.

    Returns:
        The mean over steps, a scalar; 0 without steps.

    """
    summed: Tensor = _SampledSoftmax.apply(queries, own, negatives.embeddings, target, session, negatives)  # type: ignore[no-untyped-call]
    return summed / total(torch.tensor(len(queries), device=queries.device)).clamp(min=1)


class _SampledSoftmax(torch.autograd.Function):
    """The sum over steps; the gradient is found on the way, as nothing but a factor is unknown to it then."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        own: Tensor,
        embeddings: Tensor,
        target: Tensor,
        session: Tensor,
        negatives: Negatives,
    ) -> Tensor:
        on_cpu = queries.device.type == "cpu"
        block = _STEPS_A_THREAD * torch.get_num_threads() if on_cpu else _STEPS_A_BLOCK_ON_GPU
        by_queries, by_own = torch.empty_like(queries), torch.empty_like(own)
        by_negatives = torch.zeros_like(embeddings)
        without_seen = torch.where(negatives.seen, -torch.inf, queries.new_zeros(()))  # [batch, negatives], added
        own = own + negatives.log_q  # instead of taking it off the others: all that counts is differences
        own_most = own.amax(dim=1, keepdim=True)
        most, mass = torch.empty_like(own_most), torch.empty_like(own_most)
        for start in range(0, len(queries), block):
            steps = slice(start, start + block)
            asked = queries[steps]
            others = without_seen.index_select(0, session[steps]).addmm_(asked, embeddings.T)
            torch.maximum(own_most[steps], others.amax(dim=1, keepdim=True), out=most[steps])
            others.sub_(most[steps]).exp_()
            held = torch.sub(own[steps], most[steps], out=by_own[steps]).exp_()
            torch.add(others.sum(dim=1, keepdim=True), held.sum(dim=1, keepdim=True), out=mass[steps])
            torch.mm(others, embeddings, out=by_queries[steps])
            by_negatives.addmm_(others.T, asked / mass[steps])
        summed = (most + mass.log() - own.gather(1, target[:, None])).sum()
        by_queries.div_(mass)
        by_own.div_(mass)
        by_own.scatter_add_(1, target[:, None], -torch.ones_like(by_own[:, :1]))
        ctx.save_for_backward(by_queries, by_own, by_negatives)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *(part * gradients[0] for part in ctx.saved_tensors), None, None, None


def uniform_log_q(negatives: int, tracks: int) -> float:
    """The logarithm of how often a track is among uniform negatives, expected: what logQ correction takes off a score.

    With it exp(score) of a negative stands for all the tracks that were not drawn: the sum over negatives is an
    unbiased estimate of the sum over all tracks. Source: Bengio and Senecal, "Adaptive importance sampling to
    accelerate training of a neural probabilistic language model", 2008, https://doi.org/10.1109/TNN.2007.912312.
    """
    return math.log(negatives / tracks)


def info_nce(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    steps: Tensor,
    contrasts: Tensor,
    temperature: float,
    total: Total = itself,
) -> Tensor:
    """InfoNCE over the session's skips (paper, equation 1): find the next played track among what was skipped.

    f(i, q) = exp(cos(i, q) / temperature); the term of a step is -log f(positive) / (f(positive) + sum f(negatives)).

    Args:
        queries: [batch, window, dimension] float, the predicted embedding at each step.
        positives: [batch, window, dimension] float, embedding of each step's next played track.
        negatives: [batch, skips, dimension] float, embeddings of the session's skipped tracks.
        steps: [batch, window] bool, True where the step is real and has a positive.
        contrasts: [batch, window, skips] bool, True where the skip is real and another track than the step's positive.
        temperature: divides the cosine similarities.
        total: of the number of such steps makes what the sum is divided by.

    Returns:
        The mean over steps that have a positive and at least one negative, a scalar; 0 where there is none.

    """
    queries = F.normalize(queries, dim=-1)
    to_positive = (queries * F.normalize(positives, dim=-1)).sum(dim=-1) / temperature  # [batch, window]
    to_negatives = queries @ F.normalize(negatives, dim=-1).transpose(1, 2) / temperature  # [batch, window, skips]
    scores = torch.cat([to_positive[..., None], to_negatives.masked_fill(~contrasts, -torch.inf)], dim=-1)
    counted = steps & contrasts.any(dim=-1)
    terms = torch.logsumexp(scores, dim=-1) - to_positive
    return torch.where(counted, terms, 0.0).sum() / total(counted.sum()).clamp(min=1)


def info_nce_as_published(
    queries: Tensor, positives: Tensor, skips: Tensor, steps: Tensor, temperature: float, total: Total = itself
) -> Tensor:
    """InfoNCE as the authors' public code pairs it (2023), which is not as their paper says: for comparison alone.

    Its negatives are repeated in another order than its queries, so that query n of all batch * window queries meets
    those of session n modulo batch. Plays that were not skipped, and padding, take part as zero vectors: similarity 0.

    Args:
        queries: [batch, window, dimension] float, the predicted embedding at each step.
        positives: [batch, window, dimension] float; where no played track comes, the session's first track.
        skips: [batch, window, dimension] float, the plays' embeddings, zero where a play was not skipped.
        steps: [batch, window] bool, True where the step is real.
        temperature: divides the cosine similarities.
        total: of the number of such steps makes what the sum is divided by.

    Returns:
        The mean over real steps, a scalar; 0 where there is none.

    """
    batch, window, dimension = queries.shape
    queries = F.normalize(queries, dim=-1).reshape(-1, dimension)
    to_positive = (queries * F.normalize(positives, dim=-1).reshape(-1, dimension)).sum(dim=-1) / temperature
    met = F.normalize(skips, dim=-1)[torch.arange(batch * window, device=skips.device) % batch]  # [steps, window, dim]
    to_negatives = torch.einsum("nd,nwd->nw", queries, met) / temperature
    terms = torch.logsumexp(torch.cat([to_positive[:, None], to_negatives], dim=1), dim=1) - to_positive
    real = steps.reshape(-1)
    return torch.where(real, terms, 0.0).sum() / total(real.sum()).clamp(min=1)


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
    nce = (
        _NCE[options.negative_pairing](encoder, predicted, asked, options.temperature, total) if options.beta else zero
    )
    return Terms(options.alpha * nll + options.beta * nce, nll, nce)


def _nll(encoder: SessionEncoder, predicted: Tensor, batch: Batch, negatives: Tensor, total: Total) -> Tensor:
    """Rank each step's target, a track of its session, alongside the others and the uniform negatives it holds not."""
    own = batch.session_tracks  # [batch, window + 1]
    own_scores = predicted @ encoder.item_embeddings(own).transpose(1, 2)  # [batch, window, window + 1]
    own_scores = own_scores.masked_fill((own == PAD_ROW)[:, None, :], -torch.inf)
    real = (batch.targets != PAD_ROW).flatten().nonzero()[:, 0]  # [steps], of all columns
    session = real // batch.targets.shape[1]  # of each step
    target = batch.targets.flatten().index_select(0, real)
    seen = seen_mask(own, negatives)
    log_q = uniform_log_q(len(negatives), encoder.item_embeddings.num_embeddings - 1) if encoder.options.log_q else 0.0
    return sampled_softmax(
        gather_rows(predicted.flatten(0, 1), real),
        gather_rows(own_scores.flatten(0, 1), real),
        (own.index_select(0, session) == target[:, None]).int().argmax(dim=1),
        session,
        Negatives(encoder.item_embeddings(negatives), seen, log_q),
        total,
    )


def seen_mask(own: Tensor, negatives: Tensor) -> Tensor:
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
