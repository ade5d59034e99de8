"""The closed form against the naive loop, exactly: by enumeration, in float64, to rounding."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oracle import NaiveLaw, exact, renormalise, retry_loop, sharpen
from rsd.law import (
    Law,
    Sampling,
    acceptable,
    among_top,
    distribution,
    draw,
    fallback_posterior,
    inverse_cdf,
    plain_parts,
    rsd_parts,
    sharpened,
    softmax,
)

SIZES = st.integers(2, 12)
# Well apart from ties in float arithmetic: ties are tested on their own.
LOGITS = st.floats(-12, 12, allow_nan=False).map(lambda value: round(value, 3))
SAMPLINGS = st.tuples(
    st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0]), st.integers(0, 13), st.sampled_from([0.05, 0.5, 0.95, 1.0])
)


@st.composite
def cases(draw_from: st.DrawFn) -> tuple[list[float], list[float], NaiveLaw]:
    size = draw_from(SIZES)
    vector = st.lists(LOGITS, min_size=size, max_size=size)
    lacking = draw_from(st.sets(st.integers(0, size - 1)))
    law = NaiveLaw(
        threshold=draw_from(st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.3, 0.9, 1.0, 1.5])),
        draws=draw_from(st.integers(1, 7)),
        proposal=draw_from(SAMPLINGS),
        accept_top_k=draw_from(st.integers(0, 13)),
        fallback=draw_from(SAMPLINGS),
    )
    proposal = sharpen(draw_from(vector), *law.proposal)
    return draw_from(vector), [0.0 if token in lacking else p for token, p in enumerate(proposal)], law


def as_law(law: NaiveLaw) -> Law:
    return Law(law.threshold, law.draws, Sampling(*law.proposal), law.accept_top_k, Sampling(*law.fallback))


def row(values: list[float]) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


@given(cases())
@settings(max_examples=400, deadline=None)
def test_closed_form_is_the_law_of_the_retry_loop(case):
    student, proposal, law = case
    parts = rsd_parts(row(student), row(proposal), as_law(law))
    accepted, fallback = exact(student, proposal, law)
    q = distribution(parts)[0]
    whole = torch.tensor(accepted, dtype=torch.float64) + torch.tensor(fallback, dtype=torch.float64)
    assert 0.5 * (q - whole).abs().sum() < 1e-12
    posterior = fallback_posterior(parts)[0]
    assert ((posterior * q) - torch.tensor(fallback, dtype=torch.float64)).abs().max() < 1e-12
    assert math.isclose(float(q.sum()), 1.0, abs_tol=1e-12)


@given(st.lists(LOGITS, min_size=2, max_size=12), SAMPLINGS)
@settings(max_examples=300, deadline=None)
def test_sharpening_is_temperature_then_top_k_then_top_p(logits, sampling):
    ours = sharpened(row(logits), Sampling(*sampling))[0]
    assert (ours - torch.tensor(sharpen(logits, *sampling), dtype=torch.float64)).abs().max() < 1e-12


@given(cases(), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_drawn_pairs_have_the_joint_law_of_token_and_flag(case, seed):
    """The whole square of the two uniforms on a fine grid: the shares are the probabilities, to the grid's width."""
    student, proposal, law = case
    parts = rsd_parts(row(student), row(proposal), as_law(law))
    side = 64
    grid = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    pairs = torch.cartesian_prod(grid, grid)
    repeated = type(parts)(
        parts.accepted.expand(len(pairs), -1), parts.rejection.expand(len(pairs)), parts.fallback.expand(len(pairs), -1)
    )
    tokens, flags = draw(repeated, pairs)
    shares = Counter(zip(tokens.tolist(), flags.tolist(), strict=True))
    accepted, fallback = exact(student, proposal, law)
    for token in range(len(student)):
        for flag, expected in ((False, accepted[token]), (True, fallback[token])):
            assert abs(shares[token, flag] / len(pairs) - expected) <= 2.1 / side


def test_retry_loop_of_the_oracle_has_the_enumerated_law():
    """The oracle checks itself: its loop, sampled 40,000 times, against its enumeration (4 sigma a cell)."""
    generator = torch.Generator().manual_seed(5)
    student, law = [2.0, 0.5, -1.0, -3.0], NaiveLaw(0.1, 3, (1.0, 0, 1.0), 0, (1.0, 0, 1.0))
    proposal = renormalise([0.1, 0.2, 0.3, 0.4])

    def sample(probabilities: list[float]) -> int:
        return int(torch.multinomial(torch.tensor(probabilities), 1, generator=generator))

    count = 40_000
    seen = Counter(retry_loop(student, proposal, law, sample) for _ in range(count))
    accepted, fallback = exact(student, proposal, law)
    for token in range(4):
        for flag, expected in ((False, accepted[token]), (True, fallback[token])):
            assert abs(seen[token, flag] / count - expected) < 4 * math.sqrt(expected * (1 - expected) / count) + 1e-9


def law(threshold=0.01, draws=5, accept_top_k=0):
    return Law(threshold, draws, Sampling(), accept_top_k, Sampling())


def test_threshold_zero_is_the_teacher_alone():
    student, proposal = row([3.0, 0.0, -30.0]), row([0.2, 0.3, 0.5])
    parts = rsd_parts(student, proposal, law(threshold=0.0))
    assert torch.equal(distribution(parts), proposal)
    assert float(parts.rejection) == 0


def test_threshold_above_one_is_the_student_alone():
    student = row([3.0, 0.0, -2.0])
    parts = rsd_parts(student, row([0.2, 0.3, 0.5]), law(threshold=1.01))
    assert torch.allclose(distribution(parts), softmax(student))
    assert float(parts.rejection) == 1


def test_token_at_the_threshold_is_accepted():
    student = row([0.0, 0.0])  # 1/2 each, exactly
    assert acceptable(student, law(threshold=0.5)).tolist() == [[True, True]]
    assert acceptable(student, law(threshold=math.nextafter(0.5, 1))).tolist() == [[False, False]]


def test_teacher_that_can_propose_nothing_leaves_the_token_to_the_student():
    student = row([1.0, 2.0, 0.0])
    parts = rsd_parts(student, row([0.0, 0.0, 0.0]), law())
    assert float(parts.rejection) == 1
    assert torch.allclose(distribution(parts), softmax(student))


def test_nothing_acceptable_falls_back_with_certainty():
    student = row([10.0, -10.0, -10.0])
    parts = rsd_parts(student, row([0.0, 0.5, 0.5]), law())
    assert float(parts.rejection) == 1
    assert not parts.accepted.any()


def test_proposals_outside_the_students_top_k_are_rejected_even_above_the_threshold():
    student, proposal = row([2.0, 1.0, 0.9]), row([0.0, 0.0, 1.0])
    assert float(rsd_parts(student, proposal, law(accept_top_k=2)).rejection) == 1
    assert float(rsd_parts(student, proposal, law(accept_top_k=3)).rejection) == 0


def test_ties_with_the_kth_are_all_in():
    assert among_top(row([1.0, 0.5, 0.5, 0.5, 0.0]), 2).tolist() == [[True, True, True, True, False]]


def test_identical_models_never_fall_back_when_everything_is_likely_enough():
    student = row([0.3, 0.1, 0.0])
    parts = rsd_parts(student, softmax(student), law())
    assert float(parts.rejection) == 0
    assert torch.allclose(distribution(parts), softmax(student))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_judged_in_float32(dtype):
    logits = torch.tensor([[4.0, 0.25, -8.0]], dtype=dtype)
    assert softmax(logits).dtype == torch.float32
    assert torch.equal(softmax(logits), softmax(logits.float()))
    assert torch.equal(sharpened(logits, Sampling(0.7, 2, 0.9)), sharpened(logits.float(), Sampling(0.7, 2, 0.9)))


def test_minus_infinity_is_never_drawn():
    student = torch.tensor([[0.0, -math.inf, 1.0]])
    parts = rsd_parts(student, torch.tensor([[0.0, 1.0, 0.0]]), law())
    assert distribution(parts)[0, 1] == 0
    assert not distribution(parts).isnan().any()


@given(
    st.lists(st.sampled_from([0.0, 0.0, 1e-12, 0.25, 1.0]), min_size=1, max_size=9).filter(any),
    st.floats(0, 1, exclude_max=True),
)
@example([1.0, 0.0], math.nextafter(1.0, 0.0))
@example([0.0, 1.0], 0.0)
def test_inverse_cdf_never_returns_a_token_of_weight_zero(weights, uniform):
    token = int(inverse_cdf(row(weights), torch.tensor([uniform], dtype=torch.float64)))
    assert weights[token] > 0


def test_plain_sampling_is_the_law_that_accepts_everything():
    probabilities = row([0.5, 0.25, 0.25])
    parts = plain_parts(probabilities)
    assert torch.equal(distribution(parts), probabilities)
    assert not draw(parts, torch.tensor([[0.0, 0.9]], dtype=torch.float64))[1].any()
