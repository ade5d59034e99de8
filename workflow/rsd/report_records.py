"""The report's view of the other stages' records: trainings, problems, sources, evaluations, environments.

A record or key that is not there shows as missing, never as an error.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsd.checksums import verify
from rsd.formatting import MISSING
from rsd.records import REMEDY

LOG = logging.getLogger(__name__)

Record = dict[str, Any]


def read_record(path: Path) -> Record:
    """A JSON record of a stage; empty where the file is missing, ValueError naming it where it is no JSON object."""
    try:
        verify(Path(path))
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        LOG.warning("%s is not there; its part of the report says so", path)
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no valid JSON ({error}); {REMEDY}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: expected a JSON object; {REMEDY}")
    return record


def trainings_view(trainings: Mapping[str, Record], answers: Record) -> list[Record]:
    """One entry a trained model: those of the run's arms in their order, then others that it needs as models."""
    entries = []
    trained = [name.rpartition("-seed")[0] for name in trainings]
    for arm in dict.fromkeys([*answers["arms"], *trained]):
        names = [name for name in trainings if name.rpartition("-seed")[0] == arm]
        for name in names:
            record = trainings[name]
            losses = [point["loss"] for point in record.get("curve", []) if point.get("loss") is not None]
            entries.append(
                {
                    "label": answers["arms"].get(arm, {}).get("label", arm),
                    "seed": name.rpartition("-seed")[2],
                    "first_loss": losses[0] if losses else None,
                    "last_loss": losses[-1] if losses else None,
                    "record": record,
                }
            )
    return entries


def overlap_view(record: Record) -> Record:
    """For each task the copies found and how many of its problems they touch; ids only, for some texts are not ours."""
    view: Record = {"method": record.get("method", {}), "tasks": {}, "pairs": []}
    for task, found in record.get("tasks", {}).items():
        exact, near = found.get("exact", []), found.get("near", [])
        touched = len({pair[1] for pair in [*exact, *near]})
        view["tasks"][task] = {"n_problems": found.get("n_problems"), "exact": exact, "near": near, "touched": touched}
        pairs = [*[(*pair[:2], None) for pair in exact], *near]
        view["pairs"] += [
            {"task": task, "problem": mine, "other": other, "score": score} for mine, other, score in pairs
        ]
    return view


def source_view(name: str, record: Record, config: Record) -> Record:
    """A model or dataset: where it came from, its size and files."""
    kind, _, entry = name.partition("/")
    files = record.get("files", {})
    return {
        "kind": kind.removesuffix("s"),
        "name": entry,
        "source": record.get("source") or config.get(kind, {}).get(entry, {}).get("source"),
        "revision": record.get("revision"),
        "licence": record.get("licence"),
        "bytes": sum(file.get("size", 0) for file in files.values()) if files else None,
        "files": files,
        "there": bool(record),
    }


def evaluation_view(scores: Mapping[str, Record]) -> Record:
    """Versions, backends and cost of all evaluations together."""
    there = [record for record in scores.values() if record]
    seconds = [record["seconds"] for record in there if record.get("seconds") is not None]
    tokens = [record["tokens"] for record in there if record.get("tokens") is not None]
    return {
        "count": len(there),
        "of": len(scores),
        "seconds": sum(seconds) if seconds else None,
        "tokens": sum(tokens) if tokens else None,
        "backends": sorted({str(record["backend"]) for record in there if record.get("backend")}),
        "lm_eval": sorted({str(record.get("lm_eval", {}).get("version", MISSING)) for record in there}),
        "task_versions": {
            name.split("/")[-1]: record.get("lm_eval", {}).get("task_version")
            for name, record in scores.items()
            if record
        },
    }


def runs_view(records: Mapping[str, Any], answers: Record) -> list[Record]:
    """With what the stages ran: one entry for each distinct commit, set of versions and machine."""
    stamped = [("compare", answers), ("problems", records["problems"]), ("overlap", records["overlap"])]
    for stage, kind in (
        ("select", "selections"),
        ("train", "trainings"),
        ("evaluate", "scores"),
        ("make", "manifests"),
    ):
        stamped += [(f"{stage} {name}", record) for name, record in records[kind].items()]
    runs: dict[str, Record] = {}
    for stage, record in stamped:
        provenance = record.get("provenance")
        run = provenance.get("run") if isinstance(provenance, dict) else None
        if not isinstance(run, dict):
            continue
        fixed = {key: run.get(key) for key in ("commit", "python", "packages", "machine", "gpu")}
        entry = runs.setdefault(json.dumps(fixed, sort_keys=True), fixed | {"stages": [], "finished": None})
        entry["stages"].append(stage)
        entry["finished"] = max(filter(None, (entry["finished"], run.get("finished_unix"))), default=None)
    return list(runs.values())


def byline(runs: list[Record]) -> Record:
    """When the last of `runs` finished, and the commits of all, short, a changed checkout marked as such."""
    commits = dict.fromkeys(
        "no checkout" if run["commit"] is None else run["commit"][:12] + "-dirty" * run["commit"].endswith("-dirty")
        for run in runs
    )
    finished = [run["finished"] for run in runs if run["finished"] is not None]
    return {"finished": max(finished, default=None), "commits": list(commits)}
