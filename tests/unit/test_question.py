"""What a run asks: who is compared with whom, what answers it, and which tests are corrected together."""

from __future__ import annotations

from typing import Any

import pytest

from rsd import question

METHODS = {"rsd": "rsd", "more": "rsd", "direct": "dataset", "own": "sample"}


def settings_of(*arms: str, comparisons: Any = None, tasks: tuple[str, ...] = ("one", "two"), **changes: Any) -> Any:
    return {
        "arms": {
            arm: {
                "label": arm.title(),
                "traces": arm if arm in METHODS else None,
                "method": METHODS.get(arm),
                "seeds": [0, 1, 2] if arm in METHODS else [0],
            }
            for arm in arms
        },
        "base": "base",
        "tasks": list(tasks),
        "question": {"text": "", "comparisons": comparisons},
        "confidence": 0.95,
    } | changes


def test_every_arm_meets_the_base_and_trained_arms_meet_each_other() -> None:
    assert question.pairs(settings_of("direct", "base", "rsd", "teacher", "more")) == [
        ("direct", "base"),
        ("rsd", "base"),
        ("teacher", "base"),
        ("more", "base"),
        ("rsd", "direct"),
        ("more", "direct"),
        ("more", "rsd"),
    ]


def test_the_question_is_rsd_against_base_and_against_the_datasets_traces() -> None:
    assert question.asked(settings_of("base", "direct", "rsd", "own")) == [("rsd", "base"), ("rsd", "direct")]
    assert question.asked(settings_of("base", "direct", "own")) == [("direct", "base"), ("own", "base")]
    assert question.asked(settings_of("base")) == []


def test_a_question_of_ones_own_has_its_own_direction_and_its_own_pairs() -> None:
    settings = settings_of("base", "teacher", "direct", "rsd", comparisons=[["base", "rsd"], ["rsd", "teacher"]])
    assert question.asked(settings) == [("base", "rsd"), ("rsd", "teacher")]
    assert question.pairs(settings) == [
        ("teacher", "base"),
        ("direct", "base"),
        ("base", "rsd"),
        ("rsd", "direct"),
        ("rsd", "teacher"),
    ]


@pytest.mark.parametrize(
    ("arm", "against", "seeds"),
    [
        ("rsd", "direct", [("0", "0"), ("1", "1"), ("2", "2")]),
        ("rsd", "base", [("0", "0"), ("1", "0"), ("2", "0")]),
        ("base", "rsd", [("0", "0"), ("0", "1"), ("0", "2")]),
        ("teacher", "base", [("0", "0")]),
    ],
)
def test_seeds_are_paired_where_both_have_them(arm: str, against: str, seeds: list[tuple[str, str]]) -> None:
    assert question.paired_seeds(settings_of("base", "teacher", "direct", "rsd"), arm, against) == seeds


def test_the_questions_comparisons_on_the_mean_are_a_family_of_their_own() -> None:
    primary, others = question.families(settings_of("base", "direct", "rsd"), "mean")
    assert primary == [("rsd", "base", "mean"), ("rsd", "direct", "mean")]
    assert others == [
        ("direct", "base", "one"),
        ("direct", "base", "two"),
        ("direct", "base", "mean"),
        ("rsd", "base", "one"),
        ("rsd", "base", "two"),
        ("rsd", "direct", "one"),
        ("rsd", "direct", "two"),
    ]


def test_a_single_task_is_tested_once() -> None:
    primary, others = question.families(settings_of("base", "direct", "rsd", tasks=("one",)), "mean")
    assert primary == [("rsd", "base", "mean"), ("rsd", "direct", "mean")]
    assert others == [("direct", "base", "mean")]


def test_the_question_is_quoted_with_its_rule() -> None:
    settings = settings_of("base", "rsd", comparisons=[["rsd", "base"]], confidence=0.9)
    settings["question"]["text"] = "Does it help?"
    assert question.describe(settings) == {
        "text": "Does it help?",
        "comparisons": [["rsd", "base"]],
        "left_out": [],
        "rule": "In each comparison, the first model helps if the 90 % interval, for problems like these, of its "
        "difference to the second in accuracy on the mean of the tasks lies above 0; it harms if the interval lies "
        "below 0; else this run cannot tell.",
    }
    assert "mean of the tasks" not in question.rule(settings_of("base", "rsd", tasks=("one",)))


def test_comparisons_of_arms_that_do_not_run_are_left_out_and_named() -> None:
    settings = settings_of("base", "direct", comparisons=[["rsd", "base"], ["base", "direct"]])
    settings["question"]["text"] = "Does it help?"
    assert question.asked(settings) == [("base", "direct")]
    told = question.describe(settings)
    assert (told["text"], told["left_out"]) == ("Does it help?", [["rsd", "base"]])


def test_a_question_of_which_nothing_is_left_is_what_the_arms_suggest_in_other_words() -> None:
    settings = settings_of("base", "direct", comparisons=[["rsd", "base"]])
    settings["question"]["text"] = "Does RSD help?"
    told = question.describe(settings)
    assert told["comparisons"] == [["direct", "base"]]
    assert told["text"] == "Which model is better: “Direct” or “Base”?"
    assert told["left_out"] == [["rsd", "base"]]


def test_a_question_without_words_names_the_models() -> None:
    asked = question.describe(settings_of("base", "direct", "rsd"))["text"]
    assert asked == "Which model is better: “Rsd” or “Base”; “Rsd” or “Direct”?"
    assert question.describe(settings_of("base"))["text"] == "How good is the one model of this run?"


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (1.0, 0.1, 2.0, "higher"),
        (1.0, 0.0, 2.0, "undecided"),
        (-1.0, -2.0, -0.1, "lower"),
        (-1.0, -2.0, 0.0, "undecided"),
        (1.0, None, None, "undecided"),
        (None, None, None, "missing"),
    ],
)
def test_a_difference_counts_only_where_its_interval_leaves_out_zero(
    value: float | None, low: float | None, high: float | None, expected: str
) -> None:
    assert question.verdict(value, low, high) == expected
