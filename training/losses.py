"""The losses, as pure functions of tensors."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sampled_softmax(positive_scores: Tensor, negative_scores: Tensor, allowed: Tensor) -> Tensor:
    """Negative log-likelihood of the target among itself and sampled negatives (paper, section 4.1.1).

    Args:
        positive_scores: [steps] float, score of each step's target.
        negative_scores: [steps, negatives] float.
        allowed: [steps, negatives] bool, False for a negative that the step's session holds ("unseen" negatives only).

    Returns:
        The mean over steps, a scalar; 0 without steps.

    """
    scores = torch.cat([positive_scores[:, None], negative_scores.masked_fill(~allowed, -torch.inf)], dim=1)
    return (torch.logsumexp(scores, dim=1) - positive_scores).sum() / max(len(scores), 1)


def uniform_log_q(negatives: int, tracks: int) -> float:
    """The logarithm of how often a track is among uniform negatives, expected: what logQ correction takes off a score.

    With it exp(score) of a negative stands for all the tracks that were not drawn: the sum over negatives is an
    unbiased estimate of the sum over all tracks. Source: Bengio and Senecal, "Adaptive importance sampling to
    accelerate training of a neural probabilistic language model", 2008, https://doi.org/10.1109/TNN.2007.912312.
    """
    return math.log(negatives / tracks)


def info_nce(
    queries: Tensor, positives: Tensor, negatives: Tensor, steps: Tensor, contrasts: Tensor, temperature: float
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

    Returns:
        The mean over steps that have a positive and at least one negative, a scalar; 0 where there is none.

    """
    queries = F.normalize(queries, dim=-1)
    to_positive = (queries * F.normalize(positives, dim=-1)).sum(dim=-1) / temperature  # [batch, window]
    to_negatives = queries @ F.normalize(negatives, dim=-1).transpose(1, 2) / temperature  # [batch, window, skips]
    scores = torch.cat([to_positive[..., None], to_negatives.masked_fill(~contrasts, -torch.inf)], dim=-1)
    counted = steps & contrasts.any(dim=-1)
    terms = torch.logsumexp(scores, dim=-1) - to_positive
    return torch.where(counted, terms, 0.0).sum() / counted.sum().clamp(min=1)


def info_nce_as_published(
    queries: Tensor, positives: Tensor, skips: Tensor, steps: Tensor, temperature: float
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
    return torch.where(real, terms, 0.0).sum() / real.sum().clamp(min=1)
