"""The view of the token analyses, and the figures of distributions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd import distributions, report_distributions
from rsd.distributions import Axes, Change, Curve, Histogram
from rsd.report_tokens import is_trained, positions, reader_label, survival, tokens_view

CONFIG: dict[str, Any] = {
    "models": {"student": {}},
    "arms": {"rsd": {"model": "student", "traces": "rsd"}, "direct": {"model": "student", "traces": "direct"}},
}
ANSWERS: dict[str, Any] = {
    "base": "base",
    "arms": {
        "base": {"label": "Base", "traces": None},
        "direct": {"label": "Direct", "traces": "direct"},
        "rsd": {"label": "RSD", "traces": "rsd"},
    },
}


def test_a_reader_is_a_model_of_the_catalogue_or_one_that_was_trained() -> None:
    assert not is_trained("student", CONFIG)
    assert is_trained("rsd-seed1", CONFIG)
    assert not is_trained("odd-seed1", {"models": {"odd-seed1": {}}})
    assert reader_label("student", CONFIG, ANSWERS) == "student (before training)"
    assert reader_label("rsd-seed1", CONFIG, ANSWERS) == "RSD, seed 1 (after training)"


def test_the_share_above_an_edge_is_what_is_left_of_the_counts() -> None:
    assert survival({"edges": [0, 1, 2, 3], "counts": [5, 3, 2]}) == [(0, 1.0), (1, 0.5), (2, 0.2)]
    assert survival({"edges": [0, 1], "counts": [3, 1]}) == [(0, 1.0), (1, 0.25)]  # the last bin is open
    for nothing in (
        None,
        {},
        {"edges": [], "counts": []},
        {"edges": [0, 1], "counts": [0]},
        {"edges": [0], "counts": [1, 2]},
    ):
        assert survival(nothing) == []


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20).filter(any))
def test_the_share_above_an_edge_never_rises_and_begins_with_all(counts: list[int]) -> None:
    shares = [share for _, share in survival({"edges": list(range(len(counts) + 1)), "counts": counts})]
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert np.allclose(shares, [sum(counts[place:]) / sum(counts) for place in range(len(counts))])


def test_stretches_without_tokens_are_left_out() -> None:
    record = {
        "positions": [
            {"start": 0, "stop": 10, "tokens": 5, "improbable_share": 0.1},
            {"start": 10, "stop": 20, "tokens": 0, "improbable_share": None},
        ]
    }
    assert positions(record, "improbable_share") == [(5.0, 0.1)]
    assert positions({}, "improbable_share") == []


def test_the_view_lists_every_analysis_and_the_untrained_readers_frequent_tokens() -> None:
    frequent = [{"piece": str(number), "count": 1, "share": 0.01} for number in range(30)]
    analyses = {
        ("rsd", "student"): {"threshold": 0.01, "problems": 50, "frequent_improbable": frequent},
        ("rsd", "rsd-seed0"): {"threshold": 0.01, "frequent_improbable": frequent},
        ("direct", "student"): {},
    }
    view = tokens_view(analyses, CONFIG, ANSWERS)
    assert [(entry["traces"], entry["after"], entry["there"]) for entry in view["entries"]] == [
        ("rsd", False, True),
        ("rsd", True, True),
        ("direct", False, False),
    ]
    assert view["thresholds"] == [0.01]
    assert view["problems"] == [50]
    assert [(entry["traces"], len(entry["pieces"])) for entry in view["frequent"]] == [("rsd", 12)]
    assert tokens_view({}, CONFIG, ANSWERS)["entries"] == []


def test_before_and_after_training_stand_in_one_row_a_trace_set() -> None:
    analyses = {
        ("rsd", "student"): {"improbable_share": 0.02},
        ("rsd", "rsd-seed0"): {"improbable_share": 0.01},
        ("rsd", "rsd-seed1"): {"improbable_share": 0.012},
        ("direct", "rsd-seed0"): {"improbable_share": 0.05},
        ("direct", "direct-seed0"): {},
    }
    changes = report_distributions.changes_of(analyses, CONFIG, {"rsd": "red", "direct": "blue"})
    assert [(row.label, row.before, row.after) for row in changes] == [
        ("rsd", 2.0, [1.0, 1.2]),
        ("direct, read by rsd", None, [5.0]),
    ]
    assert distributions.change_figure(changes, "x").axes


# --- figures -------------------------------------------------------------------------------------------------------


def test_panels_share_their_bins_and_whole_numbers_get_one_each() -> None:
    panels = [Histogram(str(n), "#d55e00", np.array([float(n), n + 1.0]), np.array([])) for n in range(12)]
    figure = distributions.histogram_figure(panels, "x", "y")
    assert len(figure.axes) == 12
    edges = [patch.get_data().edges for axes in figure.axes for patch in axes.patches]
    assert all((edge == edges[0]).all() for edge in edges)
    whole = distributions.histogram_figure(panels[:1], "x", "y", whole=True)
    assert whole.axes[0].patches[0].get_data().edges.tolist() == [-0.5, 0.5, 1.5]


@pytest.mark.parametrize("values", [[], [3.0], [3.0, 3.0]])
def test_few_or_equal_values_are_no_error(values: list[float]) -> None:
    panel = Histogram("x", "#d55e00", np.array(values), np.array(values))
    distributions.histogram_figure([panel], "x", "y")


def test_lines_are_told_apart_without_their_colours() -> None:
    curves = [Curve(f"set{number}", "#d55e00", [(1.0, 1.0), (2.0, 0.5)]) for number in range(6)]
    figure = distributions.curves_figure([Axes("a", "x", "y", curves), Axes("b", "x", "y", curves[:1], log_y=True)])
    styles = {str(line._dash_pattern) for line in figure.axes[0].lines}
    assert len(styles) == 6
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"set{number}" for number in range(6)]


def test_a_change_without_its_before_shows_the_after() -> None:
    assert distributions.change_figure([Change("x", "#d55e00", None, [1.0])], "x").axes
