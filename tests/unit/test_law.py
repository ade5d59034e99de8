"""The closed form against the naive loop, exactly: by enumeration, in float64, to rounding."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import NaiveLaw, exact, renormalise, retry_loop, sharpen
from rsd import streams
from rsd.law import (
    NUCLEUS,
    TIES,
    Law,
    Parts,
    Sampling,
    acceptable,
    distribution,
    draw,
    everything,
    fallback_posterior,
    guess_of_student,
    guess_of_teacher,
    joint,
    plain_parts,
    rsd_parts,
    sharpened,
    shortlist,
    shortlist_length,
    softmax,
)
from rsd.streams import race, states
from statistical import assert_frequencies

SIZES = st.integers(2, 12)
# Well apart from ties in float arithmetic: ties are tested on their own.
LOGITS = st.floats(-12, 12, allow_nan=False).map(lambda value: round(value, 3))
SAMPLINGS = st.tuples(
    st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0]), st.integers(0, 13), st.sampled_from([0.05, 0.5, 0.95, 1.0])
)


@st.composite
def cases(draw_from: st.DrawFn) -> tuple[list[float], list[float], list[int], NaiveLaw]:
    """Logits of student and teacher, the student's id of each of the teacher's tokens (-1: lacking), a law."""
    size, teacher_size = draw_from(SIZES), draw_from(SIZES)
    student = draw_from(st.lists(LOGITS, min_size=size, max_size=size))
    teacher = draw_from(st.lists(LOGITS, min_size=teacher_size, max_size=teacher_size))
    to_student = (draw_from(st.permutations(range(size))) + [-1] * teacher_size)[:teacher_size]
    lacking = draw_from(st.sets(st.integers(0, teacher_size - 1)))
    law = NaiveLaw(
        threshold=draw_from(st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.3, 0.9, 1.0, 1.5])),
        draws=draw_from(st.integers(1, 7)),
        proposal=draw_from(SAMPLINGS),
        accept_top_k=draw_from(st.integers(0, 13)),
        fallback=draw_from(SAMPLINGS),
    )
    return student, teacher, [-1 if token in lacking else own for token, own in enumerate(to_student)], law


def as_law(law: NaiveLaw) -> Law:
    return Law(law.threshold, law.draws, Sampling(*law.proposal), law.accept_top_k, Sampling(*law.fallback))


def row(values: list[float]) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def naive_law(student, teacher, to_student, law: NaiveLaw):
    """The oracle's P(token, accepted) and P(token, fallback)."""
    proposal = [0.0] * len(student)
    for probability, own in zip(sharpen(teacher, *law.proposal), to_student, strict=True):
        if own >= 0:
            proposal[own] = probability
    return exact(student, proposal, law)


def parts_of(student, teacher, to_student, law: Law, whole: bool = False) -> Parts:
    """The law of one row, or of several equal in number."""
    return rsd_parts(student, softmax(student), teacher, torch.as_tensor(to_student), law, whole=whole)


@pytest.mark.parametrize("whole", [False, True])
@given(case=cases())
@settings(max_examples=300, deadline=None)
def test_closed_form_is_the_law_of_the_retry_loop(whole, case):
    student, teacher, to_student, law = case
    parts = parts_of(row(student), row(teacher), to_student, as_law(law), whole)
    assert parts.complete.all()
    accepted, fallback = (torch.tensor(values, dtype=torch.float64) for values in naive_law(*case))
    q = distribution(parts, len(student))[0]
    assert 0.5 * (q - accepted - fallback).abs().sum() < 1e-12
    posterior = fallback_posterior(parts, len(student))[0]
    assert ((posterior * q) - fallback).abs().max() < 1e-12
    assert math.isclose(float(q.sum()), 1.0, abs_tol=1e-12)


@given(st.lists(LOGITS, min_size=2, max_size=12), SAMPLINGS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_sharpening_is_temperature_then_top_k_then_top_p(logits, sampling, whole):
    sampling_, vocab = Sampling(*sampling), len(logits)
    top = everything(row(logits), sampling_) if whole else shortlist(row(logits), vocab)
    weights, complete = sharpened(top, row(logits), sampling_)
    ours = torch.zeros(1, vocab, dtype=torch.float64).scatter_(-1, top.tokens, weights.double() / weights.sum())
    assert complete.all()
    assert (ours[0] - torch.tensor(sharpen(logits, *sampling), dtype=torch.float64)).abs().max() < 1e-12


# --- shortlists ----------------------------------------------------------------------------------------------------

VOCAB = 64 * 300


def many_logits(seed: int, rows: int = 6, scale: float = 2.0, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, VOCAB, generator=generator) * scale).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 20, 128])
def test_a_shortlist_found_by_blocks_is_the_top_of_all(dtype, length):
    logits = many_logits(length, dtype=dtype)
    top = shortlist(logits, length)
    assert torch.equal(top.logits, logits.sort(dim=-1, descending=True).values[:, :length])
    assert torch.equal(logits.gather(-1, top.tokens), top.logits)
    assert all(len(set(tokens)) == length for tokens in top.tokens.tolist())


LARGE_LAWS = [
    Law(0.01, 5, Sampling(1.0, 20, 1.0), 20, Sampling(1.0, 20, 1.0)),
    Law(0.01, 1, Sampling(0.7, 0, 0.95), 0, Sampling(0.7, 0, 0.9)),
    Law(0.001, 2, Sampling(0.0), 3, Sampling(0.0)),
    Law(0.0, 1, Sampling(1.0, 50, 0.9), 0, Sampling(1.0, 5, 1.0)),
]


@pytest.mark.parametrize("law", LARGE_LAWS)
@pytest.mark.parametrize("scale", [1.0, 3.0, 6.0])
def test_the_law_on_a_shortlist_is_the_law_on_the_whole_vocabulary_where_it_says_so(law, scale):
    student, teacher = many_logits(1, scale=scale), many_logits(1, scale=scale) + many_logits(2, scale=1.0)
    to_student = torch.arange(VOCAB).roll(7)
    short, whole = (parts_of(student, teacher, to_student, law, entire) for entire in (False, True))
    assert whole.complete.all()
    for way in range(2):
        rows = short.complete[:, : way + 1].all(dim=1)
        ours, theirs = (joint(parts, VOCAB)[way][rows] for parts in (short, whole))
        assert torch.allclose(ours, theirs, atol=1e-6)
    if scale == 6.0:
        assert short.complete.all(), "peaked distributions must fit"


def test_a_shortlist_that_is_too_short_says_so():
    flat = torch.zeros(1, VOCAB)
    for sampling in (Sampling(0.0), Sampling(1.0, 20), Sampling(1.0, 0, 0.9), Sampling()):
        top = shortlist(flat, min(shortlist_length(sampling, VOCAB), NUCLEUS))
        assert not sharpened(top, flat, sampling)[1].any()
    tied = torch.full((1, VOCAB), -9.0)
    tied[0, : 20 + TIES - 1] = 1.0  # as many ties with the 20th as fit
    assert sharpened(shortlist(tied, 20 + TIES), tied, Sampling(1.0, 20))[1].all()
    tied[0, 20 + TIES - 1] = 1.0
    assert not sharpened(shortlist(tied, 20 + TIES), tied, Sampling(1.0, 20))[1].any()


def test_a_fallback_that_nothing_cuts_is_complete_only_where_it_is_not_needed():
    student = many_logits(3, rows=200, scale=4.0)
    law = Law(0.01, 1, Sampling(0.7, 0, 0.95), 0, Sampling())
    parts = parts_of(student, student + many_logits(4, rows=200), torch.arange(VOCAB), law)
    _, fallback, complete = draw(parts, states(torch.tensor(1), torch.arange(200)))
    assert 0 < int(fallback.sum()) < 200
    assert torch.equal(complete, ~fallback & parts.complete[:, 0])


# --- drawing -------------------------------------------------------------------------------------------------------


def test_a_race_is_won_in_proportion_to_the_weights(monkeypatch):
    """All pairs of uniforms on a fine grid in place of the noise: no sampling, an error of the grid's width."""
    side = 500
    grid = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    pairs = torch.cartesian_prod(grid, grid)
    monkeypatch.setattr(streams, "uniforms", lambda *_: pairs)
    for weights in ([1.0, 1.0], [3.0, 1.0], [0.02, 1.0], [1.0, 0.0]):
        won = race(torch.tensor([weights]).expand(len(pairs), 2), torch.zeros(len(pairs)), torch.zeros(1)) == 0
        assert abs(float(won.double().mean()) - weights[0] / sum(weights)) < 3 / side


@given(case=cases(), key=st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=12, deadline=None)
def test_drawn_pairs_have_the_joint_law_of_token_and_flag(case, key):
    """20,000 positions of a stream, by a G-test at a false-alarm rate of 1e-9 an example."""
    student, teacher, to_student, law = case
    count = 20_000
    parts = parts_of(row(student), row(teacher), to_student, as_law(law))
    repeated = Parts(*(value.expand(count, *value.shape[1:]) for value in vars(parts).values()))
    tokens, flags, complete = draw(repeated, states(torch.tensor(key), torch.arange(count)))
    assert complete.all()
    accepted, fallback = naive_law(*case)
    counts = Counter((2 * tokens + flags).tolist())
    expected = [probability for pair in zip(accepted, fallback, strict=True) for probability in pair]
    assert_frequencies([counts[cell] for cell in range(2 * len(student))], expected, false_alarm=1e-9)


@pytest.mark.parametrize("weights", [[0.0, 1.0, 0.0], [1e-30, 0.0, 0.0], [0.0, 0.0, 1e30]])
def test_a_token_of_weight_zero_is_never_drawn(weights):
    many = torch.tensor([weights]).expand(5000, 3)
    winners = race(many, states(torch.tensor(3), torch.arange(5000)), torch.arange(3).expand(5000, 3))
    assert (many.gather(1, winners[:, None]) > 0).all()


# --- guesses -------------------------------------------------------------------------------------------------------


@given(case=cases(), key=st.integers(0, 2**40))
@settings(max_examples=200, deadline=None)
def test_the_teachers_guess_is_the_token_just_where_it_is_accepted(case, key):
    student, teacher, to_student, naive = case
    law, noise = as_law(naive), states(torch.tensor([key]), torch.tensor([5]))
    guess = guess_of_teacher(row(teacher), torch.tensor(to_student), law, noise)
    parts = parts_of(row(student), row(teacher), to_student, law)
    token, fallback, _ = draw(parts, noise)
    ways = (parts.accepted_tokens == guess) & (parts.accepted > 0)
    if not fallback and sum(value for value in naive_law(*case)[0]) > 0:
        assert bool(token == guess) == bool(ways.any())


@given(st.lists(LOGITS, min_size=2, max_size=12), SAMPLINGS, st.integers(0, 2**40))
@settings(max_examples=100, deadline=None)
def test_of_identical_models_the_students_guess_is_the_token(logits, sampling, key):
    law = Law(0.0, 1, Sampling(*sampling), 0, Sampling())
    noise = states(torch.tensor([key]), torch.tensor([0]))
    token, fallback, _ = draw(parts_of(row(logits), row(logits), range(len(logits)), law), noise)
    assert not fallback
    assert int(guess_of_student(row(logits), law, noise)) == int(token)


# --- the oracle ----------------------------------------------------------------------------------------------------


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


# --- edges ---------------------------------------------------------------------------------------------------------


def law(threshold=0.01, draws=5, accept_top_k=0):
    return Law(threshold, draws, Sampling(), accept_top_k, Sampling())


def logs(probabilities: list[float]) -> torch.Tensor:
    """Logits [1, n] of these probabilities."""
    return row(probabilities).log()


def same(student, teacher, law: Law) -> Parts:
    """The law of two models of one vocabulary."""
    return parts_of(student, teacher, torch.arange(student.shape[-1]), law)


def test_threshold_zero_is_the_teacher_alone():
    student, teacher = row([3.0, 0.0, -30.0]), logs([0.2, 0.3, 0.5])
    parts = same(student, teacher, law(threshold=0.0))
    assert torch.allclose(distribution(parts, 3), row([0.2, 0.3, 0.5]))
    assert float(parts.rejection) == 0


def test_threshold_above_one_is_the_student_alone():
    student = row([3.0, 0.0, -2.0])
    parts = same(student, logs([0.2, 0.3, 0.5]), law(threshold=1.01))
    assert torch.allclose(distribution(parts, 3), softmax(student))
    assert float(parts.rejection) == 1


def test_token_at_the_threshold_is_accepted():
    student = row([0.0, 0.0])  # 1/2 each, exactly
    top = shortlist(student, 2)
    assert acceptable(softmax(student), student, top, law(threshold=0.5)).all()
    assert not acceptable(softmax(student), student, top, law(threshold=math.nextafter(0.5, 1))).any()


def test_teacher_that_can_propose_nothing_leaves_the_token_to_the_student():
    student = row([1.0, 2.0, 0.0])
    parts = parts_of(student, row([1.0, 2.0]), [-1, -1], law())
    assert float(parts.rejection) == 1
    assert torch.allclose(distribution(parts, 3), softmax(student))


def test_nothing_acceptable_falls_back_with_certainty():
    student = row([10.0, -10.0, -10.0])
    parts = same(student, logs([0.0, 0.5, 0.5]), law())
    assert float(parts.rejection) == 1
    assert not parts.accepted.any()


def test_proposals_outside_the_students_top_k_are_rejected_even_above_the_threshold():
    student, teacher = row([2.0, 1.0, 0.9]), logs([0.0, 0.0, 1.0])
    assert float(same(student, teacher, law(accept_top_k=2)).rejection) == 1
    assert float(same(student, teacher, law(accept_top_k=3)).rejection) == 0


def test_ties_with_the_kth_are_all_in():
    student = row([1.0, 0.5, 0.5, 0.5, 0.0])
    accept = acceptable(softmax(student), student, shortlist(student, 5), law(accept_top_k=2))
    assert accept.tolist() == [[True, True, True, True, False]]


def test_identical_models_never_fall_back_when_everything_is_likely_enough():
    student = row([0.3, 0.1, 0.0])
    parts = same(student, student, law())
    assert float(parts.rejection) == 0
    assert torch.allclose(distribution(parts, 3), softmax(student))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sampling", [Sampling(0.7, 2, 0.9), Sampling(0.7, 0, 0.9), Sampling(0.0)])
def test_half_precision_logits_are_judged_in_float32(dtype, sampling):
    logits = torch.tensor([[4.0, 0.25, -8.0]], dtype=dtype)
    assert softmax(logits).dtype == torch.float32
    assert torch.equal(softmax(logits), softmax(logits.float()))
    ours, theirs = (sharpened(shortlist(values, 3), values, sampling)[0] for values in (logits, logits.float()))
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs)


def test_minus_infinity_is_never_drawn():
    student = torch.tensor([[0.0, -math.inf, 1.0]])
    for threshold in (0.01, 0.0):
        parts = same(student, torch.tensor([[-math.inf, 0.0, -math.inf]]), law(threshold=threshold))
        assert distribution(parts, 3)[0, 1] == 0
        assert not distribution(parts, 3).isnan().any()


def test_plain_sampling_is_the_law_that_accepts_everything():
    parts = plain_parts(logs([0.5, 0.25, 0.25]), Sampling())
    assert torch.allclose(distribution(parts, 3), row([0.5, 0.25, 0.25]))
    assert not parts.rejection.any()
