"""The next-token law of Reverse Speculative Decoding, in closed form. Pure tensor functions.

At a position, with `T` the teacher's proposal distribution, `F` the student's fallback distribution, `A` the set of
acceptable tokens, and up to `n` independent draws, a retry loop returns the first acceptable draw, or else a token of
the student's own (arXiv 2509.22230, the accept rule; draws and top-k as in the authors' code). Since the draws are
independent given the context, the loop has the closed form

    q(y) = 1[y in A] T(y) (1 - r^n) / (1 - r)  +  r^n F(y),        r = 1 - T(A),

and `y` came by fallback with probability r^n F(y) / q(y).

A vocabulary has 150,000 tokens and a law rarely more than some dozens that matter, so everything after one pass over
the logits works on a shortlist: the most probable tokens of a row, in order. A row knows whether its shortlist holds
all that the law can emit there (`complete`); where it does not, the caller asks again with the whole vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from rsd.streams import FALLBACK, race, uniforms

# Length of a shortlist: this much more than top_k, for ties with the k-th; or this long where only top_p cuts.
TIES, NUCLEUS = 12, 128
_BLOCK = 64


@dataclass(frozen=True)
class Sampling:
    """How a distribution is sharpened and cut before sampling, in this order; 0 and 1.0 leave it as it is.

    Ties with the last token that stays are kept, so that an order of ties cannot matter.
    """

    temperature: float = 1.0  # 0 is greedy: the most probable token, of several the one of the lowest id
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0  # the smallest set of most probable tokens with at least this probability

    @property
    def cuts(self) -> bool:
        """Does it leave some tokens out?"""
        return self.temperature == 0 or self.top_k > 0 or self.top_p < 1


@dataclass(frozen=True)
class Law:
    """One RSD law: who proposes how, what is acceptable, what happens otherwise."""

    threshold: float
    draws: int
    proposal: Sampling
    accept_top_k: int  # 0 asks nothing
    fallback: Sampling


@dataclass(frozen=True)
class Shortlist:
    """Tokens of each row: `logits` [rows, n] float, `tokens` [rows, n] int64; in descending order where `ordered`.

    `whole`: n is the vocabulary.
    """

    logits: Tensor
    tokens: Tensor
    whole: bool


@dataclass(frozen=True)
class Parts:
    """The two ways to a token, over the student's ids.

    `accepted` [rows, n] = 1[A] T without a norm, of `accepted_tokens` [rows, n]; `fallback` [rows, n] = F without a
    norm, of `fallback_tokens`; `rejection` [rows] = r^n, the probability that all draws are rejected. `complete`
    [rows, 2] bool: do accepted and rejection, and does the fallback, hold all that belongs to them?
    """

    accepted: Tensor
    accepted_tokens: Tensor
    fallback: Tensor
    fallback_tokens: Tensor
    rejection: Tensor
    complete: Tensor


def softmax(logits: Tensor) -> Tensor:
    """[rows, vocab] of any float dtype, -inf allowed -> probabilities in float32 (float64 stays)."""
    return torch.softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


# --- shortlists ----------------------------------------------------------------------------------------------------


def shortlist_length(sampling: Sampling, vocab: int) -> int:
    """How long a shortlist shall be so that it nearly always holds all that `sampling` leaves."""
    if sampling.temperature == 0:
        return min(TIES, vocab)
    if sampling.top_k:
        return min(sampling.top_k + TIES, vocab)
    return min(NUCLEUS, vocab) if sampling.top_p < 1 else vocab


def shortlist(logits: Tensor, length: int) -> Shortlist:
    """The `length` most probable tokens of each row of `logits` [rows, vocab], in descending order."""
    rows, vocab = logits.shape
    length = min(length, vocab)
    blocks = vocab // _BLOCK
    if vocab % _BLOCK or blocks <= 2 * length:
        top = logits.topk(length)
        return Shortlist(top.values, top.indices, length == vocab)
    # The k largest values lie in the k blocks with the largest maxima: one cheap pass instead of a selection over all.
    blocked = logits.reshape(rows, blocks, _BLOCK)
    best = blocked.amax(dim=-1).topk(length).indices  # [rows, length]
    inside = blocked.gather(1, best[..., None].expand(-1, -1, _BLOCK)).flatten(1)
    top = inside.topk(length)
    tokens = best.gather(1, top.indices // _BLOCK) * _BLOCK + top.indices % _BLOCK
    return Shortlist(top.values, tokens, False)


def everything(logits: Tensor, sampling: Sampling) -> Shortlist:
    """The whole vocabulary as a shortlist; sorted only where `sampling` has a use for that."""
    if sampling.top_p < 1 or sampling.top_k:
        return shortlist(logits, logits.shape[-1])
    return Shortlist(logits, torch.arange(logits.shape[-1], device=logits.device).expand_as(logits), True)


def sharpened(top: Shortlist, logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """What `sampling` makes of the distribution of `logits` [rows, vocab], on the shortlist `top`.

    Returns weights [rows, n] without a norm (0 where cut off), float32 (float64 stays), and [rows] bool: does the
    shortlist hold all that was not cut off?
    """
    if sampling.temperature == 0:
        return _greedy(top, logits.shape[-1])
    values = top.logits if top.logits.dtype == torch.float64 else top.logits.float()
    if top.whole or sampling.top_k:
        weights = torch.exp((values - values.amax(dim=-1, keepdim=True)) / sampling.temperature)
    else:
        weights = softmax(logits / sampling.temperature).gather(-1, top.tokens)
    complete = torch.full_like(weights[:, 0], top.whole, dtype=torch.bool)
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        floor = values[:, sampling.top_k - 1, None]
        weights = weights * (values >= floor)
        complete = complete | (values[:, -1:] < floor).squeeze(-1)
    if sampling.top_p < 1:
        within = weights.double()
        needed = sampling.top_p * (within.sum(dim=-1, keepdim=True) if top.whole or sampling.top_k else 1.0)
        before = within.cumsum(dim=-1) - within
        # A token stays while the mass before it is short of top_p: the smallest sufficient set, and ties with its last.
        last = (before < needed).sum(dim=-1, keepdim=True).clamp(min=1) - 1
        floor = values.gather(-1, last)
        weights = weights * (values >= floor)
        if not (top.whole or sampling.top_k):
            complete = (before[:, -1] + within[:, -1] >= needed) & (values[:, -1:] < floor).squeeze(-1)
    return weights, complete


def _greedy(top: Shortlist, vocab: int) -> tuple[Tensor, Tensor]:
    best = top.logits == top.logits.amax(dim=-1, keepdim=True)
    lowest = torch.where(best, top.tokens, vocab).amin(dim=-1, keepdim=True)
    complete = ~best[:, -1] if not top.whole else torch.ones_like(best[:, 0])
    return (top.tokens == lowest).float(), complete


# --- the law -------------------------------------------------------------------------------------------------------


def acceptable(probabilities: Tensor, logits: Tensor, top: Shortlist, law: Law) -> Tensor:
    """The accept rule for some tokens of each row, [rows, n] bool: the student's raw probability at temperature 1 is at
    least the threshold (`>=`), and the token is among the `accept_top_k` most probable ones, ties included.

    `probabilities`, `logits` [rows, n]: the student's, of these tokens; `top`: the student's shortlist. Threshold 0
    accepts every token there is; one of logit -inf is none.
    """
    accept = (probabilities >= law.threshold) & (logits > float("-inf"))
    if 0 < law.accept_top_k < top.logits.shape[-1]:
        accept &= logits >= top.logits[:, law.accept_top_k - 1, None]
    return accept


def rsd_parts(
    student_logits: Tensor,
    probabilities: Tensor,
    teacher_logits: Tensor,
    to_student: Tensor,
    law: Law,
    *,
    whole: bool = False,
) -> Parts:
    """The law at each row.

    `student_logits` [rows, student vocab] raw and their `softmax`, `teacher_logits` [rows, teacher vocab] raw, each
    model at its own reading of the same context; `to_student` [teacher vocab] int64, -1 for a token that the student
    lacks. Where the teacher can propose nothing, every draw counts as rejected. `whole` takes the whole vocabularies as
    shortlists.
    """
    mine = _student_shortlist(student_logits, law, whole)
    theirs = (
        everything(teacher_logits, law.proposal)
        if whole
        else shortlist(teacher_logits, shortlist_length(law.proposal, teacher_logits.shape[-1]))
    )
    proposal, complete = sharpened(theirs, teacher_logits, law.proposal)
    tokens = to_student[theirs.tokens]
    known = tokens >= 0
    tokens = tokens.clamp(min=0)
    accept = known & acceptable(probabilities.gather(-1, tokens), student_logits.gather(-1, tokens), mine, law)
    proposal = proposal * known
    accepted = proposal * accept
    # The rejected mass is summed itself: 1 - sum(accepted) would be a rounding error away from an exact zero.
    rejected, mass = (proposal * ~accept).sum(dim=-1), accepted.sum(dim=-1)
    total = rejected + mass
    share = torch.where(total > 0, rejected / total, torch.ones_like(total))
    fallback, fallback_complete = sharpened(mine, student_logits, law.fallback)
    return Parts(
        accepted,
        tokens,
        fallback,
        mine.tokens,
        _power(share, law.draws),
        torch.stack((complete, fallback_complete), dim=-1),
    )


def _power(base: Tensor, exponent: int) -> Tensor:
    """`base` to the whole `exponent`, by products: torch.pow gives the last numbers of a tensor other bits."""
    half = _power(base * base, exponent // 2) if exponent > 1 else torch.ones_like(base)
    return half * base if exponent % 2 else half


def _student_shortlist(logits: Tensor, law: Law, whole: bool) -> Shortlist:
    """The student's tokens for the fallback, in descending order at least as far as the accept rule looks."""
    if whole:
        return everything(logits, Sampling(top_k=law.accept_top_k or law.fallback.top_k, top_p=law.fallback.top_p))
    # A fallback that nothing cuts is rare: its rows are asked for again, rather than all rows sorted.
    length = shortlist_length(law.fallback, logits.shape[-1]) if law.fallback.cuts else NUCLEUS
    return shortlist(logits, max(length, law.accept_top_k))


def plain_parts(logits: Tensor, sampling: Sampling, *, whole: bool = False) -> Parts:
    """Plain sampling of `logits` [rows, vocab] as the same law: everything is accepted."""
    length = shortlist_length(sampling, logits.shape[-1])
    top = everything(logits, sampling) if whole or length == logits.shape[-1] else shortlist(logits, length)
    weights, complete = sharpened(top, logits, sampling)
    never = torch.zeros_like(weights[:, 0])
    return Parts(weights, top.tokens, weights, top.tokens, never, torch.stack((complete, complete), dim=-1))


def draw(parts: Parts, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draws a token a row, and how it came, from the noise of `states` [rows] (see `streams`).

    One uniform number decides whether all draws were rejected, a race among that way's tokens picks one. Returns token
    ids [rows] int64, the fallback flags [rows] bool, whose joint law is exactly (1 - r^n) T(y|A) and r^n F(y); and
    [rows] bool, whether `parts` held all that this needed.
    """
    fallback = uniforms(states, FALLBACK) < parts.rejection
    flags = fallback[:, None]
    length = max(parts.accepted.shape[-1], parts.fallback.shape[-1])
    weights = torch.where(flags, _padded(parts.fallback, length), _padded(parts.accepted, length))
    tokens = torch.where(flags, _padded(parts.fallback_tokens, length), _padded(parts.accepted_tokens, length))
    winner = race(weights, states, tokens)
    complete = parts.complete[:, 0] & (parts.complete[:, 1] | ~fallback)
    return tokens.gather(-1, winner[:, None]).squeeze(-1), fallback, complete


def _padded(values: Tensor, length: int) -> Tensor:
    return values if values.shape[-1] == length else pad(values, (0, length - values.shape[-1]))


# --- guesses -------------------------------------------------------------------------------------------------------


def guess_of_student(logits: Tensor, law: Law, states: Tensor) -> Tensor:
    """What the law will probably emit, by the student alone: `logits` [rows, vocab] -> token ids [rows].

    The student stands in for the teacher, on the same noise: what it would propose and accept itself.
    """
    top = shortlist(logits, _guess_length(law.proposal, logits.shape[-1]))
    weights, _ = sharpened(top, logits, law.proposal)
    likely = torch.softmax(top.logits.float(), dim=-1) >= law.threshold
    return top.tokens.gather(-1, race(weights * likely, states, top.tokens)[:, None]).squeeze(-1)


def guess_of_teacher(logits: Tensor, to_student: Tensor, law: Law, states: Tensor) -> Tensor:
    """What the law will probably emit, by the teacher alone, over the student's ids: its first proposal.

    Cut to the acceptable tokens the same race has the same winner, if that is one of them: so this guess is wrong
    just where the student rejects it.
    """
    top = shortlist(logits, _guess_length(law.proposal, logits.shape[-1]))
    weights, _ = sharpened(top, logits, law.proposal)
    tokens = to_student[top.tokens]
    weights = weights * (tokens >= 0)
    tokens = tokens.clamp(min=0)
    return tokens.gather(-1, race(weights, states, tokens)[:, None]).squeeze(-1)


def _guess_length(sampling: Sampling, vocab: int) -> int:
    length = shortlist_length(sampling, vocab)
    return length if length < vocab else min(NUCLEUS, vocab)


# --- the law as a whole, for tests and analyses ----------------------------------------------------------------------


def distribution(parts: Parts, vocab: int) -> Tensor:
    """q [rows, vocab], the closed form, of complete parts."""
    accepted, fallback = joint(parts, vocab)
    return accepted + fallback


def joint(parts: Parts, vocab: int) -> tuple[Tensor, Tensor]:
    """P(y, accepted) and P(y, by fallback), each [rows, vocab], of complete parts."""
    rejection = parts.rejection[:, None]
    accepted = _dense(parts.accepted, parts.accepted_tokens, vocab) * (1 - rejection)
    return accepted, _dense(parts.fallback, parts.fallback_tokens, vocab) * rejection


def fallback_posterior(parts: Parts, vocab: int) -> Tensor:
    """[rows, vocab]: the probability that a token came by fallback, given that it came; 0 where it cannot come."""
    accepted, fallback = joint(parts, vocab)
    whole = accepted + fallback
    return torch.where(whole > 0, fallback / whole, torch.zeros_like(whole))


def _dense(weights: Tensor, tokens: Tensor, vocab: int) -> Tensor:
    total = weights.sum(dim=-1, keepdim=True)
    normalised = torch.where(total > 0, weights / total, torch.zeros_like(weights))
    return weights.new_zeros(len(weights), vocab).scatter_add_(-1, tokens, normalised)
