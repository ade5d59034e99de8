"""A results folder with made-up samples, for the tests of compare and report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rsd.records import SAMPLES, write_table

# Problems and samples a problem of the paper's tasks.
PAPER_TASKS = {"aime24": (30, 64), "aime25": (30, 64), "gpqa_diamond": (198, 16), "math500": (500, 8)}
# Mean accuracies that look like the paper's; made up for the trained arms.
PAPER_ACCURACY = {
    "base": {"aime24": 2.7, "aime25": 10.9, "gpqa_diamond": 24.8, "math500": 65.4},
    "direct": {"aime24": 1.5, "aime25": 6.5, "gpqa_diamond": 22.0, "math500": 52.0},
    "rsd": {"aime24": 3.6, "aime25": 12.0, "gpqa_diamond": 25.9, "math500": 67.3},
}


def write_samples(path: Path, correct: np.ndarray, *, cut: np.ndarray | None = None) -> None:
    """Samples from `correct` [problems, repeats] of bools; `cut` marks the unfinished ones (none if left out)."""
    problems, repeats = correct.shape
    cut = np.zeros_like(correct) if cut is None else cut
    rows = [
        {
            "problem_id": problem_id(problem),
            "repeat": repeat,
            "answer": None if cut[problem, repeat] else "7" if correct[problem, repeat] else "8",
            "correct": bool(correct[problem, repeat]),
            "exact": bool(correct[problem, repeat]),
            "n_tokens": 100 + problem,
            "finish": "length" if cut[problem, repeat] else "end_of_turn",
            "think_closed": not cut[problem, repeat],
            "text": f"sample {problem} {repeat}",
        }
        for problem in range(problems)
        for repeat in range(repeats)
    ]
    write_table(path, rows, SAMPLES, {})


def problem_id(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:16]


def write_scores(
    folder: Path,
    tasks: Mapping[str, tuple[int, int]],
    accuracy: Mapping[str, Mapping[str, float]],
    seeds: Mapping[str, list[int]],
) -> None:
    """Samples of every arm, seed and task: the same problems are hard for all models."""
    for task, (problems, repeats) in tasks.items():
        difficulty = np.random.default_rng(len(task)).normal(size=problems)
        for index, arm in enumerate(accuracy):
            for seed in seeds[arm]:
                rng = np.random.default_rng([index, seed, problems])
                chance = _chances(difficulty + 0.1 * rng.normal(size=problems), accuracy[arm][task] / 100)
                correct = rng.random((problems, repeats)) < chance[:, None]
                cut = ~correct & (rng.random((problems, repeats)) < 0.2)
                write_samples(folder / f"{arm}-seed{seed}" / f"{task}.parquet", correct, cut=cut)


def _chances(ability: np.ndarray, mean: float) -> np.ndarray:
    """Chances of success with that mean: a logistic of the ability, shifted by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if (1 / (1 + np.exp(-3 * ability - middle))).mean() > mean:
            high = middle
        else:
            low = middle
    return 1 / (1 + np.exp(-3 * ability - low))
