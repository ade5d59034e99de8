"""Datasets become records: training problems, benchmark problems, and a dataset's own traces as attempts.

Dataset folder (JSON Lines, Parquet or CSV) -> problems.jsonl with its report, or benchmarks/<task>.jsonl;
problems and a student's tokenizer -> attempts. By hand: `rsd prepare-problems --help`.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rsd.checksums import SUFFIX
from rsd.grading import is_gradable
from rsd.manifest import MANIFEST, verify_manifest
from rsd.prompts import dataset_trace, find_answer
from rsd.provenance import stamp
from rsd.records import ATTEMPTS, read_jsonl, write_jsonl, write_record, write_table

LOG = logging.getLogger(__name__)
PROGRESS_SECONDS = 10.0
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BENCHMARK_FIELDS = ("id", "question", "answer", "solution")

Problem = dict[str, Any]


def run_prepare_problems(*, dataset: Path, settings: Mapping[str, Any], output: Path, report: Path) -> None:
    """Writes the training problems (JSONL, in the dataset's order) and a report of what was left out and why.

    `settings` is `config.problems_settings`. Raises ValueError for missing columns and for an empty problem set.
    """
    problems, counts = prepare(dataset, settings["dataset"], settings["limit"])
    write_jsonl(output, problems)
    write_record(report, {**counts, "provenance": stamp(settings, {"dataset": dataset})})


def run_prepare_benchmark(*, dataset: Path, settings: Mapping[str, Any], output: Path) -> None:
    """Writes a task's problems (JSONL: id, question, answer, solution); `settings` is `config.benchmark_settings`."""
    problems, _ = prepare(dataset, settings["dataset"], settings["limit"])
    if settings["expected"] not in (None, len(problems)):
        raise ValueError(
            f"tasks.{settings['task']}.problems = {settings['expected']}: found {len(problems)} in "
            f"datasets.{settings['dataset']['name']}; correct the number if the benchmark is meant to have as many, "
            "else the dataset's source or files"
        )
    write_jsonl(output, [{name: problem[name] for name in BENCHMARK_FIELDS} for problem in problems])


def run_convert_traces(*, problems: Path, student: Path, settings: Mapping[str, Any], output: Path) -> None:
    """Writes the dataset's own traces as ATTEMPTS, one a problem, in the student's token ids, end of turn included.

    `settings` is `config.traces_settings` of a trace set of method dataset. Nothing is cut here. Problems without a
    response, or whose trace holds the end of turn itself, are left out; their ids stand in the file's metadata under
    `skipped`. Raises ValueError where none remains.
    """
    from rsd.models import load_tokenizer, token_id

    tokenizer = load_tokenizer(student)
    end_of_turn = settings["format"]["end_of_turn"]
    end = token_id(tokenizer, end_of_turn)
    skipped: dict[str, list[str]] = {"empty_response": [], "holds_end_of_turn": []}
    rows = []
    last = time.monotonic()
    records = read_jsonl(problems)
    for number, problem in enumerate(records):
        if not problem["response"]:
            skipped["empty_response"].append(problem["id"])
            continue
        trace = dataset_trace(problem, settings["format"])
        if end_of_turn in trace:
            skipped["holds_end_of_turn"].append(problem["id"])
            continue
        tokens = [*tokenizer.encode(trace, add_special_tokens=False), end]
        rows.append(
            {
                "problem_id": problem["id"],
                "attempt": 0,
                "tokens": tokens,
                "fallback": [False] * len(tokens),
                "p_student": [],
                "p_teacher": [],
                "finish": "end_of_turn",
                "text": tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False),
            }
        )
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            LOG.info("%d of %d traces", number + 1, len(records))
    if not rows:
        raise ValueError(
            f"{problems}: none of the {len(records)} problems has a trace of its own ({_counts(skipped)}); name the "
            "right column in datasets.<name>.columns.response"
        )
    LOG.info("%d traces; skipped: %s", len(rows), _counts(skipped))
    provenance = {**stamp(settings, {"problems": problems, "student": student}), "skipped": skipped}
    write_table(output, rows, ATTEMPTS, provenance)


def _counts(groups: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{name} {len(members)}" for name, members in groups.items())


# --- problems --------------------------------------------------------------------------------------------------------


def problem_id(question: str) -> str:
    """16 hex digits of the sha256 of the question with every run of white space as one space."""
    return hashlib.sha256(" ".join(question.split()).encode()).hexdigest()[:16]


def prepare(folder: Path, settings: Mapping[str, Any], limit: int | None) -> tuple[list[Problem], dict[str, Any]]:
    """The problems of a dataset in its order, and the counts of what was left out (rows are numbered from 0).

    `settings` is `config.dataset_settings`. Of several rows with one question the first stays; rows without a question
    or an answer go. `limit` keeps the first problems in the order of their ids, which is random and does not move when
    the dataset is sorted anew.
    """
    name, columns = settings["name"], settings["columns"]
    rows = list(read_rows(folder, name, settings["files"]))
    _check_columns(rows, name, columns)
    remove = _pattern(settings["remove"], name)
    problems: dict[str, Problem] = {}
    first_row: dict[str, int] = {}
    duplicates: list[dict[str, Any]] = []
    empty: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        problem, missing = _problem(row, columns, settings["reference"], remove)
        if missing:
            empty.append({"row": number, "column": missing})
        elif problem["id"] in problems:
            same = problem["answer"] == problems[problem["id"]]["answer"]
            duplicates.append({"row": number, "first_row": first_row[problem["id"]], "same_answer": same})
        else:
            problems[problem["id"]] = problem
            first_row[problem["id"]] = number
    if not problems:
        raise ValueError(
            f"empty problem set: datasets.{name} has {len(rows)} rows, {len(empty)} of them without a question or an "
            f"answer; check datasets.{name}.columns, reference and files"
        )
    kept = set(sorted(problems)[:limit])
    chosen = [problem for key, problem in problems.items() if key in kept]
    for entry in empty[:20]:
        LOG.warning("datasets.%s, row %d: left out, %s is empty", name, entry["row"], entry["column"])
    for entry in duplicates[:20]:
        LOG.warning("datasets.%s, row %d: left out, same question as row %d", name, entry["row"], entry["first_row"])
    LOG.info(
        "datasets.%s: %d rows, %d empty, %d duplicates, %d problems in use",
        *(name, len(rows), len(empty), len(duplicates), len(chosen)),
    )
    counts = {
        "dataset": name,
        "rows": len(rows),
        "problems": len(chosen),
        "limit": limit,
        "duplicates": duplicates,
        "empty": empty,
        # References in prose can only be matched as strings (grading.is_gradable).
        "prose_references": sum(not is_gradable(problem["answer"]) for problem in chosen),
        "with_trace": sum(bool(problem["response"]) for problem in chosen),
    }
    return chosen, counts


def _problem(
    row: Mapping[str, Any], columns: Mapping[str, Any], reference: str, remove: re.Pattern[str] | None
) -> tuple[Problem, str]:
    """(the problem, the column that is empty and must not be, "" if none)."""

    def text(column: str | None) -> str:
        value = row.get(column) if column else None
        return "" if value is None else str(value).strip()

    def cleaned(column: str | None) -> str:
        return remove.sub("", text(column)).strip() if remove else text(column)

    question, answer = text(columns["question"]), reference_answer(text(columns["answer"]), reference)
    wrong = [text(column) for column in columns["wrong_answers"]]
    required = [(columns["question"], question), (columns["answer"], answer)]
    required += list(zip(columns["wrong_answers"], wrong, strict=True))
    missing = next((column for column, value in required if not value), "")
    if wrong and not missing:
        question, answer = multiple_choice(question, answer, wrong)
    problem = {
        "id": problem_id(question),
        "question": question,
        "answer": answer,
        "solution": cleaned(columns["solution"]),
        "thinking": cleaned(columns["thinking"]) if columns["thinking"] else None,
        "response": cleaned(columns["response"]) if columns["response"] else None,
    }
    return problem, missing


def reference_answer(text: str, reference: str) -> str:
    """The answer in its column's text by `reference` (whole | boxed | hashes); "" where hashes finds none."""
    match reference:
        case "whole":
            return text
        case "boxed":
            return find_answer(text, "boxed") or text
        case "hashes":
            return find_answer(text, "hashes") or ""
        case _:
            raise ValueError(f"datasets.<name>.reference = {reference!r}: expected whole, boxed or hashes; correct it")


def multiple_choice(question: str, answer: str, wrong: Sequence[str]) -> tuple[str, str]:
    """(the question with lettered choices, the right letter).

    The order is frozen and the same on every machine: choices are sorted by the sha256 of the question's id, their
    column (0 is the right one) and their text, so it depends on this row alone.
    """
    choices = [answer, *wrong]

    def key(index: int) -> str:
        return hashlib.sha256(f"{problem_id(question)}/{index}/{choices[index]}".encode()).hexdigest()

    order = sorted(range(len(choices)), key=key)
    lines = [f"{letter}) {choices[index]}" for letter, index in zip(LETTERS, order, strict=False)]
    return question + "\n\n" + "\n".join(lines), LETTERS[order.index(0)]


def _pattern(remove: str | None, name: str) -> re.Pattern[str] | None:
    try:
        return re.compile(remove) if remove else None
    except re.error as error:
        raise ValueError(f"datasets.{name}.remove = {remove!r}: no regular expression ({error}); correct it") from error


def _check_columns(rows: Sequence[Mapping[str, Any]], name: str, columns: Mapping[str, Any]) -> None:
    if not rows:
        raise ValueError(f"empty problem set: the files of datasets.{name} hold no rows; check datasets.{name}.files")
    found = list(dict.fromkeys(key for row in rows for key in row))
    wanted = {key: column for key, column in columns.items() if isinstance(column, str)}
    wanted |= {f"wrong_answers[{index}]": column for index, column in enumerate(columns["wrong_answers"])}
    missing = [f"datasets.{name}.columns.{key} = {column!r}" for key, column in wanted.items() if column not in found]
    if missing:
        raise ValueError(f"{', '.join(missing)}: no such column; the files have {', '.join(found)}; correct the config")


# --- files -----------------------------------------------------------------------------------------------------------


def read_rows(folder: Path, name: str, pattern: str) -> Iterator[dict[str, Any]]:
    """The rows of all files below `folder` that match the glob `pattern`, files in the order of their names.

    Raises FileNotFoundError for an incomplete folder or where nothing matches, ValueError for an unreadable file.
    """
    verify_manifest(folder, deep=False)
    about_files = (MANIFEST, SUFFIX)
    files = [path for path in sorted(folder.glob(pattern)) if path.is_file() and not path.name.endswith(about_files)]
    if not files:
        present = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())[:20]
        raise FileNotFoundError(
            f"datasets.{name}.files = {pattern!r}: no such file in {folder}, which holds {', '.join(present)}; "
            "correct the pattern"
        )
    for path in files:
        yield from _read_file(path, name)


def _read_file(path: Path, name: str) -> list[dict[str, Any]]:
    remedy = f"delete {path.parent} and run its prefetch again, or correct datasets.{name}.files"
    try:
        match path.suffix:
            case ".jsonl":
                return read_jsonl(path)
            case ".parquet":
                return pq.read_table(path).to_pylist()
            case ".csv":
                return _read_csv(path)
    except (ValueError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({error}); {remedy}") from error
    raise ValueError(f"{path}: expected .jsonl, .parquet or .csv; correct datasets.{name}.files")


def _read_csv(path: Path) -> list[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # GPQA's explanations are longer than the default limit
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, strict=True))
