"""Evaluation through lm-eval: what is asked, what is counted, what survives a kill."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model

from evaluations import END, FORMAT, cut, evaluated, facts, problem, requests_for, said, settings_with
from rsd import evaluate, lm, progress
from rsd.evaluate import load_problems, load_task, run_evaluate, run_harness
from rsd.lm import RsdLM
from rsd.records import SAMPLES, read_jsonl, read_provenance, read_table, write_jsonl
from rsd.samples import Generation, check_metrics, grade_samples, summarise
from tiny import tiny_model_folder

ROOT = Path(__file__).parents[2]
TASK_FILES = sorted(evaluate.TASKS.glob("*.yaml"))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "pocket.jsonl"
    write_jsonl(path, [problem(number) for number in (3, 4, 5)])
    return path


class ScriptedLM(LM):
    """Answers as it is told: (problem id, repeat) -> generation."""

    def __init__(self, script: Callable[[str, int], Generation]) -> None:
        super().__init__()
        self.script = script
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def generate_until(self, requests: list[Instance]) -> list[str]:
        self.asked += [request.args for request in requests]
        return [self.script(problem_id, repeat) for _, problem_id, repeat in lm.number_repeats(requests)]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError


def right(problem_id: str) -> str:
    return f"so</think>\\boxed{{{int(problem_id, 16) + 1}}}"


# --- the task files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TASK_FILES, ids=lambda path: path.stem)
def test_every_task_file_loads_under_its_own_name_with_a_version(path: Path, benchmark: Path) -> None:
    task = load_task(benchmark, settings_with(task=path.stem))
    assert yaml.load(path.read_text(), _PlainLoader)["task"] == task.task_name == path.stem
    assert task.VERSION not in (None, "Yaml")


@pytest.mark.parametrize("path", TASK_FILES, ids=lambda path: path.stem)
def test_nothing_but_the_end_of_turn_stops_a_generation(path: Path, benchmark: Path) -> None:
    task = load_task(benchmark, settings_with(task=path.stem))
    task.build_all_requests()
    for request in task.instances:
        assert request.args[1] == {"until": [], "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def test_the_task_files_report_what_the_scoring_computes(benchmark: Path) -> None:
    task = load_task(benchmark, settings_with())
    row = {"correct": True, "exact": True, "finish": "length", "think_closed": True, "answer": "1", "n_tokens": 1}
    assert set(task.aggregation()) == {*summarise([row]), "samples"}


def test_every_task_of_the_configurations_has_a_file_of_its_own() -> None:
    configs = [ROOT / "config.yaml", *(ROOT / "workflow" / "experiments").glob("*.yaml")]
    tasks = {task for path in configs for task in yaml.safe_load(path.read_text()).get("tasks", {})}
    assert tasks <= {path.stem for path in TASK_FILES}
    assert {"pocket", "gsm8k", "aime24", "aime25", "math500", "gpqa_diamond"} <= {path.stem for path in TASK_FILES}


def test_a_benchmark_without_a_file_of_its_own_is_run_by_the_generic_one(benchmark: Path) -> None:
    results = run_harness(ScriptedLM(lambda key, _: said(right(key))), benchmark, settings_with(task="amc"))
    assert results["results"]["amc"]["avg,every-sample"] == 1.0
    assert [path.name for path in evaluate.task_files("amc")] == ["generic.yaml"]
    assert [path.name for path in evaluate.task_files("aime24")] == ["aime24.yaml", "generic.yaml"]


class _PlainLoader(yaml.SafeLoader):
    """Reads `!function` as a string."""


_PlainLoader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


# --- what the model is asked ---------------------------------------------------------------------------------------


def test_the_prompt_reaches_the_model_literally_even_with_template_code_in_the_question(benchmark: Path) -> None:
    question = "Is {{ 1 + 1 }} in $\\{\\{1\\}\\}$ {% raw %} {answer}?"
    write_jsonl(benchmark, [problem(1, question=question, answer="[1, 2]", solution="SECRET")])
    model = ScriptedLM(lambda *_: said(""))
    results = run_harness(model, benchmark, settings_with(repeats=2))
    assert [prompt for prompt, _ in model.asked] == [f"<|im_start|>{question}{END}"] * 2
    assert results["samples"]["pocket"][0]["target"] == "[1, 2]"


def test_a_reference_solution_is_never_shown(benchmark: Path) -> None:
    write_jsonl(benchmark, [problem(1, solution="SECRET")])
    documents = load_problems(str(benchmark), prompt="{question} {solution}", format=FORMAT)["test"]
    assert "SECRET" not in json.dumps(documents[0])


def test_a_benchmark_without_problems_stops_with_an_error(benchmark: Path) -> None:
    write_jsonl(benchmark, [])
    with pytest.raises(ValueError, match=r"pocket\.jsonl has no problems"):
        load_task(benchmark, settings_with())


def test_two_problems_of_one_id_stop_with_an_error(benchmark: Path) -> None:
    write_jsonl(benchmark, [problem(1), problem(1, question="again")])
    with pytest.raises(ValueError, match="two problems of the same id"):
        load_task(benchmark, settings_with())


def test_a_problem_without_a_reference_stops_with_an_error(benchmark: Path) -> None:
    write_jsonl(benchmark, [problem(1), problem(2, answer="")])
    with pytest.raises(ValueError, match="line 2: no answer"):
        load_task(benchmark, settings_with())


# --- what is counted -----------------------------------------------------------------------------------------------


def test_known_answers_give_known_metrics(benchmark: Path) -> None:
    script = {
        # Of the first problem (3+1) two samples are right, one of them not as a string.
        3: [said("so</think>\\boxed{4}"), said("so</think>\\boxed{4.0}"), said("so</think>\\boxed{5}"), said("?")],
        # Of the second all, of the third none: cut, without an answer, without the end of the reasoning.
        4: [said("so</think>\\boxed{5}")] * 4,
        5: [cut("so</think>\\boxed{6}"), cut("so"), said("so</think>6"), said("\\boxed{6}")],
    }
    model = ScriptedLM(lambda key, repeat: script[int(key, 16)][repeat])
    results = run_harness(model, benchmark, settings_with())
    rows = [row for document in results["samples"]["pocket"] for row in document["samples"]]
    metrics = check_metrics(rows, results["results"]["pocket"])
    assert metrics == pytest.approx(
        {"avg": 6 / 12, "exact": 5 / 12, "cut": 2 / 12, "think_closed": 9 / 12, "answered": 7 / 12, "tokens": 140 / 12}
    )
    assert [row["correct"] for row in rows] == [True, True, False, False] + [True] * 4 + [False] * 4
    assert results["results"]["pocket"]["samples,every-sample"] == len(rows) == 12


def test_a_cut_generation_is_wrong_and_has_no_answer_even_with_the_right_one_in_it() -> None:
    finished, stopped = grade_samples("x", "4", [said("a</think>\\boxed{4}"), cut("a</think>\\boxed{4}")], FORMAT)
    assert (finished["correct"], finished["exact"], finished["answer"]) == (True, True, "4")
    assert (stopped["correct"], stopped["exact"], stopped["answer"]) == (False, False, None)


def test_an_answer_before_the_end_of_the_reasoning_does_not_count() -> None:
    rows = grade_samples(
        "x", "4", [said("\\boxed{4}"), said("\\boxed{4}</think>5"), said("</think>\\boxed{4}")], FORMAT
    )
    assert [row["correct"] for row in rows] == [False, False, True]


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6), st.integers(1, 4))
def test_the_score_depends_neither_on_order_nor_on_equal_repetition(correct: list[list[bool]], times: int) -> None:
    def rows(table: Sequence[Sequence[bool]]) -> list[dict[str, Any]]:
        fixed = {"exact": False, "finish": "end_of_turn", "think_closed": True, "answer": "1", "n_tokens": 1}
        return [{"correct": value, **fixed} for line in table for value in line]

    score = summarise(rows(correct))["avg"]
    assert score == pytest.approx(sum(map(sum, correct)) / (3 * len(correct)))
    assert summarise(rows([line[::-1] for line in correct[::-1]]))["avg"] == score
    assert summarise(rows([line * times for line in correct]))["avg"] == pytest.approx(score)


def test_a_score_without_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no sample was scored"):
        summarise([])


def test_a_harness_that_counts_otherwise_stops_the_run() -> None:
    rows = grade_samples("x", "4", [said("</think>\\boxed{4}"), said("</think>\\boxed{5}")], FORMAT)
    theirs = {f"{name},every-sample": value for name, value in summarise(rows).items()} | {"samples,every-sample": 2}
    assert check_metrics(rows, theirs)["avg"] == 0.5
    for change in ({"avg,every-sample": 1.0}, {"samples,every-sample": 1}):
        with pytest.raises(RuntimeError, match="no score is written"):
            check_metrics(rows, theirs | change)


def test_the_facts_about_a_generation_survive_copying() -> None:
    generation = cut("text", 7)
    for twin in (copy.copy(generation), copy.deepcopy(generation), pickle.loads(pickle.dumps(generation))):
        assert (twin, twin.n_tokens, twin.finish) == ("text", 7, "length")


# --- our decoder as a model of lm-eval -----------------------------------------------------------------------------


def decoder(folder: Path, **changes: Any) -> RsdLM:
    arguments = {"dtype": "float32", "device": "cpu", "batch_size": 5, "max_length": 40, "end_of_turn": END, "seed": 0}
    return RsdLM(folder, **(arguments | changes))


def test_the_decoder_is_registered_at_lm_eval() -> None:
    assert get_model("rsd") is RsdLM


def test_repeats_differ_from_each_other_and_are_the_same_again(folder: Path) -> None:
    requests = requests_for([3, 4], repeats=6)
    first = facts(decoder(folder).generate_until(requests))
    assert facts(decoder(folder).generate_until(requests)) == first
    assert len(set(first)) == len(first)


def test_a_sample_depends_neither_on_lanes_nor_on_order_nor_on_the_number_of_repeats(folder: Path) -> None:
    def by_sample(numbers: Sequence[int], repeats: int, lanes: int) -> dict[Any, Any]:
        requests = requests_for(numbers, repeats)
        return dict(
            zip(
                lm.number_repeats(requests),
                facts(decoder(folder, batch_size=lanes).generate_until(requests)),
                strict=True,
            )
        )

    all_at_once = by_sample([3, 4, 5], repeats=4, lanes=16)
    assert by_sample([5, 3, 4], repeats=4, lanes=3) == all_at_once
    assert by_sample([4], repeats=2, lanes=1).items() <= all_at_once.items()


def test_streams_are_those_of_seed_task_problem_and_repeat_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(RsdLM, "_sample", lambda self, jobs, sampling, snapshots: iter(asked.extend(jobs) or ()))
    with pytest.raises(KeyError):  # no completion comes back
        decoder(folder, seed=7).generate_until(requests_for([3, 4], repeats=2, task="aime24"))
    streams = [("eval", 7, "aime24", problem(number)["id"], repeat) for number in (3, 4) for repeat in (0, 1)]
    assert [job.stream for job in asked] == streams


def test_another_seed_and_another_task_give_other_samples(folder: Path) -> None:
    texts = [
        facts(decoder(folder, seed=seed).generate_until(requests_for([3], repeats=3, task=task)))
        for seed, task in ((0, "pocket"), (1, "pocket"), (0, "gsm8k"))
    ]
    assert texts[0] != texts[1]
    assert texts[0] != texts[2]


def test_the_length_limit_is_kept_and_reported(folder: Path) -> None:
    model = decoder(folder, max_length=30)
    requests = requests_for([3], repeats=20)
    prompt = len(model.tokenizer.encode(requests[0].args[0], add_special_tokens=False))
    generations = model.generate_until(requests)
    for generation in generations:
        assert generation.endswith(END) == (generation.finish == "end_of_turn")
        assert generation.n_tokens <= 30 - prompt
        assert generation.finish == "end_of_turn" or generation.n_tokens == 30 - prompt
    assert any(generation.finish == "length" for generation in generations)


def test_a_prompt_that_fills_the_context_names_the_problem_and_the_remedy(folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"problem {problem(3)['id']}.*raise `context`"):
        decoder(folder, max_length=4).generate_until(requests_for([3], repeats=1))


def test_a_stop_text_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="only the end of turn"):
        decoder(folder).generate_until(requests_for([3], repeats=1, until=["Question:"]))


def test_a_generation_setting_that_the_decoder_lacks_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown.*min_p"):
        decoder(folder).generate_until(requests_for([3], repeats=1, min_p=0.1))


# --- the whole stage, and a kill -----------------------------------------------------------------------------------


def stage(folder: Path, benchmark: Path, where: Path, **changes: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return evaluated(folder, benchmark, where, settings_with(**changes))


def journals(benchmark: Path) -> list[Path]:
    return sorted((benchmark.parent / "work").glob("*/*/*.jsonl"))


def test_every_sample_is_kept_and_the_scores_follow_from_them(folder: Path, benchmark: Path, tmp_path: Path) -> None:
    rows, scores = stage(folder, benchmark, tmp_path / "scores")
    ids = [record["id"] for record in read_jsonl(benchmark)]
    assert [(row["problem_id"], row["repeat"]) for row in rows] == [(key, k) for key in ids for k in range(4)]
    assert scores["metrics"] == summarise(rows)
    assert scores["tokens"] == sum(row["n_tokens"] for row in rows)
    assert (scores["task"], scores["model"], scores["profile"]) == ("pocket", "student", "paper")
    assert (scores["n_problems"], scores["repeats"], scores["resumed_samples"]) == (3, 4, 0)
    assert (scores["backend"], scores["shards"]) == ("rsd", 1)
    assert "judge" not in scores
    assert scores["lm_eval"]["task_version"] == 1.0
    provenance = read_provenance(tmp_path / "scores" / "pocket.parquet")
    assert provenance["settings"] == scores["provenance"]["settings"]
    assert set(provenance["settings"]["inputs"]) == {"model", "benchmark", "pocket", "generic"}


class _Kill(BaseException):
    pass


def kill_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder dies once `count` completions were taken from it."""
    sample = lm.sample

    def dying(*arguments: Any, **options: Any) -> Iterator[Any]:
        for done, completion in enumerate(sample(*arguments, **options)):
            if done == count:
                raise _Kill
            yield completion

    monkeypatch.setattr(lm, "sample", dying)


def test_a_killed_run_goes_on_and_ends_with_the_same_samples(
    folder: Path, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_after(7, patch)
        with pytest.raises(_Kill):
            stage(folder, benchmark, tmp_path / "killed")
    assert not list((tmp_path / "killed").glob("*"))
    resumed, scores = stage(folder, benchmark, tmp_path / "killed")
    assert scores["resumed_samples"] == 7
    for journal in journals(benchmark):
        journal.unlink()
    fresh, scores = stage(folder, benchmark, tmp_path / "fresh")
    assert scores["resumed_samples"] == 0
    assert resumed == fresh


def stop_in_round(number: int, *arguments: Any, counts: list[int], **options: Any) -> None:
    """Runs the stage until SIGTERM in that round (0: to its end), with the tokens of all rounds in `counts`."""
    original, calls = progress.Recorder.round, []

    def counted(self: progress.Recorder, emitted: int) -> bool:
        counts.append(emitted)
        calls.append(emitted)
        due = original(self, emitted)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return due or self.interruption.received is not None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress.Recorder, "round", counted)
        if not number:
            stage(*arguments, **options)
            return
        with pytest.raises(SystemExit) as stopped:
            stage(*arguments, **options)
        assert stopped.value.code == 143


def test_samples_in_flight_are_gone_on_with_and_no_token_is_made_twice(
    folder: Path, benchmark: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    counts: list[int] = []
    for number, lanes in ((1, 5), (2, 1), (4, 3), (9, 5)):
        stop_in_round(number, folder, benchmark, tmp_path, lanes=lanes, counts=counts)
    stop_in_round(0, folder, benchmark, tmp_path, counts=counts)
    resumed = read_table(tmp_path / "pocket.parquet", SAMPLES).to_pylist()
    assert re.search(r"[1-9] samples go on where they were, behind [1-9]\d* tokens", caplog.text)
    assert sum(counts) == sum(row["n_tokens"] for row in resumed)
    for journal in journals(benchmark):
        journal.unlink()
    fresh, scores = stage(folder, benchmark, tmp_path / "fresh")
    assert scores["resumed_samples"] == 0
    assert resumed == fresh


def test_what_earlier_runs_made_is_counted_as_made(
    folder: Path, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_round(20, folder, benchmark, tmp_path, counts=[])
    made: list[progress.Progress] = []
    monkeypatch.setattr(lm, "Progress", lambda *arguments: made.append(progress.Progress(*arguments)) or made[0])
    rows, scores = stage(folder, benchmark, tmp_path)
    tokens = sum(row["n_tokens"] for row in rows)
    assert scores["resumed_samples"] > 0
    assert (made[0].finished, made[0].finished_tokens, made[0].tokens_in_flight) == (len(rows), tokens, 0)
    assert 0 < made[0].emitted < tokens


def test_the_journal_that_is_kept_holds_no_parts(folder: Path, benchmark: Path, tmp_path: Path) -> None:
    stop_in_round(9, folder, benchmark, tmp_path, counts=[])
    (journal,) = journals(benchmark)
    assert b'"part"' in journal.read_bytes()
    rows, _ = stage(folder, benchmark, tmp_path)
    assert b'"part"' not in journal.read_bytes()
    assert journal.read_bytes().count(b'"item"') == len(rows)


def test_the_progress_of_samples_is_logged(
    folder: Path, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0)
    stage(folder, benchmark, tmp_path)
    lines = [record.message for record in caplog.records if "tokens/s" in record.message]
    assert len(lines) > 3
    assert re.fullmatch(r"12 of 12 samples, [\d.]+ tokens/s, about 0 s to go", lines[-1])


def test_a_damaged_journal_costs_only_its_tail(
    folder: Path, benchmark: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, _ = stage(folder, benchmark, tmp_path)
    (journal,) = journals(benchmark)
    journal.write_bytes(journal.read_bytes()[:-5])
    after, scores = stage(folder, benchmark, tmp_path)
    assert scores["resumed_samples"] == len(before) - 1
    assert "dropped a damaged tail" in caplog.text
    assert after == before


def test_more_repeats_and_other_lanes_go_on_with_the_samples_that_are_there(
    folder: Path, benchmark: Path, tmp_path: Path
) -> None:
    few, _ = stage(folder, benchmark, tmp_path, repeats=2)
    many, scores = stage(folder, benchmark, tmp_path, repeats=3, lanes=2)
    assert scores["resumed_samples"] == len(few) == 6
    assert [row for row in many if row["repeat"] < 2] == few


# --- shards ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_shards_give_the_samples_and_scores_of_a_run_in_one_piece(
    folder: Path, benchmark: Path, tmp_path: Path, shards: int
) -> None:
    whole, scores = stage(folder, benchmark, tmp_path / "whole")
    for journal in journals(benchmark):
        journal.unlink()
    split, joined = stage(folder, benchmark, tmp_path / "split", shards=shards)
    assert split == whole
    assert (joined.pop("shards"), scores.pop("shards")) == (shards, 1)
    assert joined["resumed_samples"] == 0
    for volatile in ("seconds", "provenance"):
        del joined[volatile], scores[volatile]
    assert joined == scores
    sizes = [
        read_table(tmp_path / "split" / "pocket" / f"shard-{shard:03d}.parquet", SAMPLES).num_rows
        for shard in range(shards)
    ]
    assert sizes == [4 * len(range(shard, 3, shards)) for shard in range(shards)]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2)])
def test_another_number_of_shards_costs_no_finished_sample(
    folder: Path, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    rows, _ = stage(folder, benchmark, tmp_path / "before", shards=before)
    monkeypatch.setattr(lm, "load_model", lambda *_: pytest.fail("the model was loaded"))
    again, scores = stage(folder, benchmark, tmp_path / "after", shards=after)
    assert again == rows
    assert scores["resumed_samples"] == len(rows)


def test_another_number_of_shards_goes_on_in_the_middle_of_a_sample(
    folder: Path, benchmark: Path, tmp_path: Path
) -> None:
    counts: list[int] = []
    stop_in_round(9, folder, benchmark, tmp_path, counts=counts)
    stop_in_round(4, folder, benchmark, tmp_path, shards=2, counts=counts)
    stop_in_round(3, folder, benchmark, tmp_path, shards=3, counts=counts)
    stop_in_round(0, folder, benchmark, tmp_path, shards=2, counts=counts)
    resumed = read_table(tmp_path / "pocket.parquet", SAMPLES).to_pylist()
    assert sum(counts) == sum(row["n_tokens"] for row in resumed)
    for journal in journals(benchmark):
        journal.unlink()
    assert stage(folder, benchmark, tmp_path / "fresh")[0] == resumed


def test_a_shard_leaves_the_journals_of_the_others_alone_and_removes_those_of_earlier_settings(
    folder: Path, benchmark: Path, tmp_path: Path
) -> None:
    stage(folder, benchmark, tmp_path, shards=2)
    old = journals(benchmark)
    assert [path.name for path in old] == ["shard-000-of-002.jsonl", "shard-001-of-002.jsonl"]
    stage(folder, benchmark, tmp_path, shards=2)
    assert journals(benchmark) == old
    stage(folder, benchmark, tmp_path, shards=2, seed=1)
    assert [path.name for path in journals(benchmark)] == [path.name for path in old]
    assert not {path.parent for path in journals(benchmark)} & {path.parent for path in old}


def test_a_shard_that_there_is_not_is_refused(folder: Path, benchmark: Path, tmp_path: Path) -> None:
    common = {"model": folder, "benchmark": benchmark, "threads": 1, "samples": tmp_path / "x", "work": tmp_path}
    for shard in (-1, 2):
        with pytest.raises(ValueError, match=rf"--shard {shard}: expected 0 to 1, for tasks\.pocket\.shards = 2"):
            run_evaluate(settings=settings_with(shards=2), shard=shard, **common)


# --- whose samples are taken ---------------------------------------------------------------------------------------


def test_a_finished_journal_is_graded_without_loading_the_model(
    folder: Path, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = stage(folder, benchmark, tmp_path)
    monkeypatch.setattr(lm, "load_model", lambda *_: pytest.fail("the model was loaded"))
    assert stage(folder, benchmark, tmp_path)[0] == rows


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"context": 41},
        {"backend": "transformers"},
        {"sampling": {"temperature": 0.5, "top_k": 0, "top_p": 1.0}},
        {"model": {"name": "student", "dtype": "float32", "prompt": "{question}"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_setting_takes_no_sample_of_an_earlier_run(folder: Path, benchmark: Path, change: dict) -> None:
    def path(**changes: Any) -> Path:
        return evaluate.journal_path(benchmark.parent, folder, benchmark, settings_with(**changes))

    assert path(**change).parent != path().parent
    assert path(repeats=9, lanes=1) == path()
    assert path(shards=4).parent == path().parent
    assert path(shards=4) != path()


def test_another_benchmark_takes_no_sample_of_an_earlier_run(folder: Path, benchmark: Path) -> None:
    before = evaluate.journal_path(benchmark.parent, folder, benchmark, settings_with())
    write_jsonl(benchmark, [problem(3, question="3 + 1")])
    assert evaluate.journal_path(benchmark.parent, folder, benchmark, settings_with()) != before


def test_an_incomplete_model_folder_is_named(benchmark: Path, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    with pytest.raises(FileNotFoundError, match=r"half has no manifest\.json"):
        stage(tmp_path / "half", benchmark, tmp_path)


def test_importing_the_stage_loads_neither_torch_nor_the_harness() -> None:
    code = "import sys, rsd.evaluate; print({'torch', 'transformers', 'lm_eval', 'datasets'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "workflow", capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "set()"
