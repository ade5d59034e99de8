"""What a configured experiment will take, from measured speeds: time, memory and disk. Sums, nothing is run.

Upper bounds where a configuration gives only limits: every generation is counted at its longest. A bound can therefore
be several times the truth, and never less, unless the speed falls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rsd import config as settings_of
from rsd import lineage
from rsd.config import Config

# Rows of the public datasets, as their authors publish them.
PUBLIC_ROWS = {"simplescaling/s1K-1.1": 1000, "simplescaling/s1K": 1000}
# Bytes that a token of an attempt takes at most: its columns in Parquet, and its line in the journal while a shard is
# made (base64 of 13 bytes, and text).
TRACE_BYTES, JOURNAL_BYTES = 17, 26
TEXT_BYTES = 5  # of a sample
# Forward passes that a trained token costs: forward, backward twice that, and forward again for checkpointing.
TRAINING_PASSES, CHECKPOINTED = 3, 4
# Bytes a parameter takes while it is trained: float32 weight, two moments, gradient; and in a checkpoint on disk.
TRAINING_BYTES, CHECKPOINT_BYTES = 16, 12


@dataclass(frozen=True)
class Speeds:
    """Tokens a second of this machine, all lanes together."""

    rsd: float
    student: float  # sampled alone
    teacher: float  # likewise
    reading: float  # the student's forward pass over many tokens at once


@dataclass(frozen=True)
class Item:
    """A line of the projection: tokens at most, the seconds they take, and how that was reckoned."""

    what: str
    tokens: int
    seconds: float
    how: str


def count_problems(config: Config, results: Path) -> int | None:
    """How many training problems there are: those prepared already, the configured limit, or the dataset's size."""
    prepared = results / config["experiment"] / "data" / "problems.jsonl"
    if prepared.exists():
        return sum(1 for _ in prepared.open(encoding="utf-8"))
    source = config["datasets"][config["problems"]["dataset"]]["source"]
    made = {"pocket://train": config["pocket"]["train_problems"], "pocket://test": config["pocket"]["test_problems"]}
    rows = made.get(source) or PUBLIC_ROWS.get(source.removeprefix("hf://").partition("@")[0])
    return min((count for count in (rows, config["problems"]["limit"]) if count), default=None)


def project(config: Config, speeds: Speeds, problems: int) -> list[Item]:
    """Traces, training and evaluation of the configured run, each with its most tokens and their time."""
    items = [
        *(_traces(config, name, speeds, problems) for name in settings_of.trace_sets(config)),
        *(_training(config, arm, speeds, problems) for arm in dict.fromkeys(arm for arm, _ in lineage.trained(config))),
        *(_evaluation(config, task, speeds) for task in config["run"]["tasks"]),
    ]
    return [item for item in items if item is not None]


def _traces(config: Config, name: str, speeds: Speeds, problems: int) -> Item | None:
    traces = config["traces"][name]
    if traces["method"] == "filter":
        tokens = problems * traces["context"]
        how = f"{problems} rows of at most {traces['context']} tokens, read once"
        return Item(f"traces {name}", tokens, tokens / speeds.reading, how)
    if not _generated(traces):
        return None
    attempts = problems * traces["attempts"]
    tokens = attempts * traces["max_new_tokens"]
    # Another model than the student is taken for as slow as the teacher.
    alone = speeds.student if traces["sampled"] is None else speeds.teacher
    speed = speeds.rsd if traces["method"] == "rsd" else alone
    how = f"{attempts} attempts of at most {traces['max_new_tokens']} tokens"
    return Item(f"traces {name}", tokens, tokens / speed, how)


def _generated(traces: Config) -> bool:
    """Whether a trace set has attempts that a model writes."""
    return traces["method"] in ("rsd", "sample")


def _training(config: Config, arm: str, speeds: Speeds, problems: int) -> Item:
    training = settings_of.training_settings(config, arm)
    seeds = sum(name == arm for name, _ in lineage.trained(config))
    # An arm that takes another's number of tokens takes no more than that one's most.
    counted = training["tokens_of"] or training
    tokens = seeds * counted["epochs"] * problems * counted["block_size"]
    passes = CHECKPOINTED if training["gradient_checkpointing"] else TRAINING_PASSES
    how = f"{seeds} seeds x {counted['epochs']} epochs of at most {counted['block_size']} tokens a row; {passes} passes"
    if training["tokens_of"]:
        how = f"as many as {counted['arm']}: {how}"
    return Item(f"training {arm}", tokens, passes * tokens / speeds.reading, how)


def _evaluation(config: Config, task: str, speeds: Speeds) -> Item | None:
    rows = settings_of.stated_problems(config, task)
    if rows is None:
        return None
    models = sum(len(settings_of.arm_seeds(config, arm)) for arm in config["run"]["arms"])
    context = config["profiles"][config["evaluation"]["profile"]]["context"]
    samples = models * rows * config["tasks"][task]["repeats"]
    tokens = samples * context
    how = f"{models} models x {rows} problems x {config['tasks'][task]['repeats']} samples of at most {context} tokens"
    return Item(f"evaluation {task}", tokens, tokens / speeds.student, how)


def disk_bytes(config: Config, parameters: Mapping[str, int], problems: int) -> dict[str, int]:
    """Bytes on disk at most: downloaded models (`parameters`: student, teacher), traces, trained models, samples."""
    attempts = {"traces": 0, "journals": 0}
    for name in settings_of.trace_sets(config):
        traces = config["traces"][name]
        if _generated(traces):
            tokens = problems * traces["attempts"] * traces["max_new_tokens"]
            attempts["traces"] += tokens * TRACE_BYTES
            attempts["journals"] = max(attempts["journals"], tokens // traces["shards"] * JOURNAL_BYTES)
    trained = len(lineage.trained(config))
    samples = sum(item.tokens for item in project(config, Speeds(1, 1, 1, 1), problems) if item.what.startswith("eval"))
    return {
        "models downloaded": 2 * sum(parameters.values()),
        **attempts,
        "trained models": 2 * trained * parameters["student"],
        "a checkpoint while one trains": CHECKPOINT_BYTES * parameters["student"],
        "samples": samples * TEXT_BYTES,
    }


def training_bytes(student: int) -> int:
    """Memory of weights, moments and gradients of a training, by the student's parameters; activations come on top."""
    return TRAINING_BYTES * student
