"""From the report's records to its figures: which numbers are drawn where, and under which name.

A figure has a name (its file's), a title that screen readers read out, and a caption; `folded` ones are in a closed
part of the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd.compare import MEAN, Row
from rsd.figures import (
    Drawing,
    Group,
    Mark,
    Panel,
    accuracy_figure,
    forest_figure,
    inline_svg,
    save,
    training_figure,
)
from rsd.report_distributions import token_drawings, trace_drawings
from rsd.report_result import Numbers, colours_of, label_of, split_comparisons, table_columns
from rsd.report_tokens import Analyses
from rsd.report_traces import TraceFiles

Record = dict[str, Any]

# More marks than this make a figure of the means alone; the tasks follow in one of their own.
CROWDED = 24


@dataclass(frozen=True)
class Picture:
    """A figure on the page: its number, and the SVG as an element."""

    name: str
    section: str
    number: int
    caption: str
    svg: str
    folded: bool


@dataclass(frozen=True)
class Drawn:
    """What is drawn from."""

    rows: Sequence[Row]
    answers: Record
    config: Record
    trainings: Mapping[str, Record]
    traces: Mapping[str, TraceFiles]
    analyses: Analyses


def draw(drawn: Drawn, folder: Path) -> list[Picture]:
    """Writes every figure into `folder`, as SVG and PDF; returns them in the order of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number, drawing in enumerate(drawings(drawn), start=1):
        svg = inline_svg(save(drawing.figure, folder, drawing.name), drawing.title)
        pictures.append(Picture(drawing.name, drawing.section, number, drawing.caption, svg, drawing.folded))
    return pictures


def drawings(drawn: Drawn) -> Iterator[Drawing]:
    """Every figure of this run, in the order of the page."""
    yield from accuracy_drawings(drawn.rows, drawn.answers)
    yield from difference_drawings(drawn.rows, drawn.answers)
    yield from trace_drawings(drawn.traces, drawn.answers, drawn.config)
    yield from token_drawings(drawn.analyses, drawn.answers, drawn.config)
    panels = training_panels(drawn.answers, drawn.trainings)
    if panels:
        caption = "Training loss, averaged over short stretches; one line a seed."
        yield Drawing("training", "training", "Training loss of every model", caption, training_figure(panels))


# --- the result ----------------------------------------------------------------------------------------------------


def accuracy_drawings(rows: Sequence[Row], answers: Record) -> Iterator[Drawing]:
    """Accuracies; of many arms the mean alone, and the tasks folded."""
    groups = accuracy_groups(rows, answers)
    confidence = f"{100 * answers['confidence']:g} %"
    caption = (
        f"mean over samples and seeds, lines: {confidence} intervals for problems like these, diamonds: the paper’s "
        "values where they are known."
    )
    crowded = len(groups) > 1 and sum(len(group.marks) for group in groups) > CROWDED
    shown = groups[-1:] if crowded else groups
    what = "mean of the tasks" if crowded else "every task"
    yield Drawing(
        "accuracy",
        "result",
        "Accuracy of every model",
        f"Accuracy of every model, {what}; bars: {caption}",
        accuracy_figure(shown),
    )
    if crowded:
        yield Drawing(
            "accuracy-tasks",
            "result",
            "Accuracy of every model on every task",
            f"Accuracy of every model on every task; bars: {caption}",
            accuracy_figure(groups[:-1]),
            folded=True,
        )


def accuracy_groups(rows: Sequence[Row], answers: Record) -> list[Group]:
    """One group a task, one bar an arm; the mean last."""
    numbers = Numbers(rows)
    colours = colours_of(answers)
    groups = []
    for column in table_columns(answers):
        marks = []
        for arm, entry in answers["arms"].items():
            row = numbers.row(arm, column["task"], "accuracy")
            marks.append(Mark(entry["label"], row.value, row.low, row.high, paper=row.paper, colour=colours[arm]))
        groups.append(Group(column_title(column), marks))
    return groups


def difference_drawings(rows: Sequence[Row], answers: Record) -> Iterator[Drawing]:
    """Forest plots: first the differences that matter most, on their mean; then, folded, the tasks and the others."""
    first, rest = split_comparisons(answers)
    if not first:
        return
    tasks, several = list(answers["tasks"]), len(answers["tasks"]) > 1
    intervals = f"thin lines: {100 * answers['confidence']:g} % intervals for problems like these, thick ones for these"
    how = f"{intervals}. An interval that crosses the line of 0 cannot tell."
    if several and not rest and len(first) * (len(tasks) + 1) <= CROWDED:
        yield Drawing(
            "differences",
            "differences",
            "Differences between the models",
            f"Differences in points; {how} The diamond is the mean of the tasks.",
            forest_figure(task_groups(rows, first, answers, [*tasks, MEAN])),
        )
        return
    on = "on the mean of the tasks" if several else f"on {tasks[0]}"
    whole = MEAN if several else tasks[0]
    yield Drawing(
        "differences",
        "differences",
        "Differences between the models",
        f"Differences in points {on}; {how}",
        forest_figure(reference_groups(rows, first, answers, whole)),
    )
    if several:
        for task in tasks:
            yield Drawing(
                f"differences-{task}",
                "differences",
                "The same differences on one task",
                f"The same on {task}; {how}",
                forest_figure(reference_groups(rows, first, answers, task)),
                folded=True,
            )
    if rest:
        yield Drawing(
            "differences-others",
            "differences",
            "Differences between the other pairs of models",
            f"Differences in points between the other pairs, {on}; {how}",
            forest_figure(reference_groups(rows, rest, answers, whole)),
            folded=True,
        )


def task_groups(rows: Sequence[Row], entries: Sequence[Record], answers: Record, tasks: Sequence[str]) -> list[Group]:
    """One group a pair of arms, one mark a task; the mean strong."""
    numbers = Numbers(rows)
    colours = colours_of(answers)
    groups = []
    for entry in entries:
        arm, against = entry["arm"], entry["against"]
        marks = [
            _difference(numbers.row(arm, task, "difference_points", against), task, colours[arm], task == MEAN)
            for task in tasks
        ]
        title = f"{label_of(arm, answers)} \N{MINUS SIGN} {label_of(against, answers)}"
        groups.append(Group(title, marks))
    return groups


def reference_groups(rows: Sequence[Row], entries: Sequence[Record], answers: Record, task: str) -> list[Group]:
    """One group an arm that others are compared with, one mark each of those, on one task or the mean."""
    numbers = Numbers(rows)
    colours = colours_of(answers)
    groups: dict[str, Group] = {}
    for entry in entries:
        arm, against = entry["arm"], entry["against"]
        group = groups.setdefault(against, Group(f"against {label_of(against, answers)}", []))
        row = numbers.row(arm, task, "difference_points", against)
        group.marks.append(_difference(row, label_of(arm, answers), colours[arm], strong=False))
    return list(groups.values())


def _difference(row: Row, label: str, colour: str, strong: bool) -> Mark:
    return Mark(label, row.value, row.low, row.high, row.fixed_low, row.fixed_high, colour=colour, strong=strong)


# --- training ------------------------------------------------------------------------------------------------------


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


# --- names ---------------------------------------------------------------------------------------------------------


def column_title(column: Record) -> str:
    """A task with the size of its sample, as in `aime24  (30 problems × 64)`."""
    if column["task"] == MEAN:
        return "mean of the tasks"
    if column["problems"] is None:
        return str(column["label"])
    return f"{column['label']}  ({column['problems']} problems × {column['samples_a_problem']:g})"
