"""The configuration: merged, validated, cross-checked, and cut into one slice a stage.

config.yaml and overlays -> one dict with every default filled. A stage gets only its slice (`*_settings`), so that a
changed setting reruns just what depends on it. Needs nothing beyond Snakemake's own dependencies.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rsd import lineage
from rsd.config_checks import reference_problems
from rsd.config_schema import (
    Config,
    fill_defaults,
    inherit,
    load_schema,
    merge,
    not_finite,
    schema_problems,
)
from rsd.provenance import settings_digest

ROOT = Path(__file__).parents[2]
# Settings of a stage that decide how fast its result comes, or whether it may come, and not what it is.
NOT_DECIDING = (
    "lanes",
    "device",
    "gpus",
    "schedule",
    "block_length",
    "jobs_at_once",
    "key_variable",
    "timeout_s",
    "concurrency",
    "expected",
)
# Settings under `report` that change the page and no number.
ON_THE_PAGE = ("problems", "tokens", "megabytes")


def load(paths: Sequence[Path]) -> Config:
    """Reads config files, later ones over earlier ones (as Snakemake merges them), and validates the result."""
    merged: Config = {}
    for path in paths:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: cannot be read as plain YAML ({error}); correct it") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a mapping of settings, found {type(content).__name__}")
        merged = merge(merged, content)
    return validate(merged)


def as_yaml(config: Mapping[str, Any]) -> str:
    """A configuration as the text of a config file."""
    return yaml.safe_dump(config, allow_unicode=True, sort_keys=False, width=120)


def validate(config: Mapping[str, Any]) -> Config:
    """A copy with every default filled, and what entries take over from others (`like`) written out.

    Raises ValueError listing every problem by key, value, expectation and remedy: unknown keys, wrong types, values
    out of bounds or not finite, names that do not exist, combinations that cannot work.
    """
    filled: Config = copy.deepcopy(dict(config))
    schema = load_schema()
    # The bounds of the schema let nan through, and an open end lets inf.
    problems = [f"{key} = {number!r}: expected a finite number; correct it" for key, number in not_finite(filled)]
    problems = problems or inherit(filled) or schema_problems(schema, filled)
    if not problems:
        filled = fill_defaults(schema, filled)
        problems = reference_problems(filled) or _skip_gated(filled)
    if problems:
        raise ValueError("the configuration is not valid:\n  " + "\n  ".join(problems))
    return filled


def _skip_gated(config: Config) -> list[str]:
    """Moves the benchmarks on gated datasets from run.tasks to run.skipped_tasks, where run.gated says so."""
    run = config["run"]
    if run["gated"] == "required" and run["skipped_tasks"]:
        return [
            f"run.skipped_tasks = {run['skipped_tasks']!r}: filled in by `run: {{gated: skip}}` alone; remove it, or "
            "write that"
        ]
    if wrong := [task for task in run["skipped_tasks"] if task not in config["tasks"] or not is_gated(config, task)]:
        return [f"run.skipped_tasks = {run['skipped_tasks']!r}: {wrong[0]!r} is no gated benchmark; remove the key"]
    if run["gated"] == "skip":
        gated = [task for task in run["tasks"] if is_gated(config, task)]
        if len(gated) == len(run["tasks"]):
            return [
                f"run.gated = 'skip': leaves no benchmark of run.tasks = {run['tasks']!r}; add one that is not gated"
            ]
        run["tasks"] = [task for task in run["tasks"] if task not in gated]
        run["skipped_tasks"] = list(dict.fromkeys([*run["skipped_tasks"], *gated]))
    return []


# --- what runs ---------------------------------------------------------------------------------------------------


def shard_names(config: Config, traces: str) -> list[str]:
    """`shard-000`, ... of a trace set with attempts of its own."""
    return [f"shard-{index:03d}" for index in range(config["traces"][traces]["shards"])]


def task_shard_names(config: Config, task: str) -> list[str]:
    """`shard-000`, ... of a model's samples of a benchmark."""
    return [f"shard-{index:03d}" for index in range(config["tasks"][task]["shards"])]


def stated_problems(config: Config, task: str) -> int | None:
    """How many problems of a benchmark are used, as far as the configuration says; None where it does not."""
    entry = config["tasks"][task]
    made = {"pocket://train": "train_problems", "pocket://test": "test_problems"}
    source = config["datasets"][entry["dataset"]]["source"]
    whole = entry["problems"] or (config["pocket"][made[source]] if source in made else None)
    return min((count for count in (whole, entry["limit"]) if count), default=None)


def is_gated(config: Config, task: str) -> bool:
    """Whether a benchmark's dataset is gated."""
    return config["datasets"][config["tasks"][task]["dataset"]]["gated"]


def judged_tasks(config: Config) -> list[str]:
    """The benchmarks of this run whose samples are sent to the judge; none without one."""
    judge = config["evaluation"]["judge"]
    return [task for task in config["run"]["tasks"] if judge and (judge["send_gated"] or not is_gated(config, task))]


def arm_seeds(config: Config, arm: str) -> list[int]:
    """The training seeds of an arm; an arm that is not trained is measured once, under seed 0."""
    return config["run"]["seeds"] if config["arms"][arm]["traces"] else [0]


def trace_sets(config: Config) -> list[str]:
    """The trace sets that this run needs, in the order of the arms; what a set is made of comes before it."""
    return [name for kind, name in lineage.needed(config) if kind == "traces"]


def trained_names(config: Config) -> list[str]:
    """`arm-seedK` of every model that this run trains: its arms, in their order, then others that serve as models."""
    return [f"{arm}-seed{seed}" for arm, seed in lineage.trained(config)]


def token_analyses(config: Config) -> list[tuple[str, str]]:
    """(trace set, reader) of every token analysis of this run, each once.

    A reader is a model: an entry of models (as it came), or `arm-seedK` (trained). Of every arm that is trained, its
    trace set under its model (`analysis.before`) and under what training with the first seed made of that
    (`analysis.after`); then those of `analysis.also`.
    """
    analysis, first = config["analysis"], config["run"]["seeds"][0]
    pairs = []
    for name in config["run"]["arms"]:
        arm = config["arms"][name]
        if arm["traces"]:
            readers = {"before": arm["model"], "after": f"{name}-seed{first}"}
            pairs += [(arm["traces"], reader) for when, reader in readers.items() if analysis[when]]
    pairs += [(entry["traces"], entry["reader"]) for entry in analysis["also"]]
    return list(dict.fromkeys(pairs))


def split_reader(config: Config, reader: str) -> tuple[str, int | None]:
    """What a reader's name stands for: (entry of models, None) or (arm, training seed). KeyError where for nothing."""
    if reader in config["models"]:
        return reader, None
    arm, _, seed = reader.rpartition("-seed")
    if not (seed.isdecimal() and config["arms"][arm]["traces"]):
        raise KeyError(reader)
    return arm, int(seed)


def used_models(config: Config, side: str | None = None) -> list[str]:
    """The models that this run needs, in the order of the catalogue; those that it trains and uses, too.

    `side`: only the students (measured, trained or judging) or only the teachers (proposing, or sampled for another
    student); a model can be both.
    """
    nodes = lineage.needed(config)
    sets = [config["traces"][name] for kind, name in nodes if kind == "traces"]
    students = {config["arms"][name]["model"] for kind, name in nodes if kind == "arms"}
    students |= {entry["student"] for entry in sets}
    teachers = {model for entry in sets for model in lineage.writers(entry)}
    every = {name for kind, name in nodes if kind == "models"}
    names = {None: every, "student": students, "teacher": teachers}[side]
    return [name for name in config["models"] if name in names]


def used_datasets(config: Config) -> list[str]:
    """The datasets that this run needs, in the order of the catalogue."""
    names = {config["problems"]["dataset"]} | {config["tasks"][task]["dataset"] for task in config["run"]["tasks"]}
    return [name for name in config["datasets"] if name in names]


def source_key(config: Config, source: str, files: str = "") -> str:
    """A folder name for a source: readable, and unique by a digest of all that decides its content.

    Two experiments with the same source share one folder. The mirror is not part of it: it holds the same files.
    """
    readable = re.sub(r"^(hf|pypi)://|^path:", "", source)
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", readable).strip("-")[:60]
    made_from: list[Any] = [source, files]
    if source.startswith("pocket://"):
        made_from = [source, pocket_settings(config, source)]
    return f"{readable}-{settings_digest(made_from)[:8]}"


def model_key(config: Config, model: str) -> str:
    """The folder below results/models/ of a model of the catalogue, unless this experiment trains it."""
    return source_key(config, config["models"][model]["source"])


def dataset_key(config: Config, dataset: str) -> str:
    """The folder below results/datasets/ of a dataset of the catalogue: its source and which of its files."""
    entry = config["datasets"][dataset]
    return source_key(config, entry["source"], entry["files"])


# --- one slice a stage ---------------------------------------------------------------------------------------------


def prefetch_settings(config: Config, kind: str, name: str) -> Config:
    """Of a model or dataset (`kind` models | datasets): where to get it."""
    entry = config[kind][name]
    settings = {"source": entry["source"], "mirror": config["mirror"]}
    return settings | ({"files": entry["files"], "gated": entry["gated"]} if kind == "datasets" else {})


def pocket_settings(config: Config, source: str) -> Config:
    """Of a pocket model or dataset: which it is, the problems, and of a model its own recipe."""
    make = source.removeprefix("pocket://")
    problems = {key: value for key, value in config["pocket"].items() if not isinstance(value, dict) or key == make}
    return {"make": make, "seed": config["seed"], **problems}


def dataset_settings(config: Config, name: str) -> Config:
    """How a dataset's rows become records."""
    entry = config["datasets"][name]
    return {"name": name, **{key: entry[key] for key in ("source", "files", "columns", "reference", "remove")}}


def problems_settings(config: Config) -> Config:
    """Of prepare_problems."""
    name = config["problems"]["dataset"]
    return {"dataset": dataset_settings(config, name), "limit": config["problems"]["limit"]}


def benchmark_settings(config: Config, task: str) -> Config:
    """Of prepare_benchmark."""
    entry = config["tasks"][task]
    expected = entry["problems"] if entry["limit"] is None else None
    dataset = dataset_settings(config, entry["dataset"])
    return {"task": task, "dataset": dataset, "limit": entry["limit"], "expected": expected}


def model_settings(config: Config, name: str) -> Config:
    """How a model is loaded and what it reads: dtype, prompt text."""
    model = config["models"][name]
    return {"name": name, "dtype": model["dtype"], "prompt": config["prompts"][model["prompt"]]}


def traces_settings(config: Config, name: str) -> Config:
    """Of generate_traces and convert_traces; a shard's number is not part of it.

    TypeError for a trace set that is made of another one.
    """
    traces = config["traces"][name]
    if traces["method"] not in lineage.ATTEMPTED:
        raise TypeError(f"traces.{name} has no attempts of its own")
    settings = {
        "method": traces["method"],
        "format": config["format"],
        "student": model_settings(config, traces["student"]),
    }
    if traces["method"] == "dataset":
        return settings
    lengths = ("attempts", "context", "max_new_tokens", "lanes", "shards")
    settings |= {key: traces[key] for key in lengths}
    settings |= {key: config[key] for key in ("seed", "device", "jobs_at_once")}
    if traces["method"] == "sample":
        sampled = traces["sampled"] and model_settings(config, traces["sampled"])
        gpus = {"student" if traces["sampled"] is None else "sampled": traces["sampled"] or traces["student"]}
        settings |= {"gpus": {side: config["models"][model]["gpus"] for side, model in gpus.items()}}
        return settings | {"sampling": traces["sampling"], "sampled": sampled}
    law = config["laws"][traces["law"]]
    draws = law["draws"] if traces["draws"] is None else traces["draws"]
    law = {"name": traces["law"], **law, "draws": draws, "threshold": traces["threshold"]}
    settings |= {key: traces[key] for key in ("schedule", "block_length")}
    settings |= {"gpus": {side: config["models"][traces[side]]["gpus"] for side in ("student", "teacher")}}
    return settings | {"law": law, "teacher": model_settings(config, traces["teacher"])}


def select_settings(config: Config, name: str) -> Config:
    """Of select_traces."""
    traces = config["traces"][name]
    return {
        **traces["select"],
        "format": config["format"],
        "student": model_settings(config, traces["student"]),
        "block_size": _smallest_block(config, name),
        "seed": config["seed"],
    }


def _smallest_block(config: Config, traces: str) -> int:
    """The smallest block size of the arms trained on a set; decides no row, but the share of rows that are longer."""
    arms = [arm for kind, arm in lineage.needed(config) if kind == "arms" and config["arms"][arm]["traces"] == traces]
    block_sizes = [training_settings(config, arm)["block_size"] for arm in arms]
    return min(block_sizes, default=config["training"]["block_size"])


def derive_settings(config: Config, name: str) -> Config:
    """Of derive_traces; TypeError for a trace set that has attempts of its own."""
    traces = config["traces"][name]
    if traces["method"] not in lineage.DERIVED:
        raise TypeError(f"traces.{name} is not made of another trace set")
    settings = {
        "method": traces["method"],
        "of": traces["of"],
        "student": model_settings(config, traces["student"]),
        "block_size": _smallest_block(config, name),
        "device": config["device"],
    }
    if traces["method"] == "filter":
        settings |= {"gpus": config["models"][traces["student"]]["gpus"]}
        return settings | {"filter": traces["filter"], **{key: traces[key] for key in ("threshold", "context")}}
    return settings | {"format": config["format"]}


def training_settings(config: Config, arm: str) -> Config:
    """Of train; the training seed is not part of it."""
    settings = {**config["training"], **config["arms"][arm]["training"], "device": config["device"]}
    if (other := settings["tokens_of"]) is not None:
        # What that arm sees is decided by these, with its rows and the training seed.
        theirs = training_settings(config, other)
        keys = ("epochs", "batch_size", "block_size", "overlong", "drop_last")
        settings["tokens_of"] = {"arm": other, **{key: theirs[key] for key in keys}}
        del settings["epochs"]
    return settings


def evaluation_settings(config: Config, arm: str, task: str) -> Config:
    """Of evaluate and collect_scores; a shard's number is not part of it."""
    profile = config["profiles"][config["evaluation"]["profile"]]
    model = model_settings(config, config["arms"][arm]["model"])
    if profile["prompt"] is not None:
        model["prompt"] = config["prompts"][profile["prompt"]]
    return {
        "task": task,
        "repeats": config["tasks"][task]["repeats"],
        "shards": config["tasks"][task]["shards"],
        "backend": config["evaluation"]["backend"],
        "lanes": config["evaluation"]["lanes"],
        "sampling": {key: profile[key] for key in ("temperature", "top_k", "top_p")},
        "context": profile["context"],
        "profile": config["evaluation"]["profile"],
        "model": model,
        "format": config["format"],
        "seed": config["seed"],
        "device": config["device"],
        "gpus": config["models"][config["arms"][arm]["model"]]["gpus"],
        "jobs_at_once": config["jobs_at_once"],
    }


def analysis_settings(config: Config, traces: str, reader: str) -> Config:
    """Of analyse_tokens. KeyError where there is no such trace set or reader."""
    name, seed = split_reader(config, reader)
    model = name if seed is None else config["arms"][name]["model"]
    if traces not in config["traces"]:
        raise KeyError(traces)
    return {
        "traces": traces,
        "reader": reader,
        "problems": config["analysis"]["problems"],
        "threshold": config["analysis"]["threshold"],
        "dtype": config["models"][model]["dtype"],
        "device": config["device"],
        "gpus": config["models"][model]["gpus"],
    }


def judge_settings(config: Config, task: str) -> Config:
    """Of judge_samples; KeyError for a benchmark that there is not, TypeError without a judge."""
    dataset, judge = config["tasks"][task]["dataset"], config["evaluation"]["judge"]
    settings = {key: judge[key] for key in ("url", "model", "key_variable", "timeout_s", "concurrency", "samples")}
    settings |= {"end_of_turn": config["format"]["end_of_turn"], "seed": config["seed"]}
    return {"task": task, "dataset": dataset, **settings}


def compare_settings(config: Config) -> Config:
    """Of compare: what was run and asked, and the published values."""
    arms = {}
    for arm in config["run"]["arms"]:
        traces = config["arms"][arm]["traces"]
        arms[arm] = {
            "label": config["arms"][arm]["label"] or arm,
            "traces": traces,
            "method": config["traces"][traces]["method"] if traces else None,
            "seeds": arm_seeds(config, arm),
        }
    return {
        "arms": arms,
        "base": config["run"]["base"],
        "question": config["question"],
        "tasks": config["run"]["tasks"],
        "skipped_tasks": config["run"]["skipped_tasks"],
        "reference": config["reference"],
        **{key: value for key, value in config["report"].items() if key not in ON_THE_PAGE},
        "seed": config["seed"],
    }


def report_settings(config: Config) -> Config:
    """Of report: how things are called, how much the page shows, and the whole configuration to show."""
    return {
        "experiment": config["experiment"],
        "title": config["title"] or config["experiment"],
        "page": {key: config["report"][key] for key in ON_THE_PAGE},
        "config": config,
    }
