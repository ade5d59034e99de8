"""Evaluation: one model on one share of a benchmark, through lm-evaluation-harness with task files of our own.

Model folder, benchmark (JSONL: id, question, answer, solution) -> every sample (Parquet, SAMPLES); `rsd.collect` joins
the shares. lm-eval asks the model and calls the scoring; prompt, answer extraction and grading are those of traces and
training. Samples that are done are kept in `work` and not made again. By hand: `rsd evaluate --help`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsd import prompts
from rsd.config import NOT_DECIDING
from rsd.journal import Journal
from rsd.manifest import MANIFEST, verify_manifest
from rsd.provenance import code_digest, file_digest, settings_digest, stamp
from rsd.records import REMEDY, SAMPLES, read_jsonl, write_table
from rsd.runtime import choose_device, set_threads, sharers
from rsd.samples import Row, check_metrics
from rsd.stages import DECODER

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask

    from rsd.lm import SampledLM

LOG = logging.getLogger(__name__)
TASKS = Path(__file__).parents[1] / "tasks"
# The modules that decide what a sample is, by backend; grading is done anew in every run.
SAMPLE_CODE = {
    "rsd": ("lm", *DECODER),
    "transformers": ("lm", "backends", *DECODER),
    "vllm": ("lm", "backends", "models", "prompts", "streams"),
}
# Settings without influence on a sample: more repeats, other lanes or shards go on with what is there.
NOT_IN_SAMPLE = ("repeats", "shards", *NOT_DECIDING)


def run_evaluate(
    *,
    model: Path,
    benchmark: Path,
    settings: dict[str, Any],
    shard: int,
    threads: int,
    samples: Path,
    work: Path,
) -> None:
    """Evaluates the model folder `model` on the problems number shard, shard + shards, ... of `benchmark`.

    Writes `samples` (Parquet, SAMPLES, by problem and repeat; empty where there are fewer problems than shards).
    `settings` is `config.evaluation_settings(...)`. Raises FileNotFoundError for an incomplete model folder, ValueError
    for a benchmark without problems and for prompts that do not fit the context.
    """
    start = time.monotonic()
    os.environ.setdefault("TQDM_DISABLE", "1")  # no bars in log files; read when tqdm is imported
    shards, task = settings["shards"], settings["task"]
    if not 0 <= shard < shards:
        raise ValueError(f"--shard {shard}: expected 0 to {shards - 1}, for tasks.{task}.shards = {shards}")
    verify_manifest(model, deep=False)
    set_threads(threads)
    path = journal_path(work, model, benchmark, settings, shard)
    rows: list[Row] = []
    facts: dict[str, Any] = {"task_version": None, "resumed_samples": 0}
    if problems := read_benchmark(benchmark)[shard::shards]:
        with Journal(path) as journal:
            lm = load_lm(model, settings, journal, other_journals(path, shards))
            results = run_harness(lm, benchmark, settings, shard)
        rows = [row for document in results["samples"][task] for row in document["samples"]]
        metrics = check_metrics(rows, results["results"][task])
        facts = {"task_version": results["versions"][task], "resumed_samples": lm.resumed}
        LOG.info(
            "%s: %.2f %% correct (%d problems x %d), %.1f %% cut, %.1f %% without an answer, %.0f tokens a sample",
            *(task, 100 * metrics["avg"], len(problems), settings["repeats"]),
            *(100 * metrics["cut"], 100 - 100 * metrics["answered"], metrics["tokens"]),
        )
    else:
        LOG.info("%s: fewer problems than shards, so there is none for shard %d", task, shard)
    files = {path.stem: path for path in task_files(task)}
    provenance = stamp(settings, {"model": model, "benchmark": benchmark, **files}, settings["seed"])
    # Of this run alone; samples of an earlier, interrupted run are not in its seconds.
    facts |= {"lm_eval": importlib.metadata.version("lm_eval"), "seconds": round(time.monotonic() - start, 3)}
    write_table(samples, rows, SAMPLES, {**provenance, "evaluation": facts})
    # The samples stay for another grading; those of earlier settings go.
    for other in set(path.parent.parent.glob("*")) - {path.parent}:
        shutil.rmtree(other, ignore_errors=True)


def journal_path(work: Path, model: Path, benchmark: Path, settings: Mapping[str, Any], shard: int = 0) -> Path:
    """Where finished samples are kept: in a folder named by all that decides them, so that no other run's can be taken.

    Every shard has a file of its own in it, since one process at a time may write a journal.
    """
    decisive = {key: value for key, value in settings.items() if key not in NOT_IN_SAMPLE}
    code = code_digest(SAMPLE_CODE[settings["backend"]])
    parts = [decisive, file_digest(model / MANIFEST), file_digest(benchmark), code]
    return work / settings["task"] / settings_digest(parts) / f"shard-{shard:03d}-of-{settings['shards']:03d}.jsonl"


def other_journals(path: Path, shards: int) -> list[Path]:
    """The journals beside `path` of runs that were split into another number of shards: they may hold its samples.

    Those of the same split hold other problems.
    """
    return sorted(set(path.parent.glob("*.jsonl")) - set(path.parent.glob(f"*-of-{shards:03d}.jsonl")))


def load_lm(model: Path, settings: Mapping[str, Any], journal: Journal | None, others: Sequence[Path] = ()) -> Any:
    """The model behind lm-eval's interface (`lm.SampledLM`), by the backend of the settings."""
    from rsd.lm import RsdLM

    kind: Callable[..., SampledLM] = RsdLM
    if settings["backend"] != "rsd":
        from rsd.backends import TransformersLM, VllmLM

        kind = {"transformers": TransformersLM, "vllm": VllmLM}[settings["backend"]]
    device = choose_device(settings["device"])
    return kind(
        model,
        dtype=settings["model"]["dtype"],
        device=device,
        batch_size=settings["lanes"],
        max_length=settings["context"],
        end_of_turn=settings["format"]["end_of_turn"],
        seed=settings["seed"],
        sharers=sharers(device, settings["jobs_at_once"]),
        gpus=settings["gpus"],
        journal=journal,
        others=others,
    )


def run_harness(lm: LM, benchmark: Path, settings: Mapping[str, Any], shard: int = 0) -> dict[str, Any]:
    """Runs lm-eval with any of its models; returns its results, `samples` included.

    Calls `evaluate`, not `simple_evaluate`: that one seeds the global generators and spends seconds on a description of
    the machine that our stamp has already.
    """
    import lm_eval

    with _only_real_warnings():
        task = load_task(benchmark, settings, shard)
        results = lm_eval.evaluate(lm, {"tasks": {settings["task"]: task}}, bootstrap_iters=0, log_samples=True)
    if results is None:
        raise RuntimeError("lm-eval returned no results, as it does in all but the first process of a group; use one")
    return dict(results)


# --- the task ------------------------------------------------------------------------------------------------------


def task_files(task: str) -> list[Path]:
    """The task file of a benchmark and what it includes; a benchmark without a file of its own uses the generic one."""
    own, generic = TASKS / f"{task}.yaml", TASKS / "generic.yaml"
    return [own, generic] if own.exists() and own != generic else [generic]


def load_task(benchmark: Path, settings: Mapping[str, Any], shard: int = 0) -> ConfigurableTask:
    """The lm-eval task over one share of `benchmark`, with prompt, sampling and repeats of the settings."""
    from lm_eval.tasks import TaskManager

    path = task_files(settings["task"])[0]
    # What the task's functions get to know; lm-eval passes metadata to `custom_dataset`.
    metadata: dict[str, Any] = {
        "benchmark": str(benchmark),
        "prompt": settings["model"]["prompt"],
        "format": settings["format"],
        "shard": shard,
        "shards": settings["shards"],
    }
    # The harness's own thousands of task files stay unread.
    manager = TaskManager(include_defaults=False, metadata=metadata)
    (task,) = manager.load([str(path)])["tasks"].values()
    task.set_config("task", settings["task"])
    task.set_config("repeats", settings["repeats"])
    task.set_config("generation_kwargs", settings["sampling"], update=True)
    return task


def load_problems(
    benchmark: str, prompt: str, format: Mapping[str, Any], shard: int = 0, shards: int = 1, **_: Any
) -> dict[str, Any]:
    """The documents of a task (its `custom_dataset`): {"test": Dataset of id, prompt, answer, format}.

    The prompt is rendered here, by the code that traces use, and lm-eval takes the column as it is. A reference
    solution is never shown. Errors as `read_benchmark`.
    """
    from datasets import Dataset

    documents = [
        {
            "id": problem["id"],
            "prompt": prompts.render(prompt, problem["question"]),
            "answer": problem["answer"],
            "format": dict(format),
        }
        for problem in read_benchmark(Path(benchmark))[shard::shards]
    ]
    return {"test": Dataset.from_list(documents)}


def read_benchmark(path: Path) -> list[dict[str, Any]]:
    """A benchmark's problems.

    ValueError for one without problems, for problems without id, question or answer, and for two of one id: they would
    share their random numbers.
    """
    problems = read_jsonl(path)
    if not problems:
        raise ValueError(f"{path} has no problems, so there is nothing to score; {REMEDY}")
    for name in ("id", "question", "answer"):
        if missing := [number for number, problem in enumerate(problems, start=1) if not problem.get(name)]:
            raise ValueError(f"{path}, line {missing[0]}: no {name}; expected id, question, answer; {REMEDY}")
    if len({problem["id"] for problem in problems}) < len(problems):
        raise ValueError(f"{path} holds two problems of the same id; {REMEDY}")
    return problems


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
