"""How fast models are taken to be: tokens a second of a job's work, measured by `rsd bench` or stated.

A speed is a function of a job's `Work`. Stated ones follow from a machine's peak figures and the shares of them that
are assumed here, which is the only place of these assumptions. Nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rsd import lineage
from rsd.config import Config
from rsd.sizes import ITEM_BYTES, Shape, shape_of_model
from rsd.workload import Work

Speed = Callable[[Work], float]

# Kinds of speed that can be measured or given by hand.
KINDS = ("rsd", "student", "teacher", "reading")
# Caches are allocated in steps of so many tokens; drafted blocks are at most so long; copies of the logits in float32.
CACHE_MULTIPLE, LONGEST_BLOCK, LOGIT_COPIES = 256, 12, 4
# Of a GPU's memory so much is left alone.
RESERVE = 0.1
# Tokens that are read at once.
READ_TOKENS = 512


@dataclass(frozen=True)
class Machine:
    """What a job is taken to run on.

    Operations a second by dtype and bytes a second that are reached, the least seconds of a forward pass, the most
    lanes, and the bytes of memory that they have to fit (None: that many lanes fit).
    """

    name: str
    source: str
    operations: Mapping[str, float]
    bandwidth: float
    pass_seconds: float
    lanes: int
    memory: float | None = None


# Shares of the data sheet's peaks; none of this is measured.
GPU = Machine(
    name="one NVIDIA A100 80 GB",
    source="its data sheet: 312 TFLOP/s in 16 bit, 19.5 in float32, 2.0 TB/s; assumed are 30 % of the operations, half "
    "of the bandwidth, 10 ms a pass; nothing of this project has been timed on a GPU",
    operations={"bfloat16": 0.3 * 312e12, "float16": 0.3 * 312e12, "float32": 0.3 * 19.5e12},
    bandwidth=0.5 * 2.0e12,
    pass_seconds=0.010,
    lanes=512,
    memory=80e9,
)
# As SmolLM2-135M and -1.7B came out on two cores (docs/performance.md), halved for one.
CPU = Machine(
    name="one CPU core",
    source="half of what two cores did with SmolLM2-135M and -1.7B in float32 (docs/performance.md): 40 GFLOP/s, 12 "
    "GB/s, 5 ms a pass; assumed for 16 bit, too",
    operations=dict.fromkeys(ITEM_BYTES, 40e9),
    bandwidth=12e9,
    pass_seconds=0.005,
    lanes=8,
)


@dataclass(frozen=True)
class Speeds:
    """Tokens a second of a machine with one pair of models, all lanes together, as `rsd bench` measures them."""

    rsd: float
    student: float  # sampled alone
    teacher: float  # likewise
    reading: float  # the student's forward pass over many tokens at once


def machine_of(config: Config) -> Machine:
    """What jobs of models are taken to run on, by `device`."""
    return CPU if config["device"] == "cpu" else GPU


# --- stated ----------------------------------------------------------------------------------------------------------


def stated(config: Config, models: Path) -> Speed:
    """Speeds by the figures of the machine that `device` stands for."""

    def speed(work: Work) -> float:
        # The demo's models are made on the CPU, and hardly faster elsewhere.
        made_here = config["models"][work.models[0]]["source"].startswith("pocket://")
        machine = CPU if made_here else machine_of(config)
        shapes = [(shape_of_model(config, name, models), dtype_of(config, work, name)) for name in work.models]
        if work.kind in ("rsd", "sample"):
            return _writing(machine, shapes, work)
        return _reading(machine, *shapes[0], work)

    return speed


def dtype_of(config: Config, work: Work, model: str) -> str:
    """What a model computes in."""
    return work.dtype or config["models"][model]["dtype"]


def _writing(machine: Machine, shapes: list[tuple[Shape, str]], work: Work) -> float:
    """One token a lane of every model, in step: weights and the live half of the caches are read, products made."""
    lanes = lanes_of(machine, shapes, work)
    seconds = 0.0
    for shape, dtype in shapes:
        read = shape.parameters * ITEM_BYTES[dtype] + lanes * work.length / 2 * shape.cache_bytes(dtype)
        products = 2 * shape.parameters * lanes
        seconds += machine.pass_seconds + max(read / machine.bandwidth, products / machine.operations[dtype])
    return lanes / seconds


def _reading(machine: Machine, shape: Shape, dtype: str, work: Work) -> float:
    """A forward pass over many tokens: products of the weights, and of attention to half of a sequence."""
    products = 2 * shape.parameters + 2 * shape.layers * shape.queries * work.length
    at_once = (work.width or 1) * work.length if work.kind == "train" else READ_TOKENS
    return 1 / (products / machine.operations[dtype] + machine.pass_seconds / at_once)


def lanes_of(machine: Machine, shapes: list[tuple[Shape, str]], work: Work) -> int:
    """Lanes that a job is taken to have: as configured, or what fits the machine, never more than its sequences."""
    if work.width is not None:
        return min(work.width, work.sequences)
    fit = machine.lanes
    if machine.memory is not None:
        weights = sum(shape.parameters * ITEM_BYTES[dtype] for shape, dtype in shapes)
        left = machine.memory * (1 - RESERVE) - weights
        fit = int(left / sum(lane_bytes(shape, dtype, work) for shape, dtype in shapes))
    return max(1, min(fit, work.sequences, machine.lanes))


def lane_bytes(shape: Shape, dtype: str, work: Work) -> int:
    """What a lane of a model takes as `planning` reckons it: a full context's keys and values, its text, its logits."""
    context = -(-work.context // CACHE_MULTIPLE) * CACHE_MULTIPLE
    block = LONGEST_BLOCK if work.kind == "rsd" else 1
    logits = block * shape.vocabulary * 4 * LOGIT_COPIES
    return shape.cache_bytes(dtype) * context + logits + (work.context + block) * 13


# --- measured or given -----------------------------------------------------------------------------------------------


def measured(config: Config, speeds: Speeds, pair: tuple[str, str], models: Path) -> Speed:
    """Speeds as measured with a `pair` (student, teacher) of models.

    Another model is taken for as fast as the student, and for slower as it is larger.
    """
    student, teacher = (lineage.origin(config, name) for name in pair)

    def size(*names: str) -> int:
        return sum(shape_of_model(config, name, models).parameters for name in names)

    def speed(work: Work) -> float:
        if work.kind == "rsd":
            return speeds.rsd * min(1, size(student, teacher) / size(*work.models))
        (model,) = work.models
        if work.kind == "sample" and model == teacher != student:
            return speeds.teacher
        alone = speeds.student if work.kind == "sample" else speeds.reading
        return alone * min(1, size(student) / size(model))

    return speed


def given(base: Speed, by_hand: Mapping[str, float], config: Config, pair: tuple[str, str]) -> Speed:
    """`base`, but for the kinds of speed that somebody knows better; student and teacher are those of `pair`."""
    student, teacher = (lineage.origin(config, name) for name in pair)

    def speed(work: Work) -> float:
        kinds = {"rsd": "rsd", "read": "reading", "train": "reading"}
        kind = kinds.get(work.kind) or {teacher: "teacher", student: "student"}.get(work.models[0], "")
        return by_hand.get(kind) or base(work)

    return speed
