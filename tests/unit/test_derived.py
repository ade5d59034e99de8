"""Trace sets made of another: the filter against scores from the definition, recoding without a silent loss."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from rsd import derived
from rsd.derived import Score, kept_count, run_derive_traces, summed
from rsd.models import load_model, load_tokenizer, vocabulary_digest
from rsd.pocket import make_tokenizer
from rsd.records import ROWS, read_provenance, read_table, write_jsonl, write_table
from rsd.scoring import TokenScores
from tiny import tiny_model_folder, tiny_tokenizer

END = "<|im_end|>"
FORMAT = {"think_close": "</think>", "end_of_turn": END, "answer": "boxed", "dataset_trace": "{response}"}
STUDENT = {"name": "s", "dtype": "float32", "prompt": "<|im_start|>{question}<think>"}
FILTER = {
    "method": "filter",
    "of": "direct",
    "student": STUDENT,
    "block_size": 20,
    "device": "cpu",
    "gpus": 1,
    "threshold": 0.01,
    "context": 512,
    "filter": {"by": "improbable_share", "keep": 0.5},
}
RECODE = {
    "method": "recode",
    "of": "rsd",
    "student": STUDENT | {"prompt": "{question}:"},
    "block_size": 20,
    "device": "cpu",
    "gpus": 1,
    "format": FORMAT,
}
TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide weights, so that some tokens are improbable."""
    folder = tiny_model_folder(tmp_path_factory.mktemp("models") / "student")
    model = load_model(folder, "float32", "cpu")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    model.save_pretrained(folder)
    return folder


def folder_of(path: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    return tiny_model_folder(path, tokenizer=tokenizer, weights=False)  # type: ignore[arg-type]


def row(number: int, text: str, kind: str = "trace", tokenizer: PreTrainedTokenizerBase = TOKENIZER) -> dict[str, Any]:
    return {
        "problem_id": f"p{number}",
        "attempt": number % 3,
        "kind": kind,
        "prompt_tokens": tokenizer.encode(f"<|im_start|>Q{number}<think>", add_special_tokens=False),
        "completion_tokens": tokenizer.encode(text, add_special_tokens=False),
    }


def random_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    texts = ["".join(random.choice(list("abc123+="), size=random.integers(1, 30))) for _ in range(count)]
    return [row(n, text + END) for n, text in enumerate(texts)]


class Run:
    """One call of the stage and what it wrote."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]], settings: dict[str, Any], **paths: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "of.parquet").exists():
            vocabulary = paths.pop("vocabulary", vocabulary_digest(TOKENIZER))
            write_table(folder / "of.parquet", rows, ROWS, {"vocabulary": vocabulary} if vocabulary else {})
        count = paths.pop("count", len(rows))
        problems = [{"id": f"p{n}", "question": f"Q{n}", "answer": "1", "solution": ""} for n in range(count)]
        write_jsonl(folder / "problems.jsonl", problems)
        run_derive_traces(
            problems=folder / "problems.jsonl",
            of=folder / "of.parquet",
            student=paths.pop("student"),
            source=paths.pop("source", None),
            settings=settings,
            threads=1,
            rows=folder / "rows.parquet",
            summary=folder / "selection.json",
            work=folder / "work",
        )
        assert not paths
        self.folder = folder
        self.rows = read_table(folder / "rows.parquet", ROWS).to_pylist()
        self.summary = json.loads((folder / "selection.json").read_text())


# --- filter ----------------------------------------------------------------------------------------------------------


def naive_values(student: Path, rows: list[dict[str, Any]], threshold: float, by: str) -> list[float]:
    """From the definition: one pass over the whole row, the probability of each completion token in float64."""
    model = load_model(student, "float32", "cpu")
    values = []
    for entry in rows:
        ids = torch.tensor([entry["prompt_tokens"] + entry["completion_tokens"]])
        with torch.no_grad():
            probabilities = torch.softmax(model(ids).logits[0].double(), dim=-1)
        first = len(entry["prompt_tokens"])
        p = [float(probabilities[n - 1, ids[0, n]]) for n in range(first, ids.shape[1])]
        improbable = sum(value < threshold for value in p) / len(p)
        values.append(improbable if by == "improbable_share" else sum(-math.log(value) for value in p) / len(p))
    return values


@pytest.mark.parametrize("by", ["improbable_share", "mean_surprisal"])
@pytest.mark.parametrize("keep", [0.3, 0.5, 1.0])
def test_the_rows_with_the_lowest_values_are_kept_as_they_are(
    tmp_path: Path, student: Path, by: str, keep: float
) -> None:
    rows = random_rows(20)
    settings = FILTER | {"filter": {"by": by, "keep": keep}, "threshold": 0.002}
    run = Run(tmp_path, rows, settings, student=student)
    values = naive_values(student, rows, 0.002, by)
    assert len({round(value, 6) for value in values}) > 5, "values that differ, or nothing is tested"
    kept = sorted(range(20), key=lambda n: (values[n], f"p{n}"))[: round(20 * keep)]
    assert run.rows == [rows[n] for n in sorted(kept)]
    facts = run.summary["filter"]
    assert (facts["by"], facts["keep"], facts["rows"], facts["kept"]) == (by, keep, 20, round(20 * keep))
    assert facts["values"]["all"]["mean"] == pytest.approx(np.mean(values), abs=1e-4)
    assert facts["values"]["kept"]["p100"] == pytest.approx(max(values[n] for n in kept), abs=1e-4)
    assert (facts["rows_in_part"], facts["rows_not_at_all"]) == (0, 0)


def test_ties_go_by_the_problems_id_whatever_the_order_of_the_rows(tmp_path: Path, student: Path) -> None:
    # Threshold 0: no token is improbable, all rows are equal.
    rows = random_rows(12)
    for name, order in (("a", rows), ("b", rows[::-1])):
        run = Run(tmp_path / name, order, FILTER | {"threshold": 0.0}, student=student)
        wanted = sorted(entry["problem_id"] for entry in rows)[:6]
        assert sorted(entry["problem_id"] for entry in run.rows) == wanted
        assert run.rows == [entry for entry in order if entry["problem_id"] in wanted], "in their order"


def test_no_more_of_a_row_is_looked_at_than_the_context(tmp_path: Path, student: Path) -> None:
    rows = [row(n, text) for n, text in enumerate(["ab" * 20, "12" * 20, "ab", "c" * 9])]
    prompt = len(rows[0]["prompt_tokens"])
    by = {"filter": {"by": "mean_surprisal", "keep": 0.5}}
    run = Run(tmp_path / "cut", rows, FILTER | by | {"context": prompt + 4}, student=student)
    shorter = [entry | {"completion_tokens": entry["completion_tokens"][:4]} for entry in rows]
    values = naive_values(student, shorter, 0.01, "mean_surprisal")
    kept = sorted(sorted(range(4), key=lambda n: values[n])[:2])
    assert run.rows == [rows[n] for n in kept], "kept whole"
    assert run.summary["filter"]["rows_in_part"] == 3
    assert run.summary["filter"]["values"]["all"]["mean"] == pytest.approx(np.mean(values), abs=1e-4)


def test_rows_of_which_nothing_is_looked_at_are_kept_last(tmp_path: Path, student: Path) -> None:
    rows = [row(0, "ab"), row(1, "ab"), row(2, "ab")]
    rows[0]["prompt_tokens"] = rows[0]["prompt_tokens"] * 4
    settings = FILTER | {"context": len(rows[1]["prompt_tokens"]) + 2, "filter": {"by": "mean_surprisal", "keep": 0.7}}
    run = Run(tmp_path, rows, settings, student=student)
    assert [entry["problem_id"] for entry in run.rows] == ["p1", "p2"]
    assert run.summary["filter"]["rows_not_at_all"] == 1


def test_a_context_beyond_what_the_student_can_read_is_cut_to_that(tmp_path: Path, student: Path) -> None:
    run = Run(tmp_path, [row(0, "ab" * 400), row(1, "ab")], FILTER | {"context": 8192}, student=student)
    assert run.summary["filter"]["rows_in_part"] == 1


@given(st.integers(1, 2000), st.floats(0.001, 1.0))
def test_the_share_that_is_kept_is_the_nearest_and_at_least_one_row(rows: int, keep: float) -> None:
    count = kept_count(rows, keep)
    assert 1 <= count <= rows
    assert abs(count - keep * rows) <= 0.5 or count == 1
    assert kept_count(rows, 1.0) == rows


def test_a_probability_of_just_the_threshold_is_not_improbable_and_one_of_nothing_is_finite() -> None:
    p = np.array([0.01, np.nextafter(np.float32(0.01), np.float32(0)), 0.5, 0.0], dtype=np.float32)
    score = summed(TokenScores(p, np.ones(4, np.int32), np.ones(4, np.float32)), 0.01)
    assert (score.tokens, score.improbable) == (4, 2)
    tiny = float(np.finfo(np.float32).tiny)
    assert score.surprisal == pytest.approx(-sum(math.log(max(float(value), tiny)) for value in p))
    assert Score(0, 0, 0.0).value("mean_surprisal") == math.inf
    assert Score(4, 1, 6.0).value("improbable_share") == 0.25
    assert Score(4, 1, 6.0).value("mean_surprisal") == 1.5


def test_what_is_scored_is_not_scored_again_by_another_measure_or_share_or_after_a_kill(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, calls, killed = random_rows(8), [], []
    original = derived.score_tokens

    def counted(model: Any, pairs: Any, **more: Any) -> Any:
        for number, scores in enumerate(original(model, pairs, **more)):
            if len(calls) == 5 and not killed:
                killed.append(number)
                raise KeyboardInterrupt
            calls.append(number)
            yield scores

    monkeypatch.setattr(derived, "score_tokens", counted)
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, rows, FILTER, student=student)
    assert not (tmp_path / "rows.parquet").exists()
    interrupted = Run(tmp_path, rows, FILTER, student=student).rows
    assert len(calls) == 8
    assert interrupted == Run(tmp_path / "undisturbed", rows, FILTER, student=student).rows
    calls.clear()
    Run(tmp_path, rows, FILTER | {"filter": {"by": "mean_surprisal", "keep": 0.2}}, student=student)
    assert calls == []
    Run(tmp_path, rows, FILTER | {"threshold": 0.5}, student=student)
    assert len(calls) == 8, "another threshold asks anew"


def test_equal_runs_write_equal_files_and_rows_keep_their_vocabulary(tmp_path: Path, student: Path) -> None:
    one, two = (Run(tmp_path / name, random_rows(9), FILTER, student=student) for name in ("one", "two"))
    assert one.rows == two.rows
    for run in (one, two):
        run.summary["provenance"].pop("run")
    assert one.summary == two.summary
    assert read_provenance(one.folder / "rows.parquet")["vocabulary"] == vocabulary_digest(TOKENIZER)


def test_the_summary_counts_as_that_of_a_selection(tmp_path: Path, student: Path) -> None:
    rows = [row(0, "ab" + END), row(1, "a" * 40 + END), row(2, "ab", kind="prefix")]
    summary = Run(
        tmp_path, rows, FILTER | {"filter": {"by": "improbable_share", "keep": 1.0}}, student=student, count=5
    )
    summary = summary.summary
    assert (summary["of"], summary["method"]) == ("direct", "filter")
    assert summary["problems"] == {"all": 5, "solved": 2, "prefix": 1, "dropped": 2}
    assert summary["rows"] == {"trace": 2, "prefix": 1}
    assert summary["tokens"]["completions"]["p100"] == 41
    assert (summary["block_size"], summary["over_block_share"]) == (20, 1 / 3)
    assert set(summary["provenance"]["settings"]["inputs"]) == {"problems", "of", "student"}


# --- recode ----------------------------------------------------------------------------------------------------------


def test_in_one_vocabulary_the_ids_stay_and_the_prompt_is_the_other_students(tmp_path: Path, student: Path) -> None:
    # A spelling that no tokenizer makes of this text: the ids themselves must stay.
    rows = [row(0, "1+1</think>2" + END), row(1, "12", kind="prefix")]
    rows[0]["completion_tokens"][3:4] = TOKENIZER.encode("<") + TOKENIZER.encode("/") + TOKENIZER.encode("think>")
    run = Run(tmp_path, rows, RECODE, student=student, source=student)
    assert [entry["completion_tokens"] for entry in run.rows] == [entry["completion_tokens"] for entry in rows]
    assert [TOKENIZER.decode(entry["prompt_tokens"]) for entry in run.rows] == ["Q0:", "Q1:"]
    assert [entry["kind"] for entry in run.rows] == ["trace", "prefix"]
    assert [entry["attempt"] for entry in run.rows] == [0, 1]
    assert run.summary["recode"]["same_tokens"] is True
    assert run.summary["recode"]["lost"] == []


def test_in_another_vocabulary_the_text_stays_with_its_marks_and_its_end(tmp_path: Path) -> None:
    bytes_of = make_tokenizer("student")
    source, other = folder_of(tmp_path / "source", TOKENIZER), folder_of(tmp_path / "other", bytes_of)
    rows = [row(0, "1+1</think>2" + END), row(1, "1+", kind="prefix")]
    run = Run(tmp_path / "run", rows, RECODE, student=other, source=source)
    tokenizer = load_tokenizer(other)
    for entry, text in zip(run.rows, ("1+1</think>2" + END, "1+"), strict=True):
        assert tokenizer.decode(entry["completion_tokens"]) == text
        assert entry["completion_tokens"] == tokenizer.encode(text, add_special_tokens=False)
    assert run.rows[0]["completion_tokens"].count(tokenizer.convert_tokens_to_ids("</think>")) == 1
    assert run.rows[0]["completion_tokens"][-1] == tokenizer.convert_tokens_to_ids(END)
    assert run.summary["recode"]["same_tokens"] is False
    provenance = read_provenance(run.folder / "rows.parquet")
    assert provenance["vocabulary"] == vocabulary_digest(tokenizer)
    assert set(provenance["settings"]["inputs"]) == {"problems", "of", "student", "source"}


def test_rows_that_cannot_be_said_are_lost_named_and_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bytes_of = make_tokenizer("student")
    source, other = folder_of(tmp_path / "source", bytes_of), folder_of(tmp_path / "other", TOKENIZER)
    whole = [row(n, text, tokenizer=bytes_of) for n, text in enumerate(["ab" + END, "aé" + END, "é" + END])]
    vocabulary = vocabulary_digest(bytes_of)
    run = Run(tmp_path / "run", whole, RECODE, student=other, source=source, vocabulary=vocabulary)
    assert [entry["problem_id"] for entry in run.rows] == ["p0"]
    assert run.summary["recode"]["lost"] == ["p1", "p2"]
    assert run.summary["recode"]["rows"] == 3
    assert run.summary["problems"] == {"all": 3, "solved": 1, "prefix": 0, "dropped": 2}
    assert "2 of 3 rows are lost" in caplog.text
    with pytest.raises(ValueError, match=r"none of its 2 rows can be said in the tokens of .*other"):
        Run(tmp_path / "none", whole[1:], RECODE, student=other, source=source, vocabulary=vocabulary, count=3)


def test_a_prefix_cut_within_a_character_loses_only_that(tmp_path: Path) -> None:
    bytes_of = make_tokenizer("student")
    merged = make_tokenizer("teacher")  # of another vocabulary: it lacks the marks of reasoning
    source, other = folder_of(tmp_path / "source", bytes_of), folder_of(tmp_path / "other", merged)
    cut = row(0, "aé", kind="prefix", tokenizer=bytes_of)
    cut["completion_tokens"].pop()
    run = Run(tmp_path / "run", [cut], RECODE, student=other, source=source, vocabulary=vocabulary_digest(bytes_of))
    assert load_tokenizer(other).decode(run.rows[0]["completion_tokens"]) == "a"


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_filter_by_a_student_of_another_vocabulary_names_recode(tmp_path: Path, student: Path) -> None:
    with pytest.raises(ValueError, match=r"of\.parquet holds token ids of another vocabulary .*method recode first"):
        Run(tmp_path, random_rows(3), FILTER, student=student, vocabulary="0" * 16)


def test_rows_in_other_tokens_than_their_own_students_are_refused(tmp_path: Path, student: Path) -> None:
    with pytest.raises(ValueError, match=r"another vocabulary .*the student of the other trace set"):
        Run(tmp_path, random_rows(3), RECODE, student=student, source=student, vocabulary="0" * 16)


def test_rows_that_say_nothing_of_their_vocabulary_are_taken_as_they_are(tmp_path: Path, student: Path) -> None:
    assert len(Run(tmp_path, random_rows(4), FILTER, student=student, vocabulary=None).rows) == 2


def test_no_row_an_unknown_problem_and_a_missing_source_are_refused(tmp_path: Path, student: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no training rows, so nothing can be made of them"):
        Run(tmp_path / "a", [], FILTER, student=student)
    with pytest.raises(ValueError, match=r"problem p2 of 1 rows is not in the problems"):
        Run(tmp_path / "b", random_rows(3), FILTER, student=student, count=2)
    with pytest.raises(ValueError, match=r"method recode needs --source"):
        Run(tmp_path / "c", random_rows(3), RECODE, student=student)


def test_damaged_rows_are_named(tmp_path: Path, student: Path) -> None:
    Run(tmp_path, random_rows(3), FILTER, student=student)
    path = tmp_path / "of.parquet"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"of\.parquet is damaged"):
        Run(tmp_path, [], FILTER, student=student)
