"""Which sources decide the numbers of which stage: the only copy of that list.

Snakemake passes `stage_code(stage)` to every job as a parameter, so that an edited module reruns the stages that depend
on it and no others. Imports nothing heavy, since it is called while the workflow is parsed. What is missing here on
purpose: the plumbing (config, logging, files, journals), whose edits change no number, and the prefetch stages, whose
result is decided by revision and hash.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from rsd.provenance import PACKAGE, code_digest

# Modules of this package that no stage's numbers depend on.
PLUMBING = (
    "__init__",
    "access",
    "bench",
    "bench_command",
    "checksums",
    "cli",
    "clock",
    "clusters",
    "config",
    "config_checks",
    "config_schema",
    "costs",
    "dequantise",
    "download",
    "emulation",
    "estimate",
    "exclusive",
    "gpus",
    "graphs",
    "interruption",
    "journal",
    "launch",
    "lease",
    "lineage",
    "manifest",
    "memory",
    "needs",
    "package",
    "people",
    "planning",
    "power",
    "progress",
    "projection",
    "provenance",
    "records",
    "runtime",
    "schedule",
    "shapes",
    "sizes",
    "sources",
    "speeds",
    "split",
    "stages",
    "supervise",
    "web",
    "workload",
)

# What a generated token depends on; which schedule made it, and on how many lanes, is not part of that.
DECODER = (
    "attention",
    "attention_triton",
    "decode",
    "fused",
    "lanes",
    "law",
    "models",
    "packing",
    "prompts",
    "streams",
    "vocabulary",
)
_DATA = ("data", "grading", "models", "prompts")
_COMPARE = ("compare", "grading", "metrics", "question", "scores", "significance", "statistics")

STAGE_MODULES: dict[str, tuple[str, ...]] = {
    "prefetch_model": (),
    "prefetch_dataset": (),
    "make_pocket_model": ("pocket",),
    "make_pocket_dataset": ("pocket",),
    "prepare_problems": _DATA,
    "prepare_benchmark": _DATA,
    "measure_overlap": ("overlap",),
    "generate_traces": ("traces", "recoding", *DECODER),
    "convert_traces": _DATA,
    "select_traces": ("selection", "counting", "grading", "models", "prompts"),
    "derive_traces": ("derived", "recoding", "scoring", "counting", "training_rows", "models", "prompts"),
    "train": ("train", "sharded", "checkpoints", "training_rows", "training_steps", "models"),
    "analyse_tokens": ("tokens", "token_summary", "scoring", "pieces", "models", "vocabulary"),
    "evaluate": ("evaluate", "lm", "backends", "samples", "grading", *DECODER),
    "judge_samples": ("judge",),
    "collect_scores": ("collect", "samples", "grading", "prompts"),
    "compare": _COMPARE,
    "report": (
        "report",
        "report_costs",
        "report_distributions",
        "report_explorer",
        "report_figures",
        "report_pages",
        "report_records",
        "report_result",
        "report_tables",
        "report_tokens",
        "report_traces",
        *_COMPARE,
        "distributions",
        "figures",
        "formatting",
        "notes",
    ),
    "write_config": (),
}

# Files beside the modules, below workflow/; {task} is the benchmark's name.
_STAGE_FILES: dict[str, tuple[str, ...]] = {
    "train": ("rsd/fsdp.yaml",),
    "evaluate": ("tasks/generic.yaml", "tasks/{task}.yaml"),
    "report": ("rsd/templates/*",),
}


def stage_code(stage: str, task: str = "") -> str:
    """16 hex digits over the sources that decide the numbers of `stage` (of `task`, for evaluate).

    Raises KeyError for an unknown stage, FileNotFoundError for a module that does not exist.
    """
    digest = hashlib.sha256(code_digest(STAGE_MODULES[stage]).encode())
    for path in _files(stage, task):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _files(stage: str, task: str) -> list[Path]:
    patterns = [pattern.format(task=task) for pattern in _STAGE_FILES.get(stage, ())]
    return sorted(path for pattern in patterns for path in PACKAGE.parent.glob(pattern) if path.is_file())
