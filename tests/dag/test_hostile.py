"""Hostile text in a configuration or a folder's name is never run; secrets of the environment are never written."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from pipelines import ROOT, Pipeline, overlay
from rsd import config as settings_of
from rsd import config_schema

# What a shell, Snakemake's formatting, a glob or YAML would make something of.
HOSTILE = (
    "{question}{response} $(touch HACKED) `touch HACKED` '; touch HACKED; ' \" {wildcards.arm} {{x}} a*b? ~ & | > "
    "\\n \n<&> ÄÖ 😀"
)
ADDRESS = "http://localhost:1/$(touch${IFS}HACKED)`touch${IFS}HACKED`';touch${IFS}HACKED;'\"{x}"
# A run that reaches every stage that takes free text.
RUN: dict[str, Any] = {
    "run": {"arms": ["base", "direct"], "tasks": ["math500"], "seeds": [0]},
    "analysis": {"before": False, "after": False},
    "evaluation": {"judge": {"url": "http://localhost:1/v1", "model": "judge"}},
    "question": {"text": "?", "comparisons": None},
    "jobs_at_once": 4,
}
SECRETS = {
    "HF_TOKEN": "hf_canaryCanaryCanaryOne",
    "HUGGING_FACE_HUB_TOKEN": "hf_canaryCanaryCanaryTwo",
    "OPENAI_API_KEY": "sk-canaryCanaryThree",
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARYFOUR",
    "AWS_SECRET_ACCESS_KEY": "canaryCanaryCanaryFive",
    "SLURM_JWT": "canaryCanaryCanarySix",
    "PIP_INDEX_URL": "https://someone:canaryCanaryCanarySeven@localhost:1/simple",
}


def strings(schema: dict[str, Any], node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where the schema allows text that is none of a few words; `*` is any entry of a catalogue, `[]` of a list."""
    node = dict(config_schema._resolve(schema, node))
    if "string" in str(node.get("type")) and "enum" not in node:
        yield path
    for name, child in node.get("properties", {}).items():
        yield from strings(schema, child, (*path, name))
    for mark, key in (("*", "additionalProperties"), ("[]", "items")):
        if isinstance(node.get(key), dict):
            yield from strings(schema, node[key], (*path, mark))
    for kind in ("anyOf", "oneOf"):
        for child in node.get(kind, []):
            yield from strings(schema, child, path)


def nested(path: tuple[str, ...], value: Any) -> Any:
    for part in reversed(path):
        value = [value] if part == "[]" else {part: value}
    return value


# Which entry of a catalogue gets the text: one that the run uses.
ENTRIES = {"models": "student", "prompts": "boxed", "datasets": "math500", "traces": "rsd", "arms": "base"}
ENTRIES |= {"profiles": "paper", "tasks": "math500"}


def test_text_of_every_key_is_refused_or_reaches_its_stage_unchanged_and_is_never_run(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = config_schema.load_schema()
    monkeypatch.setattr(settings_of, "load_schema", functools.cache(lambda: schema))
    base = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    taken: dict[str, Any] = {}
    refused = set()
    for path in dict.fromkeys(strings(schema, schema)):
        place = tuple(ENTRIES[path[0]] if part == "*" else part for part in path)
        key = ".".join(path)
        text = {"source": f"path:{HOSTILE} {key}".replace("\n", ""), "url": ADDRESS}.get(path[-1], f"{HOSTILE} {key}")
        try:
            settings_of.validate(overlay(base, RUN, nested(place, text)))
        except ValueError:
            refused.add(key)
        else:
            taken[key] = (nested(place, text), text)
    # Names of entries and of variables. Whoever adds a key that takes free text finds it in the run below.
    free = {"title", "mirror", "models.*.source", "prompts.*", "format.end_of_turn", "datasets.*.files"}
    free |= {"evaluation.judge.url", "evaluation.judge.model", "arms.*.label", "question.text"}
    assert free <= taken.keys()
    assert {"experiment", "models.*.prompt", "traces.*.of", "run.arms.[]", "evaluation.judge.key_variable"} <= refused
    # A folder may be called anything, too.
    folder = pipeline.folder.with_name("it's $(touch HACKED); `touch HACKED` {x} ä")
    folder.mkdir()
    hostile = Pipeline(folder, environment=SECRETS)
    whole = overlay(RUN, *(change for change, _ in taken.values()))
    output = hostile.run("--cores", "4", "--printshellcmds", "--verbose", config=whole).stdout
    assert not list(folder.parent.rglob("HACKED"))
    calls = [json.loads(line) for line in (folder / "calls.jsonl").read_text(encoding="utf-8").splitlines()]
    sent = [json.loads(call[call.index("--settings") + 1]) for call in calls if "--settings" in call]
    reached = {text for settings in sent for text in every_text(settings)}
    assert {key for key, (_, text) in taken.items() if text not in reached} == set()
    # What Snakemake says and keeps of a run holds commands and settings, and nothing of the environment.
    written = output.encode() + b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert [name for name, secret in SECRETS.items() if secret.encode() in written] == []


def every_text(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from every_text(child)
