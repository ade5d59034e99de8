"""Problems, settings and requests of an evaluation, for the tests of the backends and of what is made of samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from rsd.collect import run_collect_scores
from rsd.evaluate import run_evaluate
from rsd.records import SAMPLES, read_table
from rsd.samples import Generation

END = "<|im_end|>"
FORMAT = {"think_close": "</think>", "end_of_turn": END, "answer": "boxed", "dataset_trace": "{response}"}
PROMPT = "<|im_start|>{question}" + END


def problem(number: int, **changes: Any) -> dict[str, Any]:
    """number + 1."""
    return {"id": f"{number:016x}", "question": f"{number}+1", "answer": str(number + 1), "solution": ""} | changes


def settings_with(**changes: Any) -> dict[str, Any]:
    """config.evaluation_settings of a tiny model."""
    settings = {
        "task": "pocket",
        "repeats": 4,
        "shards": 1,
        "backend": "rsd",
        "lanes": 5,
        "jobs_at_once": 1,
        "sampling": {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
        "context": 40,
        "profile": "paper",
        "model": {"name": "student", "dtype": "float32", "prompt": PROMPT},
        "format": FORMAT,
        "seed": 0,
        "device": "cpu",
        "gpus": 1,
    }
    return settings | changes


def requests_for(numbers: Sequence[int], repeats: int, task: str = "pocket", **wishes: Any) -> list[Instance]:
    """As lm-eval makes them: the k repeats of a document are the same object k times."""
    requests: list[Instance] = []
    for index, number in enumerate(numbers):
        wish = {"until": [], "temperature": 1.0, "top_k": 0, "top_p": 1.0} | wishes
        prompt = PROMPT.replace("{question}", f"{number}+1")
        one = Instance("generate_until", problem(number), (prompt, wish), idx=0, metadata=(task, index, repeats))
        requests += [one] * repeats
    return requests


def said(text: str, n_tokens: int = 10) -> Generation:
    """A generation that ended its turn."""
    return Generation(text + END, n_tokens, "end_of_turn")


def cut(text: str, n_tokens: int = 20) -> Generation:
    """A generation that met the length limit."""
    return Generation(text, n_tokens, "length")


def facts(generations: Sequence[Generation]) -> list[tuple[str, int, str]]:
    """All that a generation says."""
    return [(str(generation), generation.n_tokens, generation.finish) for generation in generations]


def evaluated(
    model: Path, benchmark: Path, where: Path, settings: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Runs every shard, then joins them: the samples and the scores."""
    shards = [where / settings["task"] / f"shard-{shard:03d}.parquet" for shard in range(settings["shards"])]
    for shard, path in enumerate(shards):
        run_evaluate(
            model=model,
            benchmark=benchmark,
            settings=settings,
            shard=shard,
            threads=1,
            samples=path,
            work=benchmark.parent / "work",
        )
    samples, scores = where / f"{settings['task']}.parquet", where / f"{settings['task']}.json"
    run_collect_scores(
        benchmark=benchmark, shards=shards, judge=None, settings=settings, samples=samples, scores=scores
    )
    return read_table(samples, SAMPLES).to_pylist(), json.loads(scores.read_text(encoding="utf-8"))
