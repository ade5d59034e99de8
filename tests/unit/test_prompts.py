"""Prompts are literal text; the answer is where the format says and nowhere else."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd.prompts import (
    count_think_close,
    dataset_trace,
    encode_prompt,
    extract_answer,
    find_answer,
    render,
    split_trace,
    think_closed,
)
from tiny import tiny_tokenizer

BOXED = {
    "think_close": "</think>",
    "end_of_turn": "<|im_end|>",
    "answer": "boxed",
    "dataset_trace": "\n{thinking}\n</think>\n\n{response}",
}
TEXT = st.text(max_size=40)


@given(TEXT, TEXT)
def test_render_puts_in_both_texts_verbatim(question, solution):
    assert render("<q>{question}<s>{solution}<e>", question, solution) == f"<q>{question}<s>{solution}<e>"


def test_render_reads_no_placeholder_inside_a_question_and_no_other_braces():
    template = r"{question} \boxed{} {other} {{question}} {solution}"
    rendered = r"{solution} \boxed{} {other} {{solution}} S"
    assert render(template, "{solution}", "S") == rendered


def test_prompt_is_encoded_as_it_stands_with_its_marks_as_single_tokens():
    tokenizer = tiny_tokenizer()
    ids = encode_prompt(tokenizer, "<|im_start|>user\n{question}<|im_end|>\n<think>", "1+1?")
    assert tokenizer.decode(ids) == "<|im_start|>user\n1+1?<|im_end|>\n<think>"
    assert len(ids) == len("user\n1+1?\n") + 3


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so </think> \boxed{42}", "42"),
        (r"\boxed{1}</think>the answer is \boxed{2}.", "2"),
        (r"a</think>\boxed{1}</think>\boxed{2}", "2"),
        (r"</think>\boxed{1} or rather \boxed{2}", "2"),
        (r"</think>\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"</think>\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"</think>\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"</think>\fbox {C}", "C"),
        (r"</think>\boxed{a + \fbox{b}}", r"a + \fbox{b}"),
        (r"</think>{ \boxed{5}", "5"),
        (r"</think>} \boxed{5}", "5"),
        (r"</think>\boxed{5} and then \boxed{6", "5"),
        (r"</think>\boxed{5} \boxed{ }", "5"),
        (r"</think>\boxed{7}<|im_end|>", "7"),
        ("</think>\\boxed{\n 7\n}", "7"),
        (r"</think>\boxed{}", None),
        (r"</think>\boxed{6", None),
        (r"</think>7", None),
        (r"\boxed{7}", None),
        (r"\boxed{7}</think>", None),
        ("", None),
    ],
)
def test_boxed_answer_is_the_last_closed_box_after_the_reasoning(text, answer):
    assert extract_answer(text, BOXED) == answer


def test_without_a_reasoning_mark_the_whole_text_is_searched():
    assert extract_answer(r"\boxed{7}", BOXED | {"think_close": None}) == "7"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("17+58=75;75+36=111", "111"),
        ("75-36", "36"),
        ("it is -3.", "-3"),
        ("(-3)", "-3"),
        ("x=-2.5", "-2.5"),
        ("$1,234.56.", "1,234.56"),
        ("1,23", "23"),
        ("12,3456", "3456"),
        ("about 3/4", "3/4"),
        ("no number", None),
    ],
)
def test_last_number(text, answer):
    assert find_answer(text, "last_number") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("steps\n#### 18", "18"),
        ("#### 1\n#### 2 apples \nmore", "2 apples"),
        ("#### 18<|im_end|>", "18"),
        ("####", None),
        ("18", None),
    ],
)
def test_answer_after_hashes(text, answer):
    assert extract_answer(text, BOXED | {"answer": "hashes", "think_close": None}) == answer


def test_unknown_kind_of_answer_is_an_error():
    with pytest.raises(ValueError, match=r"format\.answer = 'xml'"):
        find_answer("", "xml")


@given(st.lists(st.sampled_from(["</think>", "a", r"\boxed{1}", "<|im_end|>", "{", "}", "\\"]), max_size=12))
def test_marks_and_answers_agree(pieces):
    text = "".join(pieces)
    assert count_think_close(text, BOXED) == pieces.count("</think>")
    assert think_closed(text, BOXED) == ("</think>" in pieces)
    thinking, response = split_trace(text, BOXED)
    assert "</think>" not in response
    assert thinking + "</think>" * think_closed(text, BOXED) + response == text
    if extract_answer(text, BOXED) is not None:
        assert think_closed(text, BOXED)


@given(st.text(alphabet=st.sampled_from("ab{}\\ $"), max_size=30))
def test_a_box_around_balanced_text_is_read_back(content):
    depth = 0
    plain = content.replace("\\", "")
    for character in plain:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return
    if depth == 0 and plain.strip():
        assert find_answer(r"so \boxed{" + plain + "}.", "boxed") == plain.strip()


def test_no_reasoning_mark_counts_as_closed():
    plain = BOXED | {"think_close": None}
    assert think_closed("x", plain)
    assert count_think_close("x", plain) == 0
    assert split_trace("x", plain) == ("", "x")


def test_a_runaway_of_open_boxes_takes_no_quadratic_time():
    start = time.monotonic()
    assert find_answer("\\boxed{" * 100_000, "boxed") is None
    assert time.monotonic() - start < 2


def test_dataset_trace_is_one_turn_with_the_reasoning_closed():
    problem = {"id": "0" * 16, "thinking": "hm {response}", "response": r"so \boxed{3}"}
    text = dataset_trace(problem, BOXED)
    assert text == "\nhm {response}\n</think>\n\nso \\boxed{3}"
    assert extract_answer(text, BOXED) == "3"


def test_dataset_trace_without_reasoning_needs_a_format_without_it():
    problem = {"id": "0" * 16, "thinking": None, "response": "so 3"}
    with pytest.raises(ValueError, match=r"columns\.thinking"):
        dataset_trace(problem, BOXED)
    assert dataset_trace(problem, BOXED | {"dataset_trace": "{response}"}) == "so 3"
