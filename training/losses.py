"""Loss functions on tensors, and the training loss of a batch.

The training loss is L = alpha * NLL + beta * NCE (paper, section 3.2).
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
from training.models.encoders.encoder import SessionEncoder, gather_rows
from training.options import NeuralOptions

Normalizer: TypeAlias = Callable[[Tensor], Tensor]

# Number of steps per thread in a block of the sampled softmax. With 1000 negatives, the scores of 512 steps take 2 MB
# and stay in the cache of the thread. Smaller blocks were not faster.
_STEPS_PER_THREAD: Final = 512
_STEPS_PER_GPU_BLOCK: Final = 16_384


def identity(count: Tensor) -> Tensor:
    """Return `count` unchanged. This is the normalizer for a single process, which has the whole batch."""
    return count


class Negatives(NamedTuple):
    """Uniformly sampled negatives, shared by all sessions of a batch."""

    embeddings: Tensor  # [negatives, dimension] float
    seen: Tensor  # [batch, negatives] bool, True if the session contains the track, which excludes it as a negative
    log_q: float = 0.0  # logQ correction from `uniform_log_q`, subtracted from the scores of the negatives


def sampled_softmax(
    queries: Tensor,
    own: Tensor,
    target: Tensor,
    session: Tensor,
    negatives: Negatives,
    normalizer: Normalizer = identity,
) -> Tensor:
    """Return the negative log-likelihood of the target among the session's tracks and sampled negatives.

    The loss is the NLL term of the paper (section 4.1.1). The scores of the negatives are computed in blocks of steps.
    The gradient of each block is computed at once and the scores are discarded, so the full score matrix of a large
    batch is never in memory (as in Wijmans et al., "Cut your losses in large-vocabulary language models", ICLR 2025,
    https://arxiv.org/abs/2411.09009).

    Args:
        queries: [steps, dimension] float, the predicted embedding of each step.
        own: [steps, n] float, scores of the session's distinct tracks, -inf in padding.
        target: [steps] int64, the column of the target in `own`.
        session: [steps] int64, the row of each step in `negatives.seen`.
        negatives: The sampled tracks, shared by all steps.
        normalizer: Maps the number of steps to the divisor of the sum.

    Returns:
        The mean over steps, a scalar. The mean is 0 if there are no steps.

    """
    summed: Tensor = _SampledSoftmax.apply(queries, own, negatives.embeddings, target, session, negatives)  # type: ignore[no-untyped-call]
    return summed / normalizer(torch.tensor(len(queries), device=queries.device)).clamp(min=1)


class _SampledSoftmax(torch.autograd.Function):
    """Sampled softmax loss, summed over steps. The forward pass computes the gradient; the backward pass scales it."""

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
        block = _STEPS_PER_THREAD * torch.get_num_threads() if on_cpu else _STEPS_PER_GPU_BLOCK
        grad_queries, grad_own = torch.empty_like(queries), torch.empty_like(own)
        grad_negatives = torch.zeros_like(embeddings)
        without_seen = torch.where(negatives.seen, -torch.inf, queries.new_zeros(()))  # [batch, negatives]
        own = (
            own + negatives.log_q
        )  # equivalent to a subtraction from the negatives, because softmax depends only on differences
        own_max = own.amax(dim=1, keepdim=True)
        max_logit, partition = torch.empty_like(own_max), torch.empty_like(own_max)
        for start in range(0, len(queries), block):
            steps = slice(start, start + block)
            block_queries = queries[steps]
            others = without_seen.index_select(0, session[steps]).addmm_(block_queries, embeddings.T)
            torch.maximum(own_max[steps], others.amax(dim=1, keepdim=True), out=max_logit[steps])
            others.sub_(max_logit[steps]).exp_()
            held = torch.sub(own[steps], max_logit[steps], out=grad_own[steps]).exp_()
            torch.add(others.sum(dim=1, keepdim=True), held.sum(dim=1, keepdim=True), out=partition[steps])
            torch.mm(others, embeddings, out=grad_queries[steps])
            grad_negatives.addmm_(others.T, block_queries / partition[steps])
        summed = (max_logit + partition.log() - own.gather(1, target[:, None])).sum()
        grad_queries.div_(partition)
        grad_own.div_(partition)
        grad_own.scatter_add_(1, target[:, None], -torch.ones_like(grad_own[:, :1]))
        ctx.save_for_backward(grad_queries, grad_own, grad_negatives)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *(part * gradients[0] for part in ctx.saved_tensors), None, None, None


def uniform_log_q(negatives: int, tracks: int) -> float:
    """Return the logQ correction of uniform negatives: the log of the expected count of a track among them.

    With the correction, the sum of exp(score) over the negatives is an unbiased estimate of the sum over all tracks.
    `negatives` is the number of samples and `tracks` the number of tracks, both at least 1.

    Source: Bengio and Senecal, "Adaptive importance sampling to accelerate training of a neural probabilistic language
    model", 2008, https://doi.org/10.1109/TNN.2007.912312.
    """
    return math.log(negatives / tracks)


def info_nce(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    steps: Tensor,
    contrasts: Tensor,
    temperature: float,
    normalizer: Normalizer = identity,
) -> Tensor:
    """Return the InfoNCE loss that contrasts the next played track with the session's skipped tracks.

    The loss is equation 1 of the paper. With f(i, q) = exp(cos(i, q) / temperature), the loss of a step is
    -log(f(positive) / (f(positive) + sum f(negatives))).

    Args:
        queries: [batch, window, dimension] float, the predicted embedding at each step.
        positives: [batch, window, dimension] float, the embedding of the next played track after each step.
        negatives: [batch, skips, dimension] float, the embeddings of the session's skipped tracks.
        steps: [batch, window] bool, True for a non-padding step with a positive.
        contrasts: [batch, window, skips] bool, True if the skip is not padding and differs from the step's positive.
        temperature: The divisor of the cosine similarities.
        normalizer: Maps the number of steps with a positive and a negative to the divisor of the sum.

    Returns:
        The mean over the steps with a positive and at least one negative, a scalar. The mean is 0 if there are none.

    """
    queries = F.normalize(queries, dim=-1)
    to_positive = (queries * F.normalize(positives, dim=-1)).sum(dim=-1) / temperature  # [batch, window]
    to_negatives = queries @ F.normalize(negatives, dim=-1).transpose(1, 2) / temperature  # [batch, window, skips]
    scores = torch.cat([to_positive[..., None], to_negatives.masked_fill(~contrasts, -torch.inf)], dim=-1)
    counted = steps & contrasts.any(dim=-1)
    terms = torch.logsumexp(scores, dim=-1) - to_positive
    return torch.where(counted, terms, 0.0).sum() / normalizer(counted.sum()).clamp(min=1)


def info_nce_as_published(
    queries: Tensor,
    positives: Tensor,
    skips: Tensor,
    steps: Tensor,
    temperature: float,
    normalizer: Normalizer = identity,
) -> Tensor:
    """Return the InfoNCE loss with the pairing of the authors' public code (2023), for comparison only.

    The public code differs from the paper. Its negatives are repeated in a different order than its queries. Query n of
    all batch * window queries is contrasted with the skips of session n modulo batch. Padding and plays that were not
    skipped are zero vectors with similarity 0.

    Args:
        queries: [batch, window, dimension] float, the predicted embedding at each step.
        positives: [batch, window, dimension] float, the embedding of the next played track after each step. If there is
            none, the embedding of the session's first track.
        skips: [batch, window, dimension] float, the embeddings of skipped plays, zero for other plays.
        steps: [batch, window] bool, True for a non-padding step.
        temperature: The divisor of the cosine similarities.
        normalizer: Maps the number of non-padding steps to the divisor of the sum.

    Returns:
        The mean over non-padding steps, a scalar. The mean is 0 if there are none.

    """
    batch, window, dimension = queries.shape
    queries = F.normalize(queries, dim=-1).reshape(-1, dimension)
    to_positive = (queries * F.normalize(positives, dim=-1).reshape(-1, dimension)).sum(dim=-1) / temperature
    paired = F.normalize(skips, dim=-1)[
        torch.arange(batch * window, device=skips.device) % batch
    ]  # [steps, window, dim]
    to_negatives = torch.einsum("nd,nwd->nw", queries, paired) / temperature
    terms = torch.logsumexp(torch.cat([to_positive[:, None], to_negatives], dim=1), dim=1) - to_positive
    real = steps.reshape(-1)
    return torch.where(real, terms, 0.0).sum() / normalizer(real.sum()).clamp(min=1)


class Terms(NamedTuple):
    """The loss of a training step and its two unweighted terms. All are scalars."""

    loss: Tensor
    nll: Tensor
    nce: Tensor


def step_terms(
    encoder: SessionEncoder, batch: Batch, negatives: Tensor, options: NeuralOptions, normalizer: Normalizer = identity
) -> Terms:
    """Return the loss of one batch and its two terms.

    `negatives` [negatives] int64 are the rows of the uniform negatives for the sampled softmax. `normalizer` maps a
    number of steps to the divisor of a summed loss. In distributed training, the normalizer sums the number of steps
    over all processes.
    """
    with record_function("segue: encoder"):
        predicted, predicted_batch = encoder.predict(batch)  # [batch, window, dimension]
    zero = predicted.new_zeros(())
    nll = _nll(encoder, predicted, predicted_batch, negatives, normalizer) if options.alpha else zero
    nce_term = _NCE[options.negative_pairing]
    nce = nce_term(encoder, predicted, predicted_batch, options.temperature, normalizer) if options.beta else zero
    return Terms(options.alpha * nll + options.beta * nce, nll, nce)


def _nll(encoder: SessionEncoder, predicted: Tensor, batch: Batch, negatives: Tensor, normalizer: Normalizer) -> Tensor:
    """Return the sampled softmax loss of a batch, over the session's tracks and the negatives outside the session."""
    own = batch.session_tracks  # [batch, window + 1]
    own_scores = predicted @ encoder.item_embeddings(own).transpose(1, 2)  # [batch, window, window + 1]
    own_scores = own_scores.masked_fill((own == PAD_ROW)[:, None, :], -torch.inf)
    real = (batch.targets != PAD_ROW).flatten().nonzero()[:, 0]  # [steps], flat positions of the steps with a target
    session = real // batch.targets.shape[1]  # [steps], session of each step
    target = batch.targets.flatten().index_select(0, real)
    seen = seen_mask(own, negatives)
    log_q = uniform_log_q(len(negatives), encoder.item_embeddings.num_embeddings - 1) if encoder.options.log_q else 0.0
    return sampled_softmax(
        gather_rows(predicted.flatten(0, 1), real),
        gather_rows(own_scores.flatten(0, 1), real),
        (own.index_select(0, session) == target[:, None]).int().argmax(dim=1),
        session,
        Negatives(encoder.item_embeddings(negatives), seen, log_q),
        normalizer,
    )


def seen_mask(own: Tensor, negatives: Tensor) -> Tensor:
    """Mark the negatives that each session contains. [batch, negatives] bool.

    `own` [batch, n] int64 are the tracks of each session, `negatives` [negatives] int64 the sampled tracks.
    """
    tracks, which = negatives.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    places = torch.searchsorted(tracks, own).clamp_(max=len(tracks) - 1)
    held = (tracks[places] == own).flatten().nonzero()[:, 0]
    lines = held // own.shape[1] * len(tracks) + places.flatten()[held]
    table = torch.zeros(len(own), len(tracks), dtype=torch.bool, device=own.device)
    table.view(-1).index_fill_(0, lines, True)
    return table.index_select(1, which)


def _nce(
    encoder: SessionEncoder, predicted: Tensor, batch: Batch, temperature: float, normalizer: Normalizer
) -> Tensor:
    skips = batch.session_skips
    other = skips[:, None, :] != batch.positives[:, :, None]  # a track is never a negative of itself
    return info_nce(
        predicted,
        encoder.item_embeddings(batch.positives),
        encoder.item_embeddings(skips),
        steps=batch.positives != PAD_ROW,
        contrasts=(skips != PAD_ROW)[:, None, :] & other,
        temperature=temperature,
        normalizer=normalizer,
    )


def _published_nce(
    encoder: SessionEncoder, predicted: Tensor, batch: Batch, temperature: float, normalizer: Normalizer
) -> Tensor:
    first = (batch.plays != PAD_ROW).int().argmax(dim=1, keepdim=True)
    replacement = batch.plays.gather(1, first).expand_as(batch.positives)
    return info_nce_as_published(
        predicted,
        encoder.item_embeddings(torch.where(batch.positives != PAD_ROW, batch.positives, replacement)),
        encoder.item_embeddings(torch.where(batch.skipped, batch.tracks, PAD_ROW)),
        steps=batch.targets != PAD_ROW,
        temperature=temperature,
        normalizer=normalizer,
    )


_NCE: Final = {"session": _nce, "published": _published_nce}
