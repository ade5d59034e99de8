"""Stage report: the comparison and the records of all stages -> one page to read, one page of Markdown, figures.

comparison.csv and .json, selection.json, training.json, reports on the data, manifests, scores
-> report.html, comparison.md, figures/*.svg and *.png

The page opens from disk: no network, no scripts, figures inside. The numbers of the result come from the comparison
alone; a record or key that is not there shows as missing, never as an error. No text of a benchmark or a model is
shown, and everything that is shown is escaped. By hand: `rsd report --help`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsd import notes
from rsd.compare import ALL_SEEDS, MEAN, Row, read_comparison, read_summary
from rsd.figures import (
    Group,
    Mark,
    Panel,
    accuracy_figure,
    arm_colour,
    forest_figure,
    inline_svg,
    save,
    training_figure,
)
from rsd.formatting import FILTERS, MISSING, interval, number, share, signed
from rsd.records import REMEDY
from rsd.runtime import write_text

LOG = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
# What a verdict of the comparison reads like; the sign says it without colour.
VERDICTS = {
    "higher": ("\N{BLACK UP-POINTING TRIANGLE}", "better"),
    "lower": ("\N{BLACK DOWN-POINTING TRIANGLE}", "worse"),
    "undecided": ("\N{WHITE DIAMOND}", "cannot tell"),
    "missing": ("\N{EM DASH}", MISSING),
}
# Columns of the table of checks: metric, heading, unit.
CHECKS = (
    ("exact_accuracy", "Accuracy, exact string", "%"),
    ("accuracy_finished", "Accuracy among finished", "%"),
    ("cut_share", "Cut at the length limit", "%"),
    ("think_closed_share", "Reasoning closed", "%"),
    ("extractable_share", "Answer found", "%"),
    ("mean_tokens", "Tokens a sample", ""),
)

# What became of an attempt, by the reasons of rsd.selection.
REASONS = {
    "kept": "kept: it became a training row",
    "not_shortest": "passed every rule, but a shorter one was kept",
    "not_first": "passed every rule, but an earlier one was kept",
    "not_picked": "passed every rule, but another one was kept",
    "unfinished": "did not end its turn within the limit",
    "think_markers": "did not close its reasoning exactly once",
    "no_answer": "gave no final answer",
    "no_reference": "differs from a reference in prose, which rules cannot judge",
    "wrong_answer": "gave a wrong answer",
    "fallback_rate": "held too many of the student's own tokens",
}
METHODS = {
    "rsd": "reverse speculative decoding",
    "sample": "sampled from one model",
    "dataset": "the dataset's own traces",
}

Record = dict[str, Any]
Table = Mapping[tuple[str, str, str, str, str], Row]


def run_report(
    *,
    comparison: Path,
    summary: Path,
    selections: Mapping[str, Path],
    trainings: Mapping[str, Path],
    problems_report: Path,
    overlap: Path,
    manifests: Mapping[str, Path],
    scores: Path,
    settings: Record,
    html: Path,
    markdown: Path,
    figures: Path,
) -> None:
    """Writes the page `html`, the page `markdown` and the folder `figures`.

    `selections`: trace set -> selection.json; `trainings`: ARM-seedK -> training.json; `manifests`: KIND/NAME ->
    manifest.json; `scores`: the folder with ARM-seedK/TASK.json; `settings`: config.report_settings.
    """
    rows, answers = read_comparison(Path(comparison)), read_summary(Path(summary))
    score_names = [f"{arm}-seed{seed}/{task}" for arm, seed, task in _models_and_tasks(answers)]
    records = {
        "selections": {name: read_record(path) for name, path in selections.items()},
        "trainings": {name: read_record(path) for name, path in trainings.items()},
        "problems": read_record(problems_report),
        "overlap": read_record(overlap),
        "manifests": {name: read_record(path) for name, path in manifests.items()},
        "scores": {name: read_record(Path(scores) / f"{name}.json") for name in score_names},
    }
    page = result_view(rows, answers, settings) | records_view(records, answers, settings)
    pictures = draw(rows, answers, records["trainings"], Path(figures))
    write_text(Path(html), render_html(page, pictures))
    write_text(Path(markdown), render_markdown(page))
    LOG.info("report in %s", html)


def read_record(path: Path) -> Record:
    """A JSON record of a stage; empty where the file is missing, ValueError naming it where it is no JSON object."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        LOG.warning("%s is not there; its part of the report says so", path)
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no valid JSON ({error}); {REMEDY}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: expected a JSON object; {REMEDY}")
    return record


def _models_and_tasks(answers: Record) -> list[tuple[str, int, str]]:
    return [
        (arm, seed, task)
        for arm, entry in answers["arms"].items()
        for seed in entry["seeds"]
        for task in answers["tasks"]
    ]


# --- the result ----------------------------------------------------------------------------------------------------


def result_view(rows: Sequence[Row], answers: Record, settings: Record) -> Record:
    """What the templates show of the comparison: sentences, and tables of cells that hold numbers."""
    config = settings["config"]
    columns = table_columns(answers)
    compared = [compared_view(entry, answers) for entry in answers["comparisons"]]
    primary = primary_comparisons(answers, config)
    return {
        "title": settings["title"],
        "experiment": settings["experiment"],
        "answers": answers,
        "confidence": f"{100 * answers['confidence']:g} %",
        "columns": columns,
        "main": main_view(rows, answers),
        "compared": compared,
        "primary": [view for view in compared if (view["arm"], view["against"]) in primary],
        "differences": differences_view(rows, answers),
        "checks": checks_view(rows, answers, config),
        "check_names": [(heading, unit) for _, heading, unit in checks_of(config)],
        "missing": answers.get("missing", []),
        "unlike_paper": notes.unlike_paper(config),
        "notes": notes.method_notes(config),
        "config": config,
    }


def table_columns(answers: Record) -> list[Record]:
    """The tasks, and their mean where there are several."""
    columns = [{"task": task, "label": task, **size} for task, size in answers["tasks"].items()]
    return columns + ([{"task": MEAN, "label": "mean", "problems": None}] if len(columns) > 1 else [])


def index(rows: Sequence[Row]) -> Table:
    """The rows by arm, against, seed, task and metric."""
    return {(row.arm, row.against, row.seed, row.task, row.metric): row for row in rows}


def main_view(rows: Sequence[Row], answers: Record) -> list[Record]:
    """One entry an arm, one cell a task: accuracy over all seeds, interval, deviation between seeds, paper's value."""
    table = index(rows)
    return [
        {
            "arm": arm,
            "label": entry["label"],
            "seeds": len(entry["seeds"]),
            "cells": [
                table[arm, "", ALL_SEEDS, column["task"], "accuracy"].__dict__
                | {"sd": table[arm, "", ALL_SEEDS, column["task"], "seed_sd"].value, "mean": column["task"] == MEAN}
                for column in table_columns(answers)
            ],
        }
        for arm, entry in answers["arms"].items()
    ]


def differences_view(rows: Sequence[Row], answers: Record) -> list[Record]:
    """One entry a pair of arms, one cell a task: the difference in points and relative to the other's accuracy."""
    table = index(rows)
    return [
        {
            "label": answers["arms"][entry["arm"]]["label"],
            "against": answers["arms"][entry["against"]]["label"],
            "cells": [
                {
                    "points": table[entry["arm"], entry["against"], ALL_SEEDS, column["task"], "difference_points"],
                    "change": table[entry["arm"], entry["against"], ALL_SEEDS, column["task"], "relative_change"],
                    "sd": table[entry["arm"], entry["against"], ALL_SEEDS, column["task"], "seed_sd"].value,
                }
                for column in table_columns(answers)
            ],
        }
        for entry in answers["comparisons"]
    ]


def checks_of(config: Record) -> list[tuple[str, str, str]]:
    """The checks that mean something in this run: without a separate reasoning part nothing can close it."""
    closes = config["format"]["think_close"] is not None
    return [check for check in CHECKS if closes or check[0] != "think_closed_share"]


def checks_view(rows: Sequence[Row], answers: Record, config: Record) -> list[Record]:
    """One entry an arm and task: how the samples ended, in the order of `checks_of`."""
    table = index(rows)
    return [
        {
            "label": entry["label"],
            "task": task,
            "span": len(answers["tasks"]) if position == 0 else 0,
            "cells": [table[arm, "", ALL_SEEDS, task, metric].value for metric, _, _ in checks_of(config)],
        }
        for arm, entry in answers["arms"].items()
        for position, task in enumerate(answers["tasks"])
    ]


def primary_comparisons(answers: Record, config: Record) -> list[tuple[str, str]]:
    """The comparisons that answer the question: RSD arms with the base and with direct distillation.

    Every comparison with the base where no arm was trained on RSD traces.
    """

    def method(arm: str) -> str | None:
        traces = answers["arms"][arm]["traces"]
        return config["traces"].get(traces, {}).get("method") if traces else None

    found = [(entry["arm"], entry["against"]) for entry in answers["comparisons"]]
    asked = []
    for arm, against in found:
        if method(arm) == "rsd" and (against == answers["base"] or method(against) == "dataset"):
            asked.append((arm, against))
    return asked or [pair for pair in found if pair[1] == answers["base"]]


def compared_view(entry: Record, answers: Record) -> Record:
    """A comparison with its verdict in words."""
    sign, word = VERDICTS[entry["verdict"]]
    return entry | {
        "label": answers["arms"][entry["arm"]]["label"],
        "against_label": answers["arms"][entry["against"]]["label"],
        "sign": sign,
        "word": word,
        "sentence": sentence(entry, answers),
        "seed_sentence": seed_sentence(entry, answers),
    }


def sentence(entry: Record, answers: Record) -> str:
    """The answer of one comparison, in words, points and per cent.

    For example: “SFT on RSD traces” did better than “Untrained student”: mean accuracy over 4 tasks 27.2 % against
    25.9 %, +1.4 points (95 % interval for these models +0.7 to +2.1), +5.3 % relative to “Untrained student” (+2.7 to
    +8.1).
    """
    arm, against = (f"“{answers['arms'][entry[key]]['label']}”" for key in ("arm", "against"))
    if entry["verdict"] == "missing":
        return f"{arm} against {against}: missing, since not all of the samples are there."
    claim = {
        "higher": f"{arm} did better than {against}",
        "lower": f"{arm} did worse than {against}",
        "undecided": f"This run cannot tell whether {arm} did better or worse than {against}",
    }[entry["verdict"]]
    what = "accuracy" if len(answers["tasks"]) == 1 else f"mean accuracy over {len(answers['tasks'])} tasks"
    points, change = entry["difference_points"], entry["relative_change"]
    # What another training seed would give is said beside it (seed_sentence), not in the interval.
    confidence = f"{100 * answers['confidence']:g} % interval for these models"
    text = (
        f"{claim}: {what} {number(entry['accuracy'])} % against {number(entry['accuracy_against'])} %, "
        f"{signed(points['value'])} points ({confidence} {interval(points['low'], points['high'], sign=True)})"
    )
    if change["value"] is None:
        return f"{text}; no relative change, since {against} solved nothing."
    return (
        f"{text}, {signed(change['value'])} % relative to {against} "
        f"({interval(change['low'], change['high'], sign=True)})."
    )


def seed_sentence(entry: Record, answers: Record) -> str:
    """What the training seeds say, one by one; nothing of two models that were not trained here."""
    if not any(answers["arms"][entry[key]]["traces"] for key in ("arm", "against")):
        return ""
    values = [value for value in entry["difference_by_seed"] if value is not None]
    if len(entry["difference_by_seed"]) < 2:
        return "One training seed: this run says nothing about how much another one would differ."
    above, below = sum(value > 0 for value in values), sum(value < 0 for value in values)
    listed = ", ".join(signed(value) for value in values)
    deviation = "" if entry["seed_sd"] is None else f"; standard deviation between seeds {number(entry['seed_sd'])}"
    absent = len(entry["difference_by_seed"]) - len(values)
    missing = f"; {absent} of {len(entry['difference_by_seed'])} seeds missing" if absent else ""
    return f"Training seeds: {above} above, {below} below ({listed} points){deviation}{missing}."


# --- the records ---------------------------------------------------------------------------------------------------


def records_view(records: Mapping[str, Any], answers: Record, settings: Record) -> Record:
    """What the templates show of the stages' records."""
    config = settings["config"]
    traces = [trace_view(name, record, config) for name, record in records["selections"].items()]
    return {
        "traces": traces,
        "trace_table": trace_table(traces),
        "trainings": trainings_view(records["trainings"], answers),
        "problems": records["problems"],
        "overlap": overlap_view(records["overlap"]),
        "sources": [source_view(name, record, config) for name, record in records["manifests"].items()],
        "evaluations": evaluation_view(records["scores"]),
        "runs": runs_view(records, answers),
    }


def trace_view(name: str, record: Record, config: Record) -> Record:
    """A trace set: how it was made, and what became of its attempts, the most frequent first."""
    reasons = sorted(record.get("reasons", {}).items(), key=lambda item: (item[0] != "kept", -item[1], item[0]))
    return {
        "name": name,
        "made": METHODS.get(config["traces"].get(name, {}).get("method"), MISSING),
        "law": notes.law_text(name, config),
        "attempts": record.get("attempts"),
        "reasons": [{"label": REASONS.get(reason, reason), "count": count} for reason, count in reasons],
        "record": record,
    }


def trace_table(traces: Sequence[Record]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The measures of all trace sets: (heading, one (text, note) a set)."""
    table: dict[str, list[tuple[str, str]]] = {}
    for entry in traces:
        for heading, cell in _trace_cells(entry["record"], generated=entry["made"] != METHODS["dataset"]).items():
            table.setdefault(heading, []).append(cell)
    return list(table.items())


def _trace_cells(record: Record, generated: bool) -> dict[str, tuple[str, str]]:
    problems, tokens = record.get("problems", {}), record.get("tokens", {})
    fallback = record.get("fallback_rate", {})
    everything = problems.get("all")

    def count(key: str) -> tuple[str, str]:
        return number(problems.get(key), 0), share(problems[key], everything) if key in problems and everything else ""

    def lengths(key: str) -> tuple[str, str]:
        if key in tokens and tokens[key] is None:
            return "none", ""
        found = tokens.get(key) or {}
        return number(found.get("p50"), 0), interval(found["p5"], found["p95"], 0) if found else ""

    def rate(key: str) -> tuple[str, str]:
        return (share(fallback.get(key), digits=2), "") if generated else ("does not apply", "")

    return {
        "Problems": (number(everything, 0), ""),
        "with a kept trace (solved)": count("solved"),
        "with a prefix only": count("prefix"),
        "left out": count("dropped"),
        "Attempts": (number(record.get("attempts"), 0), ""),
        "with the right answer": (share(record.get("correct_share")), ""),
        "Length of all attempts": lengths("attempts"),
        "Length of kept traces": lengths("kept"),
        "Length of training rows, with the prompt": lengths("rows"),
        "Student's own tokens (fallback), all attempts": rate("attempts"),
        "Student's own tokens (fallback), kept traces": rate("kept"),
        "Rows over the block size": (
            share(record.get("over_block_share")),
            f"of {number(record['block_size'], 0)} tokens" if "block_size" in record else "",
        ),
        "Kept traces that never end": (share(record.get("kept_unfinished_share")), ""),
    }


def trainings_view(trainings: Mapping[str, Record], answers: Record) -> list[Record]:
    """One entry a trained model, the seeds of an arm together."""
    entries = []
    for arm, entry in answers["arms"].items():
        names = [name for name in trainings if name.rpartition("-seed")[0] == arm]
        for position, name in enumerate(names):
            record = trainings[name]
            losses = [point["loss"] for point in record.get("curve", []) if point.get("loss") is not None]
            entries.append(
                {
                    "label": entry["label"],
                    "seed": name.rpartition("-seed")[2],
                    "span": len(names) if position == 0 else 0,
                    "first_loss": losses[0] if losses else None,
                    "last_loss": losses[-1] if losses else None,
                    "record": record,
                }
            )
    return entries


def overlap_view(record: Record) -> Record:
    """For each task the copies found and how many of its problems they touch; ids only, for some texts are not ours."""
    view: Record = {"method": record.get("method", {}), "tasks": {}, "pairs": []}
    for task, found in record.get("tasks", {}).items():
        exact, near = found.get("exact", []), found.get("near", [])
        touched = len({pair[1] for pair in [*exact, *near]})
        view["tasks"][task] = {"n_problems": found.get("n_problems"), "exact": exact, "near": near, "touched": touched}
        pairs = [*[(*pair[:2], None) for pair in exact], *near]
        view["pairs"] += [
            {"task": task, "problem": mine, "other": other, "score": score} for mine, other, score in pairs
        ]
    return view


def source_view(name: str, record: Record, config: Record) -> Record:
    """A model or dataset: where it came from, its size and files."""
    kind, _, entry = name.partition("/")
    files = record.get("files", {})
    return {
        "kind": kind.removesuffix("s"),
        "name": entry,
        "source": record.get("source") or config.get(kind, {}).get(entry, {}).get("source"),
        "revision": record.get("revision"),
        "licence": record.get("licence"),
        "bytes": sum(file.get("size", 0) for file in files.values()) if files else None,
        "files": files,
        "there": bool(record),
    }


def evaluation_view(scores: Mapping[str, Record]) -> Record:
    """Versions and cost of all evaluations together."""
    there = [record for record in scores.values() if record]
    seconds = [record["seconds"] for record in there if record.get("seconds") is not None]
    tokens = [record["tokens"] for record in there if record.get("tokens") is not None]
    return {
        "count": len(there),
        "of": len(scores),
        "seconds": sum(seconds) if seconds else None,
        "tokens": sum(tokens) if tokens else None,
        "lm_eval": sorted({str(record.get("lm_eval", {}).get("version", MISSING)) for record in there}),
        "task_versions": {
            name.split("/")[-1]: record.get("lm_eval", {}).get("task_version")
            for name, record in scores.items()
            if record
        },
    }


def runs_view(records: Mapping[str, Any], answers: Record) -> list[Record]:
    """With what the stages ran: one entry for each distinct commit, set of versions and machine."""
    stamped = [("compare", answers), ("problems", records["problems"]), ("overlap", records["overlap"])]
    for stage, kind in (
        ("select", "selections"),
        ("train", "trainings"),
        ("evaluate", "scores"),
        ("make", "manifests"),
    ):
        stamped += [(f"{stage} {name}", record) for name, record in records[kind].items()]
    runs: dict[str, Record] = {}
    for stage, record in stamped:
        provenance = record.get("provenance")
        run = provenance.get("run") if isinstance(provenance, dict) else None
        if not isinstance(run, dict):
            continue
        fixed = {key: run.get(key) for key in ("commit", "python", "packages", "machine", "gpu")}
        entry = runs.setdefault(json.dumps(fixed, sort_keys=True), fixed | {"stages": [], "finished": None})
        entry["stages"].append(stage)
        entry["finished"] = max(filter(None, (entry["finished"], run.get("finished_unix"))), default=None)
    return list(runs.values())


# --- figures -------------------------------------------------------------------------------------------------------


def draw(rows: Sequence[Row], answers: Record, trainings: Mapping[str, Record], folder: Path) -> dict[str, str]:
    """Writes every figure into `folder`; returns them as elements of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "accuracy": (accuracy_figure(accuracy_groups(rows, answers)), "Accuracy of every model on every task"),
        "differences": (forest_figure(difference_groups(rows, answers)), "Differences between the models"),
    }
    if not answers["comparisons"]:
        del pictures["differences"]
    panels = training_panels(answers, trainings)
    if panels:
        pictures["training"] = (training_figure(panels), "Training loss of every model")
    return {name: inline_svg(save(figure, folder, name), title) for name, (figure, title) in pictures.items()}


def accuracy_groups(rows: Sequence[Row], answers: Record) -> list[Group]:
    """One group a task, one bar an arm."""
    table = index(rows)
    colours = colours_of(answers)
    groups = []
    for column in table_columns(answers):
        marks = []
        for arm, entry in answers["arms"].items():
            row = table[arm, "", ALL_SEEDS, column["task"], "accuracy"]
            marks.append(Mark(entry["label"], row.value, row.low, row.high, row.paper, colours[arm]))
        groups.append(Group(column_title(column), marks))
    return groups


def difference_groups(rows: Sequence[Row], answers: Record) -> list[Group]:
    """One group a pair of arms, one mark a task; the mean last and strong."""
    table = index(rows)
    colours = colours_of(answers)
    groups = []
    for entry in answers["comparisons"]:
        arm, against = entry["arm"], entry["against"]
        marks = []
        for column in table_columns(answers):
            row = table[arm, against, ALL_SEEDS, column["task"], "difference_points"]
            strong = column["task"] == MEAN
            marks.append(Mark(column["label"], row.value, row.low, row.high, colour=colours[arm], strong=strong))
        labels = answers["arms"][arm]["label"], answers["arms"][against]["label"]
        groups.append(Group(f"{labels[0]} \N{MINUS SIGN} {labels[1]}", marks))
    return groups


def training_panels(answers: Record, trainings: Mapping[str, Record]) -> list[Panel]:
    """One panel an arm with a recorded loss, one curve a seed."""
    colours = colours_of(answers)
    panels: dict[str, Panel] = {}
    for name, record in trainings.items():
        arm, _, seed = name.rpartition("-seed")
        points = [point for point in record.get("curve", []) if point.get("loss") is not None]
        if not points or arm not in answers["arms"]:
            continue
        panel = panels.setdefault(arm, Panel(answers["arms"][arm]["label"], colours[arm], {}))
        panel.curves[f"seed {seed}"] = averaged(points)
    return list(panels.values())


def averaged(points: Sequence[Record], stretches: int = 60) -> tuple[list[float], list[float]]:
    """Epochs and losses over up to `stretches` stretches of equal length: the loss of one step is mostly noise."""
    length = math.ceil(len(points) / stretches)
    blocks = [points[start : start + length] for start in range(0, len(points), length)]

    def means(key: str) -> list[float]:
        return [sum(point[key] for point in block) / len(block) for block in blocks]

    return means("epoch"), means("loss")


def colours_of(answers: Record) -> dict[str, str]:
    """The colour of each arm: the base is grey, the others in their order."""
    others = [arm for arm in answers["arms"] if arm != answers["base"]]
    return {answers["base"]: arm_colour(0)} | {arm: arm_colour(place) for place, arm in enumerate(others, start=1)}


def column_title(column: Record) -> str:
    """A task with the size of its sample, as in `aime24  (30 problems × 64)`."""
    if column["task"] == MEAN:
        return "mean of the tasks"
    if column["problems"] is None:
        return str(column["label"])
    return f"{column['label']}  ({column['problems']} problems × {column['samples_a_problem']:g})"


# --- pages ---------------------------------------------------------------------------------------------------------


def render_html(page: Record, pictures: Mapping[str, str]) -> str:
    """The page; every value but the figures is escaped."""
    import jinja2
    import yaml
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    config = yaml.safe_dump(page["config"], sort_keys=False, allow_unicode=True, width=100)
    return environment.get_template("report.html.j2").render(
        page, config_text=config, pictures={name: Markup(svg) for name, svg in pictures.items()}
    )


def render_markdown(page: Record) -> str:
    """The answer and the tables as Markdown; every value is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        finalize=escape_markdown,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment.get_template("report.md.j2").render(page)


def escape_markdown(value: Any) -> str:
    """A value as Markdown text on one line: no markup, no HTML, no cell borders."""
    text = " ".join(str(value).split()) if "\n" in str(value) else str(value)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + letter if letter in "\\`*_[]|#!" else letter for letter in text)


def terminal_table(comparison: Path) -> str:
    """The main table and the answers as plain text, from comparison.csv and the comparison.json beside it."""
    answers = read_summary(Path(comparison).with_suffix(".json"))
    columns = table_columns(answers)
    lines = [["accuracy, %", *(column["label"] for column in columns)]]
    for entry in main_view(read_comparison(Path(comparison)), answers):
        cells = [
            MISSING if cell["value"] is None else f"{number(cell['value'])} ({interval(cell['low'], cell['high'])})"
            for cell in entry["cells"]
        ]
        lines.append([entry["label"], *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(_aligned(cell, widths, place) for place, cell in enumerate(line)).rstrip() for line in lines]
    said = [f"{VERDICTS[entry['verdict']][0]} {sentence(entry, answers)}" for entry in answers["comparisons"]]
    return "\n".join([*table, "", *said]) + "\n"


def _aligned(cell: str, widths: Sequence[int], place: int) -> str:
    return cell.ljust(widths[place]) if place == 0 else cell.rjust(widths[place])
