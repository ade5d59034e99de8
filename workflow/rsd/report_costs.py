"""What every part of an experiment took: seconds of the device, tokens generated and trained; then by arm.

Seconds are the wall clock of Snakemake's benchmark files (benchmarks/<rule>/<owner>/....jsonl); a job holds one device
while it runs. What it ran on and how many tokens it made are in the stages' records. A trace set that several arms and
seeds use is counted once. A benchmark covers the last run of a job: where a record shows that a job went on from an
interrupted one, its seconds are a lower bound and say so. A missing file is a missing number.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsd.config import arm_seeds, shard_names
from rsd.formatting import duration, number

LOG = logging.getLogger(__name__)

Record = dict[str, Any]
CPU = "CPU"
UNKNOWN = "device not known"
TRAINED = "trained://"
# The rules that run a model begin so; the others have nothing to do with the device.
MODEL_RULES = ("generate", "derive", "train", "evaluate", "analyse")
# The report's own job has no benchmark yet when it reads them.
NOT_COUNTED = ("report", "write_config")


@dataclass(frozen=True)
class Job:
    """A benchmark file: its rule, the names below it, wall and CPU seconds (None where it does not say)."""

    rule: str
    names: tuple[str, ...]
    seconds: float | None
    cpu_seconds: float | None


@dataclass
class Part:
    """One line of costs: what one rule took for one owner (a trace set, an arm, or the whole experiment)."""

    stage: str
    owner: str
    rule: str
    device: str
    jobs: int = 0
    seconds: float | None = None
    cpu_seconds: float | None = None
    at_least: bool = False
    generated: int | None = None
    trained: int | None = None
    arms: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Records:
    """What the parts' devices and tokens are read from.

    `devices`: trace set -> the device that made it; `trace_tokens`: trace set -> tokens of its attempts;
    `resumed_attempts`: trace set -> how many of them earlier runs of its jobs had written, wholly or in part;
    `trainings`: ARM-seedK -> record; `scores`: ARM-seedK/TASK -> record; `analyses`: TRACES/READER -> record.
    """

    devices: Mapping[str, str]
    trace_tokens: Mapping[str, int | None]
    resumed_attempts: Mapping[str, int]
    trainings: Mapping[str, Record]
    scores: Mapping[str, Record]
    analyses: Mapping[str, Record]


# --- reading -------------------------------------------------------------------------------------------------------


def read_jobs(folder: Path) -> list[Job]:
    """Every benchmark below `folder`; a file that cannot be read is left out with a warning."""
    return [job for path in sorted(Path(folder).rglob("*.jsonl")) if (job := _read_job(folder, path))]


def _read_job(folder: Path, path: Path) -> Job | None:
    names = path.relative_to(folder).with_suffix("").parts
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        runs = [line for line in lines if isinstance(line, dict)]
    except (OSError, ValueError) as error:
        LOG.warning("%s is no benchmark (%s); its costs are missing", path, error)
        return None
    return Job(names[0], names[1:], _sum(runs, "s"), _sum(runs, "cpu_time"))


def _sum(runs: Sequence[Record], key: str) -> float | None:
    values = [run.get(key) for run in runs]
    numbers = [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return sum(numbers) if numbers and len(numbers) == len(values) else None


def device_of(record: Record) -> str | None:
    """What the stage of a record (or stamp) ran on: the GPU's name, or `CPU`; None where it does not say."""
    stamp = record.get("provenance", record)
    settings, run = (stamp.get(key) or {} for key in ("settings", "run"))
    setting = (settings.get("settings") or {}).get("device")
    if setting is None or not run:
        return None
    gpu = run.get("gpu")
    return CPU if setting == "cpu" or (setting == "auto" and not gpu) else str(gpu or "GPU")


def devices_of(records: Sequence[Record]) -> str | None:
    """The devices of several records, joined; None where none says."""
    return ", ".join(dict.fromkeys(found for record in records if (found := device_of(record)))) or None


# --- parts ---------------------------------------------------------------------------------------------------------


def cost_parts(jobs: Sequence[Job], records: Records, config: Record) -> list[Part]:
    """The costs of this run, one part a rule and owner, in the order of the stages; of other runs' files nothing."""
    needs = {arm: upstream(arm, config) for arm in config["run"]["arms"]}
    parts: dict[tuple[str, str], Part] = {}
    for job in jobs:
        if job.rule in NOT_COUNTED:
            continue
        found = _owner(job, records, config)
        if found is None:
            continue
        stage, owner = found
        part = parts.get((job.rule, owner))
        if part is None:
            part = parts[job.rule, owner] = Part(stage, owner, job.rule, _device(stage, owner, job.rule, records))
        part.jobs += 1
        part.seconds = _plus(part.seconds, job.seconds, first=part.jobs == 1)
        part.cpu_seconds = _plus(part.cpu_seconds, job.cpu_seconds, first=part.jobs == 1)
    order = ("Preparation", "Traces", "Training", "Evaluation", "Analysis")
    listed = sorted(parts.values(), key=lambda part: order.index(part.stage))
    for part in listed:
        part.arms = [arm for arm, needed in needs.items() if (part.stage, part.owner) in needed]
        _complete(part, records, config)
    return listed


def _plus(so_far: float | None, more: float | None, first: bool) -> float | None:
    """A sum that is missing as soon as one of its parts is."""
    if first:
        return more
    return None if so_far is None or more is None else so_far + more


def _owner(job: Job, records: Records, config: Record) -> tuple[str, str] | None:
    """(stage, owner) of a job: a trace set, an arm, or the experiment; None for one that is not of this run."""
    first, second = (*job.names, "", "")[:2]
    if job.rule.startswith("analyse"):
        return ("Analysis", first) if f"{first}/{second}" in records.analyses else None
    if "traces" in job.rule:
        known = first in _sets(records) and (not second or second in shard_names(config, first))
        return ("Traces", first) if known else None
    arm, _, seed = first.rpartition("-seed")
    if arm not in config["arms"] or not seed.isdigit():
        return "Preparation", ""
    if job.rule == "train":
        return ("Training", arm) if first in records.trainings else None
    known = f"{first}/{second}" in records.scores
    return ("Evaluation", arm) if known else None


def _sets(records: Records) -> set[str]:
    return set(records.trace_tokens)


def _device(stage: str, owner: str, rule: str, records: Records) -> str:
    if not rule.startswith(MODEL_RULES):
        return CPU
    if stage == "Traces":
        # To read a set's traces in other tokens takes no model.
        return records.devices.get(owner) or (CPU if rule.startswith("derive") else UNKNOWN)
    table = {"Training": records.trainings, "Evaluation": records.scores, "Analysis": records.analyses}[stage]
    mine = [record for name, record in table.items() if _belongs(name, owner, stage)]
    return devices_of(mine) or UNKNOWN


def _belongs(name: str, owner: str, stage: str) -> bool:
    """Whether a record's name (ARM-seedK, ARM-seedK/TASK or TRACES/READER) is `owner`'s."""
    head = name.partition("/")[0]
    return (head if stage == "Analysis" else head.rpartition("-seed")[0]) == owner


def _complete(part: Part, records: Records, config: Record) -> None:
    """Adds the tokens of a part, and what its numbers leave out."""
    if part.stage == "Traces" and part.rule.startswith("generate"):
        part.generated = records.trace_tokens.get(part.owner)
        _expect(part, len(shard_names(config, part.owner)))
        _leave_out(part, "attempts", records.resumed_attempts.get(part.owner, 0))
    elif part.stage == "Training":
        mine = {name: record for name, record in records.trainings.items() if _belongs(name, part.owner, part.stage)}
        tokens = [trained_tokens(record) for record in mine.values()]
        part.trained = sum(value for value in tokens if value is not None) if None not in tokens else None
        _expect(part, len(mine))
        resumed = [name for name, record in mine.items() if record.get("resumed_from_step") is not None]
        loops = sum(record.get("seconds") or 0 for record in mine.values())
        # One that had been trained to the end by a job that failed then is put in its place in seconds.
        restored = part.seconds is not None and part.seconds < loops
        if resumed or restored:
            part.at_least = True
            part.seconds = max(part.seconds or 0, loops)
            part.notes.append(
                f"{', '.join(resumed) or 'what was trained'} went on from a checkpoint; its benchmark covers the last "
                f"run alone, the loops of all runs took {duration(loops)}"
            )
    elif part.stage == "Evaluation":
        mine = {name: record for name, record in records.scores.items() if _belongs(name, part.owner, part.stage)}
        tokens = [record.get("tokens") for record in mine.values()]
        part.generated = sum(value for value in tokens if value is not None) if None not in tokens else None
        _leave_out(part, "samples", sum(record.get("resumed_samples") or 0 for record in mine.values()))


def _expect(part: Part, jobs: int) -> None:
    if part.jobs < jobs:
        part.at_least = True
        part.notes.append(f"{part.jobs} of {jobs} jobs left a benchmark")


def _leave_out(part: Part, what: str, resumed: int) -> None:
    if resumed:
        part.at_least = True
        part.notes.append(f"{number(resumed, 0)} {what} came from earlier runs, which are not in its seconds")


def trained_tokens(record: Record) -> int | None:
    """Tokens with loss over all steps of a training; None where its record does not say."""
    seen = (record.get("supervised_tokens") or {}).get("seen")
    if seen is not None:
        return int(seen)
    tokens = [point.get("tokens") for point in record.get("curve", [])]
    return sum(tokens) if tokens and None not in tokens else None


# --- arms ----------------------------------------------------------------------------------------------------------


def upstream(arm: str, config: Record) -> set[tuple[str, str]]:
    """(stage, owner) of all that an arm needs: its own training and evaluation, its trace set and what that came from.

    A model that was trained in this experiment (trained://ARM/SEED) brings its own training and traces.
    """
    found = {("Evaluation", arm)}
    todo = [arm]
    while todo:
        name = todo.pop()
        entry = config["arms"][name]
        todo += _trained_arms([entry["model"]], config, found)
        traces = entry["traces"]
        if traces is None:
            continue
        found.add(("Training", name))
        while traces is not None and ("Traces", traces) not in found:
            found.add(("Traces", traces))
            made = config["traces"].get(traces, {})
            teacher = made.get("teacher") if made.get("method") == "rsd" else None
            todo += _trained_arms([made.get("student"), teacher, made.get("sampled")], config, found)
            traces = made.get("of")
    return found


def _trained_arms(models: Sequence[str | None], config: Record, found: set[tuple[str, str]]) -> Iterator[str]:
    for model in models:
        source = str(config["models"].get(model, {}).get("source", ""))
        arm = source.removeprefix(TRAINED).partition("/")[0]
        if source.startswith(TRAINED) and arm in config["arms"] and ("Training", arm) not in found:
            yield arm


def costs_view(parts: Sequence[Part], answers: Record, config: Record) -> Record:
    """What the templates show: all parts, one entry an arm, and the total counted once."""
    arms = [
        {
            "arm": arm,
            "label": entry["label"],
            "seeds": len(arm_seeds(config, arm)),
            "stages": {stage: _stage(parts, arm, stage) for stage in ("Traces", "Training", "Evaluation")},
        }
        for arm, entry in answers["arms"].items()
    ]
    return {
        "parts": parts,
        "arms": arms,
        "total": by_device(parts),
        "at_least": any(part.at_least or part.seconds is None for part in parts),
        "generated": _total(parts, "generated"),
        "trained": _total(parts, "trained"),
    }


def _stage(parts: Sequence[Part], arm: str, stage: str) -> Record:
    """What `arm` needs of a stage: its own parts, and those that it shares with other arms."""
    mine = [part for part in parts if part.stage == stage and arm in part.arms]
    others = sorted({other for part in mine for other in part.arms} - {arm})
    return {
        "devices": by_device(mine),
        "seconds": sum(part.seconds or 0 for part in mine) if mine else None,
        "generated": _total(mine, "generated"),
        "trained": _total(mine, "trained"),
        "shared_with": others,
        "at_least": any(part.at_least or part.seconds is None for part in mine),
        "there": bool(mine),
    }


def by_device(parts: Sequence[Part]) -> dict[str, float]:
    """Seconds on each device."""
    found: dict[str, float] = {}
    for part in parts:
        if part.seconds is not None:
            found[part.device] = found.get(part.device, 0.0) + part.seconds
    return found


def _total(parts: Sequence[Part], name: str) -> int | None:
    values = [getattr(part, name) for part in parts if getattr(part, name) is not None]
    return sum(values) if values else None
