"""Reverse Speculative Decoding written naively from its definition, to hold the fast code against.

No cache, no batch, no tensor tricks: probabilities are Python lists, the retry loop is a loop, and exact probabilities
come from enumerating what the loop can do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Probabilities = list[float]


def softmax(logits: Sequence[float], temperature: float = 1.0) -> Probabilities:
    largest = max(logits)
    weights = [math.exp((value - largest) / temperature) for value in logits]
    return [weight / math.fsum(weights) for weight in weights]


def sharpen(logits: Sequence[float], temperature: float, top_k: int, top_p: float) -> Probabilities:
    """Temperature, then top-k, then top-p (the smallest sufficient set); ties with the last that stays stay too."""
    if temperature == 0:
        best = max(range(len(logits)), key=lambda token: (logits[token], -token))
        return [1.0 if token == best else 0.0 for token in range(len(logits))]
    probabilities = softmax(logits, temperature)
    if top_k and top_k < len(logits):
        kth = sorted(logits, reverse=True)[top_k - 1]
        probabilities = renormalise(
            [p if logit >= kth else 0.0 for p, logit in zip(probabilities, logits, strict=True)]
        )
    if top_p < 1:
        kept, mass = set(), 0.0
        for token in sorted(range(len(probabilities)), key=lambda token: (-probabilities[token], token)):
            if mass >= top_p:
                break
            kept.add(token)
            mass += probabilities[token]
        least = min(logits[token] for token in kept)
        probabilities = renormalise(
            [p if logit >= least else 0.0 for p, logit in zip(probabilities, logits, strict=True)]
        )
    return probabilities


def renormalise(weights: Sequence[float]) -> Probabilities:
    total = math.fsum(weights)
    return [weight / total if total > 0 else 0.0 for weight in weights]


@dataclass(frozen=True)
class NaiveLaw:
    """The settings of a law, as plain numbers: (temperature, top_k, top_p) for proposal and fallback."""

    threshold: float
    draws: int
    proposal: tuple[float, int, float]
    accept_top_k: int
    fallback: tuple[float, int, float]


def accepts(token: int, student_logits: Sequence[float], law: NaiveLaw) -> bool:
    if softmax(student_logits)[token] < law.threshold:
        return False
    if law.accept_top_k == 0 or law.accept_top_k >= len(student_logits):
        return True
    return student_logits[token] >= sorted(student_logits, reverse=True)[law.accept_top_k - 1]


def retry_loop(
    student_logits: Sequence[float],
    proposal: Probabilities,
    law: NaiveLaw,
    sample: Callable[[Probabilities], int],
) -> tuple[int, bool]:
    """The loop as the paper and the authors' code have it: returns the token and whether it came by fallback."""
    if math.fsum(proposal) > 0:
        for _ in range(law.draws):
            token = sample(proposal)
            if accepts(token, student_logits, law):
                return token, False
    return sample(sharpen(student_logits, *law.fallback)), True


def exact(
    student_logits: Sequence[float], proposal: Probabilities, law: NaiveLaw
) -> tuple[Probabilities, Probabilities]:
    """The loop's exact law by following every branch: P(token, accepted) and P(token, fallback)."""
    size = len(student_logits)
    proposal = renormalise(proposal)
    accepted, fallback = [0.0] * size, [0.0] * size
    reaching = 1.0  # the probability that this draw is made at all
    for _ in range(law.draws if math.fsum(proposal) > 0 else 0):
        rejected = 0.0
        for token in range(size):
            if accepts(token, student_logits, law):
                accepted[token] += reaching * proposal[token]
            else:
                rejected += proposal[token]
        reaching *= rejected
    for token, probability in enumerate(sharpen(student_logits, *law.fallback)):
        fallback[token] = reaching * probability
    return accepted, fallback
