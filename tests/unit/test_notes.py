"""What the report says of trace sets and arms that are made of others: from the configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rsd import config as c
from rsd import notes

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "config.yaml"
EXPERIMENTS = ROOT / "workflow" / "experiments"


def said(*files: str, **changes: Any) -> dict[str, str]:
    config = c.merge(c.load([PAPER, *(EXPERIMENTS / name for name in files)]), changes)
    return {note.title: note.text for note in notes.method_notes(c.validate(config))}


def test_each_control_says_where_its_rows_come_from() -> None:
    found = said("controls.yaml")
    assert found["Traces teacher-own"] == (
        "Written by teacher alone (temperature 0.7, top-p 0.95), behind its own prompt, and read in the tokens of "
        "student."
    )
    assert found["Traces direct-by-share"].startswith(
        "The 50 % of the rows of direct with the lowest share of tokens that the student gives less than 1 %."
    )
    assert "lowest mean surprisal under the student" in found["Traces direct-by-surprisal"]
    for name in ("direct-by-share", "direct-by-surprisal"):
        assert "this is no RSD" in found[f"Traces {name}"]
        assert not {f"{what} of {name}" for what in ("Law", "Selection", "Unsolved problems")} & set(found)
    assert found["Traces rsd-prefix"] == "Selected anew from the attempts of rsd."
    assert found["Solved problems of rsd-prefix"].startswith(
        "They contribute the first 128 tokens of their kept attempt"
    )
    assert "Traces own" not in found, "the student itself wrote them"
    assert "Solved problems of rsd" not in found


def test_an_arm_with_another_arms_tokens_says_so_and_nothing_of_epochs() -> None:
    found = said("controls.yaml", training={"epochs": 5})
    assert found["Steps of rsd-tokens"] == (
        "As many steps as come nearest to the tokens that direct sees in all its epochs."
    )
    assert "epochs 5" in found["Training of rsd"]
    assert "Training of rsd-tokens" not in found


def test_recoded_rows_are_said_to_be_made_for_another_student() -> None:
    assert said("transfer.yaml")["Traces transferred"] == (
        "The rows of rsd, made for another student, behind the prompt and in the tokens of other."
    )


@pytest.mark.parametrize(("name", "other"), [("iterative", []), ("transfer", ["student other: hf://Qwen/Qwen3-1.7B"])])
def test_a_model_that_is_trained_here_is_no_other_than_the_one_that_it_was_made_of(name: str, other: list[str]) -> None:
    config = c.load([PAPER, EXPERIMENTS / f"{name}.yaml"])
    found = notes.unlike_paper(config)
    assert [line.partition(" (")[0] for line in found] == other


def test_a_selection_of_prefixes_for_all_is_a_difference_from_the_paper() -> None:
    found = said(traces={"rsd": {"select": {"solved": "prefix"}}})
    assert "solved prefix (paper: trace)" in found["Selection of rsd"]
