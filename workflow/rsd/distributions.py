"""The report's figures of distributions: histograms of traces, and how probable tokens are to a reader.

Numbers in, figures out, in the style of `rsd.figures`. Lines are told apart by their dashes and a legend, bars by their
filling, so that colour is never the only sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd.figures import INK, LINE, SOFT, WIDTH, bare, broken, new_figure, styled

DASHES: list[Any] = ["-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3))]
BINS = 30
COLUMNS = 3


@dataclass(frozen=True)
class Histogram:
    """One panel: `all` values as outlined bars, `kept` ones of them as filled bars."""

    title: str
    colour: str
    all: NDArray[np.float64]
    kept: NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One line of a panel: (x, y) points."""

    label: str
    colour: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axes:
    """A panel of curves; `mark` draws a vertical line with a label there."""

    title: str
    x: str
    y: str
    curves: Sequence[Curve] = field(default_factory=list)
    log_x: bool = False
    log_y: bool = False
    mark: tuple[float, str] | None = None


@dataclass(frozen=True)
class Change:
    """A row: where something was before, and where it is after, once a training seed; None where it is missing."""

    label: str
    colour: str
    before: float | None
    after: Sequence[float]


@styled
def histogram_figure(panels: Sequence[Histogram], x: str, y: str, *, whole: bool = False) -> Any:
    """Histograms on common bins, one panel a trace set; `whole`: one bin a whole number."""
    from matplotlib.patches import Patch

    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(WIDTH, 1.75 * lines + 0.65)
    grid = figure.subplots(lines, columns, sharex=True, squeeze=False)
    edges = _bins([values for panel in panels for values in (panel.all, panel.kept)], whole)
    for axes, panel in zip(grid.flat, panels, strict=False):
        bare(axes)
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.set_title(broken(panel.title, 26), fontsize=9, loc="left", fontweight="bold")
        if len(panel.all):
            axes.stairs(np.histogram(panel.all, edges)[0], edges, color=panel.colour, linewidth=1.1, label="all")
        if len(panel.kept):
            counts = np.histogram(panel.kept, edges)[0]
            axes.stairs(counts, edges, color=panel.colour, fill=True, alpha=0.55, label="kept")
    for axes in _lowest(grid, len(panels)):
        axes.set_xlabel(x)
        axes.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel(y)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    if any(len(panel.all) and len(panel.kept) for panel in panels):
        bars = [Patch(edgecolor=INK, facecolor="none"), Patch(color=INK, alpha=0.55)]
        figure.legend(
            bars, ["all", "kept"], loc="outside upper right", ncols=2, frameon=False, fontsize=8, handlelength=1.4
        )
    return figure


def _bins(samples: Sequence[NDArray[np.float64]], whole: bool) -> NDArray[np.float64]:
    """Edges of common bins over all values; a single value gets a bin of width 1."""
    values = np.concatenate([sample for sample in samples if len(sample)] or [np.zeros(1)])
    low, high = float(values.min()), float(values.max())
    if whole:
        return np.arange(math.floor(low), math.ceil(high) + 2, dtype=np.float64) - 0.5
    return np.linspace(low, high, BINS + 1, dtype=np.float64) if high > low else np.array([low - 0.5, low + 0.5])


def _lowest(grid: Any, count: int) -> list[Any]:
    """The lowest visible panel of every column."""
    lines, columns = grid.shape
    return [
        grid[max(line for line in range(lines) if line * columns + c < count), c] for c in range(min(columns, count))
    ]


@styled
def curves_figure(panels: Sequence[Axes]) -> Any:
    """Panels of curves side by side, with one legend for all: the same label is the same line everywhere."""
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    lines = math.ceil(len(labels) / 2)
    figure = new_figure(WIDTH, 2.4 + 0.2 * lines)
    grid = figure.subplots(1, len(panels), squeeze=False)
    handles = {}
    for axes, panel in zip(grid.flat, panels, strict=True):
        bare(axes)
        axes.spines["left"].set_visible(True)
        axes.grid(color=LINE, linewidth=0.6)
        axes.set_title(panel.title, fontsize=9, loc="left", fontweight="bold")
        for curve in panel.curves:
            dash = DASHES[labels.index(curve.label) % len(DASHES)]
            x, y = zip(*curve.points, strict=True)
            handles[curve.label] = axes.plot(x, y, color=curve.colour, linestyle=dash, linewidth=1.3)[0]
        if panel.mark is not None:
            place, text = panel.mark
            axes.axvline(place, color=INK, linewidth=0.8)
            axes.annotate(
                text, (place, 1), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points",
                va="top", fontsize=7, color=SOFT,
            )  # fmt: skip
        axes.set_xscale("log" if panel.log_x else "linear")
        axes.set_yscale("log" if panel.log_y else "linear")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        axes.set_xlabel(panel.x, fontsize=8)
        axes.set_ylabel(panel.y, fontsize=8)
        axes.tick_params(labelsize=7.5)
    if labels:
        shown = [broken(label, 44) for label in handles]
        figure.legend(
            list(handles.values()),
            shown,
            loc="outside lower left",
            ncols=2,
            frameon=False,
            fontsize=8,
            handlelength=3.4,
        )
    return figure


@styled
def change_figure(rows: Sequence[Change], x: str) -> Any:
    """Before (open circle) and after training (filled diamonds, one a seed), one row a trace set."""
    figure = new_figure(WIDTH, 0.32 * len(rows) + 0.85)
    axes = figure.subplots()
    bare(axes)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    for y, row in enumerate(rows):
        ends = [*([] if row.before is None else [row.before]), *row.after]
        axes.plot([min(ends), max(ends)], [y, y], color=LINE, linewidth=2, zorder=1)
        if row.before is not None:
            axes.plot(
                row.before, y, "o", color=row.colour, markerfacecolor="none", markersize=8, zorder=3, clip_on=False
            )
        axes.plot(list(row.after), [y] * len(row.after), "D", color=row.colour, markersize=4.5, zorder=2, clip_on=False)
    axes.set_yticks(range(len(rows)), [broken(row.label, 30) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    # Room for a mark at 0.
    axes.set_xlim(left=-0.02 * max(axes.get_xlim()[1], 0.1))
    axes.set_xlabel(x)
    before = axes.plot([], [], "o", color=INK, markerfacecolor="none", markersize=7)[0]
    after = axes.plot([], [], "D", color=INK, markersize=5)[0]
    figure.legend(
        [before, after], ["before training", "after training on it, one mark a seed"],
        loc="outside upper right", ncols=2, frameon=False, fontsize=8,
    )  # fmt: skip
    return figure
