"""The stage from files to files: which rows, whose tokens, one reader; progress that survives; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rsd import tokens as stage
from rsd.manifest import write_manifest
from rsd.models import load_model, vocabulary_digest
from rsd.records import ATTEMPTS, ROWS, TOKENS, read_provenance, read_table, write_jsonl, write_table
from rsd.scoring import score_tokens
from rsd.token_summary import Scored, summarise
from rsd.tokens import run_analyse_tokens
from rsd.vocabulary import token_ids
from tiny import tiny_model_folder, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SETTINGS: dict[str, Any] = {
    "traces": "rsd",
    "reader": "student",
    "problems": None,
    "threshold": 0.01,
    "dtype": "float32",
    "device": "cpu",
    "gpus": 1,
}
TEXTS = ["one and one</think>2<|im_end|>", "hm", "let me see</think>3<|im_end|>"]


def ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def row(number: int, text: str, **changes: Any) -> dict[str, Any]:
    return {
        "problem_id": f"p{number}",
        "attempt": 1,
        "kind": "trace" if text.endswith("<|im_end|>") else "prefix",
        "prompt_tokens": ids(f"Q{number}<think>"),
        "completion_tokens": ids(text),
    } | changes


def attempt(number: int, text: str, attempt: int = 1) -> dict[str, Any]:
    """Of an attempt at problem `number` every third token came by fallback, from token `number` on."""
    tokens = ids(text)
    return {
        "problem_id": f"p{number}",
        "attempt": attempt,
        "tokens": tokens,
        "fallback": [(n - number) % 3 == 0 for n in range(len(tokens))],
        "p_student": [0.5] * len(tokens),
        "p_teacher": [0.5] * len(tokens),
        "finish": "end_of_turn",
        "text": text,
    }


class Case:
    """Files of a trace set in a folder, and the stage's outputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reader = tiny_model_folder(folder / "reader", tokenizer=TOKENIZER)
        self.rows = folder / "rows.parquet"
        self.shards = [folder / "shard-000.parquet", folder / "shard-001.parquet"]
        self.write_rows([row(number, text) for number, text in enumerate(TEXTS)])
        write_jsonl(folder / "problems.jsonl", [{"id": f"p{number}"} for number in range(4)])
        longer = [text if text.endswith("<|im_end|>") else text + "! but" for text in TEXTS]
        write_table(
            self.shards[0], [attempt(0, "other", 0), attempt(0, longer[0]), attempt(2, longer[2])], ATTEMPTS, {}
        )
        write_table(self.shards[1], [attempt(1, longer[1]), attempt(3, "zzz"), attempt(3, "z", 0)], ATTEMPTS, {})

    def write_rows(self, rows: list[dict[str, Any]], vocabulary: str | None = None) -> None:
        write_table(self.rows, rows, ROWS, {"vocabulary": vocabulary or vocabulary_digest(TOKENIZER)})

    def run(self, *, shards: bool = True, reader: Path | None = None, **changes: Any) -> None:
        run_analyse_tokens(
            rows=self.rows,
            shards=self.shards if shards else [],
            problems=self.folder / "problems.jsonl",
            reader=reader or self.reader,
            settings=SETTINGS | changes,
            threads=1,
            tokens=self.folder / "tokens.parquet",
            summary=self.folder / "tokens.json",
            work=self.folder / "work",
        )

    @property
    def table(self) -> list[dict[str, Any]]:
        return read_table(self.folder / "tokens.parquet", TOKENS).to_pylist()

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "tokens.json").read_text())

    def expected(self, count: int = 3) -> list[Scored]:
        """What a plain use of the parts gives for the first rows."""
        model = load_model(self.reader, "float32", "cpu")
        rows = [(ids(f"Q{number}<think>"), ids(text)) for number, text in enumerate(TEXTS[:count])]
        scores = score_tokens(model, rows, known=token_ids(TOKENIZER, len(TOKENIZER)))
        return [
            Scored(np.array(completion, dtype=np.int32), found, np.array(attempt(n, TEXTS[n])["fallback"]))
            for n, ((_, completion), found) in enumerate(zip(rows, scores, strict=True))
        ]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


# --- what is written --------------------------------------------------------------------------------------------------


def test_every_token_of_a_row_has_its_text_its_writer_its_probability_and_its_rank(case: Case) -> None:
    case.run()
    expected = case.expected()
    assert [(r["problem_id"], r["attempt"], r["kind"]) for r in case.table] == [
        ("p0", 1, "trace"),
        ("p1", 1, "prefix"),
        ("p2", 1, "trace"),
    ]
    for number, (found, entry) in enumerate(zip(case.table, expected, strict=True)):
        assert found["tokens"] == ids(TEXTS[number])
        assert "".join(found["pieces"]) == TEXTS[number]
        assert len(found["pieces"]) == len(found["tokens"])
        assert found["fallback"] == entry.fallback.tolist()
        assert found["probability"] == entry.scores.probability.tolist()
        assert found["rank"] == entry.scores.rank.tolist()


def test_the_summary_is_that_of_all_its_tokens_and_says_what_was_read_by_whom(case: Case) -> None:
    case.run()
    expected = summarise(case.expected(), threshold=0.01, spell=lambda token: TOKENIZER.decode([token]))
    found = case.summary
    assert {name: found[name] for name in expected} == expected
    assert (found["traces"], found["reader"], found["problems"], found["rows"]) == ("rsd", "student", 4, 3)
    assert found["rows_beyond_context"] == 0
    assert set(found["provenance"]["settings"]["inputs"]) == {"rows", "problems", "reader"}
    assert read_provenance(case.folder / "tokens.parquet")["settings"] == found["provenance"]["settings"]


def test_only_rows_of_the_first_problems_are_read_in_the_order_of_the_problems(case: Case) -> None:
    case.write_rows([row(number, text) for number, text in reversed(list(enumerate(TEXTS)))])
    case.run(problems=2)
    assert [r["problem_id"] for r in case.table] == ["p0", "p1"]
    assert case.summary["problems"] == 2
    case.run(problems=9)
    assert [r["problem_id"] for r in case.table] == ["p0", "p1", "p2"]
    assert case.summary["problems"] == 4


def test_several_rows_of_a_problem_keep_their_order(case: Case) -> None:
    case.write_rows([row(1, "b"), row(0, "c"), row(1, "a")])
    case.run(shards=False)
    assert ["".join(r["pieces"]) for r in case.table] == ["c", "b", "a"]


def test_a_set_without_shards_has_no_fallback(case: Case) -> None:
    case.run(shards=False)
    assert not any(flag for r in case.table for flag in r["fallback"])
    assert case.summary["fallback_share"] is None


def test_a_set_without_a_row_among_the_problems_gives_empty_tables_and_a_warning(case: Case, caplog: Any) -> None:
    case.write_rows([row(2, TEXTS[2])])
    with caplog.at_level("WARNING"):
        case.run(problems=1)
    assert case.table == []
    assert case.summary["rows"] == case.summary["tokens"] == 0
    assert case.summary["improbable_share"] is None
    assert "rsd has no row for any of the first 1 problems" in caplog.text


def test_an_empty_completion_is_a_row_without_tokens(case: Case) -> None:
    case.write_rows([row(0, ""), row(1, TEXTS[1])])
    case.run()
    assert case.table[0]["tokens"] == case.table[0]["pieces"] == case.table[0]["probability"] == []
    assert case.summary["rows"] == 2


def test_rows_longer_than_the_reader_was_made_for_are_counted_and_told(case: Case, caplog: Any) -> None:
    case.write_rows([row(0, "a" * 520), row(1, "a")])
    with caplog.at_level("WARNING"):
        case.run(shards=False)
    assert case.summary["rows_beyond_context"] == 1
    assert "1 of 2 rows are longer than the 512 tokens" in caplog.text


# --- progress ---------------------------------------------------------------------------------------------------------


def spy_on_scoring(monkeypatch: pytest.MonkeyPatch, fail_after: int | None = None) -> list[int]:
    """Counts the rows that are scored; the process `dies` after some."""
    scored: list[int] = []

    def spy(model: Any, rows: Any, **named: Any) -> Any:
        for scores in score_tokens(model, rows, **named):
            if fail_after is not None and len(scored) >= fail_after:
                raise KeyboardInterrupt
            scored.append(len(scores.rank))
            yield scores

    monkeypatch.setattr(stage, "score_tokens", spy)
    return scored


def test_a_killed_run_leaves_no_output_and_its_rows_are_not_scored_again(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.run()
    undisturbed, summary = case.table, case.summary
    for path in (*case.folder.glob("work/*"), case.folder / "tokens.parquet", case.folder / "tokens.json"):
        path.unlink()
    first = spy_on_scoring(monkeypatch, fail_after=2)
    with pytest.raises(KeyboardInterrupt):
        case.run()
    assert len(first) == 2
    assert not (case.folder / "tokens.parquet").exists()
    assert not (case.folder / "tokens.json").exists()
    second = spy_on_scoring(monkeypatch)
    case.run()
    assert len(second) == 1
    assert case.table == undisturbed
    assert {**case.summary, "provenance": None} == {**summary, "provenance": None}


def test_another_threshold_or_more_problems_score_only_what_is_new(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.run(problems=2)
    scored = spy_on_scoring(monkeypatch)
    monkeypatch.setattr(stage, "load_model", None)  # not even loaded
    case.run(problems=2, threshold=0.5)
    assert scored == []
    assert case.summary["threshold"] == 0.5
    monkeypatch.setattr(stage, "load_model", load_model)
    case.run(problems=None)
    assert scored == [len(ids(TEXTS[2]))]


def test_scores_of_other_rows_or_another_model_are_never_taken(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.run()
    before = case.table
    scored = spy_on_scoring(monkeypatch)
    other = tiny_model_folder(case.folder / "other", tokenizer=TOKENIZER, seed=1)
    case.run(reader=other)
    assert len(scored) == 3
    assert [r["probability"] for r in case.table] != [r["probability"] for r in before]
    assert len(list(case.folder.glob("work/*.journal"))) == 1, "what earlier settings left is removed"
    case.write_rows([row(0, TEXTS[2])])
    case.run(reader=other, shards=False)
    assert len(scored) == 4


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_reader_of_another_vocabulary_is_refused_with_the_remedy(case: Case) -> None:
    other = tiny_tokenizer(marks=("<think>", "</think>", "<more>"))
    reader = tiny_model_folder(case.folder / "other", tokenizer=other)
    with pytest.raises(ValueError, match=r"another vocabulary than that of .*other; .* a trace set of method recode"):
        case.run(reader=reader)


def test_rows_that_say_nothing_of_their_vocabulary_are_taken_as_they_are(case: Case) -> None:
    write_table(case.rows, [row(0, TEXTS[0])], ROWS, {})
    case.run()
    assert case.summary["rows"] == 1


def test_an_id_that_the_reader_lacks_is_told_with_file_row_and_problem(case: Case) -> None:
    case.write_rows([row(0, "a"), row(1, "b", completion_tokens=[5, 9999])])
    with pytest.raises(ValueError, match=r"rows\.parquet, row 1 \(problem p1\): completion token 1 is the id 9999"):
        case.run(shards=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completion_tokens": ids("one but another")}, r"row 0: its tokens are not those of attempt 1 at problem p0"),
        ({"attempt": 7}, r"row 0: its tokens are not those of attempt 7 at problem p0"),
    ],
)
def test_rows_that_were_not_taken_from_the_shards_are_refused(case: Case, change: Any, message: str) -> None:
    case.write_rows([row(0, TEXTS[0], **change)])
    with pytest.raises(ValueError, match=message):
        case.run()


def test_a_row_of_a_problem_that_is_none_is_refused(case: Case) -> None:
    case.write_rows([row(0, "a"), row(77, "a")])
    with pytest.raises(ValueError, match="rows of 1 problems that are not in the problems, the first is p77"):
        case.run(problems=1)


def test_missing_ids_are_refused(case: Case) -> None:
    case.write_rows([row(0, "a", prompt_tokens=[1, None])])
    with pytest.raises(ValueError, match=r"rows\.parquet, row 0: prompt_tokens holds missing values"):
        case.run()


@pytest.mark.parametrize("name", ["rows.parquet", "shard-001.parquet"])
def test_a_damaged_file_is_named_with_a_remedy(case: Case, name: str) -> None:
    path = case.folder / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{name} is damaged .*; run the same command again"):
        case.run()


def test_a_shard_of_another_kind_is_refused(case: Case) -> None:
    write_table(case.shards[1], [row(0, "a")], ROWS, {})
    with pytest.raises(ValueError, match=r"shard-001\.parquet has the columns"):
        case.run()


def test_a_missing_shard_stays_a_missing_file(case: Case) -> None:
    case.shards[0].unlink()
    with pytest.raises(FileNotFoundError):
        case.run()


def test_an_incomplete_reader_is_refused(case: Case) -> None:
    (case.reader / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no manifest\.json"):
        case.run()


def test_of_a_shard_only_a_few_attempts_are_in_memory_at_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [attempt(0, "other", number) for number in range(2, 200)]
    write_table(case.shards[0], [*many, attempt(0, TEXTS[0]), attempt(2, TEXTS[2])], ATTEMPTS, {})
    sizes = []
    batches = pq.ParquetFile.iter_batches

    def spy(self: Any, **named: Any) -> Any:
        assert set(named["columns"]) == {"problem_id", "attempt", "tokens", "fallback"}
        for batch in batches(self, **named):
            sizes.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    case.run()
    assert max(sizes) <= 32
    assert sum(sizes) == 200 + 3


def test_weights_that_changed_are_scored_anew(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.run()
    scored = spy_on_scoring(monkeypatch)
    (case.reader / "note.txt").write_text("x")
    write_manifest(case.reader, kind="model", source="path:tiny", revision=None, licence=None, provenance={})
    case.run()
    assert len(scored) == 3
