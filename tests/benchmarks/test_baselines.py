"""That the baselines do what they are timed for. No timing is asserted: `pytest tests/benchmarks`."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.baselines import (
    authors_tokens,
    authors_way,
    authors_way_sampled,
    generate_tokens,
    last_logits,
    retry_loop,
    transformers_generate,
)
from benchmarks.models import POCKET, PUBLIC, make_model, random_prompts, write_model
from oracle import NaiveLaw, exact, sharpen
from pairs import STUDENT_SIZE, TEACHER_SIZE, tiny_model
from rsd.law import Law, Sampling

TOP = Sampling(top_k=6)
LAW = Law(threshold=0.05, draws=5, proposal=TOP, accept_top_k=6, fallback=TOP)
PROMPTS = [3, 4, 5], [6, 3, 4, 5]
# What the public models' own pages say, in millions of parameters.
SIZES = {"smollm2-135m": 134.5, "smollm2-1.7b": 1711, "qwen3-0.6b": 596, "qwen2.5-7b": 7616}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """At these sizes threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pair():
    return tiny_model(1, STUDENT_SIZE, scale=3.0), tiny_model(2, TEACHER_SIZE, scale=3.0)


def law_of(student_logits, teacher_logits):
    """The probability of every token of the student's, by following every branch of the retry loop."""
    naive = NaiveLaw(LAW.threshold, LAW.draws, (1.0, LAW.proposal.top_k, 1.0), 6, (1.0, LAW.fallback.top_k, 1.0))
    proposal = sharpen(teacher_logits.tolist(), *naive.proposal)[: len(student_logits)]
    return torch.tensor(exact(student_logits.tolist(), proposal, naive)).sum(0)


def test_authors_way_writes_as_many_tokens_as_asked_for_all_of_them_in_the_support_of_the_law(pair):
    student, teacher = pair
    trace = authors_tokens(student, teacher, *PROMPTS, 16, LAW)
    assert len(trace) == 16
    for position, token in enumerate(trace):
        probabilities = law_of(
            last_logits(student, [*PROMPTS[0], *trace[:position]]),
            last_logits(teacher, [*PROMPTS[1], *trace[:position]]),
        )
        assert probabilities[token] > 0, position


def test_authors_way_draws_from_the_law():
    generator = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(12, generator=generator), 2 * torch.randn(15, generator=generator)
    probabilities = law_of(student, teacher)
    draws = torch.tensor([retry_loop(student, teacher, LAW, generator) for _ in range(4000)])
    counts = torch.bincount(draws, minlength=12)
    assert (counts / 4000 - probabilities).abs().max() < 0.04  # five standard deviations
    assert not counts[probabilities == 0].any()


def test_no_token_is_emitted_that_the_student_lacks():
    generator = torch.Generator().manual_seed(0)
    lenient = Law(threshold=0.0, draws=5, proposal=Sampling(top_k=2), accept_top_k=0, fallback=TOP)
    # All that the teacher proposes lies behind the student's last id.
    teacher = torch.arange(12.0)
    tokens = {retry_loop(torch.zeros(8), teacher, lenient, generator) for _ in range(50)}
    assert tokens <= set(range(8))


def test_last_logits_are_those_of_a_cached_pass(pair):
    student, _ = pair
    context = [3, 4, 5, 6, 7]
    with torch.inference_mode():
        cache = student(input_ids=torch.tensor([context[:-1]]), use_cache=True).past_key_values
        expected = student(input_ids=torch.tensor([context[-1:]]), past_key_values=cache).logits[0, -1]
    torch.testing.assert_close(last_logits(student, context), expected)


def test_times_are_positive(pair):
    student, teacher = pair
    assert authors_way(student, teacher, *PROMPTS, 4, LAW) > 0
    assert authors_way_sampled(student, teacher, *PROMPTS, 40, LAW, [0, 10, 40]) > 0
    assert transformers_generate(student, [PROMPTS[0]] * 2, 4) > 0


@pytest.mark.parametrize("lengths", [[1, 40], [0, 39], [0, 30, 20, 40]])
def test_lengths_that_do_not_span_the_trace_are_refused(pair, lengths):
    with pytest.raises(ValueError, match="from 0 to new_tokens = 40"):
        authors_way_sampled(*pair, *PROMPTS, 40, LAW, lengths)


@pytest.mark.parametrize("lanes", [1, 3])
def test_transformers_generates_as_many_tokens_as_asked_for_in_every_lane(pair, lanes):
    student, _ = pair
    student.generation_config.eos_token_id = 5  # must not end a lane
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = generate_tokens(student, random_prompts(STUDENT_SIZE, lanes, 6), 30)
    assert tokens.shape == (lanes, 30)
    assert (tokens == 5).any() or lanes == 1
    assert tokens.max() < STUDENT_SIZE


def test_a_prompt_shorter_than_the_others_is_padded_on_the_left(pair):
    student, _ = pair
    best = last_logits(student, [7, 8]).argmax()
    # So sure of itself that sampling is as good as greedy.
    sharp = tiny_model(1, STUDENT_SIZE, scale=3000.0)
    assert generate_tokens(sharp, [[7, 8], [3] * 5], 1)[0] == best


def test_a_model_with_exchanged_attention_is_refused():
    model = tiny_model(1, STUDENT_SIZE)
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="expected 'sdpa'"):
        transformers_generate(model, [[3, 4]], 2)


@pytest.mark.parametrize("shape", POCKET)
def test_a_written_folder_loads_and_is_not_written_again(tmp_path, shape):
    folder = write_model(tmp_path / shape, shape)
    before = (folder / "config.json").stat().st_mtime_ns
    assert write_model(folder, shape) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.generation_config.eos_token_id is None
    assert model.config.vocab_size == {"pocket-student": 264, "pocket-teacher": 288}[shape]


@pytest.mark.parametrize("shape", PUBLIC)
def test_shapes_have_the_size_of_the_public_models(shape):
    model = make_model(shape, device="meta", dtype="bfloat16")
    assert model.num_parameters() == pytest.approx(1e6 * SIZES[shape], rel=0.003)


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="expected one of smollm2-135m"):
        make_model("gpt-2")
