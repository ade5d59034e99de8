"""The report's figures of results: numbers in, SVG and PDF out. Of the page it knows the colours alone.

Every mark is labelled beside it, so that colour is never the only sign. A figure is drawn in the light palette; for a
page, `inline_svg` turns the palette's colours into CSS variables of the same names, so that the page's dark scheme
reaches into the figure. The same numbers give the same bytes.
"""

from __future__ import annotations

import functools
import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from rsd.formatting import signed
from rsd.runtime import atomic_path

P = ParamSpec("P")
R = TypeVar("R")

# Colours by the name of their CSS variable in templates/report.html.j2. The arms' colours are Okabe and Ito's, which
# people with any colour vision can tell apart; the first is the base's.
ARM_COLOURS = {
    "arm-0": "#6e7781",
    "arm-1": "#d55e00",
    "arm-2": "#0072b2",
    "arm-3": "#009e73",
    "arm-4": "#cc79a7",
    "arm-5": "#b8860b",
    "arm-6": "#56b4e9",
}
PALETTE = {"ink": "#1f2328", "soft": "#59636e", "line": "#d1d9e0", **ARM_COLOURS}
INK, SOFT, LINE = PALETTE["ink"], PALETTE["soft"], PALETTE["line"]

WIDTH = 6.2  # inches
ROW = 0.235  # inches a mark
LABEL_WIDTH = 30  # characters of a mark's label before it is broken
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "svg.fonttype": "none",
    # Text in a PDF as text (Type 42), which journals ask for.
    "pdf.fonttype": 42,
    "svg.hashsalt": "rsd",
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "xtick.color": SOFT,
    "ytick.color": INK,
    # Labels come from the configuration: a dollar sign is a dollar sign.
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Mark:
    """One value with its interval and a narrower one within it; None where it is missing or not determined."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    inner_low: float | None = None
    inner_high: float | None = None
    paper: float | None = None
    colour: str = INK
    strong: bool = False


@dataclass(frozen=True)
class Group:
    """Marks below one heading."""

    title: str
    marks: list[Mark] = field(default_factory=list)


@dataclass(frozen=True)
class Panel:
    """One panel of curves: label -> (x values, y values)."""

    title: str
    colour: str
    curves: dict[str, tuple[list[float], list[float]]]


@dataclass(frozen=True)
class Drawing:
    """A figure to be drawn, and how the page presents it."""

    name: str
    section: str
    title: str
    caption: str
    figure: Any
    folded: bool = False


def arm_colour(index: int) -> str:
    """The colour of the arm at `index` in the run; the base has index 0. Colours repeat after the palette's end."""
    if index == 0:
        return ARM_COLOURS["arm-0"]
    return ARM_COLOURS[f"arm-{(index - 1) % (len(ARM_COLOURS) - 1) + 1}"]


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draws in the report's style, and leaves matplotlib's settings as they were."""

    @functools.wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


@styled
def accuracy_figure(groups: Sequence[Group]) -> Any:
    """Horizontal bars of accuracies (per cent) with intervals, one group a task; the paper's values as diamonds."""
    figure, axes, places = _rows_figure(groups)
    marks = [mark for group in groups for mark in group.marks]
    top = _greatest([limit for mark in marks for limit in (mark.value, mark.high, mark.paper)])
    limit = min(100.0, max(top * 1.08, 1.0))
    for mark, y in places:
        if mark.value is None:
            _missing(axes, 0, y)
            continue
        axes.barh(y, mark.value, height=0.62, color=mark.colour, zorder=2)
        _whisker(axes, mark, y)
        if mark.paper is not None:
            axes.plot(mark.paper, y, marker="D", markersize=5, color=INK, markerfacecolor="none", zorder=4)
        end = max(mark.value, mark.high or 0, mark.paper or 0)
        _note(axes, end, y, f"{mark.value:.1f}", mark.strong)
    axes.set_xlim(0, limit)
    axes.set_xlabel("accuracy, %")
    if any(mark.paper is not None for mark in marks):
        diamond = axes.plot([], [], marker="D", markersize=5, color=INK, markerfacecolor="none", linestyle="none")
        figure.legend(diamond, ["the paper's value"], loc="outside upper right", frameon=False, fontsize=8)
    return figure


@styled
def forest_figure(groups: Sequence[Group]) -> Any:
    """Differences in points with both intervals (thin, thick) and the line of no difference, marks below headings."""
    figure, axes, places = _rows_figure(groups)
    marks = [mark for group in groups for mark in group.marks]
    reach = _greatest(
        [abs(limit) for mark in marks for limit in (mark.value, mark.low, mark.high) if limit is not None]
    )
    reach = max(reach * 1.1, 0.5)
    for mark, y in places:
        axes.plot([0, 0], [y - 0.55, y + 0.55], color=INK, linewidth=0.9, zorder=1, solid_capstyle="butt")
        if mark.value is None:
            _missing(axes, 0, y)
            continue
        _whisker(axes, mark, y)
        if mark.inner_low is not None and mark.inner_high is not None:
            inner = [mark.inner_low, mark.inner_high]
            axes.plot(inner, [y, y], color=mark.colour, linewidth=4.5, alpha=0.55, zorder=2, solid_capstyle="butt")
        axes.plot(
            mark.value,
            y,
            marker="D" if mark.strong else "o",
            markersize=6.5 if mark.strong else 5.5,
            color=mark.colour,
            zorder=3,
        )
        axes.annotate(
            signed(mark.value),
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold" if mark.strong else "normal",
        )
    axes.set_xlim(-reach, reach)
    axes.set_xlabel("difference in points (◂ worse · better ▸)")
    return figure


@styled
def training_figure(panels: Sequence[Panel]) -> Any:
    """Training loss over epochs, one panel an arm on a common scale, one line a seed (told apart by its dashes).

    Losses that differ more than twentyfold are shown on a logarithmic scale.
    """
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(WIDTH, 2.1 * lines + 0.3)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    dashes = ["-", "--", ":", "-."]
    for axes, panel in zip(grid.flat, panels, strict=False):
        bare(axes)
        axes.spines["left"].set_visible(True)
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.set_title(broken(panel.title, 24), fontsize=9, loc="left", fontweight="bold")
        for index, (label, (x, y)) in enumerate(panel.curves.items()):
            axes.plot(x, y, dashes[index % len(dashes)], color=panel.colour, linewidth=1.2, label=label)
        if len(panel.curves) > 1:
            axes.legend(frameon=False, fontsize=7.5, loc="upper right", handlelength=2.4)
    losses = [loss for panel in panels for _, y in panel.curves.values() for loss in y]
    if 0 < 20 * min(losses) < max(losses):
        # The scale is shared: setting it once sets it for all.
        grid[0, 0].set_yscale("log")
        grid[0, 0].yaxis.set_major_formatter("{x:g}")
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    for axes in grid[:, 0]:
        axes.set_ylabel("loss, nats a token")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    return figure


@styled
def save(figure: Any, folder: Path, name: str) -> str:
    """Writes NAME.svg and NAME.pdf into `folder`, on white; returns the SVG, on nothing."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    with atomic_path(folder / f"{name}.svg") as temporary:
        temporary.write_text(svg.replace("<defs>", _WHITE + "<defs>", 1), encoding="utf-8")
    with atomic_path(folder / f"{name}.pdf") as temporary:
        # Without its date and maker the same numbers give the same bytes.
        nothing = dict.fromkeys(("CreationDate", "Creator", "Producer"))
        figure.savefig(temporary, format="pdf", facecolor="white", metadata=nothing)
    return svg


# A picture file may be opened on any background.
_WHITE = '<rect width="100%" height="100%" fill="#ffffff"/>\n '


def inline_svg(svg: str, title: str) -> str:
    """An SVG of `save` as an element of a page: no prolog, no fixed size, the page's font and its CSS variables.

    `title` is read out by screen readers; it must not need escaping in an attribute (ValueError).
    """
    if re.search(r"[<>&\"]", title):
        raise ValueError(f"title of a figure = {title!r}: must be plain text without <, >, & and quotes; rephrase it")
    body = svg[svg.index("<svg") :]
    # The metadata block says who made the file; a page has no use for it.
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", body, count=1)
    body = body.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", body)
    for name, colour in PALETTE.items():
        body = body.replace(colour, f"var(--{name})")
    return body


# --- parts ---------------------------------------------------------------------------------------------------------


def new_figure(width: float, height: float) -> Any:
    """An empty figure of that size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _rows_figure(groups: Sequence[Group]) -> tuple[Any, Any, list[tuple[Mark, float]]]:
    """A figure with one row a mark below the headings of their groups: figure, axes, and where each mark is."""
    places: list[tuple[Mark, float]] = []
    headings: list[tuple[str, float]] = []
    y = 0.0
    for group in groups:
        headings.append((group.title, y))
        y += 0.95
        for mark in group.marks:
            places.append((mark, y))
            y += 1.35 if "\n" in broken(mark.label, LABEL_WIDTH) else 1
        y += 0.35
    figure = new_figure(WIDTH, ROW * y + 0.55)
    axes = figure.subplots()
    bare(axes)
    axes.grid(axis="x", color=LINE, linewidth=0.6, zorder=0)
    axes.set_yticks([place for _, place in places], [broken(mark.label, LABEL_WIDTH) for mark, _ in places])
    axes.set_ylim(y - 0.5, -0.7)
    for label, (mark, _) in zip(axes.get_yticklabels(), places, strict=True):
        label.set_fontweight("bold" if mark.strong else "normal")
    for title, place in headings:
        axes.annotate(
            title, (0, place), xycoords=("figure fraction", "data"), va="center", fontweight="bold", color=INK,
            annotation_clip=False,
        ).set_in_layout(False)  # fmt: skip
    return figure, axes, places


def bare(axes: Any) -> None:
    """Takes away what carries no number: spines and ticks."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0)


def _whisker(axes: Any, mark: Mark, y: float) -> None:
    if mark.low is None or mark.high is None:
        return
    axes.plot([mark.low, mark.high], [y, y], color=INK, linewidth=2.0 if mark.strong else 1.3, zorder=3)
    for end in (mark.low, mark.high):
        axes.plot([end, end], [y - 0.16, y + 0.16], color=INK, linewidth=1.0, zorder=3)


def _note(axes: Any, x: float, y: float, text: str, strong: bool) -> None:
    axes.annotate(
        text, (x, y), xytext=(6, 0), textcoords="offset points", va="center", fontweight="bold" if strong else "normal"
    )


def _missing(axes: Any, x: float, y: float) -> None:
    axes.annotate(
        "missing", (x, y), xytext=(6, 0), textcoords="offset points", va="center", fontstyle="italic", color=SOFT
    )


def broken(text: str, width: int) -> str:
    """Text on at most two lines of `width` characters."""
    return textwrap.fill(textwrap.shorten(text, 2 * width, placeholder=" …"), width)


def _greatest(values: Sequence[float | None]) -> float:
    return max((value for value in values if value is not None), default=0.0)
