"""Evaluation: one model on one benchmark, through lm-evaluation-harness with task files of our own.

Model folder, benchmark (JSONL: id, question, answer, solution) -> every sample (Parquet, SAMPLES) and scores (JSON).
lm-eval asks the model and calls the scoring; prompt, answer extraction and grading are those of traces and training.
Samples that are done are kept in `work` and not made again. By hand: `rsd evaluate --help`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsd import grading, prompts
from rsd.config import NOT_DECIDING
from rsd.journal import Journal
from rsd.manifest import MANIFEST, verify_manifest
from rsd.provenance import code_digest, file_digest, settings_digest, stamp
from rsd.records import REMEDY, SAMPLES, read_jsonl, write_table
from rsd.runtime import choose_device, set_threads, write_json
from rsd.stages import DECODER

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask

    from rsd.lm import Generation

LOG = logging.getLogger(__name__)
TASKS = Path(__file__).parents[1] / "tasks"
FILTER = "every-sample"  # the name of the task files' filter, which keeps them all
# The modules that decide what a sample is; grading is done anew in every run.
SAMPLE_CODE = ("lm", *DECODER)
# Settings without influence on a sample: more repeats or other lanes go on with what is there.
NOT_IN_SAMPLE = ("repeats", *NOT_DECIDING)

Row = dict[str, Any]


def run_evaluate(
    *,
    model: Path,
    benchmark: Path,
    settings: dict[str, Any],
    threads: int,
    samples: Path,
    scores: Path,
    work: Path,
) -> None:
    """Evaluates the model folder `model` on `benchmark` and writes `samples` (Parquet) and `scores` (JSON).

    `settings` is `config.evaluation_settings(...)`. Raises FileNotFoundError for an incomplete model folder, ValueError
    for a benchmark without problems and for prompts that do not fit the context.
    """
    start = time.monotonic()
    os.environ.setdefault("TQDM_DISABLE", "1")  # no bars in log files; read when tqdm is imported
    verify_manifest(model, deep=False)
    set_threads(threads)
    path = journal_path(work, model, benchmark, settings)
    with Journal(path) as journal:
        lm = load_lm(model, settings, journal)
        results = run_harness(lm, benchmark, settings)
        resumed = lm.resumed
    task = settings["task"]
    rows = [row for document in results["samples"][task] for row in document["samples"]]
    metrics = check_metrics(rows, results["results"][task])
    files = {path.stem: path for path in task_files(task)}
    provenance = stamp(settings, {"model": model, "benchmark": benchmark, **files}, settings["seed"])
    write_table(samples, rows, SAMPLES, provenance)
    score: dict[str, Any] = {
        "task": task,
        "model": settings["model"]["name"],
        "profile": settings["profile"],
        "n_problems": len(results["samples"][task]),
        "repeats": settings["repeats"],
        "metrics": metrics,
        "tokens": sum(row["n_tokens"] for row in rows),
        "lm_eval": {"version": importlib.metadata.version("lm_eval"), "task_version": results["versions"][task]},
        # Of this run alone; samples of an earlier, interrupted run are not in its seconds.
        "seconds": round(time.monotonic() - start, 3),
        "resumed_samples": resumed,
        "provenance": provenance,
    }
    write_json(scores, score)
    # The samples stay for another grading; those of earlier settings go.
    for other in set(path.parent.glob("*.jsonl")) - {path}:
        other.unlink()
    LOG.info(
        "%s: %.2f %% correct (%d problems x %d), %.1f %% cut, %.1f %% without an answer, %.0f tokens a sample",
        *(task, 100 * metrics["avg"], score["n_problems"], score["repeats"]),
        *(100 * metrics["cut"], 100 - 100 * metrics["answered"], metrics["tokens"]),
    )


def journal_path(work: Path, model: Path, benchmark: Path, settings: Mapping[str, Any]) -> Path:
    """Where finished samples are kept: named by all that decides them, so that no other run's can be taken."""
    decisive = {key: value for key, value in settings.items() if key not in NOT_IN_SAMPLE}
    parts = [decisive, file_digest(model / MANIFEST), file_digest(benchmark), code_digest(SAMPLE_CODE)]
    return work / settings["task"] / f"{settings_digest(parts)}.jsonl"


def load_lm(model: Path, settings: Mapping[str, Any], journal: Journal | None) -> Any:
    """The model behind lm-eval's interface (`lm.RsdLM`)."""
    from rsd.lm import RsdLM

    return RsdLM(
        model,
        dtype=settings["model"]["dtype"],
        device=choose_device(settings["device"]),
        batch_size=settings["lanes"],
        max_length=settings["context"],
        end_of_turn=settings["format"]["end_of_turn"],
        seed=settings["seed"],
        sharers=settings["jobs_at_once"],
        journal=journal,
    )


def run_harness(lm: LM, benchmark: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Runs lm-eval with any of its models; returns its results, `samples` included.

    Calls `evaluate`, not `simple_evaluate`: that one seeds the global generators and spends seconds on a description of
    the machine that our stamp has already.
    """
    import lm_eval

    with _only_real_warnings():
        task = load_task(benchmark, settings)
        results = lm_eval.evaluate(lm, {"tasks": {settings["task"]: task}}, bootstrap_iters=0, log_samples=True)
    if results is None:
        raise RuntimeError("lm-eval returned no results, as it does in all but the first process of a group; use one")
    return dict(results)


# --- the task ------------------------------------------------------------------------------------------------------


def task_files(task: str) -> list[Path]:
    """The task file of a benchmark and what it includes; a benchmark without a file of its own uses the generic one."""
    own, generic = TASKS / f"{task}.yaml", TASKS / "generic.yaml"
    return [own, generic] if own.exists() and own != generic else [generic]


def load_task(benchmark: Path, settings: Mapping[str, Any]) -> ConfigurableTask:
    """The lm-eval task over `benchmark`, with prompt, sampling and repeats of the settings."""
    from lm_eval.tasks import TaskManager

    path = task_files(settings["task"])[0]
    # What the task's functions get to know; lm-eval passes metadata to `custom_dataset`.
    metadata: dict[str, Any] = {
        "benchmark": str(benchmark),
        "prompt": settings["model"]["prompt"],
        "format": settings["format"],
    }
    # The harness's own thousands of task files stay unread.
    manager = TaskManager(include_defaults=False, metadata=metadata)
    (task,) = manager.load([str(path)])["tasks"].values()
    task.set_config("task", settings["task"])
    task.set_config("repeats", settings["repeats"])
    task.set_config("generation_kwargs", settings["sampling"], update=True)
    return task


def load_problems(benchmark: str, prompt: str, format: Mapping[str, Any], **_: Any) -> dict[str, Any]:
    """The documents of a task (its `custom_dataset`): {"test": Dataset of id, prompt, answer, format}.

    The prompt is rendered here, by the code that traces use, and lm-eval takes the column as it is. A reference
    solution is never shown. ValueError for a benchmark without problems, or with two of one id (they would share their
    random numbers).
    """
    from datasets import Dataset

    problems = read_jsonl(Path(benchmark))
    if not problems:
        raise ValueError(f"{benchmark} has no problems, so there is nothing to score; {REMEDY}")
    for name in ("id", "question", "answer"):
        if missing := [number for number, problem in enumerate(problems, start=1) if not problem.get(name)]:
            raise ValueError(f"{benchmark}, line {missing[0]}: no {name}; expected id, question, answer; {REMEDY}")
    if len({problem["id"] for problem in problems}) < len(problems):
        raise ValueError(f"{benchmark} holds two problems of the same id; {REMEDY}")
    documents = [
        {
            "id": problem["id"],
            "prompt": prompts.render(prompt, problem["question"]),
            "answer": problem["answer"],
            "format": dict(format),
        }
        for problem in problems
    ]
    return {"test": Dataset.from_list(documents)}


# --- scoring -------------------------------------------------------------------------------------------------------


def score_problem(doc: Mapping[str, Any], results: Sequence[Sequence[Generation]]) -> dict[str, Any]:
    """All samples of one problem (the task's `process_results`): its metrics, and under `samples` one row each."""
    (generations,) = results
    rows = grade_samples(doc["id"], doc["answer"], generations, doc["format"])
    return {**summarise(rows), "samples": rows}


def grade_samples(
    problem_id: str, reference: str, generations: Sequence[Generation], format: Mapping[str, Any]
) -> list[Row]:
    """One SAMPLES row a generation, in order.

    A generation that was cut at the length limit has no answer, even where an answer seems to stand in it: it is wrong,
    and counted as cut.
    """
    format = dict(format)
    rows = []
    verdicts: dict[str | None, tuple[bool, bool]] = {None: (False, False)}
    for repeat, generation in enumerate(generations):
        text = str(generation)
        answer = prompts.extract_answer(text, format) if generation.finish == "end_of_turn" else None
        if answer not in verdicts:
            verdicts[answer] = grading.grade(answer, reference), grading.exact_match(answer, reference)
        correct, exact = verdicts[answer]
        row = {
            "problem_id": problem_id,
            "repeat": repeat,
            "answer": answer,
            "correct": correct,
            "exact": exact,
            "n_tokens": generation.n_tokens,
            "finish": generation.finish,
            "think_closed": prompts.think_closed(text, format),
            "text": text,
        }
        rows.append(row)
    return rows


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over samples; shares in [0, 1]. ValueError without a sample.

    avg: right by math verification; exact: right as a string; cut: stopped by the length limit; think_closed: reasoning
    closed; answered: finished with an extractable answer; tokens: generated tokens.
    """
    if not rows:
        raise ValueError("no sample was scored; look for an empty benchmark or a task without repeats")
    return {
        "avg": _mean(row["correct"] for row in rows),
        "exact": _mean(row["exact"] for row in rows),
        "cut": _mean(row["finish"] == "length" for row in rows),
        "think_closed": _mean(row["think_closed"] for row in rows),
        "answered": _mean(row["answer"] is not None for row in rows),
        "tokens": _mean(row["n_tokens"] for row in rows),
    }


def _mean(values: Iterator[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def count_samples(rows_of_problems: Sequence[Sequence[Row]]) -> int:
    """How many samples were scored (the task's aggregation of `samples`)."""
    return sum(len(rows) for rows in rows_of_problems)


def check_metrics(rows: Sequence[Row], harness: Mapping[str, Any]) -> dict[str, float]:
    """The metrics over all rows; RuntimeError where they are not what lm-eval got from its means over problems."""
    metrics = summarise(rows)
    for name, value in [*metrics.items(), ("samples", len(rows))]:
        theirs = harness.get(f"{name},{FILTER}")
        if theirs is None or not math.isclose(theirs, value, rel_tol=1e-9, abs_tol=1e-12):
            raise RuntimeError(
                f"{name}: {value} over all samples, but lm-eval reports {theirs}; a sample was lost or counted twice, "
                "so no score is written; use the lm-eval version of the lock"
            )
    return metrics


@contextlib.contextmanager
def _only_real_warnings() -> Iterator[None]:
    """lm-eval's warnings without its information lines and without its remark on how to pass metadata."""

    def is_real(record: logging.LogRecord) -> bool:
        return "Custom kwargs can be passed" not in record.getMessage()

    harness, tasks = logging.getLogger("lm_eval"), logging.getLogger("lm_eval.api.task")
    level = harness.level
    harness.setLevel(logging.WARNING)
    tasks.addFilter(is_real)
    try:
        yield
    finally:
        harness.setLevel(level)
        tasks.removeFilter(is_real)
