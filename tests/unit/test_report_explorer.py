"""The explorer's data: what is shown, what may not be, how large it gets, and that nothing in it can be markup."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd import report_explorer as explorer
from rsd.records import VERDICTS, read_jsonl, read_table, write_jsonl, write_table
from rsd.report_traces import REASONS, read_traces
from synthetic_report import OVERLAP, paper_config, token_rows, write_problems, write_tokens, write_traces


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ids = write_problems(tmp_path / "problems.jsonl", 12)
    write_traces(tmp_path / "traces" / "rsd", ids, 4)
    write_traces(tmp_path / "traces" / "direct", ids, 1, rsd=False)
    for place, traces in enumerate(("rsd", "direct")):
        write_tokens(tmp_path / "tokens", traces, "student", token_rows(ids[:8], 300, seed=place))
    return tmp_path


def view(folder: Path, overlap: Any = OVERLAP, limits: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    tokens = {(traces, "student"): folder / "tokens" / traces / "student.parquet" for traces in ("rsd", "direct")}
    return explorer.explorer_view(
        read_jsonl(folder / "problems.jsonl"),
        {name: read_traces(folder / "traces" / name, {}) for name in ("direct", "rsd")},
        {pair: path for pair, path in tokens.items() if path.exists()},
        dict.fromkeys(tokens, 0.01),
        {"problems": 5, "tokens": 200, "megabytes": 4} | (limits or {}),
        paper_config(**config),
        overlap,
    )


def test_every_attempt_of_every_problem_is_there(folder: Path) -> None:
    shown = view(folder)
    data = shown["data"]
    assert [entry["name"] for entry in data["sets"]] == ["direct", "rsd"]
    assert [len(problem["sets"][1]["attempts"]) for problem in data["problems"]] == [4] * 12
    verdicts = read_traces(folder / "traces" / "rsd", {}).verdicts
    assert verdicts is not None
    first = verdicts.to_pylist()[0]
    outcome, *others = data["problems"][0]["sets"][1]["attempts"][0]
    assert others == [first["n_tokens"], first["answer"], round(1000 * first["fallback_rate"])]
    assert data["outcomes"][outcome] == {
        "right": first["correct"],
        "finish": explorer.FINISHES[first["finish"]],
        "reason": REASONS[first["reason"]],
    }
    assert "numbers" not in data["problems"][0]["sets"][1]
    assert (shown["problems"], shown["shown"], shown["hidden"]) == (12, 12, 0)


def test_attempts_with_gaps_between_their_numbers_keep_them(folder: Path) -> None:
    path = folder / "traces" / "rsd" / "verdicts.parquet"
    rows = [row for row in read_table(path, VERDICTS).to_pylist() if row["attempt"] != 1]
    write_table(path, rows[::-1], VERDICTS, {})
    entry = view(folder)["data"]["problems"][0]["sets"][1]
    assert entry["numbers"] == [0, 2, 3]
    assert len(entry["attempts"]) == 3


def test_the_sample_takes_whole_traces_first_and_keeps_the_order(folder: Path) -> None:
    shown = view(folder)
    ids = [problem["id"] for problem in shown["data"]["problems"]]
    # Of the eight analysed ones every third has a whole trace.
    assert list(shown["data"]["views"]) == [ids[place] for place in (0, 3, 6, 1, 2)]
    assert (shown["sampled"], shown["sample"]) == (5, 5)


def test_a_token_view_says_who_wrote_each_token_and_how_probable_it_was(folder: Path) -> None:
    row = token_rows([problem["id"] for problem in read_jsonl(folder / "problems.jsonl")][:8], 300)[0]
    found = view(folder)["data"]["views"][row["problem_id"]]["rsd"]
    assert (found["kind"], found["total"], len(found["pieces"])) == ("trace", 300, 200)
    assert found["pieces"] == row["pieces"][:200]
    assert found["fallback"] == [place for place in range(200) if row["fallback"][place]]
    reader = found["readers"]["student"]
    assert reader["rank"] == row["rank"][:200]
    assert reader["improbable"] == [place for place in range(200) if row["probability"][place] < 0.01]
    for code, p in zip(reader["surprisal"], row["probability"], strict=False):
        assert math.exp(-code / 100) == pytest.approx(p, rel=0.006)


def test_a_token_at_the_threshold_is_not_under_it_as_a_float32_has_it() -> None:
    row = {"probability": [float(np.float32(0.01)), 0.009, None], "rank": [1, 2, 3]}
    assert explorer._reading(row, 0.01)["improbable"] == [1]


def test_every_reader_of_a_trace_is_offered(folder: Path) -> None:
    ids = [problem["id"] for problem in read_jsonl(folder / "problems.jsonl")]
    write_tokens(folder / "tokens", "rsd", "rsd-seed0", token_rows(ids[:8], 300))
    paths = {("rsd", reader): folder / "tokens" / "rsd" / f"{reader}.parquet" for reader in ("student", "rsd-seed0")}
    views, _ = explorer.token_views(ids, paths, {}, {"problems": 3, "tokens": 50}, 1e9)
    readers = views[ids[0]]["rsd"]["readers"]
    assert list(readers) == ["student", "rsd-seed0"]
    # Without a threshold nothing is called improbable.
    assert [reader["improbable"] for reader in readers.values()] == [[], []]


@pytest.mark.parametrize(
    ("p", "code"), [(1.0, 0), (0.5, 69), (0.0, -1), (1e-45, 10362), (None, None), (math.nan, None)]
)
def test_probabilities_are_coded_in_hundredths_of_a_nat(p: float | None, code: int | None) -> None:
    assert explorer.surprisal(p) == code


# --- what may not be shown -----------------------------------------------------------------------------------------


def test_nothing_of_a_gated_dataset_is_shown(folder: Path) -> None:
    shown = view(folder, datasets={"s1k": {"gated": True}})
    assert shown["data"] is None
    assert "gated" in shown["reason"]


def test_a_training_problem_that_is_a_gated_benchmarks_is_left_out_everywhere(folder: Path) -> None:
    ids = [problem["id"] for problem in read_jsonl(folder / "problems.jsonl")]
    found = {"n_problems": 198, "exact": [[ids[0], "g1"]], "near": [[ids[3], "g2", 0.7], ["elsewhere", "g3", 0.6]]}
    shown = view(folder, overlap=OVERLAP | {"tasks": {"gpqa_diamond": found}})
    assert shown["hidden"] == 2
    assert [problem["id"] for problem in shown["data"]["problems"]] == [
        name for name in ids if name not in (ids[0], ids[3])
    ]
    text = explorer.embedded_json(shown["data"])
    assert "Question 0:" not in text
    assert ids[0] not in text
    assert ids[3] not in text


def test_copies_of_an_open_benchmark_are_shown(folder: Path) -> None:
    ids = [problem["id"] for problem in read_jsonl(folder / "problems.jsonl")]
    found = {"math500": {"exact": [[ids[0], "m1"]]}, "gpqa_diamond": {"exact": [], "near": []}}
    assert view(folder, overlap={"tasks": found})["shown"] == 12


def test_nothing_is_shown_while_the_overlap_with_a_gated_benchmark_is_unknown(folder: Path) -> None:
    assert view(folder, overlap={})["data"] is None
    assert view(folder, overlap={"tasks": {"math500": {}}})["data"] is None
    assert view(folder, overlap={}, run={"tasks": ["math500"]})["shown"] == 12


# --- size ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("megabytes", [0.001, 0.004, 0.02, 0.1])
def test_the_data_stay_within_the_budget_and_the_page_knows_how_far_they_came(folder: Path, megabytes: float) -> None:
    shown = view(folder, limits={"megabytes": megabytes})
    # What names the sets and reasons comes on top.
    assert explorer.json_size(shown["data"]) <= 1e6 * megabytes + 2500
    assert shown["shown"] == len(shown["data"]["problems"]) <= 12
    assert shown["sampled"] == len(shown["data"]["views"]) <= 5


def test_more_budget_never_shows_less(folder: Path) -> None:
    sizes = [view(folder, limits={"megabytes": size}) for size in (0.001, 0.005, 0.01, 0.02, 0.05, 1)]
    assert [one["shown"] for one in sizes] == sorted(one["shown"] for one in sizes)
    assert [one["sampled"] for one in sizes] == sorted(one["sampled"] for one in sizes)
    assert (sizes[-1]["shown"], sizes[-1]["sampled"]) == (12, 5)


def test_long_questions_and_answers_are_cut_visibly() -> None:
    assert explorer.cut("abcdef", 6) == "abcdef"
    assert explorer.cut("abcdefg", 6) == "abcde…"


# --- what is missing -----------------------------------------------------------------------------------------------


def test_missing_files_leave_their_part_out(folder: Path) -> None:
    for path in [*(folder / "tokens").rglob("*.parquet"), *(folder / "traces").rglob("*.parquet")]:
        path.unlink()
    data = view(folder)["data"]
    assert data["views"] == {}
    assert [entry["attempted"] for entry in data["sets"]] == [False, False]
    assert data["problems"][0]["sets"] == [{"attempts": [], "row": None}] * 2


def test_without_problems_there_is_no_explorer(folder: Path) -> None:
    write_jsonl(folder / "problems.jsonl", [])
    assert view(folder)["reason"] == "the training problems are missing"


def test_a_damaged_token_file_is_refused_by_name(folder: Path) -> None:
    (folder / "tokens" / "rsd" / "student.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"student\.parquet is damaged .*; run the same command again"):
        view(folder)


# --- JSON in a page ------------------------------------------------------------------------------------------------


@given(
    st.recursive(
        st.text() | st.none() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_embedded_json_holds_no_markup_and_gives_the_same_value_back(value: Any) -> None:
    text = explorer.embedded_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_half_a_surrogate_pair_survives() -> None:
    text = explorer.embedded_json(["\ud800<"])
    text.encode("utf-8")
    assert json.loads(text) == ["\ud800<"]
