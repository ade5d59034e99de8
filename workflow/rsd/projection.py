"""What a configured experiment will take: time and disk, from speeds. Sums, nothing is run.

Upper bounds where a configuration gives only limits: every generation is counted at its longest. Such a bound can be
several times the truth, and is never less, unless the speed falls. With typical lengths the same sums are expectations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rsd import config as settings_of
from rsd import lineage
from rsd.config import Config
from rsd.sizes import ITEM_BYTES, shape_of_model
from rsd.speeds import Speed
from rsd.workload import BOUND, Jobs, Typical, Work, jobs, outside_models

# Bytes that a token of an attempt takes at most: its columns in Parquet, and its line in the journal while a shard is
# made (base64 of 13 bytes, and text).
TRACE_BYTES, JOURNAL_BYTES = 17, 26
TEXT_BYTES = 5  # of a sample
SCORE_BYTES = 40  # of a token that is analysed: its row in Parquet, and its line in the journal
# Bytes a parameter takes while it is trained: float32 weight, two moments, gradient; in a checkpoint on disk; and as it
# is downloaded or saved.
TRAINING_BYTES, CHECKPOINT_BYTES, PUBLISHED_BYTES = 16, 12, 2
# Checkpoints that are on disk at once.
KEPT_CHECKPOINTS = 2
# What a job needs to begin: Python and its libraries, and bytes of weights that are read a second. Stated.
START_SECONDS, LOADING_BYTES = 30.0, 2e8

WHAT = {
    "make_pocket_model": "making",
    "generate_traces": "traces",
    "derive_traces": "traces",
    "train": "training",
    "evaluate": "evaluation",
    "analyse_tokens": "analysis",
}


@dataclass(frozen=True)
class Item:
    """A line of the projection: what, the rule and number of its jobs, its tokens, the seconds that its models take and
    those of starting the jobs (all of them one after another), and how that was reckoned."""

    what: str
    stage: str
    jobs: int
    tokens: int
    seconds: float
    starts: float
    how: str


def project(config: Config, speed: Speed, results: Path, typical: Typical = BOUND) -> list[Item]:
    """All that models do in the configured run, with its most tokens (or the `typical` ones) and their time."""
    items: dict[str, Item] = {}
    for entry in jobs(config, results, typical):
        if entry.whole is None:
            continue
        # All models of a task stand on one line.
        name = entry.name.partition("/")[2] if entry.stage == "evaluate" else entry.name.replace("/", " by ")
        what = f"{WHAT[entry.stage]} {name}"
        item = _item(config, what, entry, speed, results)
        items[what] = _sum(items[what], item) if what in items else item
    return list(items.values())


def _item(config: Config, what: str, entry: Jobs, speed: Speed, results: Path) -> Item:
    assert entry.whole is not None
    assert entry.each is not None
    starts = entry.count * start_seconds(config, entry.each, results)
    tokens = entry.whole.tokens
    return Item(what, entry.stage, entry.count, tokens, seconds(entry.each, speed, tokens), starts, _how(entry))


def _sum(one: Item, other: Item) -> Item:
    return Item(
        one.what,
        one.stage,
        one.jobs + other.jobs,
        one.tokens + other.tokens,
        one.seconds + other.seconds,
        one.starts + other.starts,
        one.how if one.how == other.how else f"{one.how}; {other.how}",
    )


def seconds(work: Work, speed: Speed, tokens: int | None = None) -> float:
    """How long the models of a job work, or those of several such jobs on `tokens` in all; time limits come from it."""
    return work.passes * (work.tokens if tokens is None else tokens) / speed(work)


def start_seconds(config: Config, work: Work, results: Path) -> float:
    """What passes before a job's models do anything."""
    weights = sum(shape_of_model(config, name, results / "models").parameters for name in work.models) * 4
    return START_SECONDS + weights / LOADING_BYTES


def _how(entry: Jobs) -> str:
    work = entry.whole
    assert work is not None
    length = f"{work.length:g} tokens"
    match entry.stage:
        case "generate_traces":
            return f"{work.sequences} attempts of {length}"
        case "derive_traces" | "analyse_tokens":
            return f"{work.rows} rows of {length}, read once"
        case "train":
            epochs = work.repeats // entry.count
            return f"{entry.count} seeds x {epochs} epochs x {work.rows} rows of {length}; {work.passes} passes"
        case "evaluate":
            return f"{work.rows} problems x {work.repeats} samples of {length}"
        case _:
            return f"{work.rows} steps of {work.repeats} problems; {work.passes} passes"


def disk_bytes(config: Config, results: Path, typical: Typical = BOUND) -> dict[str, int]:
    """Bytes on disk: models that are downloaded or made, attempts, trained models, checkpoints, samples, analyses."""
    found = jobs(config, results, typical)

    def parameters(*names: str) -> list[int]:
        return [shape_of_model(config, name, results / "models").parameters for name in names]

    def tokens(*stages: str) -> int:
        return sum(entry.whole.tokens for entry in found if entry.stage in stages and entry.whole)

    outside = {settings_of.model_key(config, name): name for name in outside_models(config)}
    trained = [(arm, config["arms"][arm]["model"]) for arm, _ in lineage.trained(config)]
    saved = [
        size * ITEM_BYTES[settings_of.training_settings(config, arm)["dtype"]]
        for (arm, _), size in zip(trained, parameters(*(model for _, model in trained)), strict=True)
    ]
    largest = max(parameters(*(model for _, model in trained)), default=0)
    return {
        "models downloaded or made": sum(
            size * stored_bytes(config, name)
            for name, size in zip(outside.values(), parameters(*outside.values()), strict=True)
        ),
        "traces": tokens("generate_traces") * TRACE_BYTES,
        "journals until rows are chosen": tokens("generate_traces") * JOURNAL_BYTES,
        "trained models": sum(saved),
        "checkpoints while one trains": KEPT_CHECKPOINTS * CHECKPOINT_BYTES * largest,
        "samples": tokens("evaluate") * TEXT_BYTES,
        "token analyses": tokens("analyse_tokens") * SCORE_BYTES,
    }


def stored_bytes(config: Config, model: str) -> int:
    """Bytes of a parameter in a model's folder: models are published in 16 bit; what is made here is in float32."""
    return PUBLISHED_BYTES if config["models"][model]["source"].startswith(("hf://", "path:")) else 4


def training_bytes(student: int) -> int:
    """Memory of weights, moments and gradients of a training, by the student's parameters; activations come on top."""
    return TRAINING_BYTES * student
