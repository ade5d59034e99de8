"""What a run asks, written down before it: which models are compared, on what, and what would be an answer.

Everything here follows from the configuration alone (`config.compare_settings`), so that it is the same before and
after the run.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

Pair = tuple[str, str]
# arm, against, task
Test = tuple[str, str, str]


def asked(settings: Mapping[str, Any]) -> list[Pair]:
    """The comparisons (arm, against) that answer the question: those of `question.comparisons` whose arms this run has.

    Where there is none: every arm trained on RSD traces with the base and with direct distillation; every comparison
    with the base where there is no such arm.
    """
    if found := [pair for pair in _named(settings) if _runs(pair, settings)]:
        return found
    method = {arm: entry["method"] for arm, entry in settings["arms"].items()}
    base, every = settings["base"], _usual_pairs(settings)
    found = [pair for pair in every if method[pair[0]] == "rsd" and (pair[1] == base or method[pair[1]] == "dataset")]
    return found or [pair for pair in every if pair[1] == base]


def left_out(settings: Mapping[str, Any]) -> list[Pair]:
    """The comparisons of `question.comparisons` that this run, without one of their arms, cannot make."""
    return [pair for pair in _named(settings) if not _runs(pair, settings)]


def _named(settings: Mapping[str, Any]) -> list[Pair]:
    return [(arm, against) for arm, against in settings["question"]["comparisons"] or ()]


def _runs(pair: Pair, settings: Mapping[str, Any]) -> bool:
    return all(arm in settings["arms"] for arm in pair)


def pairs(settings: Mapping[str, Any]) -> list[Pair]:
    """Who is compared with whom: every arm with the base, then every trained arm with the trained ones before it.

    The question's comparisons have the direction in which they were asked, and follow where they are none of these.
    """
    question = asked(settings)
    usual = [pair[::-1] if pair[::-1] in question else pair for pair in _usual_pairs(settings)]
    return [*usual, *(pair for pair in question if pair not in usual)]


def _usual_pairs(settings: Mapping[str, Any]) -> list[Pair]:
    others = [arm for arm in settings["arms"] if arm != settings["base"]]
    trained = [arm for arm in others if settings["arms"][arm]["traces"]]
    return [(arm, settings["base"]) for arm in others] + [
        (later, earlier) for earlier, later in itertools.combinations(trained, 2)
    ]


def paired_seeds(settings: Mapping[str, Any], arm: str, against: str) -> list[Pair]:
    """(seed of `arm`, seed of `against`) that are compared: the same one, or the only one of an untrained arm."""
    seeds, others = ([str(seed) for seed in settings["arms"][name]["seeds"]] for name in (arm, against))
    if not settings["arms"][against]["traces"]:
        return [(seed, others[0]) for seed in seeds]
    if not settings["arms"][arm]["traces"]:
        return [(seeds[0], other) for other in others]
    return [(seed, seed) for seed in seeds]


def families(settings: Mapping[str, Any], overall: str) -> tuple[list[Test], list[Test]]:
    """The tests (arm, against, task) of the run: the primary family, and all others.

    Primary are the question's comparisons on the mean of the tasks, which is called `overall`. Of a single task the
    mean is that task; it is tested once, under that name.
    """
    tasks = [*settings["tasks"], overall] if len(settings["tasks"]) > 1 else [overall]
    primary = [(arm, against, overall) for arm, against in asked(settings)]
    every = [(arm, against, task) for arm, against in pairs(settings) for task in tasks]
    return primary, [test for test in every if test not in primary]


def describe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The question as the report quotes it.

    `text`, `comparisons` [[arm, against], ...], those `left_out` of it, and the `rule`.
    """
    comparisons, missing = asked(settings), left_out(settings)
    # Words about comparisons none of which this run makes would be those of another run.
    own = settings["question"]["text"] if len(missing) < len(_named(settings)) or not missing else ""
    return {
        "text": own or _text(comparisons, settings),
        "comparisons": [list(pair) for pair in comparisons],
        "left_out": [list(pair) for pair in missing],
        "rule": rule(settings),
    }


def _text(comparisons: Sequence[Pair], settings: Mapping[str, Any]) -> str:
    label = {arm: entry["label"] for arm, entry in settings["arms"].items()}
    named = "; ".join(f"“{label[arm]}” or “{label[against]}”" for arm, against in comparisons)
    return f"Which model is better: {named}?" if comparisons else "How good is the one model of this run?"


def rule(settings: Mapping[str, Any]) -> str:
    """The decision rule, of which `verdict` is the code."""
    what = "in accuracy" if len(settings["tasks"]) == 1 else "in accuracy on the mean of the tasks"
    return (
        f"In each comparison, the first model helps if the {100 * settings['confidence']:g} % interval, for problems "
        f"like these, of its difference to the second {what} lies above 0; it harms if the interval lies below 0; else "
        "this run cannot tell."
    )


def verdict(value: float | None, low: float | None, high: float | None) -> str:
    """`higher` or `lower` if the interval of a difference leaves out 0, else `undecided`; `missing` without a value."""
    if value is None:
        return "missing"
    if low is not None and low > 0:
        return "higher"
    if high is not None and high < 0:
        return "lower"
    return "undecided"


def family_text(settings: Mapping[str, Any]) -> str:
    """Which tests were corrected together."""
    if len(settings["tasks"]) == 1:
        first, rest = "the question's comparisons", "all other comparisons"
    else:
        first = "the question's comparisons on the mean of the tasks"
        rest = "all other tests: every comparison on every task, and on the mean those that the question does not name"
    return f"Holm's correction within two families: {first}; and {rest}."
