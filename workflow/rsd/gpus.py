"""How many GPUs a job takes, from the configuration or from a job's slice of it: the only copy of that."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from rsd import config as settings_of
from rsd import lease, lineage
from rsd.config_schema import Config

# The stages that run a model on a GPU if there is one, and what tells one job of it from another. Pocket models are
# trained on the CPU.
STAGES = {
    "generate_traces": "traces",
    "derive_traces": "traces",
    "train": "arm",
    "evaluate": "arm",
    "analyse_tokens": "reader",
}


def gpus_of(config: Config, stage: str, name: str = "") -> int:
    """The GPUs that a job of `stage` takes where models run on GPUs; 0 for a stage, or trace set, that runs no model.

    `name`: a trace set, arm or reader (an entry of models, or arm-seedK), as in STAGES. KeyError where there is none.
    """
    if stage not in STAGES or config["device"] == "cpu":
        return 0
    if stage == "train":
        return settings_of.training_settings(config, name)["gpus"]
    if stage == "evaluate":
        return config["models"][config["arms"][name]["model"]]["gpus"]
    if stage == "analyse_tokens":
        model, seed = settings_of.split_reader(config, name)
        return config["models"][model if seed is None else config["arms"][model]["model"]]["gpus"]
    return max((config["models"][model]["gpus"] for model in _loaded(config["traces"][name], stage)), default=0)


def _loaded(traces: Mapping[str, Any], stage: str) -> list[str]:
    """The models whose weights a job of a trace set loads."""
    writers = lineage.writers(traces)
    match stage, traces["method"]:
        case "generate_traces", "rsd":
            return [traces["student"], *writers]
        case "generate_traces", "sample":
            return writers or [traces["student"]]
        case "derive_traces", "filter":
            return [traces["student"]]
    return []


def most_gpus(config: Config, jobs: Iterable[tuple[str, str]] | None = None) -> int:
    """The most GPUs that one of `jobs` (stage, name) takes, of all jobs of the run by default; 0 where none is used."""
    return max((gpus_of(config, *job) for job in (_jobs(config) if jobs is None else jobs)), default=0)


def _jobs(config: Config) -> list[tuple[str, str]]:
    nodes = lineage.needed(config)
    jobs = [(stage, name) for kind, name in nodes if kind == "traces" for stage in ("generate_traces", "derive_traces")]
    jobs += [("train", arm) for kind, arm in nodes if kind == "arms" and config["arms"][arm]["traces"]]
    jobs += [("evaluate", arm) for arm in config["run"]["arms"]]
    return jobs + [("analyse_tokens", reader) for _, reader in settings_of.token_analyses(config)]


@functools.cache
def _here() -> int:
    return len(lease.found()[0])


def jobs_here(config: Config) -> int:
    """How many jobs that run a model the GPUs of this machine are enough for; 1 where none is used."""
    return max(1, _here() // max(most_gpus(config), 1)) if config["device"] != "cpu" else 1


def gpus_wanted(command: str, settings: Mapping[str, Any]) -> int:
    """What `gpus_of` says, for `rsd COMMAND` with its slice of the configuration."""
    if command.replace("-", "_") not in STAGES or "gpus" not in settings:
        return 0
    gpus = settings["gpus"]
    return max(gpus.values()) if isinstance(gpus, Mapping) else gpus
