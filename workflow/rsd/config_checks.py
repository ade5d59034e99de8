"""What a configuration of the right form can still get wrong: names that lead nowhere, combinations that cannot work.

A configuration with every default filled -> one sentence a mistake, with the key, its value, what was expected and what
to do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jsonschema

from rsd import lineage
from rsd.config_schema import Config, explain, fill_defaults, load_schema, suggest


def reference_problems(config: Config) -> list[str]:
    """Names that lead nowhere and combinations that cannot work."""
    problems: list[str] = []

    def check(key: str, name: str | None, catalogue: str) -> bool:
        if name is None or name in config.get(catalogue, {}):
            return True
        problems.append(f"{key} = {name!r}: no such entry in {catalogue}; {suggest(name, config.get(catalogue, {}))}")
        return False

    for name, model in config["models"].items():
        check(f"models.{name}.prompt", model["prompt"], "prompts")
    check("problems.dataset", config["problems"]["dataset"], "datasets")
    check("evaluation.profile", config["evaluation"]["profile"], "profiles")
    for name, profile in config.get("profiles", {}).items():
        check(f"profiles.{name}.prompt", profile["prompt"], "prompts")
    for name, task in config["tasks"].items():
        check(f"tasks.{name}.dataset", task["dataset"], "datasets")
    for name, dataset in config["datasets"].items():
        problems += _expression_problems(f"datasets.{name}.remove", dataset["remove"])
    for index, name in enumerate(config["run"]["arms"]):
        check(f"run.arms[{index}]", name, "arms")
    for index, name in enumerate(config["run"]["tasks"]):
        check(f"run.tasks[{index}]", name, "tasks")
    if config["run"]["base"] not in config["run"]["arms"]:
        problems.append(
            f"run.base = {config['run']['base']!r}: not in run.arms; "
            + suggest(config["run"]["base"], config["run"]["arms"])
        )
    for name, traces in config["traces"].items():
        problems += _trace_set_problems(name, traces, config, check)
    problems += _analysis_problems(config, check) + _split_problems(config)
    problems += lineage.problems(config, check)
    for name, arm in config["arms"].items():
        check(f"arms.{name}.model", arm["model"], "models")
        check(f"arms.{name}.traces", arm["traces"], "traces")
        problems += _training_problems(name, arm, config)
    # A published value under a mistyped name would silently be missing from the tables.
    for arm, values in config["reference"]["accuracy"].items():
        check(f"reference.accuracy.{arm}", arm, "arms")
        for task in values:
            check(f"reference.accuracy.{arm}.{task}", task, "tasks")
    for arm in config["reference"]["mean_relative_change"]:
        check(f"reference.mean_relative_change.{arm}", arm, "arms")
    for index, comparison in enumerate(config["question"]["comparisons"] or ()):
        for arm in comparison:
            check(f"question.comparisons[{index}]", arm, "arms")
    if config["experiment"] in ("models", "datasets"):
        problems.append(f"experiment = {config['experiment']!r}: this folder of results/ is taken; choose another name")
    return problems


def _expression_problems(key: str, pattern: str | None) -> list[str]:
    try:
        re.compile(pattern or "")
    except re.error as error:
        return [f"{key} = {pattern!r}: expected a regular expression ({error}); correct it"]
    return []


def _trace_set_problems(name: str, traces: Mapping[str, Any], config: Config, check: Any) -> list[str]:
    key = f"traces.{name}"
    problems = []
    if _written_by_models(traces) and traces["max_new_tokens"] >= traces["context"]:
        problems.append(
            f"{key}.max_new_tokens = {traces['max_new_tokens']}: leaves no room for a prompt in "
            f"{key}.context = {traces['context']} tokens; lower max_new_tokens or raise context"
        )
    select = traces["select"]
    cuts = "prefix" in (select["solved"], select["unsolved"])
    source = lineage.attempts_of(config, name)
    attempts = config["traces"].get(source, traces)
    if _written_by_models(attempts) and cuts and select["prefix_tokens"] > attempts["max_new_tokens"]:
        problems.append(
            f"{key}.select.prefix_tokens = {select['prefix_tokens']}: expected at most traces.{source}.max_new_tokens "
            f"= {attempts['max_new_tokens']}, the longest trace; lower it"
        )
    if traces["method"] in lineage.DERIVED and select != fill_defaults(load_schema(), {}, {"$ref": "#/$defs/select"}):
        problems.append(
            f"{key}.select: nothing is selected by method {traces['method']}, which takes the rows of {traces['of']!r} "
            f"as they are; write it into traces.{traces['of']}.select, or remove it"
        )
    check(f"{key}.student", traces["student"], "models")
    if traces["method"] == "rsd":
        check(f"{key}.teacher", traces["teacher"], "models")
        check(f"{key}.law", traces["law"], "laws")
        problems += _schedule_problems(key, traces)
    if traces["method"] == "dataset":
        dataset = config["datasets"].get(config["problems"]["dataset"])
        if dataset is not None and dataset["columns"]["response"] is None:
            problems.append(
                f"{key}.method = 'dataset': the dataset of problems has no traces of its own; name the column in "
                f"datasets.{config['problems']['dataset']}.columns.response"
            )
        wants_thinking = "{thinking}" in config["format"]["dataset_trace"]
        if dataset is not None and wants_thinking and dataset["columns"]["thinking"] is None:
            column = f"datasets.{config['problems']['dataset']}.columns.thinking"
            problems.append(
                f"format.dataset_trace = {config['format']['dataset_trace']!r}: wants {{thinking}}, of which the "
                f"dataset of problems has no column; name it in {column}, or write a dataset_trace without it"
            )
        if traces["attempts"] != 1:
            problems.append(f"{key}.attempts = {traces['attempts']}: a dataset has one trace a problem; write 1")
        if traces["shards"] != 1:
            problems.append(f"{key}.shards = {traces['shards']}: dataset traces are not generated; write 1")
    return problems


def _written_by_models(traces: Mapping[str, Any]) -> bool:
    return traces["method"] in ("rsd", "sample")


def _schedule_problems(key: str, traces: Mapping[str, Any]) -> list[str]:
    schedule, block = traces["schedule"], traces["block_length"]
    if schedule == "lock-step" and block not in (None, 1):
        return [f"{key}.block_length = {block}: a lock-step block is one token; write 1 or null, or another schedule"]
    if schedule in ("student-drafts", "teacher-drafts") and block == 1:
        return [f"{key}.block_length = 1: {schedule} needs a block to draft; write at least 2, or schedule: lock-step"]
    return []


def _split_problems(config: Config) -> list[str]:
    """Measured models that are to be spread over several GPUs by a backend that does not do so."""
    if config["evaluation"]["backend"] != "transformers":
        return []
    models = {config["arms"][arm]["model"] for arm in config["run"]["arms"] if arm in config["arms"]}
    return [
        f"models.{name}.gpus = {model['gpus']}: evaluation.backend = 'transformers' uses one GPU; write backend: "
        "rsd or vllm, or gpus: 1"
        for name, model in config["models"].items()
        if name in models and model["gpus"] > 1
    ]


def _analysis_problems(config: Config, check: Any) -> list[str]:
    """Trace sets and readers of the token analysis that do not exist, and names that could mean two readers."""
    problems = []
    trained = [f"{arm}-seed{seed}" for arm, seed in lineage.trained(config)]
    readers = [*config["models"], *trained]
    for index, entry in enumerate(config["analysis"]["also"]):
        check(f"analysis.also[{index}].traces", entry["traces"], "traces")
        if entry["reader"] not in readers:
            problems.append(
                f"analysis.also[{index}].reader = {entry['reader']!r}: neither in models nor a model that this run "
                f"trains; {suggest(entry['reader'], readers)}"
            )
    for name in config["models"]:
        arm, _, seed = name.rpartition("-seed")
        if arm in config["arms"] and seed.isdecimal():
            problems.append(
                f"models.{name}: this is what the arm {arm} trained with seed {seed} is called; choose another name"
            )
    return problems


def _training_problems(name: str, arm: Mapping[str, Any], config: Config) -> list[str]:
    """The arm's overrides checked as the training block is, and the batch sizes that result."""
    schema = load_schema()
    node = {**schema["$defs"]["training"], "$defs": schema["$defs"]}
    validator = jsonschema.Draft202012Validator(node)
    problems = []
    for error in validator.iter_errors(arm["training"]):
        problems += [f"arms.{name}.training.{line.removeprefix('(top level).')}" for line in explain(error)]
    if problems:
        return problems
    training = {**config["training"], **arm["training"]}
    if training["batch_size"] % (training["micro_batch_size"] * training["gpus"]):
        times = f" x gpus = {training['gpus']}" if training["gpus"] > 1 else ""
        problems.append(
            f"arms.{name}: batch_size = {training['batch_size']} is no multiple of micro_batch_size = "
            f"{training['micro_batch_size']}{times}; choose values that divide it"
        )
    return problems
