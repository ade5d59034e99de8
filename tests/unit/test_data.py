"""Rows of any file format become the same records; what is left out is said; errors say what to do."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realdata import real_folder
from rsd.data import (
    multiple_choice,
    prepare,
    problem_id,
    reference_answer,
    run_convert_traces,
    run_prepare_benchmark,
    run_prepare_problems,
)
from rsd.manifest import write_manifest
from rsd.models import load_tokenizer
from rsd.records import ATTEMPTS, read_jsonl, read_provenance, read_table, write_jsonl
from tiny import tiny_model_folder, tiny_tokenizer

ROWS = [
    {"q": "What is 1+1?", "a": "2", "s": r"Add: \boxed{2}", "t": "hm", "r": "so 2"},
    {"q": "What is 2+2?", "a": "4", "s": r"Add: \boxed{4}", "t": "hmm", "r": "so 4"},
    {"q": "What is 3+3?", "a": "6", "s": "Add: #### 6", "t": "hmmm", "r": "so 6"},
]
COLUMNS = {"question": "q", "answer": "a", "solution": "s", "thinking": "t", "response": "r", "wrong_answers": []}


def dataset(folder: Path, files: dict[str, Any]) -> Path:
    """A dataset folder with a manifest; a list is written in the format of its file's name, bytes as they are."""
    for name, rows in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match path.suffix:
            case _ if isinstance(rows, bytes):
                path.write_bytes(rows)
            case ".jsonl":
                write_jsonl(path, rows, checksum=False)
            case ".parquet":
                pq.write_table(pa.Table.from_pylist(rows), path)
            case ".csv":
                with open(path, "w", newline="") as file:
                    writer = csv.DictWriter(file, rows[0])
                    writer.writeheader()
                    writer.writerows(rows)
    write_manifest(folder, kind="dataset", source="path:x", revision=None, licence=None, provenance={})
    return folder


def settings_of(files: str = "*.jsonl", limit: int | None = None, **changes: Any) -> dict[str, Any]:
    columns = COLUMNS | changes.pop("columns", {})
    entry = {"name": "d", "source": "path:x", "files": files, "columns": columns, "reference": "whole", "remove": None}
    return {"dataset": entry | changes, "limit": limit}


def prepared(folder: Path, **changes: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    settings = settings_of(**changes)
    return prepare(folder, settings["dataset"], settings["limit"])


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet", "d.csv", "deep/down/d.jsonl"])
def test_every_file_format_gives_the_same_problems(tmp_path, name):
    problems, counts = prepared(dataset(tmp_path / "d", {name: ROWS}), files=f"**/*{Path(name).suffix}")
    assert [problem["question"] for problem in problems] == [row["q"] for row in ROWS]
    assert problems[0] == {
        "id": hashlib.sha256(b"What is 1+1?").hexdigest()[:16],
        "question": "What is 1+1?",
        "answer": "2",
        "solution": r"Add: \boxed{2}",
        "thinking": "hm",
        "response": "so 2",
    }
    assert (counts["rows"], counts["problems"], counts["with_trace"]) == (3, 3, 3)


def test_files_are_read_in_the_order_of_their_names_and_the_manifest_is_no_data(tmp_path):
    folder = dataset(tmp_path / "d", {"b.jsonl": ROWS[2:], "a.jsonl": ROWS[:2]})
    problems, _ = prepared(folder, files="*")
    assert [problem["answer"] for problem in problems] == ["2", "4", "6"]


def test_numbers_become_text_and_texts_are_stripped(tmp_path):
    folder = dataset(tmp_path / "d", {"d.jsonl": [{"q": "  Why? \n", "a": 42, "s": " x "}]})
    (problem,), _ = prepared(folder, columns={"thinking": None, "response": None})
    assert (problem["question"], problem["answer"], problem["solution"]) == ("Why?", "42", "x")
    assert problem["thinking"] is None
    assert problem["response"] is None


def test_duplicates_and_empty_rows_are_left_out_and_reported_by_number(tmp_path):
    rows = [
        ROWS[0],
        ROWS[0] | {"q": " What  is\n1+1? "},
        ROWS[0] | {"a": "3"},
        ROWS[1] | {"q": " "},
        ROWS[1] | {"a": None},
        ROWS[2],
    ]
    folder = dataset(tmp_path / "d", {"d.jsonl": rows})
    run_prepare_problems(
        dataset=folder, settings=settings_of(), output=tmp_path / "p.jsonl", report=tmp_path / "p.json"
    )
    assert [problem["answer"] for problem in read_jsonl(tmp_path / "p.jsonl")] == ["2", "6"]
    report = json.loads((tmp_path / "p.json").read_text())
    assert report["duplicates"] == [
        {"row": 1, "first_row": 0, "same_answer": True},
        {"row": 2, "first_row": 0, "same_answer": False},
    ]
    assert report["empty"] == [{"row": 3, "column": "q"}, {"row": 4, "column": "a"}]
    assert (report["rows"], report["problems"]) == (6, 2)
    assert report["provenance"]["settings"]["inputs"].keys() == {"dataset"}


@given(st.text(min_size=1), st.sampled_from([" ", "\n", "\t ", "  "]))
def test_the_id_depends_on_the_words_alone(text, space):
    assert problem_id(space + space.join(text.split()) + space) == problem_id(text)
    assert re.fullmatch("[0-9a-f]{16}", problem_id(text))


def test_limit_takes_the_first_ids_and_keeps_the_order_of_the_dataset(tmp_path):
    rows = [{"q": f"Question {number}", "a": "1"} for number in range(20)]
    none = {"solution": None, "thinking": None, "response": None}
    folder = dataset(tmp_path / "d", {"d.jsonl": rows})
    everything, _ = prepared(folder, columns=none)
    some, counts = prepared(folder, columns=none, limit=5)
    first = sorted(problem["id"] for problem in everything)[:5]
    assert [problem["id"] for problem in some] == [problem["id"] for problem in everything if problem["id"] in first]
    assert (counts["problems"], counts["limit"], counts["rows"]) == (5, 5, 20)
    turned, _ = prepared(dataset(tmp_path / "e", {"d.jsonl": rows[::-1]}), columns=none, limit=5)
    assert {problem["id"] for problem in turned} == set(first)


@pytest.mark.parametrize(
    ("reference", "text", "answer"),
    [
        ("whole", r"so \boxed{2}", r"so \boxed{2}"),
        ("boxed", r"\boxed{1}, so \boxed{\frac{2}{3}}.", r"\frac{2}{3}"),
        ("boxed", "just 2", "just 2"),
        ("hashes", "1+1\n#### 1,002", "1,002"),
        ("hashes", "no mark", ""),
    ],
)
def test_where_the_reference_stands(reference, text, answer):
    assert reference_answer(text, reference) == answer


def test_remove_cleans_traces_and_solutions_but_not_the_question(tmp_path):
    row = {"q": "<<q>>?", "a": "x\n#### 3", "s": "1+2=<<1+2=3>>3", "t": "<<t>>", "r": "so <<r>> 3"}
    folder = dataset(tmp_path / "d", {"d.jsonl": [row]})
    (problem,), _ = prepared(folder, reference="hashes", remove="<<[^>]*>>")
    assert problem["question"] == "<<q>>?"
    assert (problem["answer"], problem["solution"], problem["thinking"], problem["response"]) == (
        "3",
        "1+2=3",
        "",
        "so  3",
    )


def test_a_row_without_its_reference_mark_is_reported_as_empty(tmp_path):
    folder = dataset(tmp_path / "d", {"d.jsonl": ROWS})
    problems, counts = prepared(folder, columns={"answer": "s"}, reference="hashes")
    assert [problem["answer"] for problem in problems] == ["6"]
    assert [entry["row"] for entry in counts["empty"]] == [0, 1]


# --- multiple choice ------------------------------------------------------------------------------------------------


def test_choices_are_lettered_in_a_frozen_order():
    question, letter = multiple_choice("Which?", "right", ["w1", "w2", "w3"])
    assert (question, letter) == ("Which?\n\nA) w3\nB) w1\nC) right\nD) w2", "C")


@given(st.text(min_size=1), st.lists(st.text(st.characters(categories=["L"]), min_size=1), min_size=2, max_size=5))
def test_the_letter_points_at_the_right_choice_and_all_choices_are_there(question, choices):
    text, letter = multiple_choice(question, choices[0], choices[1:])
    lines = text.removeprefix(question + "\n\n").split("\n")
    assert f"{letter}) {choices[0]}" in lines
    assert sorted(line[3:] for line in lines) == sorted(choices)


def test_the_right_choice_stands_everywhere():
    letters = [multiple_choice(f"Question {number}?", "r", ["a", "b", "c"])[1] for number in range(400)]
    assert all(70 < letters.count(letter) < 130 for letter in "ABCD")


def test_benchmark_records_hold_the_choices_and_the_letter(tmp_path):
    rows = [{"q": "Which?", "a": "right", "w1": "x", "w2": "y"}, {"q": "Else?", "a": "right", "w1": "", "w2": "y"}]
    columns = {"solution": None, "thinking": None, "response": None, "wrong_answers": ["w1", "w2"]}
    folder = dataset(tmp_path / "d", {"d.csv": rows})
    settings = settings_of(files="*.csv", columns=columns) | {"expected": None}
    run_prepare_benchmark(dataset=folder, settings=settings, output=tmp_path / "b.jsonl")
    (record,) = read_jsonl(tmp_path / "b.jsonl")
    assert record.keys() == {"id", "question", "answer", "solution"}
    assert f"\n{record['answer']}) right" in record["question"]
    assert record["id"] == problem_id(record["question"])


@pytest.mark.parametrize(("expected", "found"), [(None, True), (3, True), (4, False)])
def test_a_benchmark_of_another_size_than_expected_is_refused(tmp_path, expected, found):
    rows = [{"q": f"{number}?", "a": "1"} for number in (1, 2, 3)]
    columns = {"solution": None, "thinking": None, "response": None}
    settings = settings_of(files="*.jsonl", columns=columns) | {"task": "aime24", "expected": expected}
    arguments = {"dataset": dataset(tmp_path / "d", {"d.jsonl": rows}), "settings": settings}
    if found:
        run_prepare_benchmark(**arguments, output=tmp_path / "b.jsonl")
        assert len(read_jsonl(tmp_path / "b.jsonl")) == 3
    else:
        with pytest.raises(
            ValueError, match=r"tasks\.aime24\.problems = 4: found 3 in datasets\.d; correct the number"
        ):
            run_prepare_benchmark(**arguments, output=tmp_path / "b.jsonl")
        assert not (tmp_path / "b.jsonl").exists()


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_missing_column_is_named_with_its_key_and_what_is_there(tmp_path):
    folder = dataset(tmp_path / "d", {"d.jsonl": ROWS})
    with pytest.raises(ValueError, match=r"datasets\.d\.columns\.answer = 'gold'.*the files have q, a, s, t, r"):
        prepared(folder, columns={"answer": "gold"})
    with pytest.raises(ValueError, match=r"wrong_answers\[1\] = 'w2'"):
        prepared(folder, columns={"wrong_answers": ["t", "w2"]})


def test_an_empty_problem_set_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"empty problem set.*datasets\.d"):
        prepared(dataset(tmp_path / "a", {"d.jsonl": [ROWS[0] | {"a": ""}]}))
    with pytest.raises(ValueError, match=r"empty problem set.*datasets\.d\.files"):
        prepared(dataset(tmp_path / "b", {"d.jsonl": b""}))


def test_a_pattern_that_matches_nothing_says_what_is_there(tmp_path):
    folder = dataset(tmp_path / "d", {"d.jsonl": ROWS})
    with pytest.raises(FileNotFoundError, match=r"datasets\.d\.files = 'train\*'.*d\.jsonl"):
        prepared(folder, files="train*")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", b'{"q": 1'),
        ("d.json", b'[{"q": 1}]'),
        ("d.parquet", b"PAR1 no parquet"),
        ("d.csv", b'q,a\n"1,2'),
        ("d.csv", b"q,a\n\xff,2"),
        ("d.txt", b"q a"),
    ],
)
def test_an_unreadable_file_is_named_with_a_remedy(tmp_path, name, content):
    folder = dataset(tmp_path / "d", {name: content})
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.*correct datasets\.d\.files"):
        prepared(folder, files="d.*")


def test_an_incomplete_folder_is_refused(tmp_path):
    folder = dataset(tmp_path / "d", {"d.jsonl": ROWS})
    (folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        prepared(folder)


def test_a_broken_expression_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"datasets\.d\.remove = '\('"):
        prepared(dataset(tmp_path / "d", {"d.jsonl": ROWS}), remove="(")


# --- a dataset's own traces -----------------------------------------------------------------------------------------

FORMAT = {
    "think_close": "</think>",
    "end_of_turn": "<|im_end|>",
    "answer": "boxed",
    "dataset_trace": "\n{thinking}\n</think>\n\n{response}",
}
CONVERT = {"method": "dataset", "format": FORMAT, "student": {"name": "s", "dtype": "float32", "prompt": "{question}"}}


def problem(number: int, **changes: Any) -> dict[str, Any]:
    record = {"question": f"Q{number}", "answer": "1", "solution": "", "thinking": "hm", "response": f"so {number}"}
    return {"id": f"{number:016x}"} | record | changes


def convert(tmp_path: Path, problems: list[dict[str, Any]]) -> Path:
    write_jsonl(tmp_path / "problems.jsonl", problems)
    student = tiny_model_folder(tmp_path / "student", weights=False)
    output = tmp_path / "shard.parquet"
    run_convert_traces(problems=tmp_path / "problems.jsonl", student=student, settings=CONVERT, output=output)
    return output


def test_a_datasets_traces_become_attempts_with_one_end_of_turn(tmp_path):
    output = convert(tmp_path, [problem(1), problem(2)])
    rows = read_table(output, ATTEMPTS).to_pylist()
    tokenizer = tiny_tokenizer()
    assert [row["problem_id"] for row in rows] == ["0" * 15 + "1", "0" * 15 + "2"]
    for row, number in zip(rows, (1, 2), strict=True):
        assert row["text"] == f"\nhm\n</think>\n\nso {number}<|im_end|>"
        assert tokenizer.decode(row["tokens"]) == row["text"]
        assert row["tokens"].count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
        assert row["tokens"].count(tokenizer.convert_tokens_to_ids("</think>")) == 1
        assert row["fallback"] == [False] * len(row["tokens"])
        assert (row["p_student"], row["p_teacher"], row["finish"], row["attempt"]) == ([], [], "end_of_turn", 0)


def test_problems_without_a_usable_trace_are_skipped_by_name(tmp_path):
    output = convert(tmp_path, [problem(1), problem(2, response=""), problem(3, thinking="a<|im_end|>b")])
    assert read_table(output, ATTEMPTS).num_rows == 1
    assert read_provenance(output)["skipped"] == {
        "empty_response": [problem(2)["id"]],
        "holds_end_of_turn": [problem(3)["id"]],
    }


def test_no_trace_at_all_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"none of the 2 problems.*columns\.response"):
        convert(tmp_path, [problem(1, response=None), problem(2, response="")])


# --- real data ------------------------------------------------------------------------------------------------------


def real_settings(files: str, columns: dict[str, Any], reference: str = "whole") -> dict[str, Any]:
    none = {"solution": None, "thinking": None, "response": None, "wrong_answers": []}
    return {"name": "d", "files": files, "columns": none | columns, "reference": reference, "remove": None}


def test_real_s1k_questions_become_problems(tmp_path):
    write_jsonl(tmp_path / "d" / "train.jsonl", read_jsonl(real_folder("simplescaling/s1K") / "train.jsonl"))
    folder = dataset(tmp_path / "d", {})
    columns = {"question": "question", "answer": "solution", "solution": "solution"}
    problems, counts = prepare(folder, real_settings("**/train*", columns, "boxed"), None)
    assert (counts["rows"], len(problems), counts["empty"]) == (912, 911, [])
    # Line 685 (row 751 of the hub) repeats line 443 with other white space.
    assert counts["duplicates"] == [{"row": 685, "first_row": 443, "same_answer": False}]
    assert sum(problem["answer"] != problem["solution"] for problem in problems) > 290
    assert 240 <= counts["prose_references"] <= 260
    assert len(load_tokenizer(tiny_model_folder(tmp_path / "s", weights=False)).encode(problems[0]["question"])) > 100


@pytest.mark.parametrize(
    ("name", "files", "columns", "reference", "count"),
    [
        (
            "HuggingFaceH4/MATH-500",
            "test*",
            {"question": "problem", "answer": "answer", "solution": "solution"},
            "whole",
            500,
        ),
        ("HuggingFaceH4/aime_2024", "**/train*", {"question": "problem", "answer": "answer"}, "whole", 30),
        ("opencompass/AIME2025", "aime2025-*.jsonl", {"question": "question", "answer": "answer"}, "whole", 30),
        ("openai/gsm8k", "main/test*", {"question": "question", "answer": "answer"}, "hashes", 1319),
    ],
)
def test_real_benchmarks_are_read_whole(tmp_path, name, files, columns, reference, count):
    source = real_folder(name)
    for file in source.rglob("*.jsonl"):
        write_jsonl(tmp_path / "d" / file.relative_to(source), read_jsonl(file))
    problems, counts = prepare(dataset(tmp_path / "d", {}), real_settings(files, columns, reference), None)
    assert len(problems) == counts["rows"] == count
    assert counts["prose_references"] == 0
