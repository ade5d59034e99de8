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
from rsd.distributions import (
    Axes,
    Change,
    Curve,
    Histogram,
    change_figure,
    curves_figure,
    histogram_figure,
)
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
from rsd.formatting import share
from rsd.report_result import Numbers, label_of, split_comparisons, table_columns
from rsd.report_tokens import Analyses, is_trained, positions, survival
from rsd.report_traces import TraceFiles, attempt_lengths, fallback_rates, right_attempts, root_of

Record = dict[str, Any]

# More marks than this make a figure of the means alone; the tasks follow in one of their own.
CROWDED = 24


@dataclass(frozen=True)
class Drawing:
    """A figure to be drawn, and how the page presents it."""

    name: str
    section: str
    title: str
    caption: str
    figure: Any
    folded: bool = False


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


# --- training, traces ----------------------------------------------------------------------------------------------


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


def trace_drawings(traces: Mapping[str, TraceFiles], answers: Record, config: Record) -> Iterator[Drawing]:
    """Lengths, fallback rates, and how many attempts at a problem are right."""
    colours = set_colours(list(traces), answers)

    def panels(measure: Any) -> list[Histogram]:
        found = ((name, *measure(files)) for name, files in traces.items())
        return [Histogram(name, colours[name], a, kept) for name, a, kept in found if len(a) or len(kept)]

    lengths = panels(attempt_lengths)
    if lengths:
        yield Drawing(
            "lengths",
            "traces",
            "Lengths of the attempts of each trace set",
            "Lengths in tokens, one panel a trace set: all attempts (outline) and those that became training rows "
            "(filled).",
            histogram_figure(lengths, "tokens", "attempts"),
        )
    rsd = {name for name in traces if config["traces"].get(root_of(name, config), {}).get("method") == "rsd"}
    rates = [
        Histogram(panel.title, panel.colour, 100 * panel.all, 100 * panel.kept)
        for panel in panels(fallback_rates)
        if panel.title in rsd
    ]
    if rates:
        yield Drawing(
            "fallback",
            "traces",
            "Share of the student’s own tokens in each attempt",
            "Share of an attempt’s tokens that are the student’s own (fallback): all attempts (outline) and those that "
            "became training rows (filled).",
            histogram_figure(rates, "fallback, % of the tokens", "attempts"),
        )
    right = []
    for name, files in traces.items():
        counts, most = right_attempts(files)
        if most > 1:
            right.append(Histogram(f"{name}, of {most}", colours[name], counts[:0], counts))
    if right:
        yield Drawing(
            "right-attempts",
            "traces",
            "Right attempts at each problem",
            "How many of the attempts at a problem have the right answer.",
            histogram_figure(right, "right attempts at a problem", "problems", whole=True),
        )


# --- tokens --------------------------------------------------------------------------------------------------------


def token_drawings(analyses: Analyses, answers: Record, config: Record) -> Iterator[Drawing]:
    """How probable the tokens are: one figure a model of the catalogue that read them, and before against after."""
    sets = list(dict.fromkeys(traces for traces, _ in analyses))
    colours = set_colours(sets, answers)
    readers = list(dict.fromkeys(reader for _, reader in analyses if not is_trained(reader, config)))
    for reader in readers:
        mine = {traces: record for (traces, name), record in analyses.items() if name == reader and record}
        panels = token_panels(mine, colours)
        if any(panel.curves for panel in panels):
            name = "tokens" if reader == readers[0] else f"tokens-{reader}"
            caption = (
                f"How probable the tokens of each trace set are to the model {reader}, before any training. Left: "
                "share of tokens under the threshold along the trace. Middle and right: share of tokens with at least "
                "this surprisal and this rank."
            )
            yield Drawing(
                name, "tokens", "How probable the tokens of each trace set are", caption, curves_figure(panels)
            )
    changes = changes_of(analyses, config, colours)
    if changes:
        yield Drawing(
            "before-after",
            "tokens",
            "Improbable tokens before and after training",
            "Share of tokens under the threshold, before training and after training on the same trace set.",
            change_figure(changes, "tokens under the threshold, %"),
        )


def token_panels(records: Mapping[str, Record], colours: Mapping[str, str]) -> list[Axes]:
    """The three panels of one reader: improbable share by position, surprisal, rank."""
    thresholds = {record.get("threshold") for record in records.values()} - {None}
    threshold = thresholds.pop() if len(thresholds) == 1 else None
    mark = (-math.log(threshold), f"{share(threshold, digits=0)}") if threshold else None

    def curves(points: Any) -> list[Curve]:
        found = ((name, points(record)) for name, record in records.items())
        return [Curve(name, colours[name], line) for name, line in found if line]

    by_position = curves(lambda record: [(x, 100 * y) for x, y in positions(record, "improbable_share")])
    surprisals = curves(lambda record: _positive(survival(record.get("surprisal"))))
    ranks = curves(lambda record: [(max(x, 1), y) for x, y in _positive(survival(record.get("rank")))])
    long = max((x for curve in by_position for x, _ in curve.points), default=0) >= 1000
    return [
        Axes("Along the trace", "position, tokens", "under the threshold, %", by_position, log_x=long),
        Axes("Surprisal", "surprisal, nats", "share of tokens above", surprisals, log_y=True, mark=mark),
        Axes("Rank", "rank", "share of tokens at or above", ranks, log_x=True, log_y=True),
    ]


def _positive(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that a logarithmic scale can show."""
    return [(x, y) for x, y in points if y > 0]


def changes_of(analyses: Analyses, config: Record, colours: Mapping[str, str]) -> list[Change]:
    """One row a trace set whose improbable share is known after training: before by the arm's own model."""
    rows: dict[tuple[str, str], Change] = {}
    for (traces, reader), record in analyses.items():
        if not is_trained(reader, config) or record.get("improbable_share") is None:
            continue
        arm = reader.rpartition("-seed")[0]
        model = config["arms"].get(arm, {}).get("model")
        before = analyses.get((traces, model), {}).get("improbable_share")
        label = traces if config["arms"].get(arm, {}).get("traces") == traces else f"{traces}, read by {arm}"
        old = rows.get((traces, arm))
        after = [*(old.after if old else []), 100 * record["improbable_share"]]
        rows[traces, arm] = Change(label, colours[traces], None if before is None else 100 * before, after)
    return list(rows.values())


# --- colours and names ---------------------------------------------------------------------------------------------


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


def column_title(column: Record) -> str:
    """A task with the size of its sample, as in `aime24  (30 problems × 64)`."""
    if column["task"] == MEAN:
        return "mean of the tasks"
    if column["problems"] is None:
        return str(column["label"])
    return f"{column['label']}  ({column['problems']} problems × {column['samples_a_problem']:g})"
