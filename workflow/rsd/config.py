"""The configuration: merged, validated, cross-checked, and cut into one slice a stage.

config.yaml and overlays -> one dict with every default filled. A stage gets only its slice (`*_settings`), so that a
changed setting reruns just what depends on it. Needs nothing beyond Snakemake's own dependencies.
"""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from rsd import lineage
from rsd.provenance import settings_digest

Config = dict[str, Any]

ROOT = Path(__file__).parents[2]
# Settings of a stage that decide how fast its result comes, or whether it may come, and not what it is.
NOT_DECIDING = (
    "lanes",
    "device",
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
SCHEMA_PATH = Path(__file__).parents[1] / "schemas" / "config.schema.yaml"
# Catalogues whose entries may be `like` another of theirs.
INHERITING = ("models", "traces")


def load_schema() -> dict[str, Any]:
    """The JSON schema of the configuration, the only place of every default."""
    return yaml.safe_load(SCHEMA_PATH.read_text(encoding="utf-8"))


def load(paths: Sequence[Path]) -> Config:
    """Reads config files, later ones over earlier ones (as Snakemake merges them), and validates the result."""
    merged: Config = {}
    for path in paths:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a mapping of settings, found {type(content).__name__}")
        merged = merge(merged, content)
    return validate(merged)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Config:
    """`over` laid over `base`: mappings key by key, everything else (lists too) replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def validate(config: Mapping[str, Any]) -> Config:
    """A copy with every default filled, and what entries take over from others (`like`) written out.

    Raises ValueError listing every problem by key, value, expectation and remedy: unknown keys, wrong types, values
    out of bounds or not finite, names that do not exist, combinations that cannot work.
    """
    filled: Config = copy.deepcopy(dict(config))
    schema = load_schema()
    # The bounds of the schema let nan through, and an open end lets inf.
    problems = [f"{key} = {number!r}: expected a finite number; correct it" for key, number in _not_finite(filled)]
    problems = problems or inherit(filled) or _schema_problems(schema, filled)
    if not problems:
        filled = fill_defaults(schema, filled)
        problems = _reference_problems(filled) or _skip_gated(filled)
    if problems:
        raise ValueError("the configuration is not valid:\n  " + "\n  ".join(problems))
    return filled


def inherit(config: Config) -> list[str]:
    """Lays every entry that is `like` another over that one, in place; returns what is wrong with the names."""
    problems: list[str] = []
    for catalogue in INHERITING:
        if isinstance(entries := config.get(catalogue), dict):
            config[catalogue] = {name: _written_out(catalogue, name, entries, problems) for name in entries}
    return problems


def _written_out(catalogue: str, name: str, entries: Mapping[str, Any], problems: list[str]) -> Any:
    """An entry with the settings of the one that it is like, of the one that this is like, and so on.

    Where a name is wrong, or no name, the entry stays as it is.
    """
    chain = [name]
    while isinstance(entry := entries[chain[-1]], dict) and "like" in entry:
        other = entry["like"]
        if not isinstance(other, str):
            return entries[name]  # the schema tells
        if other not in entries or other in chain:
            if other not in entries and chain == [name]:
                key = f"{catalogue}.{name}.like = {other!r}"
                problems.append(f"{key}: no such entry in {catalogue}; {_suggest(other, entries)}")
            elif other == name:
                circle = " -> ".join([*chain, name])
                problems.append(f"{catalogue}.{name}.like: goes round in a circle ({circle}); write one of them out")
            return entries[name]
        chain.append(other)
    if not isinstance(entry, dict):
        return entries[name]
    merged: Config = {}
    for link in reversed(chain):
        merged = merge(merged, {key: value for key, value in entries[link].items() if key != "like"})
    return merged


def fill_defaults(schema: Mapping[str, Any], value: Any, node: Mapping[str, Any] | None = None) -> Any:
    """`value` with the schema's defaults filled, at any depth; `node` is the part of `schema` that describes it."""
    node = _resolve(schema, schema if node is None else node)
    if not isinstance(value, dict):
        return value
    filled = {}
    for key, child in node.get("properties", {}).items():
        if key in value:
            filled[key] = fill_defaults(schema, value[key], child)
        elif (default := _default(schema, child)) is not _NO_DEFAULT:
            filled[key] = fill_defaults(schema, copy.deepcopy(default), child)
    others = node.get("additionalProperties")
    for key in [key for key in value if key not in filled]:
        filled[key] = fill_defaults(schema, value[key], others) if isinstance(others, dict) else value[key]
    return filled


_NO_DEFAULT = object()


def _resolve(schema: Mapping[str, Any], node: Mapping[str, Any]) -> Mapping[str, Any]:
    """`node` with its $ref followed; keys beside the $ref stay on top."""
    if "$ref" not in node:
        return node
    target = schema["$defs"][node["$ref"].removeprefix("#/$defs/")]
    return {**_resolve(schema, target), **{key: value for key, value in node.items() if key != "$ref"}}


def _default(schema: Mapping[str, Any], node: Mapping[str, Any]) -> Any:
    node = _resolve(schema, node)
    if "default" in node:
        return node["default"]
    # An object all of whose keys have defaults has one itself.
    if node.get("type") == "object" and node.get("properties") and not node.get("required"):
        return {}
    return _NO_DEFAULT


def _not_finite(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """(key, value) of every nan and infinity at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        yield key, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in items:
        yield from _not_finite(child, f"{key}.{name}".lstrip("."))


def _schema_problems(schema: Mapping[str, Any], config: Config) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema)
    errors = sorted(
        validator.iter_errors(config), key=lambda error: (list(map(str, error.absolute_path)), error.message)
    )
    return [line for error in errors for line in _explain(error)]


def _explain(error: jsonschema.ValidationError) -> list[str]:
    """One line a mistake: the key, its value, what was expected, what to do."""
    path = [str(part) for part in error.absolute_path]
    key = ".".join(path) or "(top level)"
    # Typed as anything by jsonschema, since a schema may be a bare true or false; ours never is.
    node: Any = error.schema
    found: Any = error.instance
    wanted: Any = error.validator_value
    description = node.get("description", "")
    hint = f" ({' '.join(description.split())})" if description else ""
    match error.validator:
        case "additionalProperties":
            known = list(node.get("properties", {}))
            unknown = [name for name in found if name not in known]
            return [
                f"{'.'.join([*path, str(name)])} = {found[name]!r}: unknown key; {_suggest(str(name), known)}"
                for name in unknown
            ]
        case "required":
            missing = [name for name in wanted if name not in found]
            return [f"{'.'.join([*path, name])}: missing; add it{hint}" for name in missing]
        case "type":
            kinds = wanted if isinstance(wanted, list) else [wanted]
            number = isinstance(found, str) and bool({"number", "integer"} & set(kinds))
            remedy = "write the number without quotes, in a config file" if number else "correct it"
            kind = type(found).__name__
            return [f"{key} = {found!r}: expected {' or '.join(kinds)}, found {kind}; {remedy}{hint}"]
        case "enum":
            allowed = [str(value) for value in wanted]
            return [f"{key} = {found!r}: {_suggest(str(found), allowed)}{hint}"]
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
            return [f"{key} = {found!r}: expected {_bounds(node)}; choose a value in it{hint}"]
        case "pattern" if node.get("writeOnly"):
            # Perhaps a secret that got into the wrong place.
            return [f"{key}: not of the form {wanted}; correct it{hint}"]
        case _:
            return [f"{key} = {found!r}: {error.message}; correct it{hint}"]


def _bounds(node: Mapping[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    return "a value " + " and ".join(f"{sign} {node[name]}" for name, sign in signs.items() if name in node)


def _suggest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    start = f"did you mean {close[0]!r}? " if close else ""
    return f"{start}expected one of: {', '.join(known) or '(none defined)'}"


def _reference_problems(config: Config) -> list[str]:
    """Names that lead nowhere and combinations that cannot work."""
    problems: list[str] = []

    def check(key: str, name: str | None, catalogue: str) -> bool:
        if name is None or name in config.get(catalogue, {}):
            return True
        problems.append(f"{key} = {name!r}: no such entry in {catalogue}; {_suggest(name, config.get(catalogue, {}))}")
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
            + _suggest(config["run"]["base"], config["run"]["arms"])
        )
    for name, traces in config["traces"].items():
        problems += _trace_set_problems(name, traces, config, check)
    problems += _analysis_problems(config, check)
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
    problems += _question_problems(config)
    if config["experiment"] in ("models", "datasets"):
        problems.append(f"experiment = {config['experiment']!r}: this folder of results/ is taken; choose another name")
    return problems


def _question_problems(config: Config) -> list[str]:
    arms = config["run"]["arms"]
    return [
        f"question.comparisons[{index}] = {comparison!r}: {arm!r} is not in run.arms, so this run cannot answer it; "
        f"{_suggest(arm, arms)}, or write comparisons: null for those that the arms suggest"
        for index, comparison in enumerate(config["question"]["comparisons"] or ())
        for arm in comparison
        if arm not in arms
    ]


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


def _analysis_problems(config: Config, check: Any) -> list[str]:
    """Trace sets and readers of the token analysis that do not exist, and names that could mean two readers."""
    problems = []
    readers = [*config["models"], *trained_names(config)]
    for index, entry in enumerate(config["analysis"]["also"]):
        check(f"analysis.also[{index}].traces", entry["traces"], "traces")
        if entry["reader"] not in readers:
            problems.append(
                f"analysis.also[{index}].reader = {entry['reader']!r}: neither in models nor a model that this run "
                f"trains; {_suggest(entry['reader'], readers)}"
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
        problems += [f"arms.{name}.training.{line.removeprefix('(top level).')}" for line in _explain(error)]
    if problems:
        return problems
    training = {**config["training"], **arm["training"]}
    if training["batch_size"] % training["micro_batch_size"]:
        problems.append(
            f"arms.{name}: batch_size = {training['batch_size']} is no multiple of micro_batch_size = "
            f"{training['micro_batch_size']}; choose one that divides it"
        )
    return problems


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
        return settings | {"sampling": traces["sampling"], "sampled": sampled}
    law = config["laws"][traces["law"]]
    draws = law["draws"] if traces["draws"] is None else traces["draws"]
    law = {"name": traces["law"], **law, "draws": draws, "threshold": traces["threshold"]}
    settings |= {key: traces[key] for key in ("schedule", "block_length")}
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
