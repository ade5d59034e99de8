"""Right answers in another dress are right, near misses are wrong, and no answer takes longer than its time."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from realdata import real_rows
from rsd import grading
from rsd.grading import exact_match, grade, is_gradable, normalise
from rsd.prompts import find_answer

RIGHT = [
    # strings and looks
    ("$5$", "5"),
    (r"\(5\)", "5"),
    ("5.", "5"),
    (r"\boxed{5}", "5"),
    ("yes", r"\text{Yes}"),
    (r"\text{June 20}", "June 20"),
    (r"\dfrac{1}{2}", r"\frac{1}{2}"),
    (r"\left[1,2\right)", "[1,2)"),
    # numbers
    ("1,234", "1234"),
    ("11,111,111,100", r"11,\! 111,\! 111,\! 100"),
    ("1{,}000", "1000"),
    ("007", "7"),
    ("11.0", "11"),
    ("−5", "-5"),
    ("-0", "0"),
    ("1/2", "0.5"),
    (r"\frac12", "1/2"),
    (r"1\frac{1}{2}", "3/2"),
    ("0.333333", "1/3"),
    ("10!", "3628800"),
    (r"3 \times 10^5", "300000"),
    # expressions
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("3*sqrt(2)", r"3\sqrt2"),
    ("x^2+2x+1", "(x+1)^2"),
    ("y=2x+3", "y = 3+2x"),
    ("x=5", "5"),
    ("5", "x=5"),
    ("i+1", "1+i"),
    (r"\begin{bmatrix}1\\2\end{bmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    # sets and intervals
    ("{1,2}", r"\{2,1\}"),
    ("2,1", "1, 2"),
    ("$3$ and $5$", "5,3"),
    (r"x=1\text{ or }x=2", "1,2"),
    (r"\{1+\sqrt5,1-\sqrt5,-2\}", r"\{1\pm\sqrt{5},-2\}"),
    (r"(2,12)\cup(12,102)", r"(2,12) \cup (12,102)"),
    ("x>2", r"(2,\infty)"),
    # units, degrees, dollars, percent
    ("5 cm", "5"),
    ("5cm", "5"),
    ("5", r"5\text{ cm}"),
    (r"5\,\mathrm{m/s}", "5"),
    (r"100 \mathrm{~K}", "100"),
    ("5 centimeters", "5 cm"),
    ("5 square units", "5"),
    (r"864\text{ in}^2", r"864 \mbox{ inches}^2"),
    ("336", r"336^\circ"),
    ("336°", "336"),
    ("336 degrees", r"336^{\circ}"),
    (r"\$5", "5"),
    ("$5.00", "5"),
    ("50%", "50"),
    (r"50\%", "0.5"),
    (r"12.5\%", "0.125"),
    ("50", "50%"),
    # choices
    ("(C)", "C"),
    ("C.", "C"),
    (r"\text{C}", "C"),
    (r"\textbf{(C)}", "C"),
]
WRONG = [
    ("5", "6"),
    ("-5", "5"),
    ("1.5", "15"),
    ("0.3", "1/3"),
    ("0.0000001", "0.0000002"),
    ("1.4142", r"\sqrt{2}"),
    (r"\frac{1}{2}", r"\frac{2}{1}"),
    ("3:4", "4:3"),
    ("5", "5x"),
    ("3s", "3"),
    (r"2\mathrm{i}", "2"),
    ("x+1", "y+1"),
    ("x=5", "y=5"),
    ("x>2", "x<2"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(2,1)"),
    ("1,2", "1,2,3"),
    ("12", "1,2"),
    ("10100", "10, 100"),
    ("5 cm", "5 m"),
    ("50%", "5"),
    ("0.05", "50%"),
    ("yes", "no"),
    ("live", "evil"),
    ("A", "C"),
    ("c", "C"),
    ("CD", "C"),
    ("C) 5 cm", "C"),
    ("1", "A"),
    ("", "5"),
    ("$", "$"),
    ("between 3 and 5", "5"),
    ("the answer is 5", "5"),
    ("5", "The number of hits was 5, which is not many at all."),
    (None, "5"),
]


@pytest.mark.parametrize(("answer", "reference"), RIGHT)
def test_right_in_another_dress(answer, reference):
    assert grade(answer, reference)


@pytest.mark.parametrize(("answer", "reference"), WRONG)
def test_wrong(answer, reference):
    assert not grade(answer, reference)


def test_exact_match_compares_looks_and_not_values():
    assert exact_match(r" \text{5} ", "$5$")
    assert exact_match("336^\\circ", "336")
    assert not exact_match("5.0", "5")
    assert not exact_match("1/2", "0.5")
    assert not exact_match("", "")
    assert not exact_match(None, "5")


# A final backslash would turn the dollar after it into a literal one.
@given(st.text(max_size=30).filter(lambda text: not text.endswith("\\")))
@example(r" \( x")
@settings(max_examples=500, deadline=None)
def test_normalising_is_stable_for_matching(text):
    assert exact_match(text, text) == (normalise(text) != "")
    assert exact_match(f" ${text}$ ", text) == (normalise(text) != "")


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_integers_are_right_only_if_equal_however_they_are_grouped(a, b):
    assert grade(f"{a:,}", str(b)) == (a == b)
    assert grade(f"{a}.00", f"{a:,}")


@given(st.decimals(-1000, 1000, places=4), st.decimals(-1000, 1000, places=4))
def test_decimals_and_their_percentages(a, b):
    assert grade(str(a), str(b)) == (a == b)
    assert grade(f"{a * 100}%", str(a))


@pytest.mark.parametrize(
    ("reference", "gradable"),
    [
        ("", False),
        ("  ", False),
        ("5", True),
        (r"\begin{pmatrix} \frac{1}{2} & 0 \\ 0 & 1 \end{pmatrix}", True),
        (r"\frac{270}7\text{ degrees}", True),
        ("We conclude that the sum of both is 5.", False),
        ("1+" * 150 + "1", False),
    ],
)
def test_a_reference_in_prose_is_not_gradable(reference, gradable):
    assert is_gradable(reference) == gradable


def test_a_reference_in_prose_is_still_matched_as_a_string():
    assert grade("all odd numbers greater than 1", r"\text{all odd numbers greater than 1}")


@pytest.mark.parametrize(
    "answer", ["9^{9^{9^{9}}}", "7^{100000000}", "1000000000!", "2^{" + "9" * 900 + "}", "(" * 400 + "1" + ")" * 400]
)
def test_an_answer_that_never_ends_is_wrong_within_its_time(answer):
    grade("1/2", "0.5")  # the worker is up
    start = time.monotonic()
    assert not grade(answer, r"\frac{3}{7}", timeout_s=0.5)
    assert time.monotonic() - start < 3
    assert grade("6/14", r"\frac{3}{7}")


def test_huge_numbers_need_no_arithmetic():
    start = time.monotonic()
    assert grade("7." + "0" * 10_000, "7.0")
    assert not grade("9" * 10_000, "9")
    assert not grade("9" * 10_000, r"\frac{3}{7}")
    assert not grade(r"2^{" + "9" * 10_000 + "}", r"\frac{3}{7}")
    assert time.monotonic() - start < 2


def test_the_time_limit_holds_in_a_thread():
    verdicts: list[bool] = []

    def ask() -> None:
        verdicts.append(grade("9^{9^{9^{8}}}", r"\frac{3}{7}", timeout_s=0.5))
        verdicts.append(grade("12/28", r"\frac{3}{7}"))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(20)
    assert verdicts == [False, True]


def test_strange_characters_are_just_wrong():
    for answer in ("\x00", "\ud800", "5\n6", "$$", "\\", "}{", "\\frac", "^", "\u2028"):
        assert not grade(answer, r"\frac{3}{7}")


def test_a_worker_that_was_killed_is_replaced():
    assert grade("2/3", "4/6")
    process = grading._WORKER._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert grade("2/5", "4/10")


def test_a_worker_that_cannot_start_is_an_error_and_not_a_wrong_answer(monkeypatch):
    grading._WORKER.close()
    monkeypatch.setattr(grading, "__file__", os.devnull + "/none.py")
    with pytest.raises(RuntimeError, match="math-verify cannot be started"):
        grade("2/7", "4/14")


@pytest.mark.slow
def test_every_math500_reference_equals_itself_its_box_and_no_neighbour():
    rows = real_rows("HuggingFaceH4/MATH-500")
    answers = [row["answer"] for row in rows]
    assert all(grade(answer, answer) for answer in answers)
    assert all(grade(find_answer(row["solution"], "boxed"), row["answer"]) for row in rows)
    # By values, without the help of equal strings.
    assert all(grading._equal_values(answer, answer, 5) for answer in answers)
    equal = [pair for pair in zip(answers[1:], answers, strict=False) if grade(*pair)]
    assert sorted(equal) == [("3", "3"), ("7", "7"), ("x=5", "5")]


@pytest.mark.parametrize("name", ["HuggingFaceH4/aime_2024", "opencompass/AIME2025"])
def test_every_aime_reference_equals_itself_and_no_neighbour(name):
    answers = [row["answer"] for row in real_rows(name)]
    assert all(grade(answer, answer) and grade(answer.replace(r"^\circ", ""), answer) for answer in answers)
    assert not any(grade(*pair) for pair in zip(answers[1:], answers, strict=False))
