"""Each rule rejects what it is for and nothing else, every attempt and problem is accounted for, rows are exact ids."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.records import ATTEMPTS, ROWS, VERDICTS, read_table, write_jsonl, write_table
from rsd.selection import NOT_PICKED, RULES, judge, read_attempts, run_select_traces
from tiny import tiny_model_folder, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END = "<|im_end|>"
FORMAT = {"think_close": "</think>", "end_of_turn": END, "answer": "boxed", "dataset_trace": "{response}"}
SETTINGS: dict[str, Any] = {
    "require_correct": True,
    "require_finished": True,
    "require_think_close": True,
    "max_fallback_rate": 0.5,
    "pick": "shortest",
    "solved": "trace",
    "unsolved": "prefix",
    "prefix_tokens": 8,
    "prefix_attempt": "first",
    "allow_prefixes_only": False,
    "format": FORMAT,
    "student": {"name": "s", "dtype": "float32", "prompt": "<|im_start|>{question}<think>"},
    "block_size": 60,
    "seed": 0,
}
RIGHT = r"hm</think>\boxed{2}" + END


def attempt(text: str, number: int = 0, key: str = "p0", fallback: float = 0.0, **changes: Any) -> dict[str, Any]:
    """An attempt whose ids are the text's; the first `fallback` of its tokens came by fallback."""
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    count = round(fallback * len(tokens))
    row = {
        "problem_id": key,
        "attempt": number,
        "tokens": np.array(tokens, dtype=np.int32),
        "fallback": np.arange(len(tokens)) < count,
        "p_student": np.ones(len(tokens), dtype=np.float32),
        "p_teacher": np.ones(len(tokens), dtype=np.float32),
        "finish": "end_of_turn" if text.endswith(END) else "length",
        "text": text,
    }
    return row | changes


def problems(count: int, answer: str = "2") -> list[dict[str, Any]]:
    return [{"id": f"p{n}", "question": f"Q{n}", "answer": answer, "solution": ""} for n in range(count)]


class Run:
    """One call of the stage and what it wrote."""

    def __init__(self, folder: Path, attempts: list[list[dict[str, Any]]], count: int = 1, **changes: Any) -> None:
        provenance = changes.pop("provenance", {})
        answer = changes.pop("answer", "2")
        folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / "problems.jsonl", problems(count, answer))
        shards = [folder / f"shard-{index:03d}.parquet" for index in range(len(attempts))]
        for path, rows in zip(shards, attempts, strict=True):
            write_table(path, rows, ATTEMPTS, provenance)
        if not (folder / "student").exists():
            tiny_model_folder(folder / "student", tokenizer=TOKENIZER, weights=False)
        run_select_traces(
            problems=folder / "problems.jsonl",
            shards=shards,
            student=folder / "student",
            settings=SETTINGS | changes,
            verdicts=folder / "verdicts.parquet",
            rows=folder / "rows.parquet",
            summary=folder / "selection.json",
            work=folder / "work",
        )
        self.verdicts = read_table(folder / "verdicts.parquet", VERDICTS).to_pylist()
        self.rows = read_table(folder / "rows.parquet", ROWS).to_pylist()
        self.summary = json.loads((folder / "selection.json").read_text())

    def reasons(self) -> list[str]:
        return [verdict["reason"] for verdict in self.verdicts]


# --- the rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fallback", "reason"),
    [
        (RIGHT, 0.0, "kept"),
        (RIGHT, 0.6, "fallback_rate"),
        (RIGHT.removesuffix(END), 0.0, "unfinished"),
        (r"hm\boxed{2}" + END, 0.0, "think_markers"),
        (r"a</think>b</think>\boxed{2}" + END, 0.0, "think_markers"),
        ("hm</think>2" + END, 0.0, "no_answer"),
        (r"\boxed{2}</think>so it is" + END, 0.0, "no_answer"),
        (r"hm</think>\boxed{3}" + END, 0.0, "wrong_answer"),
        (r"hm</think>\boxed{1}, no, \boxed{2}" + END, 0.0, "kept"),
        (r"hm</think>\boxed{\frac{4}{2}}" + END, 0.0, "kept"),
    ],
)
def test_each_rule_has_its_own_reason(text, fallback, reason):
    verdict, broken = judge(attempt(text, fallback=fallback), "2", SETTINGS)
    assert verdict["reason"] == reason
    assert (broken[0] if broken else "kept") == reason


def test_exactly_half_of_the_tokens_by_fallback_is_kept_and_one_more_is_not():
    text = RIGHT if len(TOKENIZER.encode(RIGHT)) % 2 == 0 else "h" + RIGHT
    row = attempt(text)
    half = len(row["tokens"]) // 2
    assert judge(row | {"fallback": np.arange(2 * half) < half}, "2", SETTINGS)[1] == []
    assert judge(row | {"fallback": np.arange(2 * half) < half + 1}, "2", SETTINGS)[1] == ["fallback_rate"]


@pytest.mark.parametrize(
    ("switch", "text"),
    [
        ({"require_finished": False}, RIGHT.removesuffix(END)),
        ({"require_think_close": False}, r"a</think>b</think>\boxed{2}" + END),
        ({"require_correct": False}, r"hm</think>\boxed{3}" + END),
        ({"require_correct": False}, "hm</think>3" + END),
    ],
)
def test_a_rule_that_is_switched_off_rejects_nothing(switch, text):
    assert judge(attempt(text), "2", SETTINGS)[1]
    assert judge(attempt(text), "2", SETTINGS | switch)[1] == []


def test_without_a_reasoning_mark_in_the_format_none_is_asked_for():
    plain = SETTINGS | {"format": FORMAT | {"think_close": None}}
    assert judge(attempt(r"\boxed{2}" + END), "2", plain)[1] == []


def test_a_reference_that_rules_cannot_read_is_a_reason_of_its_own():
    prose = "We conclude that the whole sum must be equal to 2."
    verdict, _ = judge(attempt(RIGHT), prose, SETTINGS)
    assert verdict["reason"] == "no_reference"
    assert judge(attempt(RIGHT), "", SETTINGS)[0]["reason"] == "no_reference"
    assert judge(attempt("hm</think>\\boxed{" + prose + "}" + END), prose, SETTINGS)[0]["reason"] == "kept"


PIECES = st.lists(st.sampled_from(["a", "</think>", r"\boxed{2}", r"\boxed{3}", END]), max_size=6).map("".join)


@given(PIECES, st.sampled_from([0.0, 0.4, 0.7]), st.sampled_from(["2", "3", "some words that are prose for rules"]))
@settings(deadline=None)
def test_the_reason_is_the_first_broken_rule(text, fallback, reference):
    verdict, broken = judge(attempt(text, fallback=fallback), reference, SETTINGS)
    assert broken == [rule for rule in RULES if rule in broken]
    assert verdict["reason"] == (broken[0] if broken else "kept")
    # Of the three about the answer, at most one.
    assert len({"no_answer", "no_reference", "wrong_answer"} & set(broken)) <= 1
    if not broken:
        assert verdict["correct"]


# --- the choice -----------------------------------------------------------------------------------------------------


def test_the_shortest_right_attempt_becomes_the_row_with_its_exact_ids(tmp_path):
    texts = ["long " + RIGHT, RIGHT, r"</think>\boxed{3}" + END, "even longer " + RIGHT]
    run = Run(tmp_path, [[attempt(text, number) for number, text in enumerate(texts)]])
    (row,) = run.rows
    assert (row["problem_id"], row["attempt"], row["kind"]) == ("p0", 1, "trace")
    assert TOKENIZER.decode(row["prompt_tokens"]) == "<|im_start|>Q0<think>"
    assert row["completion_tokens"] == TOKENIZER.encode(RIGHT)
    assert run.reasons() == ["not_shortest", "kept", "wrong_answer", "not_shortest"]
    assert [verdict["kept"] for verdict in run.verdicts] == [False, True, False, False]


def test_of_two_equally_short_attempts_the_earlier_wins(tmp_path):
    rows = [attempt(RIGHT, number) for number in (2, 0, 1)]
    assert Run(tmp_path, [rows]).rows[0]["attempt"] == 0


def test_first_and_random_picks(tmp_path):
    rows = [attempt("x" * (9 - n) + RIGHT, n, key=f"p{p}") for p in range(30) for n in range(4)]
    first = Run(tmp_path / "a", [rows], count=30, pick="first")
    assert {row["attempt"] for row in first.rows} == {0}
    assert Counter(first.reasons()) == {"kept": 30, "not_first": 90}
    picks = {}
    for seed in (0, 1):
        run = Run(tmp_path / f"r{seed}", [rows], count=30, pick="random", seed=seed)
        picks[seed] = [row["attempt"] for row in run.rows]
        assert set(picks[seed]) == {0, 1, 2, 3}
        assert Run(tmp_path / f"again{seed}", [rows[::-1]], count=30, pick="random", seed=seed).rows == run.rows
    assert picks[0] != picks[1]


# --- problems without a kept attempt --------------------------------------------------------------------------------

WRONG = r"hmmmmmmmm</think>\boxed{3}" + END


def test_an_unsolved_problem_gives_the_first_tokens_of_its_first_attempt_without_an_end(tmp_path):
    run = Run(tmp_path, [[attempt("ab" + WRONG, 1), attempt(WRONG, 0)]], allow_prefixes_only=True)
    (row,) = run.rows
    assert (row["kind"], row["attempt"]) == ("prefix", 0)
    assert TOKENIZER.decode(row["completion_tokens"]) == WRONG[:8]
    assert not any(verdict["kept"] for verdict in run.verdicts)
    assert run.summary["problems"] == {"all": 1, "solved": 0, "prefix": 1, "dropped": 0, "without_attempt": {}}


@pytest.mark.parametrize(
    ("text", "prefix", "whole"),
    [
        ("ab" + END, "ab", 1),
        ("abcdefg" + END, "abcdefg", 1),
        ("abcdefgh" + END, "abcdefgh", 1),
        ("abcdefghi" + END, "abcdefgh", 0),
        ("abcdefgh", "abcdefgh", 1),
    ],
)
def test_a_prefix_never_holds_the_end_of_a_turn_and_whole_attempts_are_counted(tmp_path, text, prefix, whole):
    run = Run(tmp_path, [[attempt(RIGHT), attempt(text, key="p1")]], count=2)
    assert TOKENIZER.decode(run.rows[1]["completion_tokens"]) == prefix
    assert run.summary["prefixes_of_whole_attempts"] == whole


def test_an_attempt_that_ends_at_once_gives_no_prefix(tmp_path):
    rows = [attempt(RIGHT, n) for n in range(2)] + [attempt(END, 0, key="p1"), attempt(WRONG, 1, key="p1")]
    run = Run(tmp_path, [rows], count=2, prefix_attempt="shortest")
    assert [row["attempt"] for row in run.rows] == [0, 1]


def test_the_prefix_may_come_from_the_shortest_attempt(tmp_path):
    rows = [attempt("ab" + WRONG, 0), attempt(WRONG, 1)]
    assert Run(tmp_path, [rows], prefix_attempt="shortest", allow_prefixes_only=True).rows[0]["attempt"] == 1


def test_an_unsolved_problem_is_dropped_by_setting(tmp_path):
    run = Run(tmp_path, [[attempt(RIGHT), attempt(WRONG, key="p1")]], count=2, unsolved="drop")
    assert [row["problem_id"] for row in run.rows] == ["p0"]
    assert run.summary["problems"] == {"all": 2, "solved": 1, "prefix": 0, "dropped": 1, "without_attempt": {}}


@pytest.mark.parametrize("unsolved", ["prefix", "drop"])
def test_without_a_single_kept_trace_there_is_an_error_that_counts_the_reasons(tmp_path, unsolved):
    rows = [attempt(WRONG, 0), attempt("hm", 1)]
    with pytest.raises(ValueError, match=r"none of 2 attempts at 1 problems.*unfinished 1, wrong_answer 1.*loosen"):
        Run(tmp_path, [rows], unsolved=unsolved)
    assert not (tmp_path / "rows.parquet").exists()


def test_prefixes_alone_are_taken_by_setting_but_no_row_at_all_never(tmp_path):
    rows = [attempt(WRONG, 0), attempt("hm", 1)]
    assert [row["kind"] for row in Run(tmp_path / "a", [rows], allow_prefixes_only=True).rows] == ["prefix"]
    with pytest.raises(ValueError, match=r"none of 2 attempts"):
        Run(tmp_path / "b", [rows], allow_prefixes_only=True, unsolved="drop")


# --- prefixes for all -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unsolved", ["prefix", "drop"])
def test_a_solved_problem_may_give_the_first_tokens_of_its_kept_attempt_alone(tmp_path, unsolved):
    rows = [attempt("long, long " + RIGHT, 0), attempt("short " + RIGHT, 1), attempt(WRONG, 2)]
    rows += [attempt(WRONG, n, key="p1") for n in range(3)]
    run = Run(tmp_path, [rows], count=2, solved="prefix", unsolved=unsolved)
    expected = [("p0", 1, "short hm"), ("p1", 0, WRONG[:8])][: 1 if unsolved == "drop" else 2]
    found = [(row["problem_id"], row["attempt"], TOKENIZER.decode(row["completion_tokens"])) for row in run.rows]
    assert found == expected
    assert {row["kind"] for row in run.rows} == {"prefix"}
    # Which attempts are kept does not depend on it.
    assert run.reasons()[:3] == ["not_shortest", "kept", "wrong_answer"]
    assert run.summary["rows"] == {"trace": 0, "prefix": len(expected)}
    prefix = len(expected) - 1
    counts = {"all": 2, "solved": 1, "prefix": prefix, "dropped": 1 - prefix, "without_attempt": {}}
    assert run.summary["problems"] == counts
    assert run.summary["solved_share"] == 0.5


@pytest.mark.parametrize(
    ("text", "prefix"), [("abc" + END, "abc"), ("abcdefgh" + END, "abcdefgh"), ("abcdef", "abcdef")]
)
def test_a_prefix_of_a_kept_attempt_never_holds_the_end_of_the_turn(tmp_path, text, prefix):
    rules = {"require_correct": False, "require_finished": False, "require_think_close": False}
    run = Run(tmp_path, [[attempt(text)]], solved="prefix", **rules)
    assert run.reasons() == ["kept"]
    assert TOKENIZER.decode(run.rows[0]["completion_tokens"]) == prefix
    assert run.summary["prefixes_of_whole_attempts"] == 1


def test_a_kept_attempt_that_ends_at_once_gives_no_prefix(tmp_path):
    rules = {"require_correct": False, "require_think_close": False}
    run = Run(tmp_path, [[attempt(END), attempt("ab" + END, key="p1")]], count=2, solved="prefix", **rules)
    assert [row["problem_id"] for row in run.rows] == ["p1"]
    assert run.summary["problems"] == {"all": 2, "solved": 1, "prefix": 0, "dropped": 1, "without_attempt": {}}


def test_prefixes_that_are_meant_are_no_error_but_nothing_kept_still_is(tmp_path):
    assert Run(tmp_path / "a", [[attempt(RIGHT)]], solved="prefix").rows[0]["kind"] == "prefix"
    with pytest.raises(ValueError, match=r"no trace to train on: none of 1 attempts"):
        Run(tmp_path / "b", [[attempt(WRONG)]], solved="prefix")
    assert Run(tmp_path / "c", [[attempt(WRONG)]], solved="prefix", allow_prefixes_only=True).rows


@given(
    st.lists(st.sampled_from([RIGHT, "hm " + RIGHT, WRONG, "hm", END, "</think>" + END]), min_size=1, max_size=4),
    st.integers(1, 12),
    st.sampled_from(["prefix", "drop"]),
)
@settings(max_examples=25, deadline=None)
def test_prefixes_for_all_are_the_beginnings_of_the_rows_that_whole_traces_give(
    tmp_path_factory, texts, tokens, unsolved
):
    rows = [attempt(text, n) for n, text in enumerate([RIGHT, *texts])]
    folder = tmp_path_factory.mktemp("prefixes")
    both = [
        Run(folder / how, [rows], solved=how, prefix_tokens=tokens, unsolved=unsolved) for how in ("trace", "prefix")
    ]
    (whole,), (prefix,) = both[0].rows, both[1].rows
    assert prefix["attempt"] == whole["attempt"]
    assert prefix["prompt_tokens"] == whole["prompt_tokens"]
    without_end = whole["completion_tokens"][:-1]
    assert prefix["completion_tokens"] == without_end[:tokens]
    assert both[0].reasons() == both[1].reasons()


# --- laws -----------------------------------------------------------------------------------------------------------

KINDS = {
    "right": RIGHT,
    "longer": "hm, " + RIGHT,
    "wrong": WRONG,
    "cut": "hm",
    "marks": r"\boxed{2}" + END,
    "none": "hm</think>" + END,
}


@given(
    st.lists(st.lists(st.sampled_from(sorted(KINDS)), min_size=3, max_size=3), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
    st.sampled_from(sorted(NOT_PICKED)),
)
@settings(max_examples=25, deadline=None)
def test_everything_is_accounted_for_in_any_order_of_reading(tmp_path_factory, kinds, random, pick):
    rows = [attempt(KINDS[kind], n, key=f"p{p}") for p, three in enumerate(kinds) for n, kind in enumerate(three)]
    folder = tmp_path_factory.mktemp("law")
    run = Run(folder / "a", [rows], count=len(kinds), pick=pick, allow_prefixes_only=True)
    random.shuffle(rows)
    cut = random.randint(0, len(rows))
    turned = Run(folder / "b", [rows[:cut], rows[cut:]], count=len(kinds), pick=pick, allow_prefixes_only=True)
    assert (run.rows, run.verdicts) == (turned.rows, turned.verdicts)

    solved = [bool({"right", "longer"} & set(three)) for three in kinds]
    counts = run.summary["problems"]
    assert counts["solved"] == sum(solved) == sum(verdict["kept"] for verdict in run.verdicts)
    assert counts["solved"] + counts["prefix"] + counts["dropped"] == counts["all"] == len(kinds)
    assert sum(run.summary["reasons"].values()) == len(rows) == run.summary["attempts"]
    for p, three in enumerate(kinds):
        mine = [verdict for verdict in run.verdicts if verdict["problem_id"] == f"p{p}"]
        assert sum(verdict["kept"] for verdict in mine) == solved[p]
        assert [verdict["reason"] == "kept" for verdict in mine] == [verdict["kept"] for verdict in mine]
        if pick == "shortest" and solved[p]:
            shortest = RIGHT if "right" in three else KINDS["longer"]
            assert run.rows[p]["completion_tokens"] == TOKENIZER.encode(shortest)


# --- summary --------------------------------------------------------------------------------------------------------


def test_the_summary_counts_shares_lengths_and_every_broken_rule(tmp_path):
    rows = [
        attempt(RIGHT, 0),
        attempt("hm", 1),
        attempt("x" * 80 + RIGHT, 0, key="p1", fallback=0.1),
        attempt(WRONG, 1, key="p1"),
    ]
    summary = Run(tmp_path, [rows], count=2).summary
    assert summary["reasons"] == {"kept": 2, "unfinished": 1, "wrong_answer": 1}
    assert summary["rules_broken"] == {
        "unfinished": 1,
        "think_markers": 1,
        "no_answer": 1,
        "no_reference": 0,
        "wrong_answer": 1,
        "fallback_rate": 0,
    }
    assert summary["rows"] == {"trace": 2, "prefix": 0}
    assert (summary["solved_share"], summary["correct_share"]) == (1.0, 0.5)
    assert (summary["block_size"], summary["over_block_share"], summary["kept_unfinished_share"]) == (60, 0.5, 0.0)
    lengths = [len(row["tokens"]) for row in rows]
    assert summary["tokens"]["attempts"]["mean"] == np.mean(lengths)
    assert summary["tokens"]["completions"]["p100"] == lengths[2]
    assert summary["tokens"]["rows"]["p100"] == lengths[2] + len(TOKENIZER.encode("<|im_start|>Q1<think>"))
    by_fallback = round(0.1 * lengths[2])
    assert summary["fallback_rate"]["attempts"] == pytest.approx(by_fallback / sum(lengths))
    assert summary["fallback_rate"]["kept"] == pytest.approx(by_fallback / (lengths[0] + lengths[2]))
    assert summary["provenance"]["settings"]["seed"] == 0


# --- broken shards --------------------------------------------------------------------------------------------------


def test_a_problem_without_an_attempt_is_an_incomplete_shard(tmp_path):
    with pytest.raises(ValueError, match=r"incomplete: no attempt at 1 of 2 problems, the first is p1"):
        Run(tmp_path, [[attempt(RIGHT)]], count=2)


def test_fewer_attempts_than_at_other_problems_is_an_incomplete_shard(tmp_path):
    rows = [attempt(RIGHT, 0), attempt(RIGHT, 1), attempt(RIGHT, 0, key="p1")]
    with pytest.raises(ValueError, match=r"problem p1 has 1 attempts, others 2"):
        Run(tmp_path, [rows], count=2)


def test_a_problem_that_the_dataset_has_no_trace_of_is_counted_as_dropped(tmp_path):
    provenance = {"skipped": {"empty_response": ["p1"], "holds_end_of_turn": []}}
    run = Run(tmp_path, [[attempt(RIGHT)]], count=2, provenance=provenance)
    assert run.summary["problems"] == {
        "all": 2,
        "solved": 1,
        "prefix": 0,
        "dropped": 1,
        "without_attempt": {"empty_response": 1},
    }


def test_an_attempt_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shard-001\.parquet: attempt 0 at problem p0 comes a second time"):
        Run(tmp_path, [[attempt(RIGHT)], [attempt(RIGHT)]])


def test_an_attempt_at_an_unknown_problem_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shard-000\.parquet: problem p7 is not in the problems"):
        Run(tmp_path, [[attempt(RIGHT), attempt(RIGHT, key="p7")]])


def damaged(tmp_path: Path, damage: str) -> Path:
    path = tmp_path / "shard-000.parquet"
    write_table(path, [attempt("x" * 500 + str(n) + RIGHT, n) for n in range(50)], ATTEMPTS, {})
    content = bytearray(path.read_bytes())
    match damage:
        case "truncated":
            content = content[: len(content) // 2]
        case "empty":
            content = bytearray()
        case "flipped":  # one byte in the last page of the token ids
            chunk = pq.ParquetFile(path).metadata.row_group(0).column(2)
            content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped"])
def test_a_damaged_shard_is_named_with_a_remedy(tmp_path, damage):
    path = damaged(tmp_path, damage)
    with pytest.raises(ValueError, match=r"shard-000\.parquet is damaged .*run the same command again"):
        list(read_attempts(path))


def test_a_table_of_another_kind_is_refused(tmp_path):
    write_table(tmp_path / "t.parquet", [], ROWS, {})
    with pytest.raises(ValueError, match=r"t\.parquet has the columns.*expected"):
        list(read_attempts(tmp_path / "t.parquet"))


def test_a_missing_shard_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(read_attempts(tmp_path / "none.parquet"))


def test_an_empty_problem_set_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no problems"):
        Run(tmp_path, [[]], count=0)


def test_the_shards_journals_stay_until_rows_were_chosen(tmp_path: Path) -> None:
    journals = [tmp_path / "work" / f"shard-00{number}-{'0' * 16}.journal" for number in (0, 1)]
    journals[0].parent.mkdir()
    for path in journals:
        path.touch()
    with pytest.raises(ValueError, match="no trace to train on"):
        Run(tmp_path, [[attempt(RIGHT)]], answer="3")
    assert all(path.exists() for path in journals)
    Run(tmp_path, [[attempt(RIGHT)]])
    assert not any(path.exists() for path in journals)
