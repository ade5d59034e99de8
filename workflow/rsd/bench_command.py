"""`rsd bench`: what this machine does with the pair of a configuration, and what the experiment would take here.

Configuration -> a printed table, and JSON where asked for. `--random-weights` times random models of the pair's shapes
that are made to agree as stated (`emulation`), so that nothing has to be downloaded.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from rsd import config as settings_of
from rsd import lineage
from rsd.bench import ScheduleTiming, Workload, bench_pair, parameter_count
from rsd.config import Config
from rsd.costs import measure_pass
from rsd.emulation import Emulation, emulate
from rsd.formatting import duration, number, size
from rsd.memory import free_bytes
from rsd.models import load_model, load_tokenizer
from rsd.planning import pair_lane_bytes, plan_pair
from rsd.pocket import make_tokenizer, new_model
from rsd.projection import disk_bytes, project, training_bytes
from rsd.runtime import choose_device, set_threads, write_json
from rsd.schedule import BLOCKS, Costs, describe
from rsd.shapes import random_model, shape_of
from rsd.speeds import READ_TOKENS, Speeds, measured
from rsd.traces import law_of
from rsd.vocabulary import Alignment, align
from rsd.workload import count_problems

LOG = logging.getLogger(__name__)
RESULTS = Path("results")


def run_bench(
    config: Config,
    *,
    traces: str | None,
    emulation: Emulation | None,
    lanes: int | None,
    length: int | None,
    new: int,
    runs: int,
    threads: int | None,
    output: Path | None,
) -> str:
    """Measures and returns the text to print; `output` takes the numbers as JSON.

    `emulation` times random weights; without it the downloaded models are loaded. `length`: context at which is
    measured, by default half of the trace set's. Raises ValueError for a trace set that is none of RSD, and
    FileNotFoundError for models that are not there, with the remedy.
    """
    name = traces or _first_rsd(config)
    method = config["traces"][name]["method"]
    if method != "rsd":
        raise ValueError(f"--traces {name}: its method is {method}, expected a trace set of method rsd")
    settings = settings_of.traces_settings(config, name)
    if new < 2 * max(BLOCKS):
        raise ValueError(f"--new {new}: expected at least {2 * max(BLOCKS)}, two of the longest blocks; write more")
    if threads is not None:
        set_threads(threads)
    device = choose_device(settings["device"])
    law = law_of(settings["law"])
    student, teacher, alignment = _pair(config, name, device, emulation)
    parameters = {"student": parameter_count(student), "teacher": parameter_count(teacher)}
    length = length or settings["context"] // 2
    limits = {"context": settings["context"], "max_new_tokens": settings["max_new_tokens"]}
    problems = count_problems(config, RESULTS)
    planned, _ = plan_pair(
        student, teacher, alignment, law, **limits, sequences=(problems or 1000) * settings["attempts"], lanes=lanes,
        schedule="auto", block=None,
    )  # fmt: skip
    work = Workload(planned, max(length - new // 2, 1), new)
    teacher_alone, student_alone, timings, costs = bench_pair(student, teacher, alignment, law, work, runs=runs)
    best = max(timings, key=lambda timing: timing.measured.median)
    speeds = Speeds(
        best.measured.median, student_alone.median, teacher_alone.median, _reading_speed(student, costs, length)
    )
    each = pair_lane_bytes(student, teacher, alignment, **limits, block=max(BLOCKS))
    facts: dict[str, Any] = {
        "trace_set": name,
        "machine": _machine(device),
        "pair": {side: _describe(config["models"][settings[side]["name"]], parameters[side]) for side in parameters},
        "emulation": None if emulation is None else vars(emulation),
        "lanes": planned,
        "context": length,
        "new_tokens": new,
        "teacher_alone": teacher_alone.runs,
        "student_alone": student_alone.runs,
        "schedules": [_timing_facts(timing) for timing in timings],
        "best": describe(best.schedule),
        "speeds": vars(speeds),
        "memory": {
            "weights": sum(parameters[s] * m.dtype.itemsize for s, m in (("student", student), ("teacher", teacher))),
            "a lane": each.total,
            "lanes": planned * each.total,
            "free before": free_bytes(torch.device(device)),
            "training": training_bytes(parameters["student"]),
        },
    }
    if problems is not None:
        pair = (settings["student"]["name"], settings["teacher"]["name"])
        speed = measured(config, speeds, pair, RESULTS / "models")
        facts["projection"] = [vars(item) for item in project(config, speed, RESULTS)]
        facts["disk"] = disk_bytes(config, RESULTS)
    if output is not None:
        write_json(output, facts)
    return _text(facts)


def _first_rsd(config: Config) -> str:
    for name in [*settings_of.trace_sets(config), *config["traces"]]:
        if config["traces"][name]["method"] == "rsd":
            return name
    raise ValueError("the configuration has no trace set of method rsd, so there is nothing to measure; add one")


def _pair(
    config: Config, name: str, device: str, emulation: Emulation | None
) -> tuple[PreTrainedModel, PreTrainedModel, Alignment]:
    # A trained model is as fast as the one that it was made of, and may not be there yet.
    sides = {side: lineage.origin(config, config["traces"][name][side]) for side in ("student", "teacher")}
    folders = {side: RESULTS / "models" / settings_of.model_key(config, model) for side, model in sides.items()}
    dtypes = {side: config["models"][model]["dtype"] for side, model in sides.items()}
    gpus = {side: config["models"][model]["gpus"] for side, model in sides.items()}
    if emulation is not None:
        shapes = {side: _shape(config, model, folders[side]) for side, model in sides.items()}
        models = {
            side: random_model(shape, dtype=dtypes[side], device=device, seed=seed)
            for seed, (side, shape) in enumerate(shapes.items())
        }
        emulate(models["student"], models["teacher"], emulation)
        ours, theirs = (shapes[side].get_text_config().vocab_size for side in ("student", "teacher"))
        to_teacher = torch.arange(ours)
        to_teacher[theirs:] = -1
        alignment = Alignment.of(to_teacher, {}, theirs)
        return models["student"], models["teacher"], alignment
    missing = [folder for folder in folders.values() if not (folder / "manifest.json").exists()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} is not there; download the models first (snakemake --cores 1 downloads), or time random "
            "weights of the same shapes with --random-weights"
        )
    models = {side: load_model(folders[side], dtypes[side], device, gpus[side]) for side in sides}
    tokenizers = {side: load_tokenizer(folders[side]) for side in sides}
    sizes = {side: models[side].get_output_embeddings().weight.shape[0] for side in sides}
    alignment = align(
        tokenizers["student"], tokenizers["teacher"], student_size=sizes["student"], teacher_size=sizes["teacher"]
    )
    return models["student"], models["teacher"], alignment


def _shape(config: Config, model: str, folder: Path) -> PreTrainedConfig:
    source = config["models"][model]["source"]
    if not source.startswith("pocket://"):
        return shape_of(source, folder)
    make = source.removeprefix("pocket://")
    return new_model(make, config["pocket"][make], make_tokenizer(make), seed=0).config


def _reading_speed(student: PreTrainedModel, costs: Costs, context: int) -> float:
    """Tokens a second of a pass of the student as wide as those of stages that read; narrow ones are slower a token."""
    widest = costs.student
    if widest.tokens[-1] < READ_TOKENS:
        widest = measure_pass(student, context=context, tokens=READ_TOKENS)
    return widest.tokens[-1] / widest.seconds[-1]


def _machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def _describe(model: Mapping[str, Any], parameters: int) -> str:
    return f"{model['source']}, {parameters / 1e6:.4g} M parameters, {model['dtype']}"


def _timing_facts(timing: ScheduleTiming) -> dict[str, Any]:
    return {
        "schedule": describe(timing.schedule),
        "predicted": timing.predicted,
        "measured": timing.measured.runs,
        "bare": timing.bare.runs,
        "drafts_right": timing.agreement if timing.schedule.block > 1 else None,
    }


# --- the text ------------------------------------------------------------------------------------------------------


def _text(facts: Mapping[str, Any]) -> str:
    lines = [
        f"trace set {facts['trace_set']} on {facts['machine']}",
        *(f"  {side}: {text}" for side, text in facts["pair"].items()),
        _how_they_agree(facts["emulation"]),
        f"  {facts['lanes']} lanes, contexts of about {facts['context']} tokens, {facts['new_tokens']} tokens a run",
        "",
        *_table(
            ("tokens/s", "median", "spread", "predicted", "of bare passes", "drafts right"),
            [
                ("teacher alone", *_speed(facts["teacher_alone"]), "", "", ""),
                ("student alone", *_speed(facts["student_alone"]), "", "", ""),
                *(_row(entry) for entry in facts["schedules"]),
            ],
        ),
        f"fastest here: {facts['best']}",
        "",
        "memory",
        *(f"  {what}: {size(amount)}" for what, amount in facts["memory"].items()),
    ]
    if "projection" in facts:
        lines += ["", "the whole experiment here, at most (every generation at its limit)"]
        lines += _table(("", "tokens", "time", "how"), [_item(item) for item in facts["projection"]])
        lines.append(f"  all together: {duration(sum(item['seconds'] for item in facts['projection']))}")
        lines += ["", "disk, at most", *(f"  {what}: {size(amount)}" for what, amount in facts["disk"].items())]
    else:
        lines += ["", "no projection: how many problems the dataset has is not known before it is downloaded"]
    return "\n".join(lines)


def _how_they_agree(emulation: Mapping[str, float] | None) -> str:
    if emulation is None:
        return "  the models' own weights"
    return (
        f"  random weights, made to agree: {100 * emulation['agreement']:g} % of the student's drafts right, "
        f"{100 * emulation['fallback']:g} % of tokens by fallback (assumptions, see --help)"
    )


def _speed(runs: tuple[float, ...]) -> tuple[str, str]:
    middle = median(runs)
    return number(middle), f"{100 * (max(runs) - min(runs)) / middle:.0f} %"


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    right = "" if entry["drafts_right"] is None else f"{100 * entry['drafts_right']:.0f} %"
    share = f"{100 * median(entry['measured']) / median(entry['bare']):.0f} %"
    return entry["schedule"], *_speed(entry["measured"]), number(entry["predicted"]), share, right


def _item(item: Mapping[str, Any]) -> tuple[str, ...]:
    return item["what"], number(item["tokens"], 0), duration(item["seconds"]), item["how"]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Rows under a head, columns as wide as their widest cell, two spaces in front."""
    every = [head, *rows]
    widths = [max(len(row[column]) for row in every) for column in range(len(head))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every
    ]
