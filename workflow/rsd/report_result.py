"""The report's answer: the comparison in sentences, and in tables of cells that hold numbers.

Reads comparison.csv and .json alone (`rsd.compare`), and counts how far the graders agree on the samples. A number that
is not there is None, and shows as missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsd import notes
from rsd.compare import ALL_SEEDS, MEAN, Row, read_comparison, read_summary
from rsd.figures import arm_colour
from rsd.formatting import MISSING, interval, number, p_value, signed

Record = dict[str, Any]

# What a verdict of the comparison reads like; the sign says it without colour.
VERDICTS = {
    "higher": ("\N{BLACK UP-POINTING TRIANGLE}", "better"),
    "lower": ("\N{BLACK DOWN-POINTING TRIANGLE}", "worse"),
    "undecided": ("\N{WHITE DIAMOND}", "cannot tell"),
    "missing": ("\N{EM DASH}", MISSING),
}
# Columns of the table of checks: metric, heading.
CHECKS = (
    ("accuracy", "avg@k"),
    ("pass_at_k", "pass@k"),
    ("maj_at_k", "maj@k"),
    ("accuracy_finished", "Among finished"),
    ("cut_share", "Cut"),
    ("think_closed_share", "Reasoning closed"),
    ("extractable_share", "Answer found"),
    ("duplicate_share", "Duplicates"),
    ("mean_tokens", "Tokens"),
)
# More comparisons than this: those with the base and with the arms of the question come first, the others are folded.
FOLD_ABOVE = 6


def result_view(rows: Sequence[Row], answers: Record, settings: Record) -> Record:
    """What the templates show of the comparison: sentences, and tables of cells that hold numbers."""
    config = settings["config"]
    primary = [compared_view(entry, answers) for entry in primary_entries(answers)]
    first, rest = split_comparisons(answers)
    return {
        "title": settings["title"],
        "experiment": settings["experiment"],
        "answers": answers,
        "confidence": f"{100 * answers['confidence']:g} %",
        "columns": table_columns(answers),
        "question": answers.get("question") or {},
        "tests": answers.get("tests") or {},
        "main": main_view(rows, answers),
        "compared": [compared_view(entry, answers) for entry in answers["comparisons"]],
        "primary": primary,
        "differences": differences_view(rows, first, answers),
        "more_differences": differences_view(rows, rest, answers),
        "checks": checks_view(rows, answers, config),
        "check_names": [heading for _, heading in checks_of(config)],
        "missing": answers.get("missing", []),
        "unlike_paper": notes.unlike_paper(config),
        "notes": notes.method_notes(config),
        "config": config,
    }


def table_columns(answers: Record) -> list[Record]:
    """The tasks, and their mean where there are several."""
    columns = [{"task": task, "label": task, **size} for task, size in answers["tasks"].items()]
    return columns + ([{"task": MEAN, "label": "mean", "problems": None}] if len(columns) > 1 else [])


class Numbers:
    """The rows of a comparison by arm, against, seed, task and metric; a row that is not there is empty."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {(row.arm, row.against, row.seed, row.task, row.metric): row for row in rows}

    def row(self, arm: str, task: str, metric: str, against: str = "", seed: str = ALL_SEEDS) -> Row:
        """The row of those names, over all seeds if not said otherwise."""
        names = (arm, against, seed, task, metric)
        return self.rows.get(names) or Row(
            *names,
            value=None,
            low=None,
            high=None,
            fixed_low=None,
            fixed_high=None,
            p=None,
            p_holm=None,
            n_problems=0,
            n_samples=0,
            paper=None,
        )


def main_view(rows: Sequence[Row], answers: Record) -> list[Record]:
    """One entry an arm, one cell a task: accuracy over all seeds, intervals, deviation between seeds, paper's value."""
    numbers = Numbers(rows)
    return [
        {
            "arm": arm,
            "label": entry["label"],
            "seeds": len(entry["seeds"]),
            "cells": [
                numbers.row(arm, column["task"], "accuracy").__dict__
                | {"sd": numbers.row(arm, column["task"], "seed_sd").value, "mean": column["task"] == MEAN}
                for column in table_columns(answers)
            ],
        }
        for arm, entry in answers["arms"].items()
    ]


def differences_view(rows: Sequence[Row], entries: Sequence[Record], answers: Record) -> list[Record]:
    """One entry a pair of arms, one cell a task: the difference in points and relative to the other's accuracy."""
    numbers = Numbers(rows)
    found = []
    for entry in entries:
        arm, against = entry["arm"], entry["against"]

        def row(task: str, metric: str, arm: str = arm, against: str = against) -> Row:
            return numbers.row(arm, task, metric, against)

        cells = [
            {
                "points": row(column["task"], "difference_points"),
                "change": row(column["task"], "relative_change"),
                "sd": row(column["task"], "seed_sd").value,
                "smallest": row(column["task"], "smallest_difference").value,
            }
            for column in table_columns(answers)
        ]
        labels = {key: answers["arms"][entry[key]]["label"] for key in ("arm", "against")}
        found.append({"label": labels["arm"], "against": labels["against"], "cells": cells})
    return found


def checks_of(config: Record) -> list[tuple[str, str]]:
    """The checks that mean something in this run: without a separate reasoning part nothing can close it."""
    closes = config["format"]["think_close"] is not None
    return [check for check in CHECKS if closes or check[0] != "think_closed_share"]


def checks_view(rows: Sequence[Row], answers: Record, config: Record) -> list[Record]:
    """One entry an arm and task: how the samples ended, in the order of `checks_of`."""
    numbers = Numbers(rows)
    return [
        {
            "label": entry["label"],
            "task": task,
            "samples": numbers.row(arm, task, "accuracy").n_samples,
            "cells": [numbers.row(arm, task, metric).value for metric, _ in checks_of(config)],
        }
        for arm, entry in answers["arms"].items()
        for task in answers["tasks"]
    ]


# --- who is compared -----------------------------------------------------------------------------------------------


def primary_entries(answers: Record) -> list[Record]:
    """The entries of the question's comparisons, in its order; one that this run did not make is a missing one."""
    entries = {(entry["arm"], entry["against"]): entry for entry in answers["comparisons"]}
    asked = (answers.get("question") or {}).get("comparisons", [])
    return [
        entries.get((arm, against), {"arm": arm, "against": against, "verdict": "missing"}) for arm, against in asked
    ]


def split_comparisons(answers: Record) -> tuple[list[Record], list[Record]]:
    """(the comparisons to show first, the others): all of them where they are few.

    Else first come those with the base and with the arms that the question compares with, grouped by the latter.
    """
    entries = answers["comparisons"]
    if len(entries) <= FOLD_ABOVE:
        return list(entries), []
    references = list(dict.fromkeys([answers["base"], *(entry["against"] for entry in primary_entries(answers))]))
    first = [entry for reference in references for entry in entries if entry["against"] == reference]
    return first, [entry for entry in entries if entry["against"] not in references]


def label_of(arm: str, answers: Record) -> str:
    """The name of an arm in the report."""
    return str(answers["arms"].get(arm, {}).get("label", arm))


def colours_of(answers: Record) -> dict[str, str]:
    """The colour of each arm: the base is grey, the others in their order."""
    others = [arm for arm in answers["arms"] if arm != answers["base"]]
    return {answers["base"]: arm_colour(0)} | {arm: arm_colour(place) for place, arm in enumerate(others, start=1)}


def set_colours(sets: Sequence[str], answers: Record) -> dict[str, str]:
    """The colour of each trace set: that of the first arm trained on it."""
    arms = colours_of(answers)
    found = {}
    for name in sets:
        trained = [arm for arm, entry in answers["arms"].items() if entry["traces"] == name]
        found[name] = arms[trained[0]] if trained else arm_colour(0)
    return found


# --- sentences -----------------------------------------------------------------------------------------------------


def compared_view(entry: Record, answers: Record) -> Record:
    """A comparison with its verdict in words."""
    sign, word = VERDICTS[entry["verdict"]]
    later = ("p", "p_holm", "smallest_difference", "smallest_difference_fixed")
    return {"fixed": {}, **dict.fromkeys(later)} | entry | {
        "label": label_of(entry["arm"], answers),
        "against_label": label_of(entry["against"], answers),
        "sign": sign,
        "word": word,
        "claim": claim(entry, answers),
        "sentence": sentence(entry, answers),
        "seed_sentence": seed_sentence(entry, answers),
    }  # fmt: skip


def sentence(entry: Record, answers: Record) -> str:
    """The answer of one comparison, in words, points and per cent; it begins with `claim`.

    For example: “SFT on RSD traces” did better than “Untrained student”: mean accuracy over 4 tasks 27.2 % against
    25.9 %, +1.4 points (95 % interval +0.7 to +2.1 for problems like these, +0.9 to +1.8 for these problems; p = 0.004,
    0.012 by Holm's correction), +5.3 % relative to “Untrained student” (+2.7 to +8.1).
    """
    against = f"“{label_of(entry['against'], answers)}”"
    if entry["verdict"] == "missing":
        return f"{claim(entry, answers)}: missing, since not all of the samples are there."
    what = "accuracy" if len(answers["tasks"]) == 1 else f"mean accuracy over {len(answers['tasks'])} tasks"
    change = entry["relative_change"]
    text = (
        f"{claim(entry, answers)}: {what} {number(entry['accuracy'])} % against {number(entry['accuracy_against'])} %, "
        f"{signed(entry['difference_points']['value'])} points ({how_sure(entry, answers)})"
    )
    if change["value"] is None:
        return f"{text}; no relative change, since {against} solved nothing."
    return (
        f"{text}, {signed(change['value'])} % relative to {against} "
        f"({interval(change['low'], change['high'], sign=True)})."
    )


def claim(entry: Record, answers: Record) -> str:
    """What a comparison says, without its numbers."""
    arm, against = (f"“{label_of(entry[key], answers)}”" for key in ("arm", "against"))
    return {
        "higher": f"{arm} did better than {against}",
        "lower": f"{arm} did worse than {against}",
        "undecided": f"This run cannot tell whether {arm} did better or worse than {against}",
        "missing": f"{arm} against {against}",
    }[entry["verdict"]]


def how_sure(entry: Record, answers: Record) -> str:
    """Both intervals of a difference and its p-values; what is not there is left out."""
    points, fixed = entry["difference_points"], entry.get("fixed") or {}
    # What another training seed would give is said beside it (seed_sentence), not in the intervals.
    confidence = f"{100 * answers['confidence']:g} % interval"
    text = f"{confidence} {interval(points['low'], points['high'], sign=True)} for problems like these"
    if fixed.get("low") is not None:
        text += f", {interval(fixed['low'], fixed['high'], sign=True)} for these problems"
    if entry.get("p") is not None:
        text += f"; p {equals(entry['p'])}"
    if entry.get("p_holm") is not None:
        text += f", {p_value(entry['p_holm'])} by Holm's correction"
    return text


def equals(p: float) -> str:
    """`= 0.012`, or `< 0.001`."""
    shown = p_value(p)
    return shown if shown.startswith("<") else f"= {shown}"


def seed_sentence(entry: Record, answers: Record) -> str:
    """What the training seeds say, one by one; nothing of two models that were not trained here."""
    if not any(answers["arms"].get(entry[key], {}).get("traces") for key in ("arm", "against")):
        return ""
    by_seed = entry.get("difference_by_seed", [])
    if not by_seed:
        return ""
    values = [value for value in by_seed if value is not None]
    if len(by_seed) < 2:
        return "One training seed: this run says nothing about how much another one would differ."
    above, below = sum(value > 0 for value in values), sum(value < 0 for value in values)
    listed = ", ".join(signed(value) for value in values)
    deviation = "" if entry["seed_sd"] is None else f"; standard deviation between seeds {number(entry['seed_sd'])}"
    absent = len(by_seed) - len(values)
    missing = f"; {absent} of {len(by_seed)} seeds missing" if absent else ""
    return f"Training seeds: {above} above, {below} below ({listed} points){deviation}{missing}."


# --- graders -------------------------------------------------------------------------------------------------------


def graders_view(agreement: Mapping[tuple[str, str], Record], scores: Mapping[str, Record], answers: Record) -> Record:
    """How far the graders agree: math-verify and plain string an arm and task, and the judge where one ran.

    `agreement`: (arm, task) -> both, rules, string, neither: samples, over the arm's seeds; `scores`: ARM-seedK/TASK ->
    record.
    """
    rules = []
    for (arm, task), counts in agreement.items():
        total = sum(counts.values())
        same = (counts["both"] + counts["neither"]) / total if total else None
        rules.append({"label": label_of(arm, answers), "task": task, "samples": total, "same": same, **counts})
    return {"rules": rules, "judged": judged_view(scores, answers)}


JUDGED = ("right_right", "right_wrong", "wrong_right", "wrong_wrong")


def judged_view(scores: Mapping[str, Record], answers: Record) -> list[Record]:
    """One entry an arm and task that a judge looked at, its seeds together: counts, rules first, judge second."""
    found: dict[tuple[str, str], Record] = {}
    for name, record in scores.items():
        judge = record.get("judge")
        if not judge:
            continue
        model, _, task = name.partition("/")
        arm = model.rpartition("-seed")[0]
        empty = {"label": label_of(arm, answers), "task": task, "models": [], **dict.fromkeys(JUDGED, 0)}
        entry = found.setdefault((arm, task), empty)
        entry["models"] = sorted({*entry["models"], str(judge.get("model", MISSING))})
        for key in JUDGED:
            entry[key] += judge.get("table", {}).get(key, 0)
    for entry in found.values():
        entry["judged"] = sum(entry[key] for key in JUDGED)
        same = entry["right_right"] + entry["wrong_wrong"]
        entry["agreement"] = same / entry["judged"] if entry["judged"] else None
    return list(found.values())


# --- terminal ------------------------------------------------------------------------------------------------------


def terminal_table(comparison: Path) -> str:
    """The main table and the answers to the question as plain text, from comparison.csv and the .json beside it."""
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
    said = [f"{VERDICTS[entry['verdict']][0]} {sentence(entry, answers)}" for entry in primary_entries(answers)]
    return "\n".join([*table, "", *said]) + "\n"


def _aligned(cell: str, widths: Sequence[int], place: int) -> str:
    return cell.ljust(widths[place]) if place == 0 else cell.rjust(widths[place])
