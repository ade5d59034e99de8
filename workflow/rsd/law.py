"""The next-token law of Reverse Speculative Decoding, as a distribution. Pure tensor functions.

At a position, with `T` the teacher's proposal distribution, `F` the student's fallback distribution, `A` the set of
acceptable tokens, and up to `n` independent draws, a retry loop returns the first acceptable draw, or else a token of
the student's own (arXiv 2509.22230, the accept rule; draws and top-k as in the authors' code). Since the draws are
independent given the context, the loop has the closed form

    q(y) = 1[y in A] T(y) (1 - r^n) / (1 - r)  +  r^n F(y),        r = 1 - T(A),

and `y` came by fallback with probability r^n F(y) / q(y). All tensors are [batch, vocab] over the student's vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How a distribution is sharpened and cut before sampling, in this order; 0 and 1.0 leave it as it is."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 keeps all; ties with the k-th are kept
    top_p: float = 1.0


@dataclass(frozen=True)
class Law:
    """One RSD law: who proposes how, what is acceptable, what happens otherwise."""

    threshold: float
    draws: int
    proposal: Sampling
    accept_top_k: int  # 0 asks nothing
    fallback: Sampling


@dataclass(frozen=True)
class Parts:
    """The two ways to a token: `accepted` [batch, vocab] = 1[A] T, unnormalised; `rejection` [batch] = r^n, the
    probability that all draws are rejected; `fallback` [batch, vocab] = F."""

    accepted: Tensor
    rejection: Tensor
    fallback: Tensor


def softmax(logits: Tensor) -> Tensor:
    """[batch, vocab] of any float dtype, -inf allowed -> probabilities in float32 (float64 stays)."""
    return torch.softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def among_top(values: Tensor, k: int) -> Tensor:
    """[batch, vocab] bool: is the value among the row's k largest? Ties with the k-th are in: order cannot matter."""
    if k <= 0 or k >= values.shape[-1]:
        return torch.ones_like(values, dtype=torch.bool)
    return values >= values.topk(k, dim=-1).values[..., -1:]


def normalised(weights: Tensor) -> Tensor:
    """Rows that sum to one; rows without any weight stay zero."""
    total = weights.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, weights / total, torch.zeros_like(weights))


def sharpened(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution [batch, vocab] that `sampling` makes of raw logits."""
    if sampling.temperature == 0:
        return torch.zeros_like(softmax(logits)).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    probabilities = softmax(logits / sampling.temperature)
    if sampling.top_k:
        probabilities = normalised(probabilities * among_top(logits, sampling.top_k))
    if sampling.top_p < 1:
        ordered, index = probabilities.sort(dim=-1, descending=True, stable=True)
        # A token stays while the mass before it is short of top_p, so that the smallest sufficient set remains.
        before = ordered.cumsum(dim=-1) - ordered
        probabilities = normalised(torch.zeros_like(ordered).scatter_(-1, index, ordered * (before < sampling.top_p)))
    return probabilities


def acceptable(student_logits: Tensor, law: Law) -> Tensor:
    """The accept rule, [batch, vocab] bool: the student's raw probability at temperature 1 is at least the threshold
    (`>=`), and the token is among its `accept_top_k` most probable ones. Threshold 0 accepts everything."""
    everything = torch.ones_like(student_logits, dtype=torch.bool)
    if law.threshold > 0:
        everything = softmax(student_logits) >= law.threshold
    return everything & among_top(student_logits, law.accept_top_k)


def rsd_parts(student_logits: Tensor, proposal: Tensor, law: Law) -> Parts:
    """The law at each row.

    `student_logits` [batch, vocab] raw; `proposal` [batch, vocab] = T, zero for tokens that the teacher lacks, rows
    that are all zero where it can propose nothing (then every draw counts as rejected).
    """
    accept = acceptable(student_logits, law)
    accepted = proposal * accept
    # The rejected mass is summed itself: 1 - sum(accepted) would be a rounding error away from an exact zero.
    rejected, mass = (proposal * ~accept).sum(dim=-1), accepted.sum(dim=-1)
    total = rejected + mass
    share = torch.where(total > 0, rejected / total, torch.ones_like(total))
    return Parts(accepted, share.pow(law.draws), sharpened(student_logits, law.fallback))


def plain_parts(probabilities: Tensor) -> Parts:
    """Plain sampling as the same law: everything is accepted."""
    return Parts(probabilities, torch.zeros_like(probabilities[..., 0]), probabilities)


def distribution(parts: Parts) -> Tensor:
    """q [batch, vocab], the closed form."""
    rejection = parts.rejection[..., None]
    return normalised(parts.accepted) * (1 - rejection) + rejection * parts.fallback


def fallback_posterior(parts: Parts) -> Tensor:
    """[batch, vocab]: the probability that a token came by fallback, given that it came; 0 where it cannot come."""
    by_fallback = parts.rejection[..., None] * parts.fallback
    whole = distribution(parts)
    return torch.where(whole > 0, by_fallback / whole, torch.zeros_like(whole))


def draw(parts: Parts, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draws a token a row, and how it came, from two uniforms a row.

    `uniforms` [batch, 2] float64 in [0, 1): the first decides whether all draws were rejected, the second picks the
    token by inverting the distribution function of that branch. Returns token ids [batch] int64 and the fallback flags
    [batch] bool; their joint law is exactly (1 - r^n) T(y|A) and r^n F(y).
    """
    fallback = uniforms[:, 0] < parts.rejection
    return inverse_cdf(torch.where(fallback[:, None], parts.fallback, parts.accepted), uniforms[:, 1]), fallback


def inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """The token ids [batch] at which the distribution function of unnormalised `weights` [batch, vocab] passes
    `uniform` [batch] in [0, 1). A token of weight zero is never returned."""
    # float64: over 150,000 tokens a float32 sum would be off by more than the rare tokens' probabilities.
    cumulative = weights.double().cumsum(dim=-1)
    target = uniform[:, None] * cumulative[:, -1:]
    # side="right" passes over tokens of weight zero at the target; rounding may still put it at the very end.
    index = torch.searchsorted(cumulative, target, right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous(), right=False)
    return torch.minimum(index, last).squeeze(-1)
