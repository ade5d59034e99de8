"""What is made of other things of one experiment: sets of sets, models that it trains, an arm with another's tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines import Pipeline, copy_tree, overlay, shell_commands
from rsd.config import load

EXPERIMENTS = "workflow/experiments"
POCKET = f"{EXPERIMENTS}/pocket.yaml"

# The paper's DAG with one arm of each kind, one shard, seed and benchmark.
KINDS: dict[str, Any] = {
    "jobs_at_once": 4,
    "models": {"trained": {"like": "student", "source": "trained://rsd/7"}},
    "traces": {
        "rsd": {"shards": 1},
        "own": {"like": "rsd", "method": "sample"},
        "teachers": {"like": "own", "sampled": "teacher"},
        "prefixes": {"like": "rsd", "method": "select", "of": "rsd", "select": {"solved": "prefix"}},
        "filtered": {"method": "filter", "of": "direct"},
        "surprising": {"method": "filter", "of": "direct", "filter": {"by": "mean_surprisal"}},
        "recoded": {"method": "recode", "of": "rsd", "student": "teacher"},
        "again": {"like": "rsd", "student": "trained"},
    },
    "arms": {
        "own": {"model": "student", "traces": "own"},
        "teachers": {"model": "student", "traces": "teachers"},
        "prefixes": {"model": "student", "traces": "prefixes"},
        "filtered": {"model": "student", "traces": "filtered"},
        "surprising": {"model": "student", "traces": "surprising"},
        "recoded": {"model": "teacher", "traces": "recoded"},
        "tokens": {"model": "student", "traces": "own", "training": {"tokens_of": "direct"}},
        "again": {"model": "trained", "traces": "again"},
        "measured": {"model": "trained"},
    },
    "run": {"seeds": [0], "tasks": ["math500"]},
}
EVERY = ["own", "teachers", "prefixes", "filtered", "surprising", "recoded", "tokens", "again", "measured"]


def kinds(*arms: str, change: dict[str, Any] | None = None) -> dict[str, Any]:
    return overlay(KINDS, {"run": {"arms": ["base", *arms]}}, change or {})


def commands(pipeline: Pipeline, *targets: str, config: dict[str, Any]) -> list[str]:
    return list(shell_commands(pipeline.run("--dry-run", "--printshellcmds", *targets, config=config).stdout))


def inputs(command: str, *flags: str) -> dict[str, str]:
    """The paths of a command by flag, without their digests."""
    found = dict(re.findall(r"--([a-z-]+) (results/\S+)", command))
    return {flag: re.sub(r"-[0-9a-f]{8}$", "", found[flag]) for flag in flags if flag in found}


# --- what is planned -------------------------------------------------------------------------------------------------


def test_a_set_that_another_model_writes_gets_that_model_and_its_students_tokens(pipeline: Pipeline) -> None:
    (command,) = [
        line
        for line in commands(pipeline, "traces", config=kinds("teachers"))
        if line.startswith("rsd generate-traces")
    ]
    paths = inputs(command, "student", "sampled", "teacher")
    assert paths["sampled"] == "results/models/simplescaling-s1.1-7B"
    assert paths["student"].startswith("results/models/Qwen-Qwen3-0.6B")
    assert "teacher" not in paths
    assert pipeline.plan("downloads", config=kinds("teachers"))["prefetch_model"] == 2
    assert pipeline.plan("downloads", config=kinds("own"))["prefetch_model"] == 1


def test_a_set_that_selects_anew_makes_no_attempts(pipeline: Pipeline) -> None:
    jobs = pipeline.plan("traces", config=kinds("prefixes"))
    assert (jobs["generate_traces"], jobs["select_traces"]) == (1, 2)
    lines = [line for line in commands(pipeline, "traces", config=kinds("prefixes")) if "select-traces" in line]
    assert all("--shards results/paper/traces/rsd/shard-000.parquet" in line for line in lines)
    assert {inputs(line, "rows")["rows"] for line in lines} == {
        "results/paper/traces/rsd/rows.parquet",
        "results/paper/traces/prefixes/rows.parquet",
    }


def test_sets_that_are_made_of_rows_have_neither_shards_nor_verdicts(pipeline: Pipeline) -> None:
    config = kinds("filtered", "surprising", "recoded")
    jobs = pipeline.plan("traces", config=config)
    assert {rule: jobs[rule] for rule in ("generate_traces", "convert_traces", "select_traces", "derive_traces")} == {
        "generate_traces": 1,
        "convert_traces": 1,
        "select_traces": 2,
        "derive_traces": 3,
    }
    lines = [line for line in commands(pipeline, "traces", config=config) if line.startswith("rsd derive-traces")]
    found = {Path(inputs(line, "rows")["rows"]).parent.name: line for line in lines}
    # Two filters of one set share what they scored.
    for name in ("filtered", "surprising"):
        paths = inputs(found[name], "of", "student", "source", "work")
        assert paths["of"] == "results/paper/traces/direct/rows.parquet"
        assert paths["work"] == "results/paper/work/derive_traces/direct"
        assert "source" not in paths
    paths = inputs(found["recoded"], "of", "student", "source")
    assert paths["of"] == "results/paper/traces/rsd/rows.parquet"
    assert paths["student"] == "results/models/simplescaling-s1.1-7B"
    assert paths["source"].startswith("results/models/Qwen-Qwen3-0.6B")


def test_only_a_filter_asks_for_a_gpu_among_the_sets_that_are_made_of_rows(pipeline: Pipeline) -> None:
    output = pipeline.run("--dry-run", "traces", config=kinds("filtered", "recoded")).stdout
    blocks = [block for block in re.split(r"^rule ", output, flags=re.MULTILINE) if block.startswith("derive_traces:")]
    gpus = {re.search(r"wildcards: traces=(\w+)", block)[1]: re.search(r"gpu=(\d)", block)[1] for block in blocks}  # type: ignore[index]
    assert gpus == {"filtered": "1", "recoded": "0"}


def test_a_model_of_the_experiment_is_trained_and_never_fetched(pipeline: Pipeline) -> None:
    config = kinds("again", "measured")
    jobs = pipeline.plan(config=config)
    # Its own training has the seed that it names, which is none of the run's, and is not measured as an arm.
    assert (jobs["prefetch_model"], jobs["train"], jobs["evaluate"]) == (2, 2, 3)
    assert (jobs["generate_traces"], jobs["select_traces"]) == (2, 2)
    lines = commands(pipeline, config=config)
    trained = "results/paper/trained/rsd-seed7"
    assert [
        inputs(line, "model", "output") for line in lines if line.startswith("rsd train") and "rsd-seed7" in line
    ] == [
        {"model": "results/models/Qwen-Qwen3-0.6B-c1899de289a04d12100db370d81485cdf75e47ca", "output": trained},
        {"model": trained, "output": "results/paper/trained/again-seed0"},
    ]
    (again,) = [line for line in lines if line.startswith("rsd generate-traces") and trained in line]
    assert inputs(again, "student", "teacher", "output") == {
        "student": trained,
        "teacher": "results/models/simplescaling-s1.1-7B",
        "output": "results/paper/traces/again/shard-000.parquet",
    }
    (measured,) = [line for line in lines if line.startswith("rsd evaluate") and "measured-seed0" in line]
    assert inputs(measured, "model")["model"] == trained
    (report,) = [line for line in lines if line.startswith("rsd report ")]
    assert "models/trained=" not in report, "what the experiment makes is no input from outside"
    assert f"rsd-seed7={trained}/training.json" in report


def test_downloads_train_nothing(pipeline: Pipeline) -> None:
    assert pipeline.plan("downloads", config=kinds("again")).keys() == {"prefetch_model", "prefetch_dataset"}


def test_models_is_complete_with_those_that_are_trained_for_others(pipeline: Pipeline) -> None:
    assert pipeline.plan("models", config=kinds("measured"))["train"] == 1


def test_an_arm_gets_the_rows_of_another_only_to_count_its_tokens(pipeline: Pipeline) -> None:
    lines = [
        line for line in commands(pipeline, "models", config=kinds("tokens", "own")) if line.startswith("rsd train")
    ]
    found = {Path(inputs(line, "output")["output"]).name: inputs(line, "rows", "tokens-of") for line in lines}
    own = {"rows": "results/paper/traces/own/rows.parquet"}
    assert found == {
        "own-seed0": own,
        "tokens-seed0": own | {"tokens-of": "results/paper/traces/direct/rows.parquet"},
    }


# --- the experiments -------------------------------------------------------------------------------------------------

# Arms that are trained, sets with attempts of their own that models write, sets made of others.
NAMES = {
    "controls": (10, 3, 4),
    "thresholds": (8, 7, 0),
    "iterative": (4, 2, 0),
    "transfer": (5, 2, 1),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", ["paper", "pocket"])
def test_an_experiment_plans_every_arm_and_shares_what_it_can(pipeline: Pipeline, name: str, size: str) -> None:
    files = (f"{EXPERIMENTS}/{name}.yaml",)
    if size == "pocket":
        files = (POCKET, *files, f"{EXPERIMENTS}/pocket-{name}.yaml")
    pipeline.experiments = files
    config = load([pipeline.tree / path for path in ("config.yaml", *files)])
    assert config["experiment"] == (name if size == "paper" else f"pocket-{name}")
    assert {"base", "direct", "rsd"} <= set(config["run"]["arms"])
    jobs = pipeline.plan()
    trained, written, made = NAMES[name]
    assert jobs["train"] == 3 * trained
    assert jobs["generate_traces"] == written * config["traces"]["rsd"]["shards"]
    selected = sum(entry["method"] == "select" for entry in map(config["traces"].get, used(config)))  # type: ignore[index]
    assert jobs["derive_traces"] + selected == made
    untrained = len(config["run"]["arms"]) - trained
    assert jobs["evaluate"] == (3 * trained + untrained) * len(config["run"]["tasks"])
    if size == "pocket":
        assert jobs["make_pocket_model"] == (3 if name == "transfer" else 2)
        assert "prefetch_model" not in jobs


def used(config: dict[str, Any]) -> list[str]:
    return [config["arms"][arm]["traces"] for arm in config["run"]["arms"] if config["arms"][arm]["traces"]]


def test_at_pocket_size_the_block_cuts_most_direct_traces_and_no_rsd_trace() -> None:
    from rsd import pocket
    from rsd.config import pocket_settings

    root = Path(__file__).parents[2]
    files = ["config.yaml", POCKET, f"{EXPERIMENTS}/controls.yaml", f"{EXPERIMENTS}/pocket-controls.yaml"]
    config = load([root / path for path in files])
    problems = pocket.problems(pocket_settings(config, "pocket://train"), "train")
    tokenizer = pocket.make_tokenizer("student")

    def length(row: dict[str, str], thinking: str) -> int:
        text = pocket.PROMPT.format(question=row["question"]) + f"{thinking}</think>{row['answer']}<|im_end|>"
        return len(tokenizer.encode(text, add_special_tokens=False))

    block = config["training"]["block_size"]
    cut = sum(length(row, row["thinking"]) > block for row in problems)
    assert len(problems) / 2 < cut < 0.8 * len(problems)
    longest = max(length(row, pocket.terse_steps([int(n) for n in row["question"].split("+")])) for row in problems)
    assert longest <= block, "RSD traces are in the student's style"
    whole = config["arms"]["direct-full"]["training"]["block_size"]
    assert max(length(row, row["thinking"]) for row in problems) <= whole


def test_thresholds_change_one_thing_at_a_time() -> None:
    root = Path(__file__).parents[2]
    config = load([root / path for path in ("config.yaml", f"{EXPERIMENTS}/thresholds.yaml")])
    paper = config["traces"]["rsd"]
    changes = {
        name: {key: entry[key] for key in entry if entry[key] != paper[key]}
        for name, entry in config["traces"].items()
        if entry["method"] == "rsd"
    }
    assert changes == {
        "rsd": {},
        "rsd-0.1-percent": {"threshold": 0.001},
        "rsd-0.3-percent": {"threshold": 0.003},
        "rsd-3-percent": {"threshold": 0.03},
        "rsd-10-percent": {"threshold": 0.1},
        "rsd-one-draw": {"draws": 1},
        "rsd-paper-text": {"law": "paper-text"},
    }
    assert (config["laws"]["authors-code"]["draws"], config["laws"]["paper-text"]["draws"]) == (5, 1)


# --- what runs again -------------------------------------------------------------------------------------------------

SHOWN = {"report": 1, "write_config": 1}
TABLE = {"compare": 1, **SHOWN}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Every kind of arm, run to its end by the stand-in."""
    base = tmp_path_factory.mktemp("made")
    (base / "run").mkdir()
    pipeline = Pipeline(base / "run", copy_tree(base / "tree"))
    pipeline.run("--cores", "4", config=kinds("direct", *EVERY))
    return pipeline


def test_the_second_run_has_nothing_to_do(made: Pipeline) -> None:
    assert "Nothing to be done" in made.run("--cores", "4", config=kinds("direct", *EVERY)).stdout


def test_every_file_of_every_kind_is_made_by_a_rule(made: Pipeline) -> None:
    results = made.folder / "results" / "paper" / "traces"
    assert {path.name for path in (results / "filtered").iterdir()} == {"rows.parquet", "selection.json"}
    assert {path.name for path in (results / "recoded").iterdir()} == {"rows.parquet", "selection.json"}
    assert not list((results / "prefixes").glob("shard-*"))
    calls = [json.loads(line) for line in (made.folder / "calls.jsonl").read_text().splitlines()]
    trained = [call[call.index("--output") + 1] for call in calls if call[0] == "train"]
    assert len(trained) == len(set(trained))


# Arms downstream of a set: own -> own, tokens; rsd -> prefixes, recoded, and the trained model: again, measured.
RERUN: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "the sampled model's prompt": (
        {"prompts": {"other": "{question}!"}, "models": {"teacher": {"prompt": "other"}}},
        # What the teacher writes alone, what RSD writes with it, the recoded prompt; and all that follows from these.
        {"generate_traces": 3, "select_traces": 4, "derive_traces": 1, "train": 5, "evaluate": 5, **TABLE},
    ),
    "the filter's share": (
        {"traces": {"filtered": {"filter": {"keep": 0.25}}}},
        {"derive_traces": 1, "train": 1, "evaluate": 1, **TABLE},
    ),
    "what counts as improbable": (
        {"traces": {"filtered": {"threshold": 0.02}}},
        {"derive_traces": 1, "train": 1, "evaluate": 1, **TABLE},
    ),
    "the prefix's length": (
        {"traces": {"prefixes": {"select": {"prefix_tokens": 99}}}},
        {"select_traces": 1, "train": 1, "evaluate": 1, **TABLE},
    ),
    "the epochs of the arm whose tokens another takes": (
        {"arms": {"direct": {"training": {"epochs": 3}}}},
        {"train": 2, "evaluate": 2, **TABLE},
    ),
    "its learning rate": (
        {"arms": {"direct": {"training": {"learning_rate": 0.1}}}},
        {"train": 1, "evaluate": 1, **TABLE},
    ),
    "the epochs of the arm that takes them": ({"arms": {"tokens": {"training": {"epochs": 3}}}}, SHOWN),
    "the training of the model that is used": (
        {"arms": {"rsd": {"training": {"epochs": 3}}}},
        {"generate_traces": 1, "select_traces": 1, "train": 2, "evaluate": 2, **TABLE},
    ),
    "the device": ({"device": "cpu"}, SHOWN),
    "a label": ({"arms": {"own": {"label": "x"}}}, TABLE),
}


@pytest.mark.parametrize("change", RERUN)
def test_a_changed_setting_runs_again_what_is_made_of_it_and_nothing_else(made: Pipeline, change: str) -> None:
    config, jobs = RERUN[change]
    planned = made.plan(config=kinds("direct", *EVERY, change=config))
    # Scores are collected wherever they are made; token analyses have tests of their own (test_tokens.py).
    assert planned.pop("collect_scores", 0) == jobs.get("evaluate", 0)
    planned.pop("analyse_tokens", None)
    assert dict(planned) == jobs
