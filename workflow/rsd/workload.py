"""What the jobs of a configuration are, and how much each has to do. Sums; nothing is run, nothing heavy imported.

One list of jobs for everything that reckons before a run: what a job asks of the machine (`needs`), how long the
experiment takes (`projection`, `estimate`). Lengths are limits, every generation counted at its longest, unless typical
ones are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rsd import config as settings_of
from rsd import lineage
from rsd.config import Config
from rsd.sizes import shape_of_model

# Rows of the public datasets, as their authors publish them.
PUBLIC_ROWS = {"simplescaling/s1K-1.1": 1000, "simplescaling/s1K": 1000}
# Counted where nobody knows yet how many problems there are: for training, and of a benchmark.
UNKNOWN_PROBLEMS, UNKNOWN_BENCHMARK = 10_000, 1000
# Longest trace of a dataset's own that is reckoned with; how long they are is known when they are there.
DATASET_TRACE = 32768
# Forward passes that a trained token costs: forward, backward twice that, and forward again for checkpointing.
TRAINING_PASSES, CHECKPOINTED = 3, 4
# Tokens of a problem of the demo, its solution included.
POCKET_TOKENS = 128

# Average tokens of an attempt, row or sample, by trace set or task; under None of all others.
Typical = Mapping[str | None, float]
BOUND: Typical = {}


@dataclass(frozen=True)
class Work:
    """What a job's models do: `rows` times `repeats` sequences of `length` tokens.

    `kind`: rsd and sample write them, read reads each once, train goes over each `passes` times the time of a forward
    pass. `models` are entries of models from outside; `context` is the longest sequence; `width` the sequences that are
    on the device at once (training), or the configured lanes (None: what fits).
    """

    kind: str
    models: tuple[str, ...]
    rows: int
    repeats: int
    length: float
    context: int
    width: int | None = None
    passes: int = 1
    dtype: str | None = None

    @property
    def sequences(self) -> int:
        """All of them."""
        return self.rows * self.repeats

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return round(self.sequences * self.length)


@dataclass(frozen=True)
class Jobs:
    """`count` jobs of a stage, alike but for shard and seed; `name` is what they work on.

    `each`: the work of the largest of them, None where no model runs; `whole`: that of all together.
    """

    stage: str
    name: str
    count: int
    each: Work | None = None
    whole: Work | None = None


def count_problems(config: Config, results: Path) -> int | None:
    """How many training problems there are: those prepared already, the configured limit, or the dataset's size."""
    prepared = results / config["experiment"] / "data" / "problems.jsonl"
    if prepared.exists():
        return sum(1 for _ in prepared.open(encoding="utf-8"))
    source = config["datasets"][config["problems"]["dataset"]]["source"]
    made = {"pocket://train": config["pocket"]["train_problems"], "pocket://test": config["pocket"]["test_problems"]}
    rows = made.get(source) or PUBLIC_ROWS.get(source.removeprefix("hf://").partition("@")[0])
    return min((count for count in (rows, config["problems"]["limit"]) if count), default=None)


def count_benchmark(config: Config, task: str, results: Path) -> int | None:
    """How many problems of a benchmark are used: as the configuration says, or as prepared; None where not known."""
    stated = settings_of.stated_problems(config, task)
    prepared = results / config["experiment"] / "data" / "benchmarks" / f"{task}.jsonl"
    if config["tasks"][task]["problems"] is None and prepared.exists():
        return sum(1 for _ in prepared.open(encoding="utf-8"))
    return stated


# --- how many jobs there are -----------------------------------------------------------------------------------------


def jobs(config: Config, results: Path, typical: Typical = BOUND) -> list[Jobs]:
    """Every job that a run in an empty folder plans for `all`, in the order of the stages."""
    tasks, sets = config["run"]["tasks"], settings_of.trace_sets(config)
    measured = sum(len(settings_of.arm_seeds(config, arm)) for arm in config["run"]["arms"])
    selected = [name for name in sets if config["traces"][name]["method"] not in lineage.DERIVED]
    found = [
        *_outside(config),
        Jobs("prepare_problems", "", 1),
        Jobs("prepare_benchmark", "", len(tasks)),
        Jobs("measure_overlap", "", 1),
        *(jobs_of(config, stage, name, results, typical) for name in sets for stage in _making(config, name)),
        *(Jobs("select_traces", name, 1) for name in selected),
        *(
            jobs_of(config, "train", arm, results, typical)
            for arm in dict.fromkeys(arm for arm, _ in lineage.trained(config))
        ),
        *(
            jobs_of(config, "evaluate", f"{arm}/{task}", results, typical)
            for task in tasks
            for arm in config["run"]["arms"]
        ),
        Jobs("judge_samples", "", measured * len(settings_of.judged_tasks(config))),
        Jobs("collect_scores", "", measured * len(tasks)),
        *(
            jobs_of(config, "analyse_tokens", f"{traces}/{reader}", results, typical)
            for traces, reader in settings_of.token_analyses(config)
        ),
        *(Jobs(stage, "", 1) for stage in ("compare", "report", "write_config")),
    ]
    return [entry for entry in found if entry.count]


def _outside(config: Config) -> list[Jobs]:
    """What comes from outside, each folder once, or is made by the pipeline itself."""
    found = []
    for kind, names, key in (
        ("model", settings_of.used_models(config), settings_of.model_key),
        ("dataset", settings_of.used_datasets(config), settings_of.dataset_key),
    ):
        catalogue = config[f"{kind}s"]
        folders = {key(config, name): name for name in names if not lineage.trained_by(catalogue[name]["source"])}
        made = [name for name in folders.values() if catalogue[name]["source"].startswith("pocket://")]
        found.append(Jobs(f"prefetch_{kind}", "", len(folders) - len(made)))
        if kind == "model":
            found += [jobs_of(config, "make_pocket_model", name, Path(), BOUND) for name in made]
        else:
            found.append(Jobs("make_pocket_dataset", "", len(made)))
    return found


def _making(config: Config, traces: str) -> list[str]:
    """The stages that make a trace set's attempts, or its rows of another set's."""
    method = config["traces"][traces]["method"]
    stages = {"rsd": "generate_traces", "sample": "generate_traces", "dataset": "convert_traces"}
    stages |= dict.fromkeys(lineage.DERIVED, "derive_traces")
    return [stages[method]] if method in stages else []


def names_of(config: Config, entry: Jobs) -> list[dict[str, str]]:
    """The wildcards of some of these jobs, which stand for all: those that decide what a job asks for."""
    tasks, arms = config["run"]["tasks"], config["run"]["arms"]
    match entry.stage:
        case "generate_traces" | "convert_traces" | "select_traces" | "derive_traces":
            return [{"traces": entry.name}]
        case "train":
            return [{"arm": entry.name}]
        case "evaluate":
            return [dict(zip(("arm", "task"), entry.name.split("/", 1), strict=True))]
        case "analyse_tokens":
            return [dict(zip(("traces", "reader"), entry.name.split("/", 1), strict=True))]
        case "judge_samples" | "collect_scores":
            return [{"arm": arm, "task": task} for arm in arms for task in tasks]
        case "prepare_benchmark":
            return [{"task": task} for task in tasks]
        case "make_pocket_model":
            return [{"model": settings_of.model_key(config, entry.name)}]
        case "prefetch_model":
            return [{"model": settings_of.model_key(config, name)} for name in outside_models(config)]
        case _:
            return [{}]


def outside_models(config: Config) -> list[str]:
    """The models of this run that it does not train."""
    return list(dict.fromkeys(lineage.origin(config, name) for name in settings_of.used_models(config)))


# --- what they do ----------------------------------------------------------------------------------------------------


def jobs_of(config: Config, stage: str, name: str, results: Path, typical: Typical = BOUND) -> Jobs:
    """The jobs of a stage on `name`: a trace set, an arm (train), ARM/TASK (evaluate), TRACES/READER
    (analyse_tokens), an entry of models (make_pocket_model)."""
    match stage:
        case "generate_traces" | "derive_traces":
            shards = config["traces"][name]["shards"] if stage == "generate_traces" else 1
            return _shared(stage, name, _traces(config, name, results, typical), shards)
        case "train":
            seeds = sum(arm == name for arm, _ in lineage.trained(config))
            return _repeated(stage, name, _training(config, name, results, typical), seeds)
        case "evaluate":
            return _evaluations(config, name, results, typical)
        case "analyse_tokens":
            return _repeated(stage, name, _analysis(config, name, results, typical), 1)
        case "make_pocket_model":
            return _repeated(stage, name, _pocket_model(config, name), 1)
        case _:
            return Jobs(stage, name, 1)


def _shared(stage: str, name: str, work: Work | None, count: int) -> Jobs:
    """`count` jobs that share the rows of `work`."""
    each = work and replace(work, rows=math.ceil(work.rows / count))
    return Jobs(stage, name, count, each, work)


def _repeated(stage: str, name: str, work: Work, count: int) -> Jobs:
    """`count` jobs that do `work` each."""
    return Jobs(stage, name, count, work, replace(work, repeats=work.repeats * count))


def problems_or_guess(config: Config, results: Path) -> int:
    """How many training problems are reckoned with."""
    return count_problems(config, results) or UNKNOWN_PROBLEMS


def benchmark_or_guess(config: Config, task: str, results: Path) -> int:
    """How many problems of a benchmark are reckoned with."""
    return count_benchmark(config, task, results) or UNKNOWN_BENCHMARK


def _outside_model(config: Config, *models: str) -> tuple[str, ...]:
    return tuple(lineage.origin(config, model) for model in models)


def _traces(config: Config, name: str, results: Path, typical: Typical) -> Work | None:
    """The model's work on a trace set; None where there is none."""
    traces = config["traces"][name]
    rows, context = problems_or_guess(config, results), traces["context"]
    if traces["method"] == "filter":
        length = min(context, longest_row(config, traces["of"], results, typical))
        return Work("read", _outside_model(config, traces["student"]), rows, 1, length, context)
    if traces["method"] not in ("rsd", "sample"):
        return None
    models = [traces["student"], traces["teacher"]]
    if traces["method"] == "sample":
        models = [traces["sampled"] or traces["student"]]
    length = _length(config, name, traces["max_new_tokens"], typical)
    kind, attempts = traces["method"], traces["attempts"]
    return Work(kind, _outside_model(config, *models), rows, attempts, length, context, traces["lanes"])


def _length(config: Config, traces: str, limit: float, typical: Typical) -> float:
    """Tokens of a row or attempt: the limit, or what is typical of the set or of the one that it is made of."""
    name: str | None = traces
    while name is not None:
        if name in typical:
            return min(limit, typical[name])
        name = config["traces"][name]["of"]
    return min(limit, typical.get(None, limit))


def longest_row(config: Config, traces: str, results: Path, typical: Typical = BOUND) -> float:
    """Tokens of a training row of a set at most, before it is cut at the block size."""
    name = traces
    while config["traces"][name]["of"] is not None:
        name = config["traces"][name]["of"]
    entry = config["traces"][name]
    limit = entry["context"]
    if entry["method"] == "dataset":
        limit = min(DATASET_TRACE, shape_of_model(config, entry["student"], results / "models").positions)
    return _length(config, traces, limit, typical)


def _training(config: Config, arm: str, results: Path, typical: Typical) -> Work:
    training = settings_of.training_settings(config, arm)
    # An arm that takes another's number of tokens takes no more than that one's most.
    counted, traces = training["tokens_of"] or training, config["arms"][arm]["traces"]
    if training["tokens_of"]:
        traces = config["arms"][counted["arm"]]["traces"]
    return Work(
        kind="train",
        models=_outside_model(config, config["arms"][arm]["model"]),
        rows=problems_or_guess(config, results),
        repeats=counted["epochs"],
        length=_length(config, traces, counted["block_size"], typical),
        context=training["block_size"],
        width=training["micro_batch_size"],
        passes=CHECKPOINTED if training["gradient_checkpointing"] else TRAINING_PASSES,
        dtype=training["dtype"],
    )


def _evaluations(config: Config, name: str, results: Path, typical: Typical) -> Jobs:
    arm, task = name.split("/", 1)
    entry = config["tasks"][task]
    seeds = len(settings_of.arm_seeds(config, arm))
    context = config["profiles"][config["evaluation"]["profile"]]["context"]
    whole = Work(
        kind="sample",
        models=_outside_model(config, config["arms"][arm]["model"]),
        rows=benchmark_or_guess(config, task, results),
        repeats=entry["repeats"],
        length=min(context, typical.get(task, typical.get(None, context))),
        context=context,
        width=config["evaluation"]["lanes"],
    )
    each = replace(whole, rows=math.ceil(whole.rows / entry["shards"]))
    return Jobs("evaluate", name, seeds * entry["shards"], each, replace(whole, repeats=seeds * whole.repeats))


def _analysis(config: Config, pair: str, results: Path, typical: Typical) -> Work:
    traces, reader = pair.split("/", 1)
    name, seed = settings_of.split_reader(config, reader)
    model = name if seed is None else config["arms"][name]["model"]
    rows, wanted = problems_or_guess(config, results), config["analysis"]["problems"]
    longest = math.ceil(longest_row(config, traces, results))
    length = longest_row(config, traces, results, typical)
    return Work("read", _outside_model(config, model), min(rows, wanted or rows), 1, length, longest)


def _pocket_model(config: Config, name: str) -> Work:
    recipe = config["pocket"][config["models"][name]["source"].removeprefix("pocket://")]
    return Work(
        "train", (name,), recipe["steps"], recipe["batch_size"], POCKET_TOKENS, POCKET_TOKENS, recipe["batch_size"],
        TRAINING_PASSES, "float32",
    )  # fmt: skip
