"""A whole results folder made up for the report: records, traces, token analyses, benchmarks, and the page of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from rsd import config as configuration
from rsd import report
from rsd.compare import run_compare
from rsd.records import ROWS, TOKENS, VERDICTS, write_jsonl, write_record, write_table
from rsd.runtime import write_json
from synthetic_results import problem_id

ROOT = Path(__file__).parents[1]

Config = dict[str, Any]
Record = dict[str, Any]

RUN = {
    "commit": "0123456789abcdef",
    "python": "3.11.9",
    "packages": {"torch": "2.13.0"},
    "machine": "x86_64",
    "gpu": None,
    "finished_unix": 1.7e9,
}
QUANTILES = {"mean": 110.0, "p0": 5.0, "p5": 20.0, "p25": 70.0, "p50": 100.0, "p75": 130.0, "p95": 240.0, "p100": 300.0}
SELECTION = {
    "problems": {"all": 1000, "solved": 167, "prefix": 833, "dropped": 0, "without_attempt": {}},
    "attempts": 16000,
    "reasons": {"kept": 167, "unfinished": 12000, "wrong_answer": 3833},
    "correct_share": 0.0625,
    "tokens": {"attempts": QUANTILES, "kept": QUANTILES, "completions": QUANTILES, "rows": None},
    "block_size": 8192,
    "over_block_share": 0.5678,
    "kept_unfinished_share": 0.0,
    "fallback_rate": {"attempts": 0.0084, "kept": 0.0051},
    "provenance": {"settings": {}, "run": RUN},
}
TRAINING = {
    "curve": [{"step": step, "epoch": step / 50, "loss": 1 / step, "tokens": 100} for step in range(1, 151)],
    "rows": {
        "total": 1000,
        "prefix": 833,
        "overlong": 5,
        "truncated": 5,
        "dropped": 0,
        "used": 1000,
        "supervised_tokens": 123456,
    },
    "steps": 150,
    "epochs": 3,
    "seconds": 3725.0,
    "resumed_from_step": None,
    "provenance": {"settings": {"settings": {"device": "auto"}}, "run": RUN | {"gpu": "NVIDIA H100"}},
}
PROBLEMS = {"dataset": "s1k", "rows": 1003, "problems": 1000, "limit": None, "duplicates": [{}] * 2, "empty": [{}]}
OVERLAP = {
    "n_problems": 1000,
    "method": {"near": "half of the words"},
    "tasks": {
        "math500": {"n_problems": 500, "exact": [["a1", "b1"], ["a2", "b2"]], "near": [["a3", "b2", 0.75]]},
        "gpqa_diamond": {"n_problems": 198, "exact": [], "near": []},
    },
}
MANIFEST = {
    "kind": "model",
    "source": "hf://Qwen/Qwen3-0.6B",
    "revision": "c1899de",
    "licence": "apache-2.0",
    "files": {"model.safetensors": {"size": 1_503_300_328, "sha256": "f00d" * 16}},
}
SCORE = {
    "tokens": 1000,
    "seconds": 60.0,
    "resumed_samples": 0,
    "lm_eval": {"version": "0.4.13", "task_version": 1},
    "provenance": {"settings": {"settings": {"device": "cpu"}}, "run": RUN},
}
WORDS = [
    "So",
    " the",
    " sum",
    " is",
    " 12",
    "+",
    "7",
    "=",
    "19",
    ".\n",
    " Wait",
    ",",
    " \\frac",
    "{a}",
    "{b}",
    " let",
    " me",
]


def paper_config(**changes: Any) -> Config:
    """The paper's configuration with two seeds and few resamples, and `changes` laid over it."""
    over = {"report": {"resamples": 300}, "run": {"seeds": [0, 1]}}
    loaded = configuration.validate(configuration.merge(configuration.load([ROOT / "config.yaml"]), over))
    return configuration.merge(loaded, changes)


class Folder:
    """A results folder, and the report made of it. Traces, tokens and benchmarks are there once they are written."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config = path, config
        for name in ("direct", "rsd"):
            self.selection(name, SELECTION)
        self.trainings = {
            f"{arm}-seed{seed}": self.record(f"{arm}{seed}.training", TRAINING)
            for arm in ("direct", "rsd")
            for seed in (0, 1)
        }
        self.manifests = {"models/student": self.record("student.manifest", MANIFEST)}
        self.problems_report = self.record("problems", PROBLEMS)
        self.overlap = self.record("overlap", OVERLAP)
        self.analyses: list[tuple[str, str]] = []

    def record(self, name: str, value: Any) -> Path:
        path = self.path / "records" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    def selection(self, name: str, record: Any) -> Path:
        path = self.path / "traces" / name / "selection.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
        return path

    def records(self) -> list[Path]:
        """The JSON records of all stages but the scores."""
        selections = sorted((self.path / "traces").glob("*/selection.json"))
        return [*selections, *self.trainings.values(), *self.manifests.values(), self.problems_report, self.overlap]

    def benchmark(self, name: str, seconds: float) -> None:
        path = self.path / "benchmarks" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"s": seconds, "cpu_time": 2 * seconds, "max_rss": 1.0}) + "\n")

    def compare(self) -> None:
        run_compare(
            scores=self.path / "scores",
            settings=configuration.compare_settings(self.config),
            output=self.path / "comparison.csv",
            summary=self.path / "comparison.json",
        )

    def change_summary(self, **changes: Any) -> None:
        """Lays `changes` over comparison.json."""
        path = self.path / "comparison.json"
        write_record(path, json.loads(path.read_text()) | changes)

    def report(self) -> tuple[str, str]:
        """The page and the Markdown."""
        with mock.patch("rsd.report.token_analyses", return_value=self.analyses):
            report.run_report(
                comparison=self.path / "comparison.csv",
                summary=self.path / "comparison.json",
                problems=self.path / "problems.jsonl",
                traces=self.path / "traces",
                tokens=self.path / "tokens",
                trainings=self.trainings,
                problems_report=self.problems_report,
                overlap=self.overlap,
                manifests=self.manifests,
                scores=self.path / "scores",
                benchmarks=self.path / "benchmarks",
                settings=configuration.report_settings(self.config),
                html=self.path / "report.html",
                markdown=self.path / "comparison.md",
                figures=self.path / "figures",
                tables=self.path / "tables",
            )
        return (self.path / "report.html").read_text(), (self.path / "comparison.md").read_text()


# --- traces --------------------------------------------------------------------------------------------------------


def write_problems(path: Path, count: int, question_length: int = 300) -> list[str]:
    """Training problems with questions of about that many characters; returns their ids."""
    ids = [problem_id(number) for number in range(count)]
    filler = "Find the number of ordered pairs of integers such that the sum of squares is a prime below the bound. "
    records = [
        {"id": name, "question": f"Question {number}: {filler * 9}"[:question_length], "answer": str(number % 97)}
        for number, name in enumerate(ids)
    ]
    write_jsonl(path, records)
    return ids


def write_traces(folder: Path, ids: Sequence[str], attempts: int, *, rsd: bool = True, seed: int = 0) -> None:
    """verdicts.parquet and rows.parquet of a set: a third of the problems solved, the others rows are prefixes."""
    rng = np.random.default_rng(seed)
    verdicts, rows = [], []
    for number, name in enumerate(ids):
        solved = not rsd or number % 3 == 0
        kept = int(rng.integers(attempts)) if solved else None
        for attempt in range(attempts):
            right = attempt == kept or (solved and bool(rng.random() < 0.2))
            cut = not right and bool(rng.random() < 0.3)
            reason = "kept" if attempt == kept else "not_shortest" if right else "unfinished" if cut else "wrong_answer"
            verdicts.append(
                {
                    "problem_id": name,
                    "attempt": attempt,
                    "n_tokens": int(rng.lognormal(6.5, 0.6)),
                    "finish": "length" if cut else "end_of_turn",
                    "fallback_rate": float(rng.beta(1, 120)) if rsd else 0.0,
                    "answer": None if cut else str(number % 97 if right else int(rng.integers(97))),
                    "correct": right,
                    "kept": attempt == kept,
                    "reason": reason,
                }
            )
        rows.append(
            {
                "problem_id": name,
                "attempt": kept or 0,
                "kind": "trace" if solved else "prefix",
                "prompt_tokens": [1] * 10,
                "completion_tokens": [2] * (500 if solved else 128),
            }
        )
    write_table(folder / "verdicts.parquet", verdicts, VERDICTS, {})
    write_table(folder / "rows.parquet", rows, ROWS, {})


def token_rows(
    ids: Sequence[str], length: int, *, improbable: float = 0.01, fallback: float = 0.008, seed: int = 0
) -> list[Record]:
    """Training rows token by token: every third a whole trace of `length` tokens, the others prefixes of 128."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, name in enumerate(ids):
        whole = number % 3 == 0
        size = length if whole else min(128, length)
        probability = np.where(
            rng.random(size) < improbable, rng.random(size) * 0.01, 1 - rng.beta(0.3, 4, size) * 0.98
        )
        rows.append(
            {
                "problem_id": name,
                "attempt": 0,
                "kind": "trace" if whole else "prefix",
                "tokens": rng.integers(0, 1000, size).tolist(),
                "pieces": [WORDS[index] for index in rng.integers(0, len(WORDS), size)],
                "fallback": (rng.random(size) < fallback).tolist(),
                "probability": probability.tolist(),
                "rank": np.maximum(1, (1 / np.maximum(probability, 1e-4) ** 0.7).astype(int)).tolist(),
            }
        )
    return rows


def write_tokens(folder: Path, traces: str, reader: str, rows: Sequence[Record], threshold: float = 0.01) -> None:
    """A token analysis of `rows`, the file and its sums."""
    write_table(folder / traces / f"{reader}.parquet", rows, TOKENS, {})
    write_json(folder / traces / f"{reader}.json", summarise(traces, reader, rows, threshold))


def summarise(traces: str, reader: str, rows: Sequence[Record], threshold: float) -> Record:
    """The sums of a token analysis, straight from their definitions."""
    p = np.array([value for row in rows for value in row["probability"]])
    rank = np.array([value for row in rows for value in row["rank"]])
    pieces = [piece for row in rows for piece in row["pieces"]]
    low, nats = p < threshold, -np.log(np.maximum(p, 1e-30))
    counts: dict[str, int] = {}
    for piece, flag in zip(pieces, low, strict=True):
        counts[piece] = counts.get(piece, 0) + int(flag)
    places = np.concatenate([np.arange(len(row["pieces"])) for row in rows])
    longest = int(places.max()) + 1
    stretches = [
        (start, min(start * 2 or 16, longest)) for start in (0, *(16 * 2**k for k in range(20))) if start < longest
    ]

    def quantiles(values: np.ndarray) -> Record:
        return {f"p{share}": float(np.quantile(values, share / 100)) for share in (5, 25, 50, 75, 95)}

    surprisal_edges = [0.0, *(2.0**power for power in range(-10, 8))]
    rank_edges = [1, 2, 3, 6, 11, 21, 51, 101, 1001, 10001, 100001]
    return {
        "traces": traces,
        "reader": reader,
        "problems": len(rows),
        "rows": len(rows),
        "tokens": len(p),
        "threshold": threshold,
        "improbable_share": float(low.mean()),
        "mean_surprisal": float(nats.mean()),
        "mean_rank": float(rank.mean()),
        "mean_entropy": 0.4,
        "rank_surprisal_ratio": float(np.minimum(rank, 100).mean() / nats.mean()),
        "positions": [
            {
                "start": start,
                "stop": stop,
                "tokens": int(((places >= start) & (places < stop)).sum()),
                "improbable_share": float(low[(places >= start) & (places < stop)].mean()),
                "mean_surprisal": float(nats[(places >= start) & (places < stop)].mean()),
            }
            for start, stop in stretches
        ],
        "frequent_improbable": [
            {"piece": piece, "count": count, "share": count / max(1, int(low.sum()))}
            for piece, count in sorted(counts.items(), key=lambda item: -item[1])
            if count
        ],
        "surprisal": {"edges": surprisal_edges, "counts": np.histogram(nats, surprisal_edges)[0].tolist()},
        "rank": {"edges": rank_edges, "counts": np.histogram(rank, rank_edges)[0].tolist()},
        "quantiles": {"surprisal": quantiles(nats), "rank": quantiles(rank)},
        "provenance": {"settings": {"settings": {"device": "cpu"}}, "run": RUN},
    }


def scores_records(folder: Path, tasks: Mapping[str, Any], record: Record) -> None:
    """The record of every model and task whose samples are there."""
    for model in folder.iterdir():
        for task in tasks:
            (model / f"{task}.json").write_text(json.dumps(record))
