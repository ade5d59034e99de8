"""Trace sets and arms that are made of others, by the real stages on the shrunk demo's models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import Pipeline
from rsd.models import load_tokenizer
from rsd.provenance import file_digest
from rsd.records import ATTEMPTS, ROWS, read_provenance, read_table

pytestmark = pytest.mark.slow

CONFIG: dict[str, Any] = {
    "models": {"trained": {"like": "student", "source": "trained://rsd/3"}},
    "traces": {
        "teachers": {"like": "rsd", "method": "sample", "sampled": "teacher", "max_new_tokens": 80},
        "prefixes": {
            "like": "direct",
            "method": "select",
            "of": "direct",
            "select": {"solved": "prefix", "prefix_tokens": 6},
        },
        "filtered": {"method": "filter", "of": "direct"},
        "recoded": {"method": "recode", "of": "direct", "student": "teacher"},
        "again": {"like": "rsd", "student": "trained"},
    },
    "arms": {
        "teachers": {"model": "student", "traces": "teachers"},
        "prefixes": {"model": "student", "traces": "prefixes"},
        "filtered": {"model": "student", "traces": "filtered"},
        "recoded": {"model": "teacher", "traces": "recoded"},
        "again": {"model": "trained", "traces": "again"},
        "tokens": {"model": "student", "traces": "prefixes", "training": {"tokens_of": "direct"}},
    },
    "training": {"batch_size": 8, "micro_batch_size": 8},  # a filtered set has 12 rows
    "run": {"arms": ["base", "direct", "teachers", "prefixes", "filtered", "recoded", "again", "tokens"]},
}


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return read_table(folder / "traces" / name / "rows.parquet", ROWS).to_pylist()


def summary(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "traces" / name / "selection.json").read_text())


def training(folder: Path, arm: str, seed: int = 0) -> dict[str, Any]:
    return json.loads((folder / "trained" / f"{arm}-seed{seed}" / "training.json").read_text())


def test_every_kind_of_trace_set_and_arm_is_made_and_is_what_it_says(prepared: Pipeline) -> None:
    prepared.run("--cores", "2", "models", config=CONFIG)
    folder = prepared.folder / "results" / "pocket-tiny"
    models = {path.name.split("-")[1]: path for path in (prepared.folder / "results" / "models").iterdir()}
    student, teacher = (load_tokenizer(models[name]) for name in ("student", "teacher"))

    # What the teacher wrote stands there in the student's tokens.
    attempts = read_table(folder / "traces" / "teachers" / "shard-000.parquet", ATTEMPTS).to_pylist()
    assert all(row["tokens"] == student.encode(row["text"], add_special_tokens=False) for row in attempts)
    assert any(student.convert_tokens_to_ids("</think>") in row["tokens"] for row in attempts)

    direct = {row["problem_id"]: row for row in rows(folder, "direct")}
    prefixes = rows(folder, "prefixes")
    assert {row["kind"] for row in prefixes} == {"prefix"}
    assert all(row["completion_tokens"] == direct[row["problem_id"]]["completion_tokens"][:6] for row in prefixes)
    assert len(prefixes) == len(direct)

    kept = rows(folder, "filtered")
    assert len(kept) == round(len(direct) / 2)
    assert all(row == direct[row["problem_id"]] for row in kept)
    values = summary(folder, "filtered")["filter"]["values"]
    assert values["kept"]["p100"] <= values["all"]["p95"]

    recoded = rows(folder, "recoded")
    assert len(recoded) == len(direct), "the teacher has a token for every byte"
    for row in recoded:
        said = student.decode(direct[row["problem_id"]]["completion_tokens"])
        assert teacher.decode(row["completion_tokens"]) == said
        assert len(row["completion_tokens"]) == len(direct[row["problem_id"]]["completion_tokens"]) + 7

    # The second round's student is the first round's model.
    first = folder / "trained" / "rsd-seed3" / "manifest.json"
    for name in ("traces/again/shard-000.parquet", "traces/again/rows.parquet"):
        assert read_provenance(folder / name)["settings"]["inputs"]["student"] == file_digest(first)
    assert training(folder, "again")["provenance"]["settings"]["inputs"]["model"] == file_digest(first)
    assert not (folder / "trained" / "rsd-seed0").exists(), "no arm of this run"

    tokens, other = training(folder, "tokens"), training(folder, "direct")
    assert tokens["supervised_tokens"]["wanted"] == other["supervised_tokens"]["seen"]
    largest = max(entry["tokens"] for entry in tokens["curve"])
    assert abs(tokens["supervised_tokens"]["seen"] - tokens["supervised_tokens"]["wanted"]) <= largest / 2
    assert tokens["steps"] > other["steps"]


def test_a_set_in_another_vocabulary_is_refused_for_training_with_recode_as_the_remedy(prepared: Pipeline) -> None:
    config = {"arms": {"wrong": {"model": "teacher", "traces": "direct"}}, "run": {"arms": ["base", "wrong"]}}
    output = prepared.run("--cores", "1", "models", config=config, ok=False).stdout
    assert "holds token ids of another vocabulary" in output
    assert "method recode" in output
