"""The report's figures of traces and tokens: lengths, fallback, right attempts, and how probable the tokens are.

From verdicts, rows and token analyses to drawings; `rsd.report_figures` puts them on the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rsd.distributions import Axes, Change, Curve, Histogram, change_figure, curves_figure, histogram_figure
from rsd.figures import Drawing
from rsd.report_result import set_colours
from rsd.report_tokens import Analyses, is_trained, positions, survival
from rsd.report_traces import TraceFiles, attempt_lengths, fallback_rates, right_attempts, root_of

Record = dict[str, Any]


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
    mark = (-math.log(threshold), f"p = {threshold:g}") if threshold else None

    def curves(points: Any) -> list[Curve]:
        found = ((name, points(record)) for name, record in records.items())
        return [Curve(name, colours[name], line) for name, line in found if line]

    by_position = curves(lambda record: [(x, 100 * y) for x, y in positions(record, "improbable_share")])
    surprisals = curves(lambda record: _positive(survival(record.get("surprisal"))))
    ranks = curves(lambda record: _positive(survival(record.get("rank"))))
    return [
        Axes("Along the trace", "position, tokens", "under the threshold, %", by_position, log_x=True),
        Axes("Surprisal", "surprisal, nats", "share of tokens above", surprisals, mark=mark, log_x=True, log_y=True),
        Axes("Rank", "rank", "share of tokens at or above", ranks, log_x=True, log_y=True),
    ]


def _positive(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that two logarithmic scales can show."""
    return [(x, y) for x, y in points if x > 0 and y > 0]


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
