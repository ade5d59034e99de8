"""Copies are found whatever their dress, others are not, and no text leaves the benchmarks."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realdata import real_rows
from rsd.overlap import compare, containment, jaccard, run_measure_overlap, runs, shared_runs, words
from rsd.records import write_jsonl

QUESTION = r"Find all $x$ such that $x^2 = 2x + 3$ and $x > 0$, and prove that there are no others."


def pairs(problem: str, other: str) -> tuple[int, int]:
    exact, near = compare([("p", problem)], [("b", other)])
    return len(exact), len(near)


@pytest.mark.parametrize(
    "copy",
    [
        QUESTION,
        QUESTION.upper().replace("X", "x"),
        QUESTION.replace("$", ""),
        QUESTION.replace(" ", "\n  "),
        QUESTION.replace("$x^2 = 2x + 3$", r"\(x ^2\,=2\;x+3\)"),
    ],
)
def test_a_copy_is_exact_whatever_its_dress(copy):
    assert pairs(copy, QUESTION) == (1, 0)


def test_a_copy_with_an_edit_is_near_and_not_exact():
    assert pairs(QUESTION.replace("no others", "none"), QUESTION) == (0, 1)
    assert pairs("What is the sum of 17 and 4?", "What is the sum of 17 and 4, then?") == (0, 1)


def test_a_question_within_a_longer_one_is_near():
    assert pairs(QUESTION, "A story first, about a girl and her numbers. " + QUESTION + " Give the sum of them.") == (
        0,
        1,
    )


def test_another_number_is_another_exact_problem_and_a_stock_phrase_no_copy():
    assert pairs(QUESTION.replace("3", "4"), QUESTION)[0] == 0
    start = "Let $p$ and $q$ be relatively prime positive integers such that "
    assert pairs(start + "the game ends after p/q rounds.", start + "a cone of height p/q holds a ball.") == (0, 0)


WORDS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=12)


@given(st.lists(WORDS, max_size=6), st.lists(WORDS, max_size=6), st.integers(1, 4))
def test_the_index_counts_what_sets_count(mine, theirs, length):
    found = {pair: (shared, first, second) for pair, shared, first, second in shared_runs(mine, theirs, length)}
    for i, a in enumerate(mine):
        for j, b in enumerate(theirs):
            a_runs, b_runs = runs(a, length), runs(b, length)
            if shared := len(a_runs & b_runs):
                assert found.pop((i, j)) == (shared, len(a_runs), len(b_runs))
                assert jaccard(shared, len(a_runs), len(b_runs)) == shared / len(a_runs | b_runs)
                assert containment(shared, len(a_runs), len(b_runs)) >= jaccard(shared, len(a_runs), len(b_runs))
    assert not found


@given(st.lists(WORDS, min_size=1, max_size=5), st.lists(WORDS, min_size=1, max_size=5))
def test_comparing_is_symmetric(mine, theirs):
    a = [(f"p{i}", " ".join(text)) for i, text in enumerate(mine)]
    b = [(f"b{i}", " ".join(text)) for i, text in enumerate(theirs)]
    exact, near = compare(a, b)
    exact_back, near_back = compare(b, a)
    assert {tuple(pair) for pair in exact} == {(p, q) for q, p in exact_back}
    assert {tuple(pair) for pair in near} == {(p, q, score) for q, p, score in near_back}


def test_an_empty_question_and_no_benchmark_problem_are_no_trouble():
    assert compare([("p", "")], []) == ([], [])
    assert compare([], [("b", "x")]) == ([], [])
    assert words("") == ()


def test_the_report_holds_ids_and_no_text(tmp_path):
    problem = {"id": "p1", "question": QUESTION, "answer": "3", "solution": ""}
    write_jsonl(tmp_path / "problems.jsonl", [problem])
    write_jsonl(tmp_path / "secret.jsonl", [problem | {"id": "b1"}, problem | {"id": "b2", "question": "Else?"}])
    run_measure_overlap(
        problems=tmp_path / "problems.jsonl",
        benchmarks={"secret": tmp_path / "secret.jsonl"},
        settings={},
        output=tmp_path / "overlap.json",
    )
    text = (tmp_path / "overlap.json").read_text()
    report = json.loads(text)
    assert report["tasks"] == {"secret": {"n_problems": 2, "exact": [["p1", "b1"]], "near": []}}
    assert report["n_problems"] == 1
    assert "Find all" not in text
    assert "Else" not in text


def test_three_s1k_problems_are_math500_problems_one_is_a_near_copy_and_none_is_from_aime():
    s1k = [(row["row"], row["question"]) for row in real_rows("simplescaling/s1K")]
    rows = real_rows("HuggingFaceH4/MATH-500")
    exact, near = compare(s1k, [(row["unique_id"], row["problem"]) for row in rows])
    assert sorted(exact) == [
        [81, "test/intermediate_algebra/1849.json"],
        [124, "test/intermediate_algebra/1411.json"],
        [181, "test/intermediate_algebra/558.json"],
    ]
    assert [pair[:2] for pair in near] == [[498, rows[126]["unique_id"]]]
    aime = [
        row.get("problem") or row["question"]
        for name in ("HuggingFaceH4/aime_2024", "opencompass/AIME2025")
        for row in real_rows(name)
    ]
    assert compare(s1k, list(enumerate(aime))) == ([], [])
