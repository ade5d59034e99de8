"""Scores against a full softmax in plain Python, against the decoder's own probabilities, and at the edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GraniteConfig, GraniteForCausalLM

from oracle import softmax
from pairs import END, STUDENT_SIZE, TEACHER_SIZE, THINK, tiny_alignment, tiny_model
from rsd.decode import Request, generate_rsd, sample
from rsd.law import Law, Sampling
from rsd.scoring import TokenScores, _statistics, score_tokens

Row = tuple[list[int], list[int]]
MODEL = tiny_model(1, STUDENT_SIZE, scale=3.0)
IDS = st.lists(st.integers(0, STUDENT_SIZE - 1), max_size=9)
ROWS = st.lists(st.tuples(IDS.filter(bool), IDS), max_size=4)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def naive(logits: list[float], token: int) -> tuple[float, int, float]:
    """Probability, rank and entropy of one token by the definition."""
    probabilities = softmax(logits)
    entropy = -math.fsum(p * math.log(p) for p in probabilities if p > 0)
    return probabilities[token], 1 + sum(other > logits[token] for other in logits), entropy


def oracle(model: Any, row: Row, known: set[int] | None = None) -> list[tuple[float, int, float]]:
    """Every completion token by a pass over the whole row, without a cache."""
    prompt, completion = row
    if not completion:
        return []
    logits = model(torch.tensor([prompt + completion]), use_cache=False).logits[0].double().tolist()
    if known is not None:
        logits = [[value if token in known else -math.inf for token, value in enumerate(line)] for line in logits]
    return [naive(logits[len(prompt) - 1 + n], token) for n, token in enumerate(completion)]


def assert_scores(scores: TokenScores, expected: list[tuple[float, int, float]], rtol: float = 1e-5) -> None:
    assert (scores.probability.dtype, scores.rank.dtype, scores.entropy.dtype) == (np.float32, np.int32, np.float32)
    probability, rank, entropy = zip(*expected, strict=True) if expected else ((), (), ())
    np.testing.assert_allclose(scores.probability, probability, rtol=rtol, atol=1e-12)
    np.testing.assert_array_equal(scores.rank, rank)
    np.testing.assert_allclose(scores.entropy, entropy, rtol=rtol, atol=1e-6)


# --- the numbers ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(ROWS, st.sampled_from([1, 2, 3, 512]))
def test_scores_are_those_of_a_full_softmax_however_a_row_is_cut(rows: list[Row], positions: int) -> None:
    found = list(score_tokens(MODEL, rows, positions=positions))
    assert len(found) == len(rows)
    for row, scores in zip(rows, found, strict=True):
        assert_scores(scores, oracle(MODEL, row))


@settings(max_examples=20, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_a_row_is_scored_alike_whatever_stands_beside_it(rows: list[Row], random: Any) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    mixed = list(score_tokens(MODEL, [rows[index] for index in order]))
    for place, index in enumerate(order):
        (alone,) = score_tokens(MODEL, [rows[index]])
        for name in ("probability", "rank", "entropy"):
            np.testing.assert_array_equal(getattr(mixed[place], name), getattr(alone, name))


def test_rows_of_the_output_layer_without_a_token_have_no_share() -> None:
    known = torch.ones(STUDENT_SIZE, dtype=torch.bool)
    known[[3, 20]] = False
    row = ([5, 6], [1, 2, 21, 7])
    (scores,) = score_tokens(MODEL, [row], known=known)
    assert_scores(scores, oracle(MODEL, row, set(known.nonzero().flatten().tolist())))
    (whole,) = score_tokens(MODEL, [row])
    assert (scores.probability > whole.probability).all()


def test_a_scale_behind_the_output_layer_is_the_models_own() -> None:
    """Granite divides its logits; scores that apply the output layer alone would be too sharp."""
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        logits_scaling=4.0,
        pad_token_id=0,
    )
    model = GraniteForCausalLM(config).eval().requires_grad_(False)
    model.lm_head.weight.mul_(20)
    row = ([1, 2, 3], [4, 5, 6, 7])
    (scores,) = score_tokens(model, [row], positions=2)
    assert_scores(scores, oracle(model, row))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_softmax_is_taken_in_float32(dtype: torch.dtype) -> None:
    logits = (torch.randn(70, 300, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    tokens = torch.arange(70)
    probability, rank, entropy = _statistics(logits, tokens, torch.zeros(0, dtype=torch.int64))
    found = TokenScores(probability.numpy(), rank.int().numpy(), entropy.numpy())
    assert_scores(found, [naive(line.double().tolist(), n) for n, line in enumerate(logits)], rtol=2e-6)


def test_equal_logits_share_the_better_rank() -> None:
    logits = torch.tensor([[2.0, 3.0, 2.0, 1.0]]).expand(4, -1)
    _, rank, _ = _statistics(logits, torch.arange(4), torch.zeros(0, dtype=torch.int64))
    assert rank.tolist() == [2, 1, 2, 4]


def test_an_impossible_token_has_probability_zero_and_the_last_rank() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0, -math.inf]]).expand(2, -1)
    probability, rank, entropy = _statistics(logits, torch.tensor([1, 2]), torch.zeros(0, dtype=torch.int64))
    assert probability.tolist() == [0.0, 0.5]
    assert rank.tolist() == [3, 1]
    np.testing.assert_allclose(entropy, math.log(2), rtol=1e-6)


# --- the decoder ----------------------------------------------------------------------------------------------------


def requests() -> list[Request]:
    generator = np.random.default_rng(0)
    prompts = [generator.integers(2, 20, length).tolist() for length in (1, 4, 17, *range(2, 14))]
    return [Request(n, ids, [7, *(token + 2 for token in ids)], ("test", n)) for n, ids in enumerate(prompts)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_the_probabilities_that_the_decoder_recorded(dtype: torch.dtype) -> None:
    """Of RSD attempts under their student; each pass rounds in its own way, bfloat16 to two to three digits."""
    known = torch.ones(STUDENT_SIZE, dtype=torch.bool)
    known[4] = False
    asked = requests()
    made = generate_rsd(
        tiny_model(1, STUDENT_SIZE, scale=2.0).to(dtype),
        tiny_model(2, TEACHER_SIZE).to(dtype),
        tiny_alignment(),
        asked,
        law=Law(0.03, 3, Sampling(1.0, 20, 1.0), 20, Sampling(1.0, 20, 1.0)),
        end_of_turn=END,
        context=90,
        max_new_tokens=60,
        lanes=3,
        emittable=known,
    )
    attempts = sorted(made, key=lambda attempt: attempt.index)
    assert any(attempt.fallback.any() for attempt in attempts)
    assert any(THINK in attempt.tokens for attempt in attempts)
    rows = [(request.student_prompt, attempt.tokens) for request, attempt in zip(asked, attempts, strict=True)]
    fresh = tiny_model(1, STUDENT_SIZE, scale=2.0).to(dtype)
    scored = list(score_tokens(fresh, rows, positions=7, known=known))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    for attempt, scores in zip(attempts, scored, strict=True):
        np.testing.assert_allclose(scores.probability, attempt.p_student, rtol=tolerance)
    if dtype == torch.float32:
        accepted = np.concatenate([s.probability[~a.fallback] for a, s in zip(attempts, scored, strict=True)])
        assert (accepted >= np.float32(0.03) * (1 - 1e-5)).all()


def test_what_a_model_samples_greedily_is_its_first_choice() -> None:
    asked = requests()
    made = sample(
        tiny_model(1, STUDENT_SIZE, scale=3.0),
        asked,
        sampling=Sampling(temperature=0),
        end_of_turn=END,
        context=60,
        max_new_tokens=20,
        lanes=3,
    )
    for attempt in made:
        (scores,) = score_tokens(MODEL, [(asked[attempt.index].student_prompt, attempt.tokens)])
        assert (scores.rank == 1).all()


# --- edges ----------------------------------------------------------------------------------------------------------


def test_an_empty_completion_has_no_scores() -> None:
    for row in (([1, 2], []), ([], [])):
        (scores,) = score_tokens(MODEL, [row])
        assert_scores(scores, [])


def test_a_long_row_never_has_more_logits_at_once_than_asked_for() -> None:
    model = tiny_model(1, STUDENT_SIZE)
    widths = []
    forward = model.forward

    def spy(*arguments: Any, **named: Any) -> Any:
        output = forward(*arguments, **named)
        widths.append(output.logits.shape[1])
        return output

    model.forward = spy
    prompt, completion = [5] * 100, [6] * 50
    list(score_tokens(model, [(prompt, completion)], positions=16))
    assert widths == [16, 16, 16, 2], "the prompt's own tokens get none"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (([], [1]), r"row 1: no prompt tokens, so nothing can predict its first completion token"),
        (([1, -1], [1]), r"row 1: prompt token 1 is the id -1, which is none of the model's 24 tokens"),
        (([1], [2, STUDENT_SIZE]), r"row 1: completion token 1 is the id 24, which is none of the model's 24 tokens"),
        (([STUDENT_SIZE], []), r"row 1: prompt token 0 is the id 24"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(row: Row, message: str) -> None:
    scores = score_tokens(MODEL, [([1], [2]), row])
    next(scores)
    with pytest.raises(ValueError, match=message):
        next(scores)


def test_an_id_that_stands_for_no_token_can_be_read_but_not_have_come() -> None:
    known = torch.ones(STUDENT_SIZE, dtype=torch.bool)
    known[9] = False
    list(score_tokens(MODEL, [([9], [2])], known=known))
    with pytest.raises(ValueError, match=r"row 0: completion token 0 is the id 9, which is none of the model's 23 tok"):
        list(score_tokens(MODEL, [([2], [9])], known=known))


def test_logits_that_are_no_numbers_are_an_error_that_names_the_row() -> None:
    model = tiny_model(1, STUDENT_SIZE)
    model.get_input_embeddings().weight[7] = math.nan
    scores = score_tokens(model, [([1], [2, 3]), ([1], [2, 7, 3])])
    next(scores)
    with pytest.raises(FloatingPointError, match="row 1: the model gives logits that are no numbers at completion tok"):
        next(scores)


@pytest.mark.parametrize("positions", [0, -1])
def test_at_least_one_token_is_read_at_once(positions: int) -> None:
    with pytest.raises(ValueError, match=f"positions = {positions}: expected at least 1"):
        next(score_tokens(MODEL, [([1], [2])], positions=positions))


def test_rows_are_scored_as_they_are_asked_for() -> None:
    """A caller can keep each before the next is made, and rows may be more than fit into memory."""
    asked = []

    def rows():
        for number in range(3):
            asked.append(number)
            yield [1], [2]

    scores = score_tokens(MODEL, rows())
    next(scores)
    assert asked == [0]
