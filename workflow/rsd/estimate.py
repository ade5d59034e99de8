"""`rsd estimate`: what an experiment will take, before anything starts: jobs, hours, memory, disk.

Configuration -> a printed table, and JSON where asked for. Speeds are those that `rsd bench --json` measured, or the
stated ones of `speeds`; lengths are the configured limits, which gives bounds, and beside them those that somebody
finds typical, which gives expectations. The sums are those of `projection`, what a job asks for is that of `needs`.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rsd import config as settings_of
from rsd.config import Config
from rsd.formatting import duration, number, size
from rsd.needs import Needs, held_bytes, needs_of
from rsd.projection import Item, disk_bytes, project, stored_bytes
from rsd.runtime import write_json
from rsd.sizes import Shape, shape_of_model
from rsd.speeds import KINDS, Speed, Speeds, given, machine_of, measured, stated
from rsd.workload import (
    Jobs,
    Typical,
    Work,
    benchmark_or_guess,
    count_benchmark,
    count_problems,
    jobs,
    names_of,
    outside_models,
    problems_or_guess,
)

RESULTS = Path("results")


def run_estimate(
    config: Config,
    *,
    speeds: Path | None,
    by_hand: Mapping[str, float],
    typical: Typical,
    output: Path | None,
) -> str:
    """The text to print; `output` takes the numbers as JSON.

    `speeds`: a file of `rsd bench --json`, by whose speeds is reckoned; `by_hand`: tokens a second by kind (KINDS),
    which go before these and the stated ones; `typical`: average tokens of an attempt, row or sample by trace set or
    task, under None of all others. Raises ValueError for names and numbers that cannot be, and for a file that is none
    of `rsd bench` on this configuration; FileNotFoundError where it is not there.
    """
    check(config, by_hand, typical)
    speed, machine, source = choose_speeds(config, speeds, by_hand)
    planned = jobs(config, RESULTS)
    most = project(config, speed, RESULTS)
    expected = project(config, speed, RESULTS, typical) if typical else None
    facts: dict[str, Any] = {
        "experiment": config["experiment"],
        "machine": machine,
        "device": "CPU" if config["device"] == "cpu" or machine.startswith("CPU") else "GPU",
        "speeds": source,
        "by_hand": dict(by_hand),
        "models": {name: _model(shape_of_model(config, name, RESULTS / "models")) for name in outside_models(config)},
        "problems": _counts(config),
        "jobs": dict(stage_counts(planned)),
        "hours": {"at_most": _total_hours(most), "expected": _total_hours(expected) if expected else None},
        "at_most": [vars(item) for item in most],
        "expected": [vars(item) for item in expected] if expected else None,
        "typical": {"*" if name is None else name: tokens for name, tokens in typical.items()},
        "judge_calls": judge_calls(config),
        "downloads": downloads(config),
        "disk": {
            "at_most": disk_bytes(config, RESULTS),
            "expected": disk_bytes(config, RESULTS, typical) if typical else None,
        },
        "needs": [_need(config, entry) for entry in largest_jobs(config, planned)],
    }
    if output is not None:
        write_json(output, facts)
    return _text(facts)


def check(config: Config, by_hand: Mapping[str, float], typical: Typical) -> None:
    """ValueError naming the option, its value and what was expected."""
    for kind, tokens in by_hand.items():
        if kind not in KINDS:
            raise ValueError(f"--speed {kind}={tokens:g}: expected one of {', '.join(KINDS)}; correct the name")
        if not 0 < tokens < math.inf:
            raise ValueError(f"--speed {kind}={tokens:g}: expected tokens a second above 0; correct it")
    names = [*settings_of.trace_sets(config), *config["run"]["tasks"]]
    for name, tokens in typical.items():
        if name is not None and name not in names:
            raise ValueError(
                f"--tokens {name}={tokens:g}: no trace set or task of this run; name one of {', '.join(names)}"
            )
        if not 0 < tokens < math.inf:
            raise ValueError(f"--tokens {tokens:g}: expected a number of tokens above 0; correct it")


def choose_speeds(config: Config, path: Path | None, by_hand: Mapping[str, float]) -> tuple[Speed, str, str]:
    """The speeds to reckon with, the machine that they are of, and where they come from."""
    models = RESULTS / "models"
    if path is None:
        machine = machine_of(config)
        source = (
            f"stated, not measured: {machine.source}. `rsd bench CONFIG --json FILE` measures, --speeds FILE takes it"
        )
        return given(stated(config, models), by_hand, config, pair_of(config, None)), machine.name, source
    if not path.exists():
        raise FileNotFoundError(f"--speeds {path}: no such file; `rsd bench CONFIG --json {path}` writes it")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        found = Speeds(**facts["speeds"])
        traces, machine_name, lanes, context = (facts[key] for key in ("trace_set", "machine", "lanes", "context"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--speeds {path}: not what `rsd bench --json` writes ({error!r}); run it again with this version"
        ) from error
    if traces not in config["traces"] or config["traces"][traces]["method"] != "rsd":
        raise ValueError(
            f"--speeds {path}: measured with the pair of traces.{traces}, which this configuration has not; measure "
            "with this configuration"
        )
    pair = pair_of(config, traces)
    random = "random weights" if facts.get("emulation") else "the models' own weights"
    source = f"measured by rsd bench ({path.name}): {lanes} lanes at about {context} tokens of context, {random}"
    return given(measured(config, found, pair, models), by_hand, config, pair), machine_name, source


def pair_of(config: Config, traces: str | None) -> tuple[str, str]:
    """(student, teacher) of a trace set, by default the first of method rsd; the base twice where there is none."""
    sets = settings_of.trace_sets(config) if traces is None else [traces]
    for name in sets:
        if config["traces"][name]["method"] == "rsd":
            return config["traces"][name]["student"], config["traces"][name]["teacher"]
    base = config["arms"][config["run"]["base"]]["model"]
    return base, base


# --- facts -----------------------------------------------------------------------------------------------------------


def stage_counts(planned: Sequence[Jobs]) -> Counter[str]:
    """Stage -> how many jobs, as a dry-run in an empty folder counts them."""
    counts: Counter[str] = Counter()
    for entry in planned:
        counts[entry.stage] += entry.count
    return counts


def downloads(config: Config) -> int:
    """Bytes of the models that are fetched; datasets are small beside them."""
    fetched = {
        settings_of.model_key(config, name): shape_of_model(config, name, RESULTS / "models").parameters
        * stored_bytes(config, name)
        for name in outside_models(config)
        if not config["models"][name]["source"].startswith("pocket://")
    }
    return sum(fetched.values())


def judge_calls(config: Config) -> int:
    """Requests to the judge, each sample once."""
    calls = 0
    for task in settings_of.judged_tasks(config):
        samples = benchmark_or_guess(config, task, RESULTS) * config["tasks"][task]["repeats"]
        models = sum(len(settings_of.arm_seeds(config, arm)) for arm in config["run"]["arms"])
        calls += models * min(samples, config["evaluation"]["judge"]["samples"] or samples)
    return calls


def _total_hours(items: Sequence[Item]) -> float:
    return sum(item.seconds + item.starts for item in items) / 3600


def _counts(config: Config) -> dict[str, dict[str, Any]]:
    counts = {"training": (problems_or_guess(config, RESULTS), count_problems(config, RESULTS) is not None)}
    for task in config["run"]["tasks"]:
        counts[task] = (
            benchmark_or_guess(config, task, RESULTS),
            count_benchmark(config, task, RESULTS) is not None,
        )
    return {name: {"problems": count, "known": known} for name, (count, known) in counts.items()}


def _model(shape: Shape) -> dict[str, Any]:
    return {"parameters": shape.parameters, "from": shape.found}


def largest_jobs(config: Config, planned: Sequence[Jobs]) -> list[tuple[str, int, Needs, float]]:
    """(stage, jobs, the most that one of them asks for, bytes that its models hold with a single lane) a stage."""
    found: dict[str, tuple[str, int, Needs, float]] = {}
    for entry in planned:
        asked = [needs_of(config, entry.stage, names, RESULTS) for names in names_of(config, entry)]
        held = held_bytes(config, _fewest_lanes(entry.each), RESULTS) if entry.each else 0.0
        before = found.get(entry.stage)
        count = entry.count + (before[1] if before else 0)
        most = [*asked, *([before[2]] if before else [])]
        needs = Needs(*(max(getattr(one, name) for one in most) for name in Needs.__dataclass_fields__))
        found[entry.stage] = (entry.stage, count, needs, max(held, before[3] if before else 0.0))
    return list(found.values())


def _fewest_lanes(work: Work) -> Work:
    """The same with one lane, where their number is left to the pipeline, which fills the memory that there is."""
    return replace(work, width=1) if work.width is None else work


def _need(config: Config, entry: tuple[str, int, Needs, float]) -> dict[str, Any]:
    stage, count, needs, held = entry
    return {"stage": stage, "jobs": count, **vars(needs), "gpu_bytes": held if needs.gpu else 0}


# --- the text ------------------------------------------------------------------------------------------------------


def _text(facts: Mapping[str, Any]) -> str:
    total = sum(facts["jobs"].values())
    lines = [
        f"experiment {facts['experiment']}: {total} jobs from an empty folder",
        *(f"  {name}: {_parameters(model)}" for name, model in facts["models"].items()),
        *_problem_lines(facts["problems"]),
        "",
        f"{facts['device']} time of all jobs one after another, on {facts['machine']}, with speeds that are",
        *_wrapped(facts["speeds"]),
        *([f"Given by hand, tokens/s: {_listed(facts['by_hand'])}."] if facts["by_hand"] else []),
        "At most: every attempt, row and sample as long as its limit allows; a bound, as far as the speeds are right.",
        _expected_line(facts["typical"]),
        "",
        *_aligned(_time_rows(facts)),
        "Not counted: the stages without models (minutes each), waiting in a queue, prompts that are read"
        + (f"; {number(facts['judge_calls'], 0)} calls to the judge." if facts["judge_calls"] else "."),
        *(
            ["A job of several GPUs is counted as on one: a training shares that time, a split model multiplies it."]
            if any(entry["gpu"] > 1 for entry in facts["needs"])
            else []
        ),
        "",
        f"Disk. To download: {size(facts['downloads'])} of models."
        if facts["downloads"]
        else "Disk. No model is downloaded.",
        *_aligned(_disk_rows(facts["disk"])),
        "",
        "What the largest job of each stage asks for at its first attempt; memory and time grow with each retry.",
        *_aligned(_need_rows(facts["needs"])),
    ]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text + ".", 100, initial_indent="  ", subsequent_indent="  ")


def _parameters(model: Mapping[str, Any]) -> str:
    count = model["parameters"]
    text = f"{number(count / 1e9, 2)} G" if count >= 1e9 else f"{number(count / 1e6, 2)} M"
    return f"{text} parameters ({model['from']})"


def _problem_lines(problems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    guessed = [name for name, entry in problems.items() if not entry["known"]]
    text = ", ".join(f"{name} {entry['problems']}" for name, entry in problems.items())
    note = f" (a guess for {', '.join(guessed)}, known once they are downloaded)" if guessed else ""
    return [f"  problems: {text}{note}"]


def _listed(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {tokens:g}" for name, tokens in numbers.items())


def _expected_line(typical: Mapping[str, float]) -> str:
    if not typical:
        return "Give typical lengths with --tokens for an expectation beside it."
    names = ", ".join(f"{'all others' if name == '*' else name} {tokens:g}" for name, tokens in typical.items())
    return f"Expected: of typical lengths, in tokens: {names}."


def _time_rows(facts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    expected = facts["expected"]
    head = ("", "jobs", "tokens at most", "time at most")
    rows: list[tuple[str, ...]] = [head + (("tokens expected", "time expected") if expected else ())]
    for place, item in enumerate(facts["at_most"]):
        row = [item["what"], str(item["jobs"]), number(item["tokens"], 0), _time(item)]
        if expected:
            row += [number(expected[place]["tokens"], 0), _time(expected[place])]
        rows.append(tuple(row))
    total = ("all together", str(sum(item["jobs"] for item in facts["at_most"])), "", _time(*facts["at_most"]))
    return [*rows, total + (("", _time(*expected)) if expected else ())]


def _time(*items: Mapping[str, Any]) -> str:
    return duration(sum(item["seconds"] + item["starts"] for item in items))


def _disk_rows(disk: Mapping[str, Any]) -> list[tuple[str, ...]]:
    most, expected = disk["at_most"], disk["expected"]
    rows = [("", "at most", *(("expected",) if expected else ()))]
    for what, amount in most.items():
        rows.append((what, size(amount), *((size(expected[what]),) if expected else ())))
    total = ("all together", size(sum(most.values())))
    return [*rows, total + ((size(sum(expected.values())),) if expected else ())]


def _need_rows(needs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("", "jobs", "memory", "minutes", "disk", "GPUs", "memory of its GPUs, at least")]
    for entry in needs:
        rows.append(
            (
                entry["stage"],
                str(entry["jobs"]),
                size(entry["mem_mb"] * 1e6),
                str(entry["runtime"]),
                size(entry["disk_mb"] * 1e6),
                str(entry["gpu"]),
                size(entry["gpu_bytes"]) if entry["gpu"] else "",
            )
        )
    return rows


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows in columns as wide as their widest cells, the first to the left, the others to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
